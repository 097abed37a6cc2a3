"""The primary products (crops) that the collected samples come from."""

from prefect import flow
from prefect.logging import get_run_logger

from ca_biositing.datamodels.database import engine_from_environment
from ca_biositing.datamodels.models import PrimaryProduct
from ca_biositing.pipeline.etl.extract import extract_column
from ca_biositing.pipeline.etl.load import LoadCounts, load_names
from ca_biositing.pipeline.etl.transform import distinct_names
from ca_biositing.pipeline.sources import source_from_environment

SHEET = "Aim 1-Feedstock Collection and Processing Data-BioCirV"
WORKSHEET = "01-BasicSampleInfo"
COLUMN = "Primary_crop"


@flow(name="primary_product")
def primary_product_flow() -> LoadCounts:
    """Load the distinct primary crops of all samples into ``primary_product``."""
    cells = extract_column(source_from_environment(), SHEET, WORKSHEET, COLUMN)
    counts = load_names(engine_from_environment(), PrimaryProduct, distinct_names(cells))
    get_run_logger().info("primary_product: %s", counts)
    return counts
