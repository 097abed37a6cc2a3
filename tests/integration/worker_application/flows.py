"""Flows of the worker's tests: they note what they are, and wait until they are told to go on."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import inspection  # type: ignore[import-not-found] # beside this file, see prefect.yaml
from notes import note  # type: ignore[import-not-found]
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, State
from prefect.events.worker import EventsWorker
from prefect.flows import Flow

# After so long nobody will say "go" any more.
_WAIT_SECONDS = 300 * float(os.environ.get("TEST_SLOWNESS", "1"))


def _wait(notes: str) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not Path(notes, "go").exists():
        if time.monotonic() > deadline:
            raise TimeoutError("Nobody let this flow run go on")
        time.sleep(0.1)


def crashed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001 - Prefect names them
    """Note that it crashed."""
    note(flow_run.parameters["notes"], "crashed", flow_run=str(flow_run.id), state=state.name)


def cancelled(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001 - Prefect names them
    """Note that it was cancelled."""
    note(flow_run.parameters["notes"], "cancelled", flow_run=str(flow_run.id), state=state.name)


@flow
def report(notes: str) -> None:
    """Note what this process holds, and held."""
    note(
        notes,
        "report",
        at_start=inspection.at_start,
        now=inspection.look(),
        parent=inspection.parent(),
        level=os.environ.get("PREFECT_LOGGING_LEVEL"),
        oom_score_adj=Path("/proc/self/oom_score_adj").read_text(encoding="ascii"),
    )


@flow(on_crashed=[crashed], on_cancellation=[cancelled])
def waits(notes: str) -> None:
    """Wait to be told to go on."""
    note(notes, "waits")
    _wait(notes)


@flow
def ignores_sigterm(notes: str) -> None:
    """Wait, and do not end when asked to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(notes, "ignores")
    _wait(notes)


@task(cache_policy=NO_CACHE)
def part(notes: str) -> None:
    """Wait to be told to go on."""
    note(notes, "part")
    _wait(notes)


@flow
def child(notes: str) -> None:
    """Run one task."""
    part(notes)


@flow
def unheard(notes: str) -> None:
    """Run a task, whose events get no further than this process, as when that is killed before it has sent them."""

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
