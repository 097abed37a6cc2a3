"""Intercepts the events of this process before Prefect sends them, and sends events by requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.events.worker import EventsWorker

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.client.orchestration import PrefectClient
    from prefect.events import Event


def before_sending(see: Callable[[Event], None]) -> None:
    """Call a function with each event of this process before Prefect queues it for sending."""
    send = EventsWorker.send

    def see_and_send(self: EventsWorker, item: Event) -> None:
        see(item)
        send(self, item)

    EventsWorker.send = see_and_send  # type: ignore[method-assign,assignment]


async def post_events(client: PrefectClient, events: list[Event]) -> None:
    """Send events by a request, which also passes where websockets are refused; Prefect's client has no such method.

    Raises:
        httpx.HTTPError: the server did not take them.

    """
    content = [event.model_dump(mode="json") for event in events]
    await client.request("POST", "/events", json=content)
