"""Runs a flow run by Prefect's own executor, which is there from Prefect 3.8.4 on.

The executor reports crashes, carries out cancellations, of which a websocket tells it, and observes how the run ended.
This module replaces only the way in which it starts the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
from prefect.runner._flow_run_executor import FlowRunExecutionResult, FlowRunExecutorContext
from prefect.runner._process_manager import ProcessHandle
from prefect.runner._state_proposer import StateProposer
from prefect.workers.process import ProcessWorkerResult

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.runner._control_channel import ControlChannel

    from biocirv_worker.engine import Process
    from biocirv_worker.processes import Starter


async def run_by_executor(
    flow_run: FlowRun, starter: Starter, task_status: anyio.abc.TaskStatus[int]
) -> ProcessWorkerResult:
    """Start a flow run's process and wait for its end, as ``ProcessWorker.run`` does."""
    execution: FlowRunExecutionResult | None = None
    async with FlowRunExecutorContext() as context:
        context._state_proposer = _Proposer(context.client, starter)
        adapter = _Adapter(starter, context.control_channel)
        executor = context.create_executor(flow_run, adapter, hook_runner=adapter, propose_submitting=False)

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


class _Proposer(StateProposer):
    """Adds to the message of a crash what the flow run's process said last: else only the journal would have it."""

    def __init__(self, client: PrefectClient, starter: Starter) -> None:
        super().__init__(client=client)
        self._starter = starter

    async def propose_crashed(self, flow_run: FlowRun, message: str) -> State[Any] | None:
        """Propose the state, as the base class does."""
        return await super().propose_crashed(flow_run, self._starter.explain(message))


class _Adapter:
    """Has the interfaces of a process's starter and of a runner of hooks that Prefect's executor expects."""

    def __init__(self, starter: Starter, control: ControlChannel) -> None:
        self._starter = starter
        self._control = control

    async def start(
        self, flow_run: FlowRun, task_status: anyio.abc.TaskStatus[ProcessHandle] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Start the process, report it to ``task_status``, and return when it and its children have ended."""
        port, token = self._control.register(flow_run.id)
        control = {"PREFECT__CONTROL_PORT": str(port), "PREFECT__CONTROL_TOKEN": token}

        def started(process: Process) -> None:
            task_status.started(ProcessHandle(process))  # type: ignore[arg-type] # it needs what every Process has

        await self._starter.run(started, **control)

    async def run_crashed_hooks(self, flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG002 - Prefect's
        """Run the flow's hooks for a crash."""
        await self._starter.run_hooks("crashed", state)

    async def run_cancellation_hooks(self, flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG002 - Prefect's
        """Run the flow's hooks for a cancellation."""
        await self._starter.run_hooks("cancellation", state)
