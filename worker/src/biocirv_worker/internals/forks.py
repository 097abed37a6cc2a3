"""Starts a flow run's process as a fork.

Prefect's worker has an executor for each flow run, which reports crashes, carries out cancellations and observes how
the run ended. This module replaces only the way in which the executor starts the process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import load_flow_from_flow_run
from prefect.runner._control_channel import ControlChannel
from prefect.runner._flow_run_executor import FlowRunExecutionResult, FlowRunExecutorContext
from prefect.runner._hook_runner import HookRunner
from prefect.runner._process_manager import ProcessHandle
from prefect.workers.process import ProcessJobConfiguration, ProcessWorkerResult

from biocirv_worker import engine


async def run_forked(
    flow_run: FlowRun,
    configuration: ProcessJobConfiguration,
    directory: str,
    run: Callable[[], None],
    task_status: anyio.abc.TaskStatus[int],
) -> ProcessWorkerResult:
    """Call ``run`` in a fork for a flow run and wait for its end, as ``ProcessWorker.run`` does for a command."""
    execution: FlowRunExecutionResult | None = None
    async with FlowRunExecutorContext() as context:
        forks = _Forks(flow_run, configuration, directory, run, context.control_channel)
        executor = context.create_executor(flow_run, forks, hook_runner=forks, propose_submitting=False)

        async def execute(*, task_status: anyio.abc.TaskStatus[ProcessHandle]) -> None:
            nonlocal execution
            execution = await executor.submit(task_status=task_status)

        async with anyio.create_task_group() as group:
            handle: ProcessHandle = await group.start(execute)
            assert handle.pid is not None  # noqa: S101 - it has been started
            task_status.started(handle.pid)
    if execution is None or execution.status_code is None:
        raise RuntimeError(f"Prefect's executor does not say how process {handle.pid} ended")
    return ProcessWorkerResult(status_code=execution.status_code, identifier=str(handle.pid))


def run_hooks(kind: str, flow_run: str, state: str) -> None:
    """Run a flow's hooks for a flow run that crashed or is being cancelled. Runs in a fork."""
    runner = HookRunner(resolve_flow=load_flow_from_flow_run)
    hooks = runner.run_crashed_hooks if kind == "crashed" else runner.run_cancellation_hooks
    anyio.run(hooks, FlowRun.model_validate_json(flow_run), State[Any].model_validate_json(state))


class _Forks:
    """Starts a flow run's process and runs its hooks: the interfaces that Prefect's executor expects."""

    def __init__(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        directory: str,
        run: Callable[[], None],
        control: ControlChannel,
    ) -> None:
        variables = {
            **configuration.env,
            "PREFECT__FLOW_RUN_ID": str(flow_run.id),
            "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS": "false",
        }
        self._environment = {name: value for name, value in variables.items() if value is not None}
        self._directory = directory
        self._run = run
        self._control = control

    async def start(
        self, flow_run: FlowRun, task_status: anyio.abc.TaskStatus[ProcessHandle] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Start the process, report it to ``task_status``, and return when it has ended."""
        port, token = self._control.register(flow_run.id)
        control = {"PREFECT__CONTROL_PORT": str(port), "PREFECT__CONTROL_TOKEN": token}
        await self._fork(self._environment | control, task_status, self._run)

    async def run_crashed_hooks(self, flow_run: FlowRun, state: State[Any]) -> None:
        """Run the flow's hooks for a crash, in a fork: the worker has neither its code nor its working directory."""
        await self._run_hooks("crashed", flow_run, state)

    async def run_cancellation_hooks(self, flow_run: FlowRun, state: State[Any]) -> None:
        """Run the flow's hooks for a cancellation."""
        await self._run_hooks("cancellation", flow_run, state)

    async def _run_hooks(self, kind: str, flow_run: FlowRun, state: State[Any]) -> None:
        arguments = kind, flow_run.model_dump_json(), state.model_dump_json()
        await self._fork(self._environment, anyio.TASK_STATUS_IGNORED, run_hooks, *arguments)

    async def _fork(
        self,
        environment: dict[str, str],
        task_status: anyio.abc.TaskStatus[ProcessHandle],
        function: Callable[..., None],
        *arguments: str,
    ) -> None:
        # A fork takes milliseconds, but seconds if the fork server has to be restarted.
        process = await anyio.to_thread.run_sync(engine.start, environment, self._directory, function, *arguments)
        assert process.pid is not None  # noqa: S101 - it has been started
        descriptor = os.pidfd_open(process.pid)
        try:
            task_status.started(ProcessHandle(process))  # type: ignore[arg-type] # it needs what every Process has
            await anyio.wait_readable(process.sentinel)
            # The sentinel also becomes readable when the fork server was killed; the fork may then still be alive.
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            await anyio.to_thread.run_sync(process.join)
        finally:
            os.close(descriptor)
