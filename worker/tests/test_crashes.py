"""What the worker sees to when a server answers now and then: nothing that it could not do is held for done."""

import time
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
from biocirv_worker import crashes
from prefect.client.schemas.objects import FlowRun


class Server:
    """Stands in for Prefect's client: it has three crashed flow runs, and refuses once to run the second again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs = [FlowRun(flow_id=uuid4()) for _ in range(3)]
        self.again: list[UUID] = []
        self.ended: list[UUID] = []
        self.refused = [self.runs[1].id]
        monkeypatch.setattr(crashes, "_run_again", self._run_again)
        monkeypatch.setattr(crashes, "_end_children", self._end_children)

    async def read_flow_runs(self, *, flow_run_filter: Any, work_pool_filter: Any) -> list[FlowRun]:  # noqa: ANN401 - Prefect's
        """Return those that crashed; none is under way."""
        del work_pool_filter
        return self.runs if flow_run_filter.end_time else []

    async def _run_again(self, _client: object, run: FlowRun, _retries: int) -> None:
        if run.id in self.refused:
            self.refused.clear()
            raise TimeoutError
        self.again.append(run.id)

    async def _end_children(self, _client: object, run: FlowRun) -> None:
        self.ended.append(run.id)


def look(seen: crashes.Crashes, server: Any) -> None:  # noqa: ANN401 - it stands in
    """Let the worker look once."""
    anyio.run(seen.see_to, server, set())


def test_what_failed_on_the_way_is_done_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was done is not done again."""
    server = Server(monkeypatch)
    seen = crashes.Crashes("worker", "pool", 1)
    look(seen, server)
    with pytest.raises(TimeoutError):
        look(seen, server)
    for _ in range(2):
        look(seen, server)
    assert server.again == [run.id for run in server.runs]


def test_what_completes_though_it_was_held_for_crashed_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of which the server has not heard lives on until its worker ends it."""
    server = Server(monkeypatch)
    completed, *crashed = server.runs
    server.refused.clear()
    seen = crashes.Crashes("worker", "pool", 1)
    look(seen, server)
    assert server.again == []
    server.runs = crashed
    look(seen, server)
    assert server.again == [run.id for run in crashed]
    # One that crashes after all is looked at twice, like any other.
    server.runs = [completed, *crashed]
    look(seen, server)
    assert completed.id not in server.again
    look(seen, server)
    assert server.again == [*(run.id for run in crashed), completed.id]


def test_children_are_ended_also_after_a_long_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server was away for as long as they were to be looked for; afterwards they are left alone."""
    server = Server(monkeypatch)
    server.runs = server.runs[:1]
    seen = crashes.Crashes("worker", "pool", 1)
    begin = time.monotonic()
    for seconds in (0, 300, 310):
        monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: begin + seconds)
        look(seen, server)
    assert server.ended == [server.runs[0].id]
