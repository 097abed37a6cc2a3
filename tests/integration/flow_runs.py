"""The flow runs of a master run, as the server records them."""

from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun

from run_prefect_flow import AVAILABLE_FLOWS
from tests import limits


def sub_flow_runs(client: SyncPrefectClient, master: UUID) -> list[FlowRun]:
    """Return the runs of all sub-flows.

    The server finds them by their task runs, which it records with a delay.
    """
    family = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[master]))

    def all_runs() -> list[FlowRun]:
        runs = client.read_flow_runs(flow_run_filter=family)
        return runs if len(runs) >= len(AVAILABLE_FLOWS) else []

    return limits.wait_until(all_runs, f"{len(AVAILABLE_FLOWS)} sub-flow runs are recorded", limits.ANSWER)
