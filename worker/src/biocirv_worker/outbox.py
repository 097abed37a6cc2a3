"""Keeps a flow run's task-run events until the server has recorded them.

Prefect records task runs only from events. They are lost if the flow run's process ends before it has sent them, or if
the server is killed or the database is unreachable before the server has written them. Therefore each process of a flow
run also writes its events to a file, which it locks. When the process has ended, the worker compares the file with the
server's records, sends the missing events again, and removes the file when none is missing. It sends them by requests,
which also pass a proxy that refuses websockets. What it cannot read is moved to the folder ``aside`` of the outbox, and
removed from there when it is a month old, or when the folder grows beyond a limit.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterId
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import Event, RelatedResource
from prefect.settings import PREFECT_HOME

from biocirv_worker.asides import Asides, reason
from biocirv_worker.internals.events import before_sending, post_events

if TYPE_CHECKING:
    from datetime import datetime
    from io import FileIO
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
# What is aside is for people: it is removed when it has been there for longer, and the oldest of more than these bytes.
_ASIDE_SECONDS = 30 * 86400
_ASIDE_BYTES = 100 * 2**20


def keep_events() -> None:
    """Write this process's task-run events to a file before they are sent. Runs in a flow run's process.

    A disk that is full fails no flow run: its events are then only sent.
    """
    if os.environ.get(SWITCH) == "false":
        return
    directory = _directory()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (directory / f"{os.environ['PREFECT__FLOW_RUN_ID']}-{os.getpid()}.jsonl").open("ab", buffering=0)
    except OSError as error:
        logger.warning("Task runs of this flow run are recorded only if the server is there: %s", reason(error))
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    lock = threading.Lock()
    full = False

    def keep(event: Event) -> None:
        nonlocal full
        if event.event.startswith(_TASK_RUN):
            kept = event.model_copy(update={"related": [*event.related, *_flow_run()]})
            with lock:
                try:
                    _append(file, kept.model_dump_json().encode() + b"\n")
                except OSError as error:
                    if not full:
                        logger.warning("Some task runs are recorded only if the server is there: %s", reason(error))
                    full = True

    before_sending(keep)


def _append(file: FileIO, line: bytes) -> None:
    """Append a whole line, or nothing: a full disk takes as many bytes as it has room for."""
    end = os.fstat(file.fileno()).st_size
    try:
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with suppress(OSError):
            file.truncate(end)
        raise


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
        self._asides = Asides()

    async def deliver(self, client: PrefectClient) -> None:
        """Send the events that the server has not recorded; remove the files of which it has recorded all events.

        A file that cannot be read or delivered is moved aside, and holds up no other.

        Raises:
            httpx.HTTPError, TimeoutError: the API has an outage.

        """
        paths = sorted(_directory().glob("*.jsonl"))
        aside = _directory() / "aside"
        self._asides.keep({*paths, aside, *aside.glob("*")})
        for path in paths:
            with self._asides.each(path, f"The events in {path} cannot be delivered; it is moved to {_aside(path)}"):
                await self._deliver(client, path)
            if path in self._asides:
                self._due.pop(path, None)
                with suppress(OSError):
                    _move_aside(path)
        with self._asides.each(aside, f"{aside} is not cleaned"):
            for path in _surplus(aside):
                with self._asides.each(path, f"{path} cannot be removed"):
                    _remove(path)

    async def _deliver(self, client: PrefectClient, path: Path) -> None:
        # Whatever else is there, opening it could wait for ever.
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError("It is no regular file")
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Its process is alive, or another worker is processing it.
                return
            if time.monotonic() < self._due.setdefault(path, time.monotonic() + _RECORD_SECONDS):
                return
            events, unread = _read(file)
            missing = await _missing(client, events)
        if missing and time.time() - path.stat().st_mtime < _MAX_AGE_SECONDS:
            logger.warning("Sent again: %d events of task runs that the server did not have", len(missing))
            for start in range(0, len(missing), _BATCH_SIZE):
                # A new id: the server ignores an id that it has received before, even if it could not record the event.
                batch = [event.model_copy(update={"id": uuid4()}) for event in missing[start : start + _BATCH_SIZE]]
                await post_events(client, batch)
            self._due[path] = time.monotonic() + _RECORD_SECONDS
        elif unread:
            raise ValueError(f"Its other events are recorded, but {unread}")
        else:
            path.unlink(missing_ok=True)
            self._due.pop(path, None)


def _directory() -> Path:
    return Path(PREFECT_HOME.value()) / "outbox"


def _aside(path: Path) -> Path:
    return path.parent / "aside" / path.name


def _move_aside(path: Path) -> None:
    _aside(path).parent.mkdir(mode=0o700, exist_ok=True)
    path.rename(_aside(path))


def _surplus(aside: Path) -> list[Path]:
    """Return what has been aside for too long, and the oldest of what is too much."""
    surplus, total = [], 0
    for path in sorted(aside.glob("*"), key=_moved, reverse=True):
        total += _size(path)
        if total > _ASIDE_BYTES or time.time() - _moved(path) > _ASIDE_SECONDS:
            surplus.append(path)
    return surplus


def _remove(path: Path) -> None:
    """Remove what is aside, and log it."""
    size, days = _size(path), (time.time() - _moved(path)) // 86400
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    logger.warning(
        "Removed: %s, %d kB, aside for %d days; what is newer than %d days is kept, up to %d MB",
        path,
        size // 1000,
        days,
        _ASIDE_SECONDS // 86400,
        _ASIDE_BYTES // 2**20,
    )


def _size(path: Path) -> int:
    return sum(each.lstat().st_size for each in (path, *path.rglob("*")))


def _moved(path: Path) -> float:
    """Return when a file was moved aside, in seconds since 1970: a move changes its ctime."""
    return path.lstat().st_ctime


def _read(file: IO[bytes]) -> tuple[list[Event], str]:
    """Return the events of a file, and which lines are none, with the first one's reason; empty if all are."""
    events, unread, why = [], [], ""
    for number, line in enumerate(file, 1):
        # A process that was killed may have written an incomplete last line.
        if not line.endswith(b"\n"):
            break
        try:
            event = Event.model_validate_json(line)
            _task_run(event)
        except ValueError as error:
            unread.append(str(number))
            why = why or reason(error)
        else:
            events.append(event)
    return events, f"line {', '.join(unread)} is no event of a task run: {why}" if unread else ""


def _task_run(event: Event) -> UUID:
    return UUID(event.resource.id.removeprefix(_TASK_RUN))


async def _missing(client: PrefectClient, events: list[Event]) -> list[Event]:
    """Return those events that are newer than the server's state of their task run."""
    task_runs = [_task_run(event) for event in events]
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
