"""Flows of the worker's tests: they write notes about themselves, and wait until the test creates a file `go`."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import early  # type: ignore[import-not-found] # see worker_libraries
from notes import note  # type: ignore[import-not-found] # beside this file, see prefect.yaml
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, State
from prefect.events.worker import EventsWorker
from prefect.flows import Flow
from prefect.runtime import flow_run

# The test must have ended by then.
_WAIT_SECONDS = 300 * float(os.environ.get("TEST_SLOWNESS", "1"))


def _wait(notes: str) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not Path(notes, "go").exists():
        if time.monotonic() > deadline:
            raise TimeoutError("The test did not create the file `go`")
        time.sleep(0.1)


def crashed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001 - Prefect names them
    """Note that it crashed."""
    note(flow_run.parameters["notes"], "crashed", flow_run=str(flow_run.id), state=state.name)


def cancelled(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001 - Prefect names them
    """Note that it was cancelled."""
    note(flow_run.parameters["notes"], "cancelled", flow_run=str(flow_run.id), state=state.name)


@flow
def report(notes: str) -> None:
    """Note the state of this process, now and right after the fork."""
    note(
        notes,
        "report",
        at_start=early.at_start,
        now=early.look(),
        launcher=early.launcher(),
        level=os.environ.get("PREFECT_LOGGING_LEVEL"),
        oom_score_adj=Path("/proc/self/oom_score_adj").read_text(encoding="ascii"),
    )


@flow(on_crashed=[crashed], on_cancellation=[cancelled])
def waits(notes: str) -> None:
    """Wait for the file `go`."""
    note(notes, "waits")
    _wait(notes)


@flow
def ignores_sigterm(notes: str) -> None:
    """Wait for the file `go`, and ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(notes, "ignores")
    _wait(notes)


@flow
def leaves_children(notes: str) -> None:
    """Start processes: one in a session of its own, one whose parent has ended, and one that ignores SIGTERM."""
    commands = ["setsid sleep 3600 & sleep 3600", "setsid sleep 3600 &", "trap '' TERM; sleep 3600"]
    shells = [subprocess.Popen(["sh", "-c", command]).pid for command in commands]
    note(notes, "leaves children", shells=shells)
    _wait(notes)


@flow
def speaks_and_dies(notes: str) -> None:  # noqa: ARG001 - as Prefect calls it
    """Write to standard error, and end at once with an exit code."""
    for number in range(100):
        os.write(2, f"line {number}\n".encode())
    os.write(2, b"\x1b[31mOut of ink\x1b[0m\n\n")
    os._exit(3)


@flow
def lingers(notes: str) -> None:
    """Leave a thread that is no daemon."""
    threading.Thread(target=threading.Event().wait).start()
    note(notes, "lingers")


@task(cache_policy=NO_CACHE)
def part(notes: str) -> None:
    """Wait for the file `go`, as a task."""
    note(notes, "part", flow_run=flow_run.get_id())
    _wait(notes)


@flow
def child(notes: str) -> None:
    """Run one task."""
    part(notes)


@flow
def unheard(notes: str) -> None:
    """Run a task whose events are not sent, as when the process is killed before it sends them."""

    async def lose(self: EventsWorker, event: object) -> None:  # noqa: ARG001 - as Prefect calls it
        note(notes, "lost")

    EventsWorker._handle = lose  # type: ignore[method-assign]
    Path(notes, "go").touch()
    part(notes)


@flow
def family(notes: str) -> None:
    """Run a task, and a sub-flow with a task."""
    beside = part.submit(notes)
    child(notes)
    beside.result()
