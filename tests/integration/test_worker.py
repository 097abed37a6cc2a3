"""The worker of the role prefect_worker, run as a process, with a real server and real flow runs."""

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from datetime import UTC, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
from biocirv_worker import times
from biocirv_worker.worker import run_by_executor
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterParentFlowRunId,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun
from prefect.events import Event
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.states import Cancelling, Crashed
from prefect.types import DateTime

from tests.integration.worker_application.notes import read_notes
from tests.integration.worker_program import (
    APPLICATION,
    HASTY,
    LIBRARIES,
    LIBRARY,
    WorkerProgram,
    children,
    command,
    is_alive,
)
from tests.limits import limit as limited
from tests.limits import wait_until

Note = dict[str, Any]

# As the role sets it.
HEARTBEATS = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(times.HEARTBEAT)}


class Pool:
    """Deployments of the test application in one work pool, whose flow runs write notes into a directory."""

    def __init__(self, client: SyncPrefectClient, name: str, worker: WorkerProgram) -> None:
        self._client = client
        self.name = name
        self.worker = worker

    def deploy(
        self,
        entrypoint: str,
        *,
        directory: Path = APPLICATION,
        schema: dict[str, Any] | None = None,
        **variables: object,
    ) -> UUID:
        """Register a new deployment; ``variables`` are its job variables."""
        name = entrypoint.partition(":")[2]
        return self._client.create_deployment(
            self._client.create_flow_from_name(name),
            f"{name}-{uuid4()}",
            entrypoint=entrypoint,
            pull_steps=[
                {"prefect.deployments.steps.set_working_directory": {"directory": str(directory)}},
            ],
            work_pool_name=self.name,
            job_variables=variables,
            parameter_openapi_schema=schema,
            enforce_parameter_schema=bool(schema),
        )

    def start(
        self,
        entrypoint: str,
        notes: Path,
        *,
        key: str = "",
        environment: dict[str, str] | None = None,
        **variables: Any,  # noqa: ANN401 - of several types
    ) -> UUID:
        """Create a run of a new deployment; ``variables`` are those of ``deploy``, ``environment`` is the run's."""
        return self._client.create_flow_run_from_deployment(
            self.deploy(entrypoint, **variables),
            parameters={"notes": str(notes)},
            idempotency_key=key or str(uuid4()),
            job_variables={"env": environment} if environment else None,
        ).id

    def read(self, run: UUID) -> tuple[FlowRun, State[Any]]:
        """Return a flow run and its state."""
        flow_run = self._client.read_flow_run(run)
        assert flow_run.state
        return flow_run, flow_run.state

    def wait_for_end(self, run: UUID) -> State[Any]:
        """Return a flow run's final state."""

        def final() -> State[Any] | None:
            state = self.read(run)[1]
            return state if state.is_final() else None

        return self.worker.wait_until(final, f"the end of {run}") or pytest.fail("unreachable")

    def notes(self, directory: Path, kind: str, number: int = 1) -> list[Note]:
        """Wait for ``number`` notes of a kind, and return them."""
        return self.worker.wait_until(
            lambda: notes if len(notes := read_notes(directory, kind)) >= number else [], f"{number} notes: {kind}"
        )

    def note(self, directory: Path, kind: str) -> Note:
        """Wait for the only note of a kind, and return it."""
        (note,) = self.notes(directory, kind)
        return note

    def runs_of_deployment(self, run: UUID) -> list[FlowRun]:
        """Return all flow runs of a flow run's deployment: the one that the test created, and its retries."""
        deployment = self.read(run)[0].deployment_id
        assert deployment
        return self._client.read_flow_runs(
            flow_run_filter=FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
        )

    def successor(self, run: UUID) -> FlowRun:
        """Wait for the retry of a crashed flow run, and return it."""

        def others() -> list[FlowRun]:
            return [other for other in self.runs_of_deployment(run) if other.id != run]

        (successor,) = self.worker.wait_until(others, f"a retry of {run}")
        return successor


@pytest.fixture(scope="module")
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """Return a client of the server."""
    with SyncPrefectClient(prefect_server) as client:
        yield client


class Programs:
    """Starts workers, which are stopped at the end of the test or module."""

    def __init__(self, client: SyncPrefectClient, api_url: str, directory: Path, stack: ExitStack) -> None:
        self._client, self._api_url, self._directory, self._stack = client, api_url, directory, stack

    def start(self, pool: str, *options: str, **changes: Any) -> WorkerProgram:  # noqa: ANN401 - the program's fields
        """Start a worker; it may not be ready yet."""
        changes.setdefault("name", f"worker-of-{pool}")
        directory = self._directory / changes["name"]
        return self._stack.enter_context(
            WorkerProgram(directory, changes.pop("api_url", self._api_url), pool, *options, **changes)
        )

    def pool(self, *workers: WorkerProgram) -> Pool:
        """Wait until workers are ready, and return their pool."""
        for worker in workers:
            worker.wait_until_ready()
        return Pool(self._client, workers[0].pool, workers[0])


@pytest.fixture
def programs(client: SyncPrefectClient, prefect_server: str, tmp_path: Path) -> Iterator[Programs]:
    """Return an object that starts workers for one test."""
    with ExitStack() as stack:
        yield Programs(client, prefect_server, tmp_path, stack)


@pytest.fixture(scope="module")
def shared(
    client: SyncPrefectClient, prefect_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, list[WorkerProgram]]]:
    """Return workers for several tests, all started at once: one unchanged, and two of one pool with short times."""
    # As a deploy does: of two workers of an old Prefect that create one at once, one ends.
    client.create_work_pool(WorkPoolCreate(name="hasty", type="process"))
    with ExitStack() as stack:
        programs = Programs(client, prefect_server, tmp_path_factory.mktemp("workers"), stack)
        yield {
            "plain": [programs.start("plain", environment=HEARTBEATS)],
            "hasty": [programs.start("hasty", name=name, seconds=HASTY) for name in ("first", "second")],
        }


@pytest.fixture
def plain(shared: dict[str, list[WorkerProgram]], client: SyncPrefectClient) -> Pool:
    """Return the pool of an unchanged worker."""
    (worker,) = shared["plain"]
    worker.wait_until_ready()
    return Pool(client, worker.pool, worker)


@pytest.fixture
def pair(shared: dict[str, list[WorkerProgram]]) -> list[WorkerProgram]:
    """Return two workers of one pool with short times."""
    for worker in shared["hasty"]:
        worker.wait_until_ready()
    return shared["hasty"]


@pytest.fixture
def hasty(pair: list[WorkerProgram], client: SyncPrefectClient) -> Pool:
    """Return the pool of two workers with short times."""
    return Pool(client, pair[0].pool, pair[0])


@pytest.fixture(scope="module")
def two_reports(
    shared: dict[str, list[WorkerProgram]], client: SyncPrefectClient, tmp_path_factory: pytest.TempPathFactory
) -> list[Note]:
    """Return the notes of two forks that were started at once."""
    (worker,) = shared["plain"]
    worker.wait_until_ready()
    pool, notes = Pool(client, worker.pool, worker), tmp_path_factory.mktemp("reports")
    runs = [pool.start("flows.py:report", notes) for _ in range(2)]
    assert [pool.wait_for_end(run).name for run in runs] == ["Completed"] * 2
    return pool.notes(notes, "report", 2)


# The state that a fork inherits from its parent.


def _says(worker: WorkerProgram, text: str) -> bool:
    return text in worker.log


def _oom_score_adj(worker: WorkerProgram) -> int:
    return int(Path(f"/proc/{worker.process.pid}/oom_score_adj").read_text(encoding="ascii"))


def test_a_fork_begins_with_one_thread(two_reports: list[Note]) -> None:
    """Prefect starts more threads later, in the flow run."""
    for report in two_reports:
        assert (report["at_start"]["threads"], report["now"]["threads"] > 1) == (1, True)
        assert report["at_start"]["python threads"] == ["MainThread"]


def test_a_fork_begins_without_connections(two_reports: list[Note]) -> None:
    """It has no sockets or HTTP clients."""
    for report in two_reports:
        before, later = report["at_start"], report["now"]
        assert before["clients"] == []
        assert later["clients"] != []
        assert before["descriptors"] == []
        assert {"socket", "anon_inode"} <= set(later["descriptors"])


def test_a_fork_begins_without_event_loops_and_prefect_s_services(two_reports: list[Note]) -> None:
    """A loop or a queue of logs or events that is inherited from the parent would never be processed."""
    for report in two_reports:
        before, later = report["at_start"], report["now"]
        assert (before["loops"], before["services"]) == ([], [])
        assert later["loops"] != []
        assert later["services"] != []


def test_the_kernel_ends_a_fork_before_the_worker(plain: Pool, two_reports: list[Note]) -> None:
    """The OOM score of a fork is higher than the worker's."""
    for report in two_reports:
        assert int(report["oom_score_adj"]) > _oom_score_adj(plain.worker)


def test_forks_are_of_one_process_with_one_thread(plain: Pool, two_reports: list[Note]) -> None:
    """Forks come from a single-threaded child of the worker, as a fork of the worker could inherit held locks."""
    for report in two_reports:
        assert report["launcher"]["pid"] == plain.worker.launcher()
        assert "biocirv_worker.launcher" in " ".join(report["launcher"]["command"])
        assert report["launcher"]["threads"] == 1


def test_forks_share_prefect_and_libraries(two_reports: list[Note]) -> None:
    for report in two_reports:
        assert report["at_start"]["prefect.flow_engine"] is True
        assert report["at_start"]["imported by"] == report["launcher"]["pid"]
    assert len({report["at_start"]["token"] for report in two_reports}) == 1


def _events(client: SyncPrefectClient, wanted: EventFilter) -> list[Event]:
    """Return the newest events; the client of an old Prefect has no method for it."""
    answer = client.request("POST", "/events/filter", json={"filter": wanted.model_dump(mode="json"), "limit": 10})
    return [Event.model_validate(event) for event in answer.json()["events"]]


def test_a_flow_run_and_its_sub_flow_run_send_heartbeats(
    plain: Pool, client: SyncPrefectClient, tmp_path: Path
) -> None:
    """The server considers one without them crashed."""
    run = plain.start("flows.py:family", tmp_path)
    parts = plain.notes(tmp_path, "part", 2)

    family = {f"prefect.flow-run.{part['flow_run']}" for part in parts}
    assert len(family) == 2
    assert f"prefect.flow-run.{run}" in family
    heartbeats = EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]), resource=EventResourceFilter(id=list(family))
    )

    def senders() -> set[str]:
        return {event.resource.id for event in _events(client, heartbeats)}

    plain.worker.wait_until(lambda: senders() == family, "heartbeats of both")
    (tmp_path / "go").touch()
    assert plain.wait_for_end(run).name == "Completed"


def test_a_library_that_starts_a_thread_is_left_to_the_flow_runs(plain: Pool, tmp_path: Path) -> None:
    """The library is imported in the fork, so that its thread exists there."""
    run = plain.start("with_a_thread.py:with_a_thread", tmp_path)

    assert plain.wait_for_end(run).name == "Completed"
    note = plain.note(tmp_path, "with a thread")
    assert note["imported_by"] == note["pid"]
    assert "of a library" in note["alive"]


def test_an_application_that_cannot_be_imported_ends_its_flow_run_alone(plain: Pool, tmp_path: Path) -> None:
    """Journal and state give the reason. The worker, which does not import it, continues."""
    run = plain.start("broken.py:broken", tmp_path)

    state = plain.wait_for_end(run)
    assert state.name in ("Failed", "Crashed")
    assert "This application is broken on purpose" in str(state.message)
    assert "This application is broken on purpose" in plain.worker.log
    assert plain.wait_for_end(plain.start("flows.py:report", tmp_path)).name == "Completed"


@pytest.mark.parametrize("environment", [None, {"OF_ITS_OWN": "1"}], ids=["fork", "command"])
def test_the_state_of_a_crashed_run_has_what_its_process_said_last(
    plain: Pool, tmp_path: Path, environment: dict[str, str] | None
) -> None:
    """Its last lines, without terminal codes; the journal has all of them."""
    run = plain.start("flows.py:speaks_and_dies", tmp_path, environment=environment)

    state = plain.wait_for_end(run)
    assert state.name == "Crashed"
    assert "status code: 3" in str(state.message)
    assert str(state.message).endswith(
        "It said last:\n" + "\n".join([*(f"line {n}" for n in range(92, 100)), "Out of ink"])
    )
    assert "line 0\n" in plain.worker.log


COMMON = """
import os
import random
import sqlite3
from pathlib import Path
from uuid import uuid4

import early

WHO = {who!r}
TOKEN = str(uuid4())
NUMBERS = [random.Random().random(), random.random()]
LINES = Path(__file__).with_name("lines").open()
DATABASE = sqlite3.connect(":memory:", check_same_thread=False)
with Path(__file__).with_name("imported").open("a") as imported:
    imported.write(f"{{os.getpid()}} ")
"""
FRESH = """
import multiprocessing
import sys
import tempfile
import time

import common
from notes import note
from prefect import flow


@flow
def fresh(notes: str) -> None:
    common.DATABASE.execute("CREATE TABLE once (id int)")
    multiprocessing.set_start_method("spawn")
    note(
        notes,
        "fresh",
        who=common.WHO,
        token=common.TOKEN,
        numbers=common.NUMBERS,
        line=common.LINES.readline(),
        library=common.early.IMPORTED_BY,
        main=multiprocessing.current_process().name,
        parent=str(multiprocessing.parent_process()),
        zone=time.tzname[0],
        temporary=tempfile.gettempdir(),
        path=sys.path,
    )
"""


@pytest.fixture(scope="module")
def projects(
    client: SyncPrefectClient, prefect_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Pool, list[Path]]]:
    """Return a pool of two projects with modules of the same names, the first of which is the worker's application.

    The application also has a module that waits when it is imported.
    """
    directories = []
    for who in ("first", "second"):
        directory = tmp_path_factory.mktemp(who)
        directories.append(directory)
        (directory / "common.py").write_text(COMMON.format(who=who), encoding="utf-8")
        (directory / "fresh.py").write_text(FRESH, encoding="utf-8")
        (directory / "waits.py").write_text("import time\n\ntime.sleep(3600)\n", encoding="utf-8")
        (directory / "notes.py").symlink_to(APPLICATION / "notes.py")
        (directory / "lines").write_text("first line\nsecond line\n", encoding="utf-8")
        (directory / "prefect.yaml").write_text(
            "deployments: [{entrypoint: 'fresh.py:fresh'}, {entrypoint: 'waits.py:waits'}]", encoding="utf-8"
        )
    environment = {"APP_DIRECTORY": str(directories[0])}
    with ExitStack() as stack:
        programs = Programs(client, prefect_server, tmp_path_factory.mktemp("workers"), stack)
        yield programs.pool(programs.start("projects", environment=environment)), directories


def test_for_the_application_a_fork_is_a_fresh_process(projects: tuple[Pool, list[Path]], tmp_path: Path) -> None:
    """Each flow run imports the application once, from its own project, and no other process does."""
    pool, directories = projects
    runs, notes = [], []
    for number, directory in enumerate([directories[0], *directories]):
        (place := tmp_path / str(number)).mkdir()
        runs.append(pool.start("fresh.py:fresh", place, directory=directory))
        assert pool.wait_for_end(runs[-1]).name == "Completed"
        notes.append(pool.note(place, "fresh"))

    assert [note["who"] for note in notes] == ["first", "first", "second"]
    assert len({note["token"] for note in notes}) == 3
    assert len({number for note in notes for number in note["numbers"]}) == 6
    for note in notes:
        assert (note["line"], note["main"], note["parent"]) == ("first line\n", "MainProcess", "None")
        # A library is shared.
        assert note["library"] == pool.worker.launcher()
    for directory, expected in zip(directories, ([0, 1], [2]), strict=True):
        pids = (directory / "imported").read_text(encoding="utf-8").split()
        assert pids == [str(notes[number]["pid"]) for number in expected]


def test_variables_of_a_deployment_are_there_from_the_beginning(
    projects: tuple[Pool, list[Path]], tmp_path: Path
) -> None:
    """Python and libraries read them when they start, so that such a flow run is no fork."""
    pool, (first, _) = projects
    run = pool.start(
        "fresh.py:fresh",
        tmp_path,
        directory=first,
        env={"TZ": "Asia/Tokyo", "TMPDIR": str(tmp_path), "PYTHONPATH": f"{tmp_path}:{LIBRARY}:{LIBRARIES}"},
    )

    assert pool.wait_for_end(run).name == "Completed"
    note = pool.note(tmp_path, "fresh")
    assert (note["zone"], note["temporary"]) == ("JST", str(tmp_path))
    assert str(tmp_path) in note["path"]
    assert note["library"] == note["pid"]


# What belongs to a flow run ends with it.


def descendants(pid: int) -> list[int]:
    """Return a process's children, and their children."""
    return [found for child in children(pid) for found in (child, *descendants(child))]


def test_processes_of_a_cancelled_flow_run_end_with_it(hasty: Pool, client: SyncPrefectClient, tmp_path: Path) -> None:
    run = hasty.start("flows.py:leaves_children", tmp_path)
    note = hasty.note(tmp_path, "leaves children")
    keeper = note["ppid"]
    # Two shells and their children, and the one whose shell has ended, which the keeper adopts.
    processes = hasty.worker.wait_until(
        lambda: found if len(found := [pid for pid in descendants(keeper) if "sleep" in command(pid)]) >= 4 else [],
        "its processes",
    )

    client.set_flow_run_state(run, Cancelling())

    assert hasty.wait_for_end(run).name == "Cancelled"
    hasty.worker.wait_until(lambda: not is_alive(keeper), "the end of its keeper")
    assert not [pid for pid in processes if is_alive(pid)]


@pytest.mark.thorough
def test_processes_of_a_killed_flow_run_end_with_it(hasty: Pool, tmp_path: Path) -> None:
    """Also if its keeper is killed before: what is left must not run beside the successor."""
    run = hasty.start("flows.py:leaves_children", tmp_path)
    note = hasty.note(tmp_path, "leaves children")
    os.kill(note["pid"], signal.SIGKILL)
    assert hasty.wait_for_end(run).name == "Crashed"
    hasty.worker.wait_until(lambda: not is_alive(note["ppid"]), "the end of its keeper")
    assert not [pid for pid in note["shells"] if is_alive(pid)]

    (another := tmp_path / "another").mkdir()
    run = hasty.start("flows.py:waits", another)
    note = hasty.note(another, "waits")
    os.kill(note["ppid"], signal.SIGKILL)
    hasty.worker.wait_until(lambda: not is_alive(note["pid"]), "the end of its process")
    assert hasty.wait_for_end(run).name == "Crashed"


@pytest.mark.thorough
def test_a_thread_does_not_hold_a_slot_for_ever(programs: Programs, tmp_path: Path) -> None:
    """The flow run keeps its state, and is not run again."""
    pool = programs.pool(programs.start("lingers", seconds={**HASTY, "worker._LINGER_SECONDS": limited(3.0)}))
    run = pool.start("flows.py:lingers", tmp_path)
    process = pool.note(tmp_path, "lingers")["pid"]

    assert pool.wait_for_end(run).name == "Completed"
    pool.worker.wait_until(lambda: not is_alive(process), "the end of its process")
    pool.worker.wait_for_status("^Polls lingers: 0 of 8 flow runs$")
    assert "It was Completed, and its process still ran" in pool.worker.log
    assert pool.read(run)[1].name == "Completed"
    assert len(pool.runs_of_deployment(run)) == 1


# Flow runs that cannot run in a fork.


@pytest.mark.thorough
def test_what_prefect_reads_when_it_is_imported_gets_a_fresh_process(plain: Pool, tmp_path: Path) -> None:
    """A deployment that sets a Prefect setting or a command gets a new process instead of a fork."""
    setting, command_ = tmp_path / "setting", tmp_path / "command"
    for directory in (setting, command_):
        directory.mkdir()
    runs = [
        plain.start("flows.py:report", setting, env={"PREFECT_LOGGING_LEVEL": "WARNING"}),
        plain.start("flows.py:report", command_, command=f"{sys.executable} -m prefect.engine"),
    ]

    assert [plain.wait_for_end(run).name for run in runs] == ["Completed"] * 2
    reports = [plain.note(directory, "report") for directory in (setting, command_)]
    for report in reports:
        assert report["launcher"]["pid"] == plain.worker.launcher()
        assert report["at_start"] == {}
    assert [report["level"] for report in reports] == ["WARNING", None]


@pytest.mark.thorough
def test_a_worker_without_forks_runs_flow_runs(programs: Programs, tmp_path: Path) -> None:
    pool = programs.pool(programs.start("without-forks", "--no-forks"))

    run = pool.start("flows.py:report", tmp_path)

    assert pool.wait_for_end(run).name == "Completed"
    report = pool.note(tmp_path, "report")
    assert report["at_start"] == {}
    assert report["launcher"]["pid"] == pool.worker.launcher()
    assert command(pool.worker.launcher()).split()[-1] == "commands"
    assert int(report["oom_score_adj"]) > _oom_score_adj(pool.worker)


@pytest.mark.thorough
def test_flow_runs_start_after_the_process_that_forks_was_killed(programs: Programs, tmp_path: Path) -> None:
    pool = programs.pool(programs.start("killed-forks"))
    before = pool.worker.launcher()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: not is_alive(before), "the process that forks ends")

    run = pool.start("flows.py:report", tmp_path)

    assert pool.wait_for_end(run).name == "Completed"
    assert pool.note(tmp_path, "report")["launcher"]["pid"] not in (before, pool.worker.process.pid)


# Cancellation and crashes.


def test_a_cancelled_flow_run_ends_and_its_hook_runs_once(
    plain: Pool, client: SyncPrefectClient, tmp_path: Path
) -> None:
    """The hook runs neither in the worker nor in the flow run's process, which may not respond."""
    run = plain.start("flows.py:waits", tmp_path)
    process = plain.note(tmp_path, "waits")["pid"]

    client.set_flow_run_state(run, Cancelling())

    if run_by_executor is None:
        # It is Crashed for a moment.
        plain.worker.wait_until(lambda: plain.read(run)[1].name == "Cancelled", "the flow run is Cancelled")
    assert plain.wait_for_end(run).name == "Cancelled"
    assert not is_alive(process)
    (hook,) = read_notes(tmp_path, "cancelled")
    assert hook["flow_run"] == str(run)
    assert hook["pid"] not in (process, plain.worker.process.pid)
    assert read_notes(tmp_path, "crashed") == []


def test_a_killed_flow_run_is_crashed_at_once_and_runs_again_once(
    hasty: Pool, pair: list[WorkerProgram], tmp_path: Path
) -> None:
    """It is retried once although two workers see the crash; its hook runs in a separate process."""
    run = hasty.start("flows.py:waits", tmp_path)
    process = hasty.note(tmp_path, "waits")["pid"]
    wait_until(lambda: hasty.read(run)[0].infrastructure_pid == str(process), "the flow run has a pid")
    os.kill(process, signal.SIGKILL)

    state = hasty.wait_for_end(run)
    assert state.name == "Crashed"
    # The reason is the exit code, not missing heartbeats.
    assert "Process exited with status code: -9" in str(state.message)
    hook = hasty.note(tmp_path, "crashed")
    assert hook["flow_run"] == str(run)
    assert hook["pid"] not in (process, *(worker.process.pid for worker in pair))

    first = hasty.read(run)[0]
    for worker in pair:
        worker.wait_until(partial(_says, worker, f"({run}) crashed, and is run again as"), "it handles the crash")
    again = hasty.successor(run)
    assert all(f"({run}) crashed, and is run again as {again.id}" in worker.log for worker in pair)
    assert again.idempotency_key == f"crash-retry-1-of-{run}"
    assert again.parameters == first.parameters
    assert again.name == f"{first.name}-retry"
    assert again.state
    assert again.state.type == StateType.SCHEDULED
    assert again.state.state_details.scheduled_time
    assert again.state.state_details.scheduled_time >= state.timestamp + timedelta(seconds=60)
    assert len(read_notes(tmp_path, "crashed")) == 1


@pytest.mark.thorough
def test_task_and_sub_flow_runs_crash_with_their_flow_run(
    hasty: Pool, client: SyncPrefectClient, tmp_path: Path
) -> None:
    """None of them remains Running."""
    run = hasty.start("flows.py:family", tmp_path)
    process = hasty.notes(tmp_path, "part", 2)[0]["pid"]

    def descendants() -> tuple[list[FlowRun], list[TaskRun]]:
        sub_flows = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run]))
        )
        family = [run, *(sub_flow.id for sub_flow in sub_flows)]
        tasks = client.read_task_runs(task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=family)))
        return sub_flows, tasks

    def states() -> list[str | None]:
        return [member.state_name for members in descendants() for member in members]

    # The sub-flow run and its task run in the parent, the parent's other task run, and the sub-flow's task run.
    hasty.worker.wait_until(lambda: states() == ["Running"] * 4, "four runs are Running")
    os.kill(process, signal.SIGKILL)

    assert hasty.wait_for_end(run).name == "Crashed"
    hasty.worker.wait_until(lambda: "Running" not in states(), "no run is Running")
    assert states() == ["Crashed"] * 4
    assert hasty.successor(run).idempotency_key == f"crash-retry-1-of-{run}"
    # Only its parent runs a sub-flow again.
    assert [sub_flow.deployment_id for sub_flow in descendants()[0]] == [None]


@pytest.mark.thorough
def test_records_of_task_runs_outlive_the_process_that_could_not_send_them(
    hasty: Pool, client: SyncPrefectClient, tmp_path: Path
) -> None:
    """The worker sends them from the outbox, which is empty afterwards."""
    run = hasty.start("flows.py:unheard", tmp_path)
    assert hasty.wait_for_end(run).name == "Completed"
    assert hasty.notes(tmp_path, "lost")

    def records() -> list[TaskRun]:
        return client.read_task_runs(task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[run])))

    hasty.worker.wait_until(lambda: [record.state_name for record in records()] == ["Completed"], "it is recorded")
    wait_until(lambda: not list(tmp_path.parent.rglob(f"outbox/{run}-*")), "the outbox is empty")


@pytest.mark.thorough
def test_how_often_a_flow_run_is_run_again(hasty: Pool, pair: list[WorkerProgram], tmp_path: Path) -> None:
    """The deployment sets the limit, which a run overrides; a value that is not a number counts as 1."""
    first, another = uuid4(), uuid4()
    directories = {name: tmp_path / name for name in ("never", "once", "twice")}
    for directory in directories.values():
        directory.mkdir()
    never, once, twice = (
        hasty.start("flows.py:ignores_sigterm", directories["never"], env={"CRASH_RETRIES": "0"}),
        hasty.start(
            "flows.py:ignores_sigterm",
            directories["once"],
            key=f"crash-retry-1-of-{first}",
            env={"CRASH_RETRIES": "once"},
        ),
        hasty.start(
            "flows.py:ignores_sigterm",
            directories["twice"],
            key=f"crash-retry-1-of-{another}",
            environment={"CRASH_RETRIES": "2"},
            env={"CRASH_RETRIES": "0"},
        ),
    )
    for directory in directories.values():
        os.kill(hasty.note(directory, "ignores")["pid"], signal.SIGKILL)

    assert [hasty.wait_for_end(run).name for run in (never, once, twice)] == ["Crashed"] * 3
    assert hasty.successor(twice).idempotency_key == f"crash-retry-2-of-{another}"
    for worker in pair:
        for run, limit in ((never, 0), (once, 1)):
            said = f"({run}) crashed, and is not run again: limit {limit}"
            worker.wait_until(partial(_says, worker, said), said)
        assert _says(worker, "is 'once': make it a number; it is 1 now")
    assert [len(hasty.runs_of_deployment(run)) for run in (never, once)] == [1, 1]


def test_a_flow_run_that_the_server_considers_crashed_is_ended(
    hasty: Pool, client: SyncPrefectClient, tmp_path: Path
) -> None:
    """Its process is ended before the retry, so that two attempts never overlap."""
    run = hasty.start("flows.py:waits", tmp_path)
    process = hasty.note(tmp_path, "waits")["pid"]
    wait_until(lambda: hasty.read(run)[1].is_running(), "a flow run that is Running")

    client.set_flow_run_state(run, Crashed(message="Somebody says so"), force=True)

    hasty.worker.wait_until(lambda: not is_alive(process), "the end of its process")
    said = "The server held it for crashed while it still ran"
    wait_until(lambda: said in str(hasty.read(run)[1].message), said)
    again = hasty.successor(run)
    assert again.state
    assert again.state.state_details.scheduled_time
    assert again.state.state_details.scheduled_time > hasty.read(run)[1].timestamp + timedelta(seconds=30)


@pytest.mark.thorough
def test_the_flow_runs_of_a_lost_worker_are_run_again(
    programs: Programs, client: SyncPrefectClient, tmp_path: Path
) -> None:
    """A new worker of the same name retries them, as after a reboot; a run in Cancelling becomes Cancelled."""
    lost = programs.start("lost", name="host", seconds=HASTY)
    pool = programs.pool(lost)
    *runs, unwanted, forgotten = (pool.start("flows.py:waits", tmp_path) for _ in range(4))
    processes = [note["pid"] for note in pool.notes(tmp_path, "waits", 4)]
    all_ = (*runs, unwanted, forgotten)
    wait_until(lambda: all(pool.read(run)[1].is_running() for run in all_), "flow runs that are Running")

    lost.kill()
    assert not any(is_alive(process) for process in processes)
    for run in (unwanted, forgotten):
        client.set_flow_run_state(run, Cancelling())
    # As Prefect's automation does if no worker of that name returns.
    client.set_flow_run_state(forgotten, Crashed(), force=True)
    pool = programs.pool(programs.start("lost", name="host", seconds=HASTY))

    for run in runs:
        state = pool.wait_for_end(run)
        assert state.name == "Crashed"
        assert state.message == "No process of it was found on host, whose worker had taken it"
        assert pool.successor(run).idempotency_key == f"crash-retry-1-of-{run}"
    assert [pool.wait_for_end(run).name for run in (unwanted, forgotten)] == ["Cancelled", "Crashed"]
    assert [len(pool.runs_of_deployment(run)) for run in (unwanted, forgotten)] == [1, 1]


@pytest.mark.thorough
@pytest.mark.parametrize(("names", "end"), [(("host", "host"), "Crashed"), (("host-1", "host-2"), "Completed")])
def test_two_hosts_of_one_hostname_need_two_names(
    client: SyncPrefectClient, prefect_server: str, tmp_path: Path, names: tuple[str, str], end: str
) -> None:
    """With one name, as two virtual machines of one template have, each takes the other's flow runs for lost."""
    with ExitStack() as stack:
        hosts = [Programs(client, prefect_server, tmp_path / place, stack) for place in ("first", "second")]
        name = f"twins-{end}"
        pool = hosts[0].pool(hosts[0].start(name, name=names[0], seconds=HASTY))
        run = pool.start("flows.py:waits", tmp_path)
        pool.note(tmp_path, "waits")
        wait_until(lambda: pool.read(run)[1].is_running(), "a flow run that is Running")

        hosts[1].pool(hosts[1].start(name, name=names[1], seconds=HASTY))
        enough = time.monotonic() + 3 * (HASTY["crashes._OWN_SECONDS"] + HASTY["worker._RECONCILE_SECONDS"])
        wait_until(lambda: pool.read(run)[1].is_final() or time.monotonic() > enough, "the second host has looked")
        (tmp_path / "go").touch()
        assert pool.wait_for_end(run).name == end


REFUSAL = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
NO_WEBSOCKETS = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


class Line:
    """A TCP proxy to the API that can drop all traffic, refuse every request with 401, or refuse websockets.

    ``ahead`` is added to the dates of answers, in seconds, as if the server's clock were ahead of the worker's.
    """

    def __init__(self, api_url: str, *, websockets: bool = True, ahead: int = 0) -> None:
        self._websockets, self._ahead = websockets, timedelta(seconds=ahead)
        address = urlsplit(api_url)
        self._server = (str(address.hostname), int(address.port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._over = threading.Event()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}{address.path}"
        # Both take effect while they are set.
        self.cut, self.refusing = threading.Event(), threading.Event()
        self.refused = 0

    def __enter__(self) -> "Line":
        """Start the proxy."""
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the proxy."""
        self._over.set()
        with closing(self._listener):
            self._listener.shutdown(socket.SHUT_RDWR)
            self._acceptor.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._server)
                for ends in ((near, far), (far, near)):
                    ends[0].settimeout(0.2)
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _shift(self, date: re.Match[bytes]) -> bytes:
        return format_datetime(parsedate_to_datetime(date[0].decode()) + self._ahead, usegmt=True).encode()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while not self._over.is_set():
                with suppress(TimeoutError):
                    if not (data := source.recv(65536)):
                        break
                    if self.refusing.is_set() and re.match(rb"[A-Z]+ /api/", data):
                        self.refused += 1
                        source.sendall(REFUSAL)
                        break
                    if not self._websockets and re.search(rb"(?i)\r\nupgrade: websocket\r\n", data):
                        source.sendall(NO_WEBSOCKETS)
                        break
                    if self._ahead:
                        data = re.sub(rb"(?i)(?<=\r\ndate: )[^\r]+", self._shift, data, count=1)
                    # Connections stay open but deliver nothing, as behind a firewall that drops packets.
                    while self.cut.is_set() and not self._over.is_set():
                        self._over.wait(0.05)
                    target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.mark.thorough
def test_a_flow_run_without_contact_is_ended_and_run_again(
    programs: Programs, prefect_server: str, tmp_path: Path
) -> None:
    """It is ended before the server may schedule a retry; the worker survives, and accepts flow runs afterwards."""
    with Line(prefect_server) as line:
        contact = limited(8.0)
        seconds = {**HASTY, "worker.CONTACT_SECONDS": contact}
        pool = programs.pool(programs.start("cut-off", api_url=line.url, seconds=seconds))
        run = pool.start("flows.py:waits", tmp_path)
        process = pool.note(tmp_path, "waits")["pid"]

        line.cut.set()
        pool.worker.wait_until(lambda: not is_alive(process), "the end of its process")
        assert f"Its worker had no contact to the API for {contact} seconds" in pool.worker.log
        line.cut.clear()

        assert pool.wait_for_end(run).name == "Crashed"
        assert pool.successor(run).idempotency_key == f"crash-retry-1-of-{run}"
        after = tmp_path / "after"
        after.mkdir()
        assert pool.wait_for_end(pool.start("flows.py:report", after)).name == "Completed"


@pytest.mark.thorough
def test_a_worker_that_is_refused_goes_on_asking(programs: Programs, prefect_server: str, tmp_path: Path) -> None:
    """During a rotation of the API's password flow runs continue, and due ones start later."""
    with Line(prefect_server) as line:
        pool = programs.pool(programs.start("refused", api_url=line.url, seconds=HASTY))
        running = pool.start("flows.py:waits", tmp_path)
        pool.note(tmp_path, "waits")
        wait_until(lambda: pool.read(running)[1].is_running(), "a flow run that is Running")

        line.refusing.set()
        pool.worker.wait_until(lambda: line.refused > 10, "the API refuses the worker repeatedly")
        said = pool.worker.log.count("The API refuses the worker, which goes on asking: ")
        # Requests that were under way when the refusals began were answered in between.
        assert said == pool.worker.log.count("The API answers again") + 1
        pool.worker.wait_until(lambda: line.refused > 20, "the API refuses the worker more often")
        assert pool.worker.log.count("The API refuses the worker, which goes on asking: ") == said
        line.refusing.clear()

        after = tmp_path / "after"
        after.mkdir()
        assert pool.wait_for_end(pool.start("flows.py:report", after)).name == "Completed"
        (tmp_path / "go").touch()
        assert pool.wait_for_end(running).name == "Completed"
        assert pool.worker.process.poll() is None


@pytest.mark.thorough
def test_a_proxy_that_refuses_websockets_ends_no_flow_run(
    programs: Programs, prefect_server: str, client: SyncPrefectClient, tmp_path: Path
) -> None:
    """Flow runs and sub-flow runs send heartbeats and complete, and all their events come by requests."""
    with Line(prefect_server, websockets=False) as line:
        pool = programs.pool(programs.start("no-websockets", api_url=line.url, seconds=HASTY, environment=HEARTBEATS))
        run = pool.start("flows.py:child", tmp_path)
        assert pool.note(tmp_path, "part")
        pool.worker.wait_until(lambda: len(heartbeats(client, run)) > 1, "it goes on sending heartbeats")
        (tmp_path / "go").touch()
        assert pool.wait_for_end(run).name == "Completed"

        def records() -> list[str | None]:
            of_it = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[run]))
            return [record.state_name for record in client.read_task_runs(task_run_filter=of_it)]

        pool.worker.wait_until(lambda: records() == ["Completed"], "it is recorded")
        pool.worker.wait_until(lambda: not list(tmp_path.rglob("outbox/*.jsonl")), "the outbox is empty")
        assert pool.worker.process.poll() is None
        assert "may be lost" not in pool.worker.log


def heartbeats(client: SyncPrefectClient, run: UUID) -> Sequence[Event]:
    """Return the heartbeats that the server has received of a flow run."""
    wanted = EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run}"]),
        occurred=EventOccurredFilter(until=DateTime.now(UTC) + timedelta(days=1)),
    )
    return _events(client, wanted)


def test_heartbeats_of_a_host_whose_clock_is_slow_bear_the_server_s_time(
    programs: Programs, prefect_server: str, client: SyncPrefectClient, tmp_path: Path
) -> None:
    """The worker says how slow it is, in its log and its status."""
    with Line(prefect_server, ahead=180) as line:
        pool = programs.pool(programs.start("slow-clock", api_url=line.url, environment=HEARTBEATS))
        pool.worker.wait_for_status(r"^Polls slow-clock: 0 of 8 flow runs; this host's clock is 1[678]\d s slow$")
        assert pool.worker.log.count("The clock of this host is 1") == 1
        run = pool.start("flows.py:waits", tmp_path)
        pool.note(tmp_path, "waits")
        event, *_ = pool.worker.wait_until(lambda: heartbeats(client, run), "a heartbeat")
        sent = time.time()
        (tmp_path / "go").touch()
        assert pool.wait_for_end(run).name == "Completed"
        assert event.occurred.timestamp() - sent == pytest.approx(180, abs=limited(20))


def test_what_concerns_one_run_or_one_file_does_not_end_the_worker(
    programs: Programs, client: SyncPrefectClient, tmp_path: Path
) -> None:
    """A successor that the server refuses, and files that are not the worker's."""
    directory = tmp_path / "worker-of-faults"
    (outbox := directory / "home/outbox").mkdir(parents=True)
    (runtime := directory / "runtime").mkdir()
    (outbox / "half.jsonl").write_text('{"event": "prefect.ta\n', encoding="utf-8")
    (outbox / "object.jsonl").write_text("{}\n", encoding="utf-8")
    os.mkfifo(outbox / "fifo.jsonl")
    (runtime / "worker-x").touch()
    os.mkfifo(runtime / "worker-99999999")
    pool = programs.pool(programs.start("faults", seconds=HASTY))
    schema: dict[str, Any] = {"type": "object", "properties": {"notes": {"type": "string"}}}
    run = pool.start("flows.py:waits", tmp_path, schema=schema)
    process = pool.note(tmp_path, "waits")["pid"]
    other = pool.start("flows.py:report", tmp_path)

    new = DeploymentUpdate(parameter_openapi_schema={**schema, "required": ["another"]}, enforce_parameter_schema=True)
    client.update_deployment(pool.read(run)[0].deployment_id, new)  # type: ignore[arg-type] # it has one
    os.kill(process, signal.SIGKILL)

    said = f"({run}) crashed, and cannot be run again: PrefectHTTPStatusError: Client error '409 Conflict'"
    pool.worker.wait_until(partial(_says, pool.worker, said), said)
    assert pool.wait_for_end(other).name == "Completed"
    aside = {"half.jsonl", "object.jsonl", "fifo.jsonl"}
    wait_until(lambda: {path.name for path in outbox.glob("aside/*")} == aside, "bad files are moved aside")
    # Several passes later it goes on, and has said so only once.
    assert pool.wait_for_end(pool.start("flows.py:report", tmp_path)).name == "Completed"
    for text in (said, *aside, "worker-x is of no worker", "worker-99999999 is of no worker"):
        assert pool.worker.log.count(f"{text}:" if text in aside else text) == 1, text
    assert pool.worker.process.poll() is None


# Drain, takeover and exit of the worker.


def test_sigterm_drains(programs: Programs, tmp_path: Path) -> None:
    """Running flow runs complete, due ones are not started, and systemd's status shows how many are left."""
    pool = programs.pool(programs.start("drained"))
    worker = pool.worker
    running = pool.start("flows.py:waits", tmp_path)
    pool.note(tmp_path, "waits")
    worker.wait_for_status(r"^Polls drained: 1 of 8 flow runs$")

    worker.process.send_signal(signal.SIGTERM)
    worker.wait_for_status(r"^Draining: 1 flow run\(s\) left, to be ended in \d+ s at the latest$")
    waiting = pool.start("flows.py:waits", tmp_path)
    # A worker that is not draining would poll every second.
    left = len(set(worker.statuses))
    worker.wait_until(lambda: len(set(worker.statuses)) > left + 4, "the worker drains for some seconds")
    assert pool.read(waiting)[1].is_scheduled()
    (tmp_path / "go").touch()

    assert worker.wait_for_end() == 0
    assert pool.read(running)[1].name == "Completed"
    assert pool.read(waiting)[1].is_scheduled()
    assert len(read_notes(tmp_path, "waits")) == 1


def test_a_worker_that_waits_for_its_server_ends_when_told(programs: Programs) -> None:
    """The address may be wrong, so that the server never answers."""
    worker = programs.start("unanswered", api_url="http://127.0.0.1:9/api")
    worker.wait_until(lambda: "The API does not answer the worker" in worker.log, "the worker waits for its server")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait_for_end() == 0
    assert not worker.statuses


@pytest.mark.thorough
def test_what_outlasts_the_drain_is_ended_and_run_again(programs: Programs, tmp_path: Path) -> None:
    """Even a run that ignores SIGTERM is ended; SIGUSR1, sent at shutdown of the host, has a separate limit."""
    pool = programs.pool(
        programs.start("outlasted", "--drain-timeout", "3600", "--shutdown-timeout", "2", seconds=HASTY)
    )
    worker = pool.worker
    runs = [pool.start(f"flows.py:{flow}", tmp_path) for flow in ("waits", "ignores_sigterm")]
    processes = [pool.note(tmp_path, kind)["pid"] for kind in ("waits", "ignores")]
    worker.process.send_signal(signal.SIGTERM)
    worker.wait_for_status(r"^Draining: 2 flow run\(s\) left, to be ended in 3\d\d\d s")
    assert all(is_alive(process) for process in processes)

    worker.process.send_signal(signal.SIGUSR1)

    assert worker.wait_for_end() == 0
    assert not any(is_alive(process) for process in processes)
    for run in runs:
        state = pool.read(run)[1]
        assert state.name == "Crashed"
        assert state.message == "It had not ended 2 seconds after its worker was told to stop"
        again = pool.successor(run)
        assert again.idempotency_key == f"crash-retry-1-of-{run}"
        assert again.state
        assert again.state.state_details.scheduled_time
        assert again.state.state_details.scheduled_time >= state.timestamp + timedelta(seconds=60)


@pytest.mark.thorough
def test_a_reload_puts_another_worker_in_its_place(programs: Programs, tmp_path: Path) -> None:
    """Flow runs of the old worker complete in parallel; a new worker that cannot start changes nothing."""
    pool = programs.pool(programs.start("replaced"))
    old = pool.worker
    running = pool.start("flows.py:waits", tmp_path)
    pool.note(tmp_path, "waits")

    assert old.replace(RUNTIME_DIRECTORY="/nowhere") == 1
    assert "No such file or directory: '/nowhere/worker-" in old.log
    assert old.main_pids == []
    assert pool.wait_for_end(pool.start("flows.py:report", tmp_path)).name == "Completed"
    assert pool.note(tmp_path, "report")["launcher"]["pid"] == old.launcher()

    assert old.replace() == 0
    (new,) = old.main_pids
    assert new != old.process.pid
    old.wait_for_status(r"^Polls replaced: 0 of 8 flow runs; beside it 1 end\(s\) of workers before it$")
    after = tmp_path / "after"
    after.mkdir()
    runs = [pool.start("flows.py:report", after) for _ in range(3)]
    assert [pool.wait_for_end(run).name for run in runs] == ["Completed"] * 3
    (server,) = {note["launcher"]["pid"] for note in pool.notes(after, "report", 3)}
    assert server in children(new)
    assert old.process.poll() is None

    (tmp_path / "go").touch()
    assert old.wait_for_end() == 0
    assert pool.read(running)[1].name == "Completed"
    old.wait_for_status(r"^Polls replaced: 0 of 8 flow runs$")
    # A worker that is no longer the main process does not notify systemd.
    assert not re.search("Draining", "\n".join(old.statuses))
    assert is_alive(new)
