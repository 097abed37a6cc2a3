"""All that this package uses of Prefect without Prefect promising it; tests/unit/test_worker_internals.py watches it.

Prefect's worker has an executor for each flow run, which reports crashes, carries out cancellations and hears how the
run ended. Here it is given another way to start the process, and stays what it is.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import anyio.to_thread
from prefect.flows import load_flow_from_flow_run
from prefect.runner._control_channel import ControlChannel
from prefect.runner._flow_run_executor import FlowRunExecutionResult, FlowRunExecutorContext
from prefect.runner._process_manager import ProcessHandle
from prefect.workers.process import ProcessJobConfiguration, ProcessWorkerResult

from biocirv_worker import engine

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


async def run_forked(
    flow_run: FlowRun, configuration: ProcessJobConfiguration, directory: str, task_status: anyio.abc.TaskStatus[int]
) -> ProcessWorkerResult:
    """Run a flow run in a fork, until it has ended: what ``ProcessWorker.run`` does with a command."""
    execution: FlowRunExecutionResult | None = None
    async with FlowRunExecutorContext() as context:
        starter = _Starter(configuration, directory, context.control_channel)
        executor = context.create_executor(
            flow_run, starter, resolve_flow=load_flow_from_flow_run, propose_submitting=False
        )

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


class _Starter:
    """Starts a flow run's process: what Prefect's executor asks for."""

    def __init__(self, configuration: ProcessJobConfiguration, directory: str, control: ControlChannel) -> None:
        self._environment = configuration.env
        self._directory = directory
        self._control = control

    async def start(
        self, flow_run: FlowRun, task_status: anyio.abc.TaskStatus[ProcessHandle] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Start it, say so, and return when it has ended."""
        port, token = self._control.register(flow_run.id)
        variables = {
            **self._environment,
            "PREFECT__FLOW_RUN_ID": str(flow_run.id),
            "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS": "false",
            "PREFECT__CONTROL_PORT": str(port),
            "PREFECT__CONTROL_TOKEN": token,
        }
        environment = {name: value for name, value in variables.items() if value is not None}
        # A fork takes milliseconds, and seconds where the process that forks has to be started anew.
        process = await anyio.to_thread.run_sync(engine.start, environment, self._directory)
        assert process.pid is not None  # noqa: S101 - it has been started
        descriptor = os.pidfd_open(process.pid)
        try:
            task_status.started(ProcessHandle(process))  # type: ignore[arg-type] # it needs what every Process has
            await anyio.wait_readable(process.sentinel)
            # Where the process that forks was killed, nothing is heard of the fork any more.
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            await anyio.to_thread.run_sync(process.join)
        finally:
            os.close(descriptor)
