"""The master flow, which runs every ETL flow; to add one, import it and register it below."""

from typing import Any

from prefect import Flow, State, flow, tags
from prefect.states import Failed

from ca_biositing.datamodels.database import SettingsError
from ca_biositing.pipeline.etl.rejection_limits import check_limits
from ca_biositing.pipeline.etl.run import Accounting
from ca_biositing.pipeline.flows.analysis_type import analysis_type_flow
from ca_biositing.pipeline.flows.experiment import experiment_flow
from ca_biositing.pipeline.flows.field_sample import field_sample_flow
from ca_biositing.pipeline.flows.master import end
from ca_biositing.pipeline.flows.observation import observation_flow
from ca_biositing.pipeline.flows.primary_product import primary_product_flow

# In dependency order: a flow follows those that load the records that it refers to.
AVAILABLE_FLOWS: dict[str, Flow[[], State[Accounting]]] = {
    "primary_product": primary_product_flow,
    "analysis_type": analysis_type_flow,
    "field_sample": field_sample_flow,
    "experiment": experiment_flow,
    "observation": observation_flow,
}

__all__ = ["AVAILABLE_FLOWS", "master_flow"]


@flow(name="Master ETL Flow")
def master_flow() -> State[Any]:
    """Run all of ``AVAILABLE_FLOWS``, in order, each even if an earlier one failed.

    Ends Failed if any of them failed, with a message that names the failed flows by each reason, otherwise Completed
    with each flow's accounting. Fails before the first flow if ETL_REJECTED_LIMITS is malformed.
    """
    try:
        check_limits(AVAILABLE_FLOWS)
    except SettingsError as error:
        return Failed(message=f"{error}. No flow was run")
    states: dict[str, State[Any]] = {}
    for name, sub_flow in AVAILABLE_FLOWS.items():
        with tags("etl", name):
            states[name] = sub_flow(return_state=True)
    return end(states)
