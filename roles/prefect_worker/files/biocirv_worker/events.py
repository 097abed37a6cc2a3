"""Lets no event of a flow run be lost with a connection: task runs are recorded from events, and from nothing else.

Prefect 3.8's client forgets an event when the server has received it, not when it has written it; a proxy's answer that
the server is away ends it, with all that it holds; and what is unconfirmed when the process ends is dropped. Sending an
event again is harmless: the server knows it by its id. Prefect takes no client but its own, so that its methods are
exchanged; tests/unit/test_worker_internals.py watches them.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect.events import Event
from prefect.events.clients import PrefectEventsClient

# How long a sent event is kept for another connection: longer than the server keeps it before it is written, see
# prefect_server_record_seconds.
_KEPT = timedelta(seconds=60)
# How long a server may be away.
_PATIENCE_SECONDS = 300

_enter = PrefectEventsClient.__aenter__
_emit = PrefectEventsClient._emit
_exit = PrefectEventsClient.__aexit__


async def _enter_when_there(self: PrefectEventsClient) -> PrefectEventsClient:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return await _enter(self)
        except Exception:  # a proxy's refusal is of other types than a connection's
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(1)


async def _emit_or_keep(self: PrefectEventsClient, event: Event) -> None:
    # Among the unconfirmed it goes with the next connection.
    with suppress(Exception):
        await _emit(self, event)


async def _confirm_nothing(self: PrefectEventsClient) -> None:
    """Stand for the check after each event; the one on a timer is enough."""


async def _confirm_old(self: PrefectEventsClient) -> None:
    assert self._websocket  # noqa: S101 - the caller's contract
    await (await self._websocket.ping())
    horizon = datetime.now(UTC) - _KEPT
    self._unconfirmed_events = [event for event in self._unconfirmed_events if event.occurred > horizon]


async def _exit_when_sent(self: PrefectEventsClient, *exc_info: Any) -> None:  # noqa: ANN401 - __aexit__'s
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while self._unconfirmed_events and time.monotonic() < deadline:
        try:
            if not self._websocket:
                await self._reconnect()
            assert self._websocket  # noqa: S101 - as _reconnect leaves it
            await (await self._websocket.ping())
        except Exception:  # noqa: BLE001 - as above
            with suppress(Exception):
                await self._reconnect()
                continue
            await asyncio.sleep(1)
        else:
            break
    await _exit(self, *exc_info)


def keep_events() -> None:
    """Exchange the methods, in this process."""
    methods = {
        "__aenter__": _enter_when_there,
        "_emit": _emit_or_keep,
        "_checkpoint": _confirm_nothing,
        "_force_checkpoint": _confirm_old,
        "__aexit__": _exit_when_sent,
    }
    for name, method in methods.items():
        setattr(PrefectEventsClient, name, method)
