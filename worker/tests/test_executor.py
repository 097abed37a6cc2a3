"""The private parts of Prefect by which its executor runs flow runs: from 3.8.4 on, a Prefect must pass these tests."""

import inspect
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import biocirv_worker
import pytest
from biocirv_worker import engine, worker
from biocirv_worker.internals import forks
from prefect.runner._control_channel import ControlChannel
from prefect.runner._flow_run_executor import (
    FlowRunExecutionResult,
    FlowRunExecutor,
    FlowRunExecutorContext,
    ProcessStarter,
)
from prefect.runner._hook_runner import FlowRunHookRunner
from prefect.runner._process_manager import ProcessHandle
from prefect.workers.base import BaseWorker

# Timeout of the test, far above what a busy machine needs.
GIVE_UP_SECONDS = 300


def test_the_worker_uses_it() -> None:
    assert vars(worker)["run_by_executor"] is forks.run_by_executor


@pytest.mark.parametrize(
    ("function", "positional", "named"),
    [
        (FlowRunExecutorContext, 0, []),
        (FlowRunExecutorContext.create_executor, 3, ["hook_runner", "propose_submitting"]),
        (FlowRunExecutor.submit, 1, ["task_status"]),
        (ControlChannel.register, 2, []),
        (ProcessHandle, 1, []),
    ],
)
def test_it_can_be_called_as_the_worker_does(function: Callable[..., Any], positional: int, named: list[str]) -> None:
    inspect.signature(function).bind(*[None] * positional, **dict.fromkeys(named))


@pytest.mark.parametrize("protocol", [ProcessStarter, FlowRunHookRunner])
def test_it_finds_what_it_calls_on_the_worker_s_side(protocol: type) -> None:
    """These are the only methods by which Prefect's executor starts a process and runs hooks."""
    wanted = {name for name, member in vars(protocol).items() if inspect.isfunction(member) and name[0] != "_"}
    assert wanted
    for name in wanted:
        theirs = inspect.signature(getattr(protocol, name)).parameters
        ours = inspect.signature(getattr(forks._Adapter, name)).parameters
        assert list(ours) == list(theirs)


def test_how_a_process_ended_is_in_the_result() -> None:
    assert "status_code" in FlowRunExecutionResult.__dataclass_fields__


def test_it_is_told_of_cancellations() -> None:
    assert "self._cancel_run" in inspect.getsource(BaseWorker._setup_cancellation_observer)


def test_a_process_of_the_launcher_is_one_that_prefect_can_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(biocirv_worker.__file__).parents[1]))
    launcher = engine.Launcher(forks=False)
    process = launcher.start(dict(os.environ), "/", command=["sleep", str(GIVE_UP_SECONDS)])
    handle = ProcessHandle(process)  # type: ignore[arg-type] # as in internals/forks.py

    assert (handle.pid, handle.returncode, handle.is_alive()) == (process.pid, None, True)
    handle.hard_kill()
    assert select.select([process], [], [], GIVE_UP_SECONDS)[0]
    process.read_status()

    assert (handle.returncode, handle.is_alive()) == (-signal.SIGKILL, False)
    process.close()
