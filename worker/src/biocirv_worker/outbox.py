"""Keeps a flow run's task-run events until the server has recorded them.

Prefect records task runs only from events. They are lost if the flow run's process ends before it has sent them, or if
the server is killed or the database is unreachable before the server has written them. Therefore each process of a flow
run also writes its events to a file, which it locks. When the process has ended, the worker compares the file with the
server's records, sends the missing events again, and removes the file when none is missing.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterId
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import Event, RelatedResource
from prefect.events.clients import get_events_client
from prefect.settings import PREFECT_HOME

from biocirv_worker.internals.events import before_sending

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from typing import IO

    from prefect.client.orchestration import PrefectClient

logger = logging.getLogger("prefect.worker.biocirv")

# Environment variable; the value "false" switches the outbox off.
SWITCH = "OUTBOX"
_TASK_RUN = "prefect.task-run."
# The server records what it has received within prefect_server_record_seconds.
_RECORD_SECONDS = 15
# Events that could not be recorded for this long never will be: their flow run has been deleted.
_MAX_AGE_SECONDS = 86400
_BATCH_SIZE = 100


def keep_events() -> None:
    """Write this process's task-run events to a file before they are sent. Runs in a flow run's process."""
    if os.environ.get(SWITCH) == "false":
        return
    directory = _directory()
    directory.mkdir(mode=0o700, exist_ok=True)
    file = (directory / f"{os.environ['PREFECT__FLOW_RUN_ID']}-{os.getpid()}.jsonl").open("ab", buffering=0)
    fcntl.flock(file, fcntl.LOCK_EX)
    lock = threading.Lock()

    def keep(event: Event) -> None:
        if event.event.startswith(_TASK_RUN):
            kept = event.model_copy(update={"related": [*event.related, *_flow_run()]})
            with lock:
                file.write(kept.model_dump_json().encode() + b"\n")

    before_sending(keep)


def _flow_run() -> list[RelatedResource]:
    """Return the current flow run as a related resource, which Prefect adds only when it sends an event."""
    flow_run, task_run = FlowRunContext.get(), TaskRunContext.get()
    flow_run_id = (flow_run and flow_run.flow_run and flow_run.flow_run.id) or (
        task_run and task_run.task_run.flow_run_id
    )
    if not flow_run_id:
        return []
    resource = {"prefect.resource.id": f"prefect.flow-run.{flow_run_id}", "prefect.resource.role": "flow-run"}
    return [RelatedResource(resource)]


class Outboxes:
    """The outbox files of processes that have ended. Used in the worker."""

    def __init__(self) -> None:
        # Monotonic time at which a file is checked next: the wall clock may jump.
        self._due: dict[Path, float] = {}

    async def deliver(self, client: PrefectClient) -> None:
        """Send the events that the server has not recorded; remove the files of which it has recorded all events."""
        for path in sorted(_directory().glob("*.jsonl")):
            with path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    # Its process is alive, or another worker is processing it.
                    continue
                if time.monotonic() < self._due.setdefault(path, time.monotonic() + _RECORD_SECONDS):
                    continue
                missing = await _missing(client, list(_events(file)))
            if missing and time.time() - path.stat().st_mtime < _MAX_AGE_SECONDS:
                logger.warning("Sent again: %d events of task runs that the server did not have", len(missing))
                await _send(missing)
                self._due[path] = time.monotonic() + _RECORD_SECONDS
            else:
                path.unlink(missing_ok=True)
                self._due.pop(path, None)


def _directory() -> Path:
    return Path(PREFECT_HOME.value()) / "outbox"


def _events(file: IO[bytes]) -> Iterator[Event]:
    for line in file:
        # A process that was killed may have written an incomplete last line.
        if line.endswith(b"\n"):
            yield Event.model_validate_json(line)


async def _missing(client: PrefectClient, events: list[Event]) -> list[Event]:
    """Return those events that are newer than the server's state of their task run."""
    task_runs = [UUID(event.resource.id.removeprefix(_TASK_RUN)) for event in events]
    wanted = sorted(set(task_runs))
    known: dict[UUID, datetime] = {}
    for start in range(0, len(wanted), _BATCH_SIZE):
        some = TaskRunFilter(id=TaskRunFilterId(any_=wanted[start : start + _BATCH_SIZE]))
        for task_run in await client.read_task_runs(task_run_filter=some, limit=_BATCH_SIZE):
            if task_run.state:
                known[task_run.id] = task_run.state.timestamp
    return [
        event
        for event, task_run in zip(events, task_runs, strict=True)
        if task_run not in known or known[task_run] < event.occurred
    ]


async def _send(events: list[Event]) -> None:
    async with get_events_client() as client:
        for event in events:
            # A new id: the server ignores an id that it has received before, even if it could not record the event.
            await client.emit(event.model_copy(update={"id": uuid4()}))
