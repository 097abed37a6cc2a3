"""The experiments: analysis type, start date and analyst."""

from prefect import State, flow

from ca_biositing.datamodels.models import AnalysisType, Experiment
from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.fields import Date, Name, Reference, Text
from ca_biositing.pipeline.etl.run import Accounting
from ca_biositing.pipeline.flows.load import load
from ca_biositing.pipeline.flows.sheets import AIM_1

EXPERIMENTS = Dataset(
    name="experiment",
    sheet=AIM_1,
    worksheets="03.0-Experiments",
    columns={
        "Exper_id": Name("name"),
        "Analysis_type": Reference("analysis_type_id", AnalysisType),
        "Exper_start_date": Date("start_date"),
        "Analyst": Text("analyst"),
    },
    model=Experiment,
)


@flow(name=EXPERIMENTS.name)
def experiment_flow() -> State[Accounting]:
    """Load the experiments into ``experiment``; ``analysis_types`` must already contain their analysis types."""
    return load(EXPERIMENTS)
