"""Lets the events of this process go by requests where websockets do not connect, as behind some proxies.

Heartbeats are events: a flow run whose heartbeats do not arrive is considered crashed.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio
from prefect.client.orchestration import get_client
from prefect.events import clients, utilities, worker
from prefect.events.clients import PrefectEventsClient

from biocirv_worker.asides import outage, reason
from biocirv_worker.internals.events import post_events

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from prefect.client.orchestration import PrefectClient
    from prefect.events import Event

logger = logging.getLogger("prefect.worker.biocirv")

# A proxy may also leave attempts to connect without an answer. The first heartbeat must arrive within times.SILENCE.
_CONNECT_SECONDS = 30
_REQUEST_SECONDS = 10


def _is_true(record: logging.LogRecord) -> bool:
    """Return whether a record of Prefect says something else than that events may be lost."""
    return not str(record.msg).startswith("Unable to connect to")


def do_without_websockets() -> None:
    """Let this process send its events by requests as soon as Prefect gives up connecting a websocket."""
    # One chooses the client, one passes over events for a client that it does not know, one makes clients for others.
    for module in (worker, utilities, clients):
        module.PrefectEventsClient = _EventsClient  # type: ignore[attr-defined]


class _EventsClient(PrefectEventsClient):
    """Sends events by a websocket, until Prefect gives up connecting it; by requests for the rest of its life.

    Events that could not be sent because of an outage of the API are sent with the next one.
    """

    _api: PrefectClient | None = None

    async def __aenter__(self) -> Self:
        clients.logger.addFilter(_is_true)
        try:
            with anyio.fail_after(_CONNECT_SECONDS):
                await super().__aenter__()
        except Exception as error:  # noqa: BLE001 - a proxy may do anything instead of connecting
            await self._turn_to_requests(error)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        if self._api is not None:
            await self._api.__aexit__(exc_type, exc_val, exc_tb)
        await super().__aexit__(exc_type, exc_val, exc_tb)

    async def _emit(self, event: Event) -> None:
        if self._api is None:
            try:
                await super()._emit(event)
            except Exception as error:  # noqa: BLE001 - as above
                api = await self._turn_to_requests(error)
            else:
                return
        else:
            api = self._api
            self._unconfirmed_events.append(event)
        try:
            with anyio.fail_after(_REQUEST_SECONDS):
                await post_events(api, self._unconfirmed_events)
        except Exception as error:
            if not outage(error):
                self._unconfirmed_events.clear()
            raise
        self._unconfirmed_events.clear()

    async def _turn_to_requests(self, error: Exception) -> PrefectClient:
        logger.warning("Events go by requests, because no websocket connects: %s", reason(error))
        self._api = await get_client().__aenter__()
        return self._api
