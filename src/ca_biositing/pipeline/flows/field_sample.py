"""The field samples, as collected."""

from decimal import Decimal

from prefect import State, flow

from ca_biositing.datamodels.models import FieldSample, PrimaryProduct
from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.fields import Code, Date, Name, Number, Reference, Text
from ca_biositing.pipeline.etl.run import Accounting
from ca_biositing.pipeline.flows.load import load
from ca_biositing.pipeline.flows.sheets import AIM_1

FIELD_SAMPLES = Dataset(
    name="field_sample",
    sheet=AIM_1,
    worksheets="01-BasicSampleInfo",
    columns={
        "Sample_name": Name("name"),
        "Resource": Name("residue"),
        "Primary_crop": Reference("primary_product_id", PrimaryProduct),
        "Provider_code": Code("provider_code"),
        "County": Text("county"),
        "Collection_date": Date("collection_date"),
        "Sample_amount_kg": Number("amount_kg", minimum=Decimal(0)),
    },
    model=FieldSample,
)


@flow(name=FIELD_SAMPLES.name)
def field_sample_flow() -> State[Accounting]:
    """Load the samples into ``field_sample``; ``primary_product`` must already contain their crops."""
    return load(FIELD_SAMPLES)
