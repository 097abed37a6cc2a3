"""The flow runs of a master run, as the server has them."""

import time
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun

from run_prefect_flow import AVAILABLE_FLOWS

RECORDED_SECONDS = 30


def sub_flow_runs(client: SyncPrefectClient, master: UUID) -> list[FlowRun]:
    """Return the runs of all sub-flows.

    The server finds them by their task runs, which it records some time after they happened.
    """
    family = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[master]))
    deadline = time.monotonic() + RECORDED_SECONDS
    while len(runs := client.read_flow_runs(flow_run_filter=family)) < len(AVAILABLE_FLOWS):
        assert time.monotonic() < deadline, f"only {len(runs)} sub-flow runs"
        time.sleep(0.1)
    return runs
