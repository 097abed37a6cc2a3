"""Starts a flow run's process by the launcher.

Prefect's worker has an executor for each flow run, which reports crashes, carries out cancellations and observes how
the run ended. This module replaces only the way in which the executor starts the process.
"""

from __future__ import annotations

import re
import shlex
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import anyio.to_thread
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import load_flow_from_flow_run
from prefect.runner._control_channel import ControlChannel
from prefect.runner._flow_run_executor import FlowRunExecutionResult, FlowRunExecutorContext
from prefect.runner._hook_runner import HookRunner
from prefect.runner._process_manager import ProcessHandle
from prefect.runner._state_proposer import StateProposer
from prefect.workers.process import ProcessJobConfiguration, ProcessWorkerResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.client.orchestration import PrefectClient

    from biocirv_worker.engine import Launcher

# Lines of what a crashed flow run's process said last that its state's message has.
_LINES = 9


async def run_launched(
    flow_run: FlowRun,
    configuration: ProcessJobConfiguration,
    directory: str,
    launcher: Launcher,
    run: Callable[[], None] | None,
    task_status: anyio.abc.TaskStatus[int],
) -> ProcessWorkerResult:
    """Start a flow run's process and wait for its end, as ``ProcessWorker.run`` does.

    The process calls ``run`` in a fork, or without it executes the configuration's command.
    """
    execution: FlowRunExecutionResult | None = None
    async with FlowRunExecutorContext() as context:
        starter = _Starter(flow_run, configuration, directory, launcher, run, context.control_channel)
        context._state_proposer = _Proposer(context.client, starter)
        executor = context.create_executor(flow_run, starter, hook_runner=starter, propose_submitting=False)

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


class _Proposer(StateProposer):
    """Adds to the message of a crash what the flow run's process said last: else only the journal would have it."""

    def __init__(self, client: PrefectClient, starter: _Starter) -> None:
        super().__init__(client=client)
        self._starter = starter

    async def propose_crashed(self, flow_run: FlowRun, message: str) -> State[Any] | None:
        """Propose the state, as the base class does."""
        said = last_lines(self._starter.said)
        return await super().propose_crashed(flow_run, f"{message}\nIt said last:\n{said}" if said else message)


def last_lines(text: str) -> str:
    """Return the last lines of a text that say something, without terminal codes."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return "\n".join([line.rstrip() for line in plain.splitlines() if line.strip()][-_LINES:])


class _Starter:
    """Starts a flow run's process and runs its hooks: the interfaces that Prefect's executor expects."""

    def __init__(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        directory: str,
        launcher: Launcher,
        run: Callable[[], None] | None,
        control: ControlChannel,
    ) -> None:
        variables = {
            **configuration.env,
            "PREFECT__FLOW_RUN_ID": str(flow_run.id),
            "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS": "false",
        }
        self._environment = {name: value for name, value in variables.items() if value is not None}
        self._directory = directory
        self._launcher = launcher
        self._what: dict[str, Any] = {"function": run} if run else {"command": shlex.split(configuration.command or "")}
        self._output = configuration.stream_output
        self._control = control
        self.said = ""

    async def start(
        self, flow_run: FlowRun, task_status: anyio.abc.TaskStatus[ProcessHandle] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Start the process, report it to ``task_status``, and return when it and its children have ended."""
        port, token = self._control.register(flow_run.id)
        control = {"PREFECT__CONTROL_PORT": str(port), "PREFECT__CONTROL_TOKEN": token}
        self.said = await self._start(self._environment | control, task_status, **self._what)

    async def run_crashed_hooks(self, flow_run: FlowRun, state: State[Any]) -> None:
        """Run the flow's hooks for a crash, in a fork: the worker has neither its code nor its working directory."""
        await self._run_hooks("crashed", flow_run, state)

    async def run_cancellation_hooks(self, flow_run: FlowRun, state: State[Any]) -> None:
        """Run the flow's hooks for a cancellation."""
        await self._run_hooks("cancellation", flow_run, state)

    async def _run_hooks(self, kind: str, flow_run: FlowRun, state: State[Any]) -> None:
        arguments = [kind, flow_run.model_dump_json(), state.model_dump_json()]
        await self._start(self._environment, anyio.TASK_STATUS_IGNORED, function=run_hooks, arguments=arguments)

    async def _start(
        self,
        environment: dict[str, str],
        task_status: anyio.abc.TaskStatus[ProcessHandle],
        **what: Any,  # noqa: ANN401 - the launcher's
    ) -> str:
        """Start a process, and return what it said last when it and its children have ended."""
        # A fork takes milliseconds, but seconds if the launcher has to be started again.
        start = partial(self._launcher.start, environment, self._directory, output=self._output, **what)
        process = await anyio.to_thread.run_sync(start)
        try:
            task_status.started(ProcessHandle(process))  # type: ignore[arg-type] # it needs what every Process has
            await anyio.wait_readable(process.fileno())
            process.read_status()
            return process.said
        finally:
            process.close()
