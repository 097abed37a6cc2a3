"""The primary products (crops) that the collected samples come from."""

from prefect import State, flow

from ca_biositing.datamodels.models import PrimaryProduct
from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.fields import Name
from ca_biositing.pipeline.etl.run import Accounting
from ca_biositing.pipeline.flows.load import load
from ca_biositing.pipeline.flows.sheets import AIM_1

PRIMARY_PRODUCTS = Dataset(
    name="primary_product",
    sheet=AIM_1,
    worksheets="01-BasicSampleInfo",
    columns={"Primary_crop": Name("name")},
    model=PrimaryProduct,
)


@flow(name=PRIMARY_PRODUCTS.name)
def primary_product_flow() -> State[Accounting]:
    """Load the distinct primary crops of all samples into ``primary_product``."""
    return load(PRIMARY_PRODUCTS)
