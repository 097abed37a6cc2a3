"""The kinds of analysis that the experiments do."""

from prefect import flow
from prefect.logging import get_run_logger

from ca_biositing.datamodels.database import engine_from_environment
from ca_biositing.datamodels.models import AnalysisType
from ca_biositing.pipeline.etl.extract import extract_column
from ca_biositing.pipeline.etl.load import LoadCounts, load_names
from ca_biositing.pipeline.etl.transform import distinct_names
from ca_biositing.pipeline.sources import source_from_environment

SHEET = "Aim 1-Feedstock Collection and Processing Data-BioCirV"
WORKSHEET = "03.0-Experiments"
COLUMN = "Analysis_type"


@flow(name="analysis_type")
def analysis_type_flow() -> LoadCounts:
    """Load the distinct analysis types of all experiments into ``analysis_types``."""
    cells = extract_column(source_from_environment(), SHEET, WORKSHEET, COLUMN)
    counts = load_names(engine_from_environment(), AnalysisType, distinct_names(cells))
    get_run_logger().info("analysis_types: %s", counts)
    return counts
