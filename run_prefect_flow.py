"""The master flow, which runs every ETL flow; to add one, import it and register it below."""

from typing import Any

from prefect import Flow, State, flow
from prefect.states import Completed, Failed

from ca_biositing.pipeline.etl.load import LoadCounts
from ca_biositing.pipeline.flows.analysis_type import analysis_type_flow
from ca_biositing.pipeline.flows.primary_product import primary_product_flow

AVAILABLE_FLOWS: dict[str, Flow[[], LoadCounts]] = {
    "primary_product": primary_product_flow,
    "analysis_type": analysis_type_flow,
}


@flow(name="Master ETL Flow")
def master_flow() -> State[Any]:
    """Run all of ``AVAILABLE_FLOWS``, in order, each whatever became of those before it.

    Ends Failed if any of them did, with a message that names each and why, otherwise Completed
    with each one's counts.
    """
    done: dict[str, LoadCounts] = {}
    failures: list[str] = []
    for name, sub_flow in AVAILABLE_FLOWS.items():
        state = sub_flow(return_state=True)
        if state.is_completed():
            done[name] = state.result()
        else:
            reason = state.result(raise_on_failure=False) or state.message
            failures.append(f"{name}: {reason}")
    if failures:
        return Failed(message=f"{len(failures)} of {len(AVAILABLE_FLOWS)} flows failed. " + " | ".join(failures))
    return Completed(message="; ".join(f"{name}: {counts}" for name, counts in done.items()), data=done)
