"""Prefect's process worker, with its question for flow runs surrounded by a context."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from prefect.workers.process import ProcessWorker

if TYPE_CHECKING:
    from prefect.client.schemas.responses import WorkerFlowRunResponse


class PollingWorker(ProcessWorker):
    """A process worker that asks for flow runs within ``polling()``."""

    @classmethod
    def __dispatch_key__(cls) -> str:
        """Leave Prefect's own worker of this type registered as what it is."""
        return f"biocirv {cls.__name__}"

    def polling(self) -> AbstractContextManager[object]:
        """Return the context for one question."""
        return nullcontext()

    async def _get_scheduled_flow_runs(self) -> list[WorkerFlowRunResponse]:
        with self.polling():
            return await super()._get_scheduled_flow_runs()
