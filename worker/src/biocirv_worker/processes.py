"""A flow run's process and its flow's hooks, started by the launcher. This needs no private part of Prefect."""

from __future__ import annotations

import inspect
import re
import shlex
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.to_thread
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import load_flow_from_flow_run
from prefect.logging.loggers import flow_run_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.workers.process import ProcessJobConfiguration

    from biocirv_worker.engine import Launcher, Process

# Lines of what a crashed flow run's process said last that its state's message has.
_LINES = 9
_FOR_MEMORY = (
    "The kernel killed it for lack of memory: it used more than RUN_MEMORY_MAX, all flow runs together used more than"
    " the worker's unit may, or the host had none left. The host's `journalctl -k` says which."
)


class Starter:
    """Starts a flow run's process, which calls ``run`` in a fork, or without it executes the configuration's command.

    Its hooks run in processes like it, not in the worker, which has neither the flow's code nor its working directory.
    """

    def __init__(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        directory: str,
        launcher: Launcher,
        run: Callable[[], None] | None,
    ) -> None:
        self._flow_run = flow_run
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
        self._ended: Process | None = None

    async def run(self, started: Callable[[Process], None], **variables: str) -> int:
        """Start the process, call ``started`` with it, and return when it and its children have ended.

        ``variables`` are added to its environment. Returns its exit code, or minus a signal's number.
        """
        process = await self._start(self._environment | variables, started, **self._what)
        self._ended = process
        return cast("int", process.returncode)

    def explain(self, message: str) -> str:
        """Return the message of a crash, with why the kernel ended the process, and what the process said last."""
        if self._ended and self._ended.for_memory:
            message += f"\n{_FOR_MEMORY}"
        if self._ended and (said := last_lines(self._ended.said)):
            message += f"\nIt said last:\n{said}"
        return message

    async def run_hooks(self, kind: str, state: State[Any]) -> None:
        """Run the flow's hooks of a kind, `crashed` or `cancellation`."""
        arguments = [kind, self._flow_run.model_dump_json(), state.model_dump_json()]
        await self._start(self._environment, lambda _: None, function=run_hooks, arguments=arguments)

    async def _start(
        self,
        environment: dict[str, str],
        started: Callable[[Process], None],
        **what: Any,  # noqa: ANN401 - the launcher's
    ) -> Process:
        # A fork takes milliseconds, but seconds if the launcher has to be started again.
        start = partial(self._launcher.start, environment, self._directory, output=self._output, **what)
        process = await anyio.to_thread.run_sync(start)
        try:
            started(process)
            await anyio.wait_readable(process.fileno())
            process.read_status()
            return process
        finally:
            process.close()


def last_lines(text: str) -> str:
    """Return the last lines of a text that say something, without terminal codes."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return "\n".join([line.rstrip() for line in plain.splitlines() if line.strip()][-_LINES:])


def run_hooks(kind: str, flow_run: str, state: str) -> None:
    """Run a flow's hooks for a flow run that crashed or is being cancelled. Runs in a fork."""
    anyio.run(_run_hooks, kind, FlowRun.model_validate_json(flow_run), State[Any].model_validate_json(state))


async def _run_hooks(kind: str, flow_run: FlowRun, state: State[Any]) -> None:
    log = flow_run_logger(flow_run)
    try:
        flow = await load_flow_from_flow_run(flow_run)
    except Exception:
        log.warning("Its %s hooks do not run, because its flow cannot be loaded", kind, exc_info=True)
        return
    for hook in getattr(flow, f"on_{kind}_hooks") or []:
        name = getattr(hook, "__name__", repr(hook))
        call = partial(hook, flow=flow, flow_run=flow_run, state=state)
        log.info("Running hook %r, because the flow run is %s", name, state.name)
        # One hook that fails holds up no other.
        try:
            # A hook that is no coroutine function may block, or run an event loop of its own.
            await (call() if inspect.iscoroutinefunction(hook) else anyio.to_thread.run_sync(call))
        except Exception:
            log.exception("Hook %r failed", name)
