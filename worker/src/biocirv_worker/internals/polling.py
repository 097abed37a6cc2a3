"""Prefect's process worker, with a context manager around its request for scheduled flow runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from prefect.workers.process import ProcessWorker

if TYPE_CHECKING:
    from prefect.client.schemas.responses import WorkerFlowRunResponse


class PollingWorker(ProcessWorker):
    """A process worker that requests scheduled flow runs within ``polling()``."""

    @classmethod
    def __dispatch_key__(cls) -> str:
        """Return a name of its own, so that Prefect's worker of the same type stays registered."""
        return f"biocirv {cls.__name__}"

    def polling(self) -> AbstractContextManager[object]:
        """Return the context manager for one request."""
        return nullcontext()

    async def _get_scheduled_flow_runs(self) -> list[WorkerFlowRunResponse]:
        with self.polling():
            return await super()._get_scheduled_flow_runs()
