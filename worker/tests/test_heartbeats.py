"""A flow run sends heartbeats as long as it runs, and its end does not wait for the thread that sends them.

This is about versions of Prefect whose flow runs send them by themselves; see also test_old_heartbeats.py.
"""

import inspect
import runpy
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from biocirv_worker import flow_run, outbox, times
from prefect import flow, flow_engine
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Running

# Timeout of the test, far above what a busy machine needs.
GIVE_UP_SECONDS = 300


@flow
def nothing() -> None:
    """Do nothing."""


class Engine(flow_engine.FlowRunEngine[Any, Any]):
    """Prefect's engine of a flow run, whose heartbeats are counted instead of sent."""

    def __init__(self) -> None:
        super().__init__(nothing, flow_run=FlowRun(id=uuid4(), flow_id=uuid4(), name="slow", state=Running()))
        self.sent = 0

    def _emit_flow_run_heartbeat(self, *_: object) -> None:
        self.sent += 1


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Engine, threading.Thread]]:
    """Do what Prefect does around a flow's function, in a process that the worker started; yield the sender."""
    replaced = []
    monkeypatch.setattr(flow_engine, "_send_heartbeats", flow_engine._send_heartbeats)
    monkeypatch.setattr(flow_run, "_raise_oom_score", lambda: None)
    monkeypatch.setattr(runpy, "run_module", lambda *_, **__: replaced.append(flow_engine._send_heartbeats))
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setitem(sys.modules, flow_run.ENGINE, None)  # the program removes it
    monkeypatch.setenv(outbox.SWITCH, "false")
    flow_run.main()
    (send_heartbeats,) = replaced
    engine, before = Engine(), threading.enumerate()
    with (
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: times.HEARTBEAT}),
        send_heartbeats(engine),
    ):
        (sender,) = (thread for thread in threading.enumerate() if thread not in before)
        yield engine, sender


def test_a_flow_run_that_ends_does_not_wait_for_a_thread_that_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread ends when it next wakes up, and sends nothing more."""
    asleep, wake = threading.Event(), threading.Event()

    def sleep(_: float) -> None:
        asleep.set()
        wake.wait(GIVE_UP_SECONDS)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(threading.Thread, "join", lambda *_, **__: pytest.fail("It waits for a thread"))
    with running(monkeypatch) as (engine, sender):
        assert asleep.wait(GIVE_UP_SECONDS)
    monkeypatch.undo()
    wake.set()
    sender.join(GIVE_UP_SECONDS)

    assert not sender.is_alive()
    assert engine.sent == 1


def test_a_long_flow_run_goes_on_sending_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """One at once, and one per interval, of which the thread sleeps a second at a time."""
    slept, enough = [], threading.Event()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3 * times.HEARTBEAT:
            enough.set()
            stop.wait(GIVE_UP_SECONDS)

    stop = threading.Event()
    monkeypatch.setattr(time, "sleep", sleep)
    with running(monkeypatch) as (engine, sender):
        assert enough.wait(GIVE_UP_SECONDS)
        assert sum(slept) == 3 * times.HEARTBEAT
        assert engine.sent == 3
    stop.set()
    sender.join(GIVE_UP_SECONDS)
    assert engine.sent == 3


@pytest.mark.parametrize("engine", [flow_engine.FlowRunEngine, flow_engine.AsyncFlowRunEngine])
def test_prefect_s_engine_finds_what_the_worker_replaces(engine: type) -> None:
    """It calls the function by its name in the module, and the function knows the option."""
    assert "with _send_heartbeats(self" in inspect.getsource(engine.run_context)  # type: ignore[attr-defined]
    assert "join_on_exit" in inspect.signature(flow_engine._send_heartbeats).parameters
