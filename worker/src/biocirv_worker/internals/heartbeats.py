"""Heartbeats of a flow run's process: those of old versions of Prefect, and an end that does not wait for them.

Prefect's thread sleeps for a second at a time, and ends when it next wakes up. Each flow run that ends waits for that,
sub-flow runs too, except async ones, which Prefect lets go at once. The thread sends nothing more by then.

Before 3.6.13, flow runs send no heartbeats themselves, and the server would consider each one crashed that takes
longer than ``times.SILENCE``. Here they do.
"""

from __future__ import annotations

import os
import threading
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect import flow_engine
from prefect.events import emit_event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# Prefect's setting, which old versions do not know: seconds between heartbeats.
VARIABLE = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"


def let_flow_runs_go() -> None:
    """Let all flow runs of this process end as Prefect's async ones do, and send heartbeats until then."""
    if hasattr(flow_engine, "_send_heartbeats"):
        flow_engine._send_heartbeats = partial(flow_engine._send_heartbeats, join_on_exit=False)
    elif not do_flow_runs_wait() and VARIABLE in os.environ:
        _add_heartbeats()


def do_flow_runs_wait() -> bool:
    """Return whether flow runs send heartbeats in a way whose end they wait for."""
    return hasattr(flow_engine, "send_heartbeats_sync") and not hasattr(flow_engine, "_send_heartbeats")


def _add_heartbeats() -> None:
    run, run_async = flow_engine.FlowRunEngine.run_context, flow_engine.AsyncFlowRunEngine.run_context

    @contextmanager
    def run_context(self: flow_engine.FlowRunEngine[Any, Any]) -> Iterator[Any]:
        with _heartbeats(self), run(self) as engine:
            yield engine

    @asynccontextmanager
    async def run_context_async(self: flow_engine.AsyncFlowRunEngine[Any, Any]) -> AsyncIterator[Any]:
        with _heartbeats(self):
            async with run_async(self) as engine:
                yield engine

    flow_engine.FlowRunEngine.run_context = run_context  # type: ignore[method-assign]
    flow_engine.AsyncFlowRunEngine.run_context = run_context_async  # type: ignore[method-assign]


@contextmanager
def _heartbeats(engine: flow_engine.BaseFlowRunEngine[Any, Any]) -> Iterator[None]:
    flow_run = engine.flow_run
    if flow_run is None:
        yield
        return
    seconds, over = float(os.environ[VARIABLE]), threading.Event()
    resource = {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.name": flow_run.name}

    def beat() -> None:
        while True:
            emit_event("prefect.flow-run.heartbeat", resource)
            if over.wait(seconds):
                return

    threading.Thread(target=beat, name="heartbeats", daemon=True).start()
    try:
        yield
    finally:
        over.set()
