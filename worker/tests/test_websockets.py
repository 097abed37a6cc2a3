"""Events go by requests where no websocket connects, and an outage of the API loses none of them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import anyio
import httpx
import orjson
import pytest
from biocirv_worker.internals import websockets
from prefect.events import Event, Resource, clients, emit_event, utilities, worker
from prefect.events.clients import PrefectEventsClient
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings


class Api(ThreadingHTTPServer):
    """An API behind a proxy that refuses websockets. It answers events with the next of ``answers``, or takes them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.answers: list[int] = []
        self.bodies: list[list[str]] = []


class Answer(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Api
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Refuse a websocket, and know of nothing else, such as CSRF tokens."""
        self.send_error(403 if "Upgrade" in self.headers else 404)

    def do_POST(self) -> None:
        """Take events."""
        body = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append([event["event"] for event in body])
        self.send_response(self.server.answers.pop(0) if self.server.answers else 204)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def serving() -> Iterator[Api]:
    """Serve an API, which Prefect's settings name."""
    with Api() as api:
        thread = threading.Thread(target=api.serve_forever)
        thread.start()
        settings = {
            PREFECT_API_URL: f"http://127.0.0.1:{api.server_port}/api",
            PREFECT_CLIENT_MAX_RETRIES: 0,
        }
        with temporary_settings(settings):
            yield api
        api.shutdown()
        thread.join()


def event(name: str) -> Event:
    """Return an event of a flow run."""
    return Event(event=name, resource=Resource({"prefect.resource.id": f"prefect.flow-run.{uuid4()}"}))


def test_events_go_by_requests_where_websockets_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    """That is said once, and nothing of events that may be lost."""

    async def emit() -> None:
        async with websockets._EventsClient() as client:
            for name in ("first", "second"):
                await client.emit(event(name))

    with serving() as api:
        anyio.run(emit)

    assert api.bodies == [["first"], ["second"]]
    (record,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "by requests, because no websocket connects: InvalidStatus" in record.getMessage()


@pytest.mark.parametrize(
    ("answer", "bodies"),
    [(503, [["first"], ["first", "second"], ["third"]]), (422, [["first"], ["second"], ["third"]])],
)
def test_events_of_an_outage_go_with_the_next_one(answer: int, bodies: list[list[str]]) -> None:
    """An event that the server refuses holds up no other."""

    async def emit() -> None:
        async with websockets._EventsClient() as client:
            with pytest.raises(httpx.HTTPStatusError):
                await client.emit(event("first"))
            for name in ("second", "third"):
                await client.emit(event(name))

    with serving() as api:
        api.answers.append(answer)
        anyio.run(emit)

    assert api.bodies == bodies


def test_a_websocket_that_is_refused_later_loses_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had not confirmed is sent again; the server ignores an event that it has."""

    async def connect(_: object) -> None:
        """Connect, as far as Prefect can tell."""

    async def emit() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(PrefectEventsClient, "_reconnect", connect)
            client = await websockets._EventsClient().__aenter__()
        client._unconfirmed_events.append(event("unconfirmed"))
        await client.emit(event("next"))
        await client.emit(event("last"))
        await client.__aexit__(None, None, None)

    with serving() as api:
        anyio.run(emit)

    assert api.bodies == [["unconfirmed", "next"], ["last"]]


def test_prefect_s_events_go_by_this_client(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (worker, utilities, clients):
        monkeypatch.setattr(module, "PrefectEventsClient", PrefectEventsClient)
    with serving() as api:
        websockets.do_without_websockets()
        emit_event("sent", resource={"prefect.resource.id": "prefect.flow-run.x"})
        worker.EventsWorker.instance().drain()
        made = clients.get_events_client()

    assert api.bodies == [["sent"]]
    assert isinstance(made, websockets._EventsClient)
