"""The values that experiments measured on samples, one value per row."""

from prefect import State, flow

from ca_biositing.datamodels.models import Experiment, FieldSample, Observation
from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.fields import Count, Name, Number, Reference, Text
from ca_biositing.pipeline.etl.run import Accounting
from ca_biositing.pipeline.flows.load import load
from ca_biositing.pipeline.flows.sheets import AIM_1

OBSERVATIONS = Dataset(
    name="observation",
    sheet=AIM_1,
    worksheets="03.[1-9]*-*",
    columns={
        "Sample_name": Reference("field_sample_id", FieldSample),
        "Exper_id": Reference("experiment_id", Experiment),
        "Parameter": Name("parameter"),
        # Not case-folded: mW is not MW.
        "Unit": Text("unit"),
        "Value": Number("value"),
        "Replicate": Count("replicate"),
    },
    model=Observation,
)


@flow(name=OBSERVATIONS.name)
def observation_flow() -> State[Accounting]:
    """Load all worksheets of measurements into ``observation``; their samples and experiments must be loaded."""
    return load(OBSERVATIONS)
