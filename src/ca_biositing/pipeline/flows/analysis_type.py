"""The kinds of analysis that experiments perform."""

from prefect import State, flow

from ca_biositing.datamodels.models import AnalysisType
from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.fields import Name
from ca_biositing.pipeline.etl.run import Accounting
from ca_biositing.pipeline.flows.load import load
from ca_biositing.pipeline.flows.sheets import AIM_1

ANALYSIS_TYPES = Dataset(
    name="analysis_type",
    sheet=AIM_1,
    worksheets="03.0-Experiments",
    columns={"Analysis_type": Name("name")},
    model=AnalysisType,
)


@flow(name=ANALYSIS_TYPES.name)
def analysis_type_flow() -> State[Accounting]:
    """Load the distinct analysis types of all experiments into ``analysis_types``."""
    return load(ANALYSIS_TYPES)
