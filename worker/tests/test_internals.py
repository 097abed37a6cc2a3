"""The private parts of Prefect that the worker uses: a newer Prefect must pass these tests before it is locked."""

import ast
import graphlib
import inspect
import os
import socket
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import biocirv_worker
import pytest
from biocirv_worker import outbox
from biocirv_worker.internals import metrics, polling
from biocirv_worker.worker import Worker
from prefect import context
from prefect.events import Event, Resource
from prefect.events.worker import EventsWorker
from prefect.settings import (
    PREFECT_CLIENT_METRICS_ENABLED,
    PREFECT_CLIENT_METRICS_PORT,
    PREFECT_HOME,
    temporary_settings,
)
from prefect.utilities import services
from prefect.workers import base
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessWorker

PACKAGE = Path(biocirv_worker.__file__).parent
# Timeout of the test, far above what a busy machine needs.
GIVE_UP_SECONDS = 300


def imports(path: Path) -> set[str]:
    """Return the modules and names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def test_private_modules_of_prefect_are_used_in_one_package() -> None:
    private = {
        path.parent.name
        for path in PACKAGE.rglob("*.py")
        for name in imports(path)
        if name.startswith("prefect.") and any(part.startswith("_") for part in name.split("."))
    }
    assert private == {"internals"}


def test_its_modules_form_no_circle() -> None:
    names = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    needs: dict[str, set[str]] = {}
    for name, path in names.items():
        found = [f"{module}." for module in imports(path)]
        needs[name] = {used for used in names if any(module.startswith(f"{used}.") for module in found)}
        # A package is imported before its modules, and has no dependencies of its own.
        needs[name] -= {name, "biocirv_worker", "biocirv_worker.internals"}
    order = list(graphlib.TopologicalSorter(needs).static_order())
    assert "biocirv_worker.worker" in order
    assert needs["biocirv_worker.worker"] >= {"biocirv_worker.crashes", "biocirv_worker.internals.forks"}


@pytest.mark.parametrize("module", [context, base])
def test_a_port_for_metrics_that_is_taken_ends_no_process(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's function of that name raises what is raised where a port is taken."""
    monkeypatch.setattr(module, "start_client_metrics_server", module.start_client_metrics_server)
    metrics.tolerate_a_taken_port(module)
    with (
        socket.create_server(("", 0)) as taken,
        temporary_settings({PREFECT_CLIENT_METRICS_ENABLED: True, PREFECT_CLIENT_METRICS_PORT: taken.getsockname()[1]}),
    ):
        with pytest.raises(OSError, match="in use"):
            services.start_client_metrics_server()
        module.start_client_metrics_server()


def test_the_worker_sets_how_far_prefect_looks_ahead() -> None:
    assert "self._prefetch_seconds" in inspect.getsource(BaseWorker._get_scheduled_flow_runs)


@pytest.mark.parametrize(
    "method",
    ["get_and_submit_flow_runs", "sync_with_backend", "_get_scheduled_flow_runs", "_submit_run", "run"],
)
def test_prefect_s_worker_calls_what_ours_overrides(method: str) -> None:
    assert method in vars(Worker) | vars(polling.PollingWorker)
    assert inspect.iscoroutinefunction(getattr(ProcessWorker, method))
    assert f"self.{method}" in inspect.getsource(BaseWorker)


@pytest.mark.parametrize("attribute", ["limiter", "work_pool"])
def test_prefect_s_worker_has_what_ours_reads(attribute: str) -> None:
    assert isinstance(inspect.getattr_static(ProcessWorker, attribute), property)


def test_events_of_task_runs_are_kept_with_their_flow_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file holds them exactly as they are sent; other events are not kept."""
    flow_run, sent = str(uuid4()), []
    monkeypatch.setattr(EventsWorker, "send", lambda _, item: sent.append(item))
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", flow_run)
    kept, other = (
        Event(event=name, resource=Resource({"prefect.resource.id": f"{resource}.{uuid4()}"}))
        for name, resource in (
            ("prefect.task-run.Completed", "prefect.task-run"),
            ("prefect.flow-run.heartbeat", "prefect.flow-run"),
        )
    )
    with temporary_settings({PREFECT_HOME: str(tmp_path)}):
        outbox.keep_events()
        for event in (kept, other):
            EventsWorker.send(None, event)  # type: ignore[arg-type] # nothing is asked of the queue

    assert sent == [kept, other]
    (file,) = (tmp_path / "outbox").iterdir()
    assert file.name == f"{flow_run}-{os.getpid()}.jsonl"
    with file.open("rb") as lines:
        assert outbox._read(lines) == ([kept], "")


def test_events_are_not_kept_where_that_is_switched_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent: list[Event] = []
    monkeypatch.setattr(EventsWorker, "send", lambda _, item: sent.append(item))
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(uuid4()))
    monkeypatch.setenv(outbox.SWITCH, "false")
    event = Event(event="prefect.task-run.Running", resource=Resource({"prefect.resource.id": "prefect.task-run.x"}))
    with temporary_settings({PREFECT_HOME: str(tmp_path)}):
        outbox.keep_events()
        EventsWorker.send(None, event)  # type: ignore[arg-type] # nothing is asked of the queue

    assert sent == [event]
    assert list(tmp_path.iterdir()) == []


def test_half_a_line_of_a_killed_process_is_passed_over(tmp_path: Path) -> None:
    event = Event(
        event="prefect.task-run.Running", resource=Resource({"prefect.resource.id": f"prefect.task-run.{uuid4()}"})
    )
    whole = event.model_dump_json().encode()
    path = tmp_path / "events"
    path.write_bytes(whole + b"\n" + whole[:100])

    with path.open("rb") as lines:
        assert outbox._read(lines) == ([event], "")
