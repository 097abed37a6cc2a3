"""A flow run is ended if the worker has lost contact with the API, not if the worker is merely busy."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock
from uuid import uuid4

import anyio
import httpx
import pytest
from biocirv_worker import crashes, engine, worker
from biocirv_worker.systemd import Peers
from prefect.client.schemas.objects import FlowRun
from prefect.states import Crashed, Running

CONTACT_SECONDS = 0.3
# Timeout of the test, far above what a busy machine needs.
GIVE_UP_SECONDS = 300


class Client:
    """Fake of Prefect's client: it optionally answers the worker's fence, and blocks every other call for an hour."""

    def __init__(self, *, answers: bool) -> None:
        self._answers = answers
        self.asked = 0

    async def read_flow_runs(self, **_: Any) -> list[Any]:  # noqa: ANN401 - Prefect's
        """Return that none has crashed."""
        self.asked += 1
        if not self._answers:
            raise httpx.ConnectError("Nobody is there")
        return []

    async def hello(self) -> httpx.Response:
        """Return an answer without a date."""
        return httpx.Response(httpx.codes.OK)


@pytest.mark.parametrize(("answers", "ended"), [(True, ""), (False, "no contact to the API")])
def test_a_long_look_at_crashes_is_no_loss_of_contact(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, answers: bool, ended: str
) -> None:
    client, cared = Client(answers=answers), anyio.Event()

    @asynccontextmanager
    async def get_client() -> AsyncIterator[Client]:
        yield client

    async def reconcile(*_: object, **__: object) -> None:
        cared.set()
        await anyio.sleep(3600)

    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(worker, "get_client", get_client)
    monkeypatch.setattr(crashes.Crashes, "reconcile", reconcile)
    monkeypatch.setattr(worker, "CONTACT_SECONDS", CONTACT_SECONDS)
    monkeypatch.setattr(worker, "_FENCE_SECONDS", CONTACT_SECONDS / 10)
    subject = worker.Worker(launcher=engine.Launcher(forks=False), crash_retries=1, pool="pool", name="worker")
    attempt = worker._Attempt(anyio.TASK_STATUS_IGNORED)
    subject._attempts[uuid4()] = attempt

    async def look() -> None:
        """Run for several times the contact limit, and until the expected events have happened."""
        with anyio.fail_after(GIVE_UP_SECONDS):
            async with anyio.create_task_group() as group:
                group.start_soon(subject.watch, Peers(tmp_path))
                begin = anyio.current_time()
                while (
                    anyio.current_time() < begin + 5 * CONTACT_SECONDS
                    or not cared.is_set()
                    or client.asked < 2
                    or bool(attempt.ended) != bool(ended)
                ):
                    await anyio.sleep(CONTACT_SECONDS / 10)
                group.cancel_scope.cancel()

    anyio.run(look)
    assert ended in attempt.ended
    assert bool(attempt.ended) == bool(ended)


def test_a_flow_run_that_says_itself_why_it_crashed_goes_on_saying_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The state message is kept even if the process still exists and is terminated."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    subject = worker.Worker(launcher=engine.Launcher(forks=False), crash_retries=1, pool="pool", name="worker")
    crashed = FlowRun(flow_id=uuid4(), state=Crashed(message="Out of room"))
    runs = FlowRun(flow_id=uuid4(), state=Running())
    for run in (crashed, runs):
        subject._attempts[run.id] = worker._Attempt(anyio.TASK_STATUS_IGNORED)

    server = AsyncMock()
    server.read_flow_runs.return_value = [crashed, runs]

    anyio.run(subject._fence, server)

    assert subject._attempts[crashed.id].ended.startswith("Out of room")
    assert subject._attempts[runs.id].ended == ""
