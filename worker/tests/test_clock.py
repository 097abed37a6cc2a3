"""A host's clock is compared with the API's, and heartbeats bear the API's time where it is wrong."""

import time
from datetime import UTC, datetime
from email.utils import format_datetime
from unittest.mock import AsyncMock
from uuid import uuid4

import anyio
import httpx
import pytest
from biocirv_worker import clock
from prefect.events import Event, Resource
from prefect.events.worker import EventsWorker


def compared(monkeypatch: pytest.MonkeyPatch, *, ahead: float, seconds: float = 0.0) -> clock.Clock:
    """Return a clock that is ahead of a server's, which takes some seconds to answer."""
    now = 1_800_000_000.25
    times = iter([now + ahead, now + ahead + seconds])
    monkeypatch.setattr(time, "time", lambda: next(times))
    date = format_datetime(datetime.fromtimestamp(int(now), UTC), usegmt=True)
    server = AsyncMock()
    server.hello.return_value = httpx.Response(httpx.codes.OK, headers={"Date": date})
    found = clock.Clock()
    anyio.run(found.compare, server)
    monkeypatch.undo()
    return found


@pytest.mark.parametrize(
    ("ahead", "seconds", "said"),
    [(-180, 0.1, "180 s slow"), (180, 0.1, "178 s fast"), (-180, 30, "150 s slow"), (3600, 30, "3598 s fast")],
)
def test_how_wrong_it_is(monkeypatch: pytest.MonkeyPatch, ahead: float, seconds: float, said: str) -> None:
    found = compared(monkeypatch, ahead=ahead, seconds=seconds)
    assert found.is_wrong
    assert str(found) == said


@pytest.mark.parametrize("seconds", [0, 1, 30, 300])
def test_a_server_that_takes_long_does_not_make_it_wrong(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for ahead in (-1.0, 0.0, 1.0):
        assert not compared(monkeypatch, ahead=ahead, seconds=seconds).is_wrong


def test_heartbeats_alone_bear_the_server_s_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Event] = []
    monkeypatch.setattr(EventsWorker, "send", lambda _, item: sent.append(item))
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    for slow in (180, 1):
        monkeypatch.setenv(clock.VARIABLE, str(boot + slow))
        monkeypatch.setattr(EventsWorker, "send", lambda _, item: sent.append(item))
        clock.correct_heartbeats()
        for name in ("prefect.flow-run.heartbeat", "prefect.task-run.Running"):
            event = Event(event=name, resource=Resource({"prefect.resource.id": str(uuid4())}))
            EventsWorker.send(None, event)  # type: ignore[arg-type] # nothing is asked of the queue

    later = [event.occurred.timestamp() - time.time() for event in sent]
    assert later == pytest.approx([180, 0, 0, 0], abs=60)
    assert later[0] > 120
