"""Prefect's process worker, with context managers around its request for flow runs and what it does for each."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from prefect.settings import PREFECT_WORKER_PREFETCH_SECONDS
from prefect.workers.process import ProcessWorker

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import WorkerFlowRunResponse


class PollingWorker(ProcessWorker):
    """A process worker that requests scheduled flow runs within ``polling()``.

    It starts and cancels each within ``tolerating()``: an error that escaped there would end Prefect's worker.
    """

    @classmethod
    def __dispatch_key__(cls) -> str:
        """Return a name of its own, so that Prefect's worker of the same type stays registered."""
        return f"biocirv {cls.__name__}"

    def polling(self) -> AbstractContextManager[object]:
        """Return the context manager for one request."""
        return nullcontext()

    def tolerating(self, what: str) -> AbstractContextManager[bool | None]:
        """Return a context manager that suppresses errors; ``what`` says what did not happen."""
        raise NotImplementedError(what)

    def look_ahead(self, seconds: float) -> None:
        """Request flow runs that are due later than Prefect's setting says, because this host's clock is slow."""
        self._prefetch_seconds: float = PREFECT_WORKER_PREFETCH_SECONDS.value() + seconds

    async def _get_scheduled_flow_runs(self) -> list[WorkerFlowRunResponse]:
        with self.polling():
            return await super()._get_scheduled_flow_runs()

    async def _submit_run(self, flow_run: FlowRun) -> None:
        with self.tolerating(f"Flow run {flow_run.name} ({flow_run.id}) was not started"):
            await super()._submit_run(flow_run)
            return
        # The next request finds it again.
        self._submitting_flow_run_ids.discard(flow_run.id)
        self._release_limit_slot(flow_run.id)

    async def _cancel_run(self, flow_run_id: UUID) -> None:
        with self.tolerating(f"Flow run {flow_run_id} was not cancelled"):
            await super()._cancel_run(flow_run_id)
