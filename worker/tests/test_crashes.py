"""Crash handling with a server that answers intermittently: a failed step is retried, never considered done."""

import time
from typing import Any
from unittest.mock import AsyncMock
from uuid import UUID, uuid4

import anyio
import pytest
from biocirv_worker import crashes
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Crashed


class Server:
    """Fake of Prefect's client: it has three crashed flow runs, and the first retry of the second one fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs = [FlowRun(flow_id=uuid4()) for _ in range(3)]
        self.again: list[UUID] = []
        self.ended: list[UUID] = []
        self.refused = [self.runs[1].id]
        self.error: Exception = TimeoutError()
        monkeypatch.setattr(crashes, "_run_again", self._run_again)
        monkeypatch.setattr(crashes, "_end_children", self._end_children)

    async def read_flow_runs(self, *, flow_run_filter: Any, work_pool_filter: Any) -> list[FlowRun]:  # noqa: ANN401 - Prefect's
        """Return the crashed flow runs; none is running."""
        del work_pool_filter
        return self.runs if flow_run_filter.state.type.any_ == [StateType.CRASHED] else []

    async def _run_again(self, _client: object, run: FlowRun, _retries: int) -> None:
        if run.id in self.refused:
            self.refused.clear()
            raise self.error
        self.again.append(run.id)

    async def _end_children(self, _client: object, run: FlowRun) -> None:
        self.ended.append(run.id)


def look(seen: crashes.Crashes, server: Any) -> None:  # noqa: ANN401 - it stands in
    """Run one pass of the worker's crash handling."""
    anyio.run(seen.reconcile, server, set())


def test_what_failed_on_the_way_is_done_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that succeeded are not repeated."""
    server = Server(monkeypatch)
    seen = crashes.Crashes("worker", "pool", 1)
    look(seen, server)
    with pytest.raises(TimeoutError):
        look(seen, server)
    for _ in range(2):
        look(seen, server)
    assert server.again == [run.id for run in server.runs]


def test_a_run_that_cannot_be_run_again_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is logged once, and the server is not asked again."""
    server = Server(monkeypatch)
    server.error = RuntimeError("The parameters do not fit")
    seen = crashes.Crashes("worker", "pool", 1)
    for _ in range(3):
        look(seen, server)
    assert server.again == [server.runs[0].id, server.runs[2].id]
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["The parameters do not fit"]


@pytest.mark.parametrize("job_variables", [None, {}, {"env": None}, {"env": ["A=1"]}, {"env": "A=1"}])
def test_variables_that_are_none_set_no_limit(job_variables: dict[str, Any] | None) -> None:
    """A pool whose template has no schema takes any."""
    assert crashes._env(job_variables) == {}


def test_a_run_that_completes_after_it_was_considered_crashed_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without heartbeats lives until its worker terminates it, and its flow run can still complete."""
    server = Server(monkeypatch)
    completed, *crashed = server.runs
    server.refused.clear()
    seen = crashes.Crashes("worker", "pool", 1)
    look(seen, server)
    assert server.again == []
    server.runs = crashed
    look(seen, server)
    assert server.again == [run.id for run in crashed]
    # If it does crash later, it is retried on the second pass, like any other flow run.
    server.runs = [completed, *crashed]
    look(seen, server)
    assert completed.id not in server.again
    look(seen, server)
    assert server.again == [*(run.id for run in crashed), completed.id]


def test_children_are_ended_also_after_a_long_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server was unreachable for the whole period in which children are searched; they are ended once."""
    server = Server(monkeypatch)
    server.runs = server.runs[:1]
    seen = crashes.Crashes("worker", "pool", 1)
    begin = time.monotonic()
    for seconds in (0, 300, 310):
        monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: begin + seconds)
        look(seen, server)
    assert server.ended == [server.runs[0].id]


@pytest.mark.parametrize(
    ("key", "env", "successor"),
    [
        (None, {}, "crash-retry-1-of-{id}"),
        ("crash-retry-1-of-first", {}, "crash-retry-2-of-first"),
        ("crash-retry-2-of-first", {}, None),
        (None, {"CRASH_RETRIES": "0"}, None),
        ("crash-retry-2-of-first", {"CRASH_RETRIES": "3"}, "crash-retry-3-of-first"),
    ],
)
def test_a_flow_run_is_run_again_up_to_the_limit(key: str | None, env: dict[str, str], successor: str | None) -> None:
    """The limit is two, and the deployment's own variable replaces it."""
    run = FlowRun(
        flow_id=uuid4(), deployment_id=uuid4(), idempotency_key=key, state=Crashed(), job_variables={"env": env}
    )
    client = AsyncMock()
    client.read_flow_run_states.return_value = [run.state]
    client.read_deployment.return_value.job_variables = {}
    anyio.run(crashes._run_again, client, run, 2)
    created = [call.kwargs["idempotency_key"] for call in client.create_flow_run_from_deployment.call_args_list]
    assert created == ([] if successor is None else [successor.format(id=run.id)])
