"""The heartbeats that the worker adds where flow runs of an old Prefect send none."""

import inspect
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from biocirv_worker.internals import heartbeats
from prefect import flow, flow_engine
from prefect.client.schemas.objects import FlowRun
from prefect.states import Running

# Timeout of the test, far above what a busy machine needs.
GIVE_UP_SECONDS = 300


@flow
def nothing() -> None:
    """Do nothing."""


def test_a_flow_run_sends_them_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setattr(heartbeats, "emit_event", lambda *event: sent.append(event))
    monkeypatch.setenv(heartbeats.VARIABLE, "0.01")
    run = FlowRun(id=uuid4(), flow_id=uuid4(), name="slow", state=Running())
    before, deadline = threading.enumerate(), time.monotonic() + GIVE_UP_SECONDS

    with heartbeats._heartbeats(flow_engine.FlowRunEngine[Any, Any](nothing, flow_run=run)):
        (sender,) = (thread for thread in threading.enumerate() if thread not in before)
        while len(sent) < 3:
            assert time.monotonic() < deadline
            # The thread tells nobody of what it sends.
            time.sleep(0.01)
    sender.join(GIVE_UP_SECONDS)

    assert not sender.is_alive()
    assert {event for event, _ in sent} == {"prefect.flow-run.heartbeat"}
    assert {resource["prefect.resource.id"] for _, resource in sent} == {f"prefect.flow-run.{run.id}"}


@pytest.mark.parametrize("run", [flow_engine.run_flow_sync, flow_engine.run_flow_async])
def test_each_engine_calls_the_method_to_which_the_worker_adds_them(run: Callable[..., Any]) -> None:
    assert ".run_context()" in inspect.getsource(run)
