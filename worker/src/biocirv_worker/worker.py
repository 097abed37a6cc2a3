"""The worker: Prefect's process worker, extended by the launcher, fencing and draining."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import anyio
import anyio.abc
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.context import get_settings_context
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelling
from prefect.workers import base
from prefect.workers.process import ProcessJobConfiguration, ProcessWorkerResult
from pydantic import PrivateAttr

from biocirv_worker import clock, crashes, engine, outbox, times
from biocirv_worker.asides import SILENT, Asides, outage
from biocirv_worker.flow_run import main as run_flow
from biocirv_worker.internals import metrics, websockets
from biocirv_worker.internals.polling import PollingWorker
from biocirv_worker.processes import Starter
from biocirv_worker.systemd import Peers

try:
    from biocirv_worker.internals.forks import run_by_executor as run_by_executor
except ImportError:
    run_by_executor = None  # type: ignore[assignment] # an older Prefect

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

logger = logging.getLogger("prefect.worker.biocirv")

# Without contact to the API for this long, the worker kills its flow runs' processes.
CONTACT_SECONDS = times.CONTACT
_FENCE_SECONDS = 5
# Interval after a request without an answer.
_RETRY_SECONDS = 1
_REQUEST_TIMEOUT_SECONDS = 5
# Longer than fencing takes, see crashes.py.
_RECONCILE_SECONDS = 10
# Between SIGTERM and SIGKILL: of flow runs that this worker ends, and of cancelled ones, as in Prefect.
_GRACE_SECONDS = 10
_CANCEL_SECONDS = 30
# A process whose flow run has ended may call hooks and wait for threads for this long: it holds a slot.
_LINGER_SECONDS = 600
_CLOCK_SECONDS = 60
# Variables of a deployment that this package reads, and nothing else.
_OURS = {crashes.RETRIES_VARIABLE, outbox.SWITCH}


class JobConfiguration(ProcessJobConfiguration):
    """A flow run's process configuration, whose default command runs the flow run in a single process.

    Prefect's own default starts a process that looks for the flow's code, and from it another one.
    """

    _own_environment: bool = PrivateAttr(default=False)

    def prepare_for_flow_run(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - the base class's arguments
        """Set the default command before the base class does."""
        self.command = self.command or shlex.join(engine.COMMAND)
        self._own_environment = any(
            value != os.environ.get(name) for name, value in self.env.items() if name not in _OURS
        )
        super().prepare_for_flow_run(*args, **kwargs)

    def can_be_forked(self) -> bool:
        """Return whether the flow run can be a fork: its command is the default, and its environment the worker's.

        Python, Prefect and libraries read their environment when they start or are imported, which is before the fork.
        """
        return self.command == shlex.join(engine.COMMAND) and not self._own_environment


@dataclass
class _Attempt:
    """A flow run's process. It is a task status, through which the process id passes to Prefect's worker."""

    outer: anyio.abc.TaskStatus[int]
    descriptor: int | None = None
    pid: int = 0
    # Why this worker ends the process, and the monotonic time of its SIGTERM.
    ended: str = ""
    asked: float = 0
    # Monotonic time at which its flow run was first seen to have ended; 0 before.
    final: float = 0
    # Whether it is ended because its flow run is being cancelled.
    cancelled: bool = False

    def started(self, value: int | None = None) -> None:
        assert value is not None  # noqa: S101 - the process worker's contract
        with suppress(ProcessLookupError):
            self.descriptor = os.pidfd_open(value)
        self.pid = value
        self.outer.started(value)

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal; SIGKILL goes to its whole process group, if it leads one."""
        if self.descriptor is None:
            return
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL and os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, number)
            else:
                signal.pidfd_send_signal(self.descriptor, number)

    def cancel(self) -> None:
        """End the process, each time that it is called a little more: by SIGTERM, and in the end by SIGKILL."""
        if not self.ended:
            self.ended, self.asked, self.cancelled = "It was cancelled", time.monotonic(), True
            self.send(signal.SIGTERM)
        elif time.monotonic() - self.asked > _CANCEL_SECONDS:
            self.send(signal.SIGKILL)

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class Worker(PollingWorker):
    """Runs the flow runs of a work pool, as forks where that is safe.

    Nothing that concerns one flow run, one file or one connection ends it: see ``asides``.
    """

    type = "process"
    job_configuration = JobConfiguration

    def __init__(self, *, launcher: engine.Launcher, crash_retries: int, pool: str, **options: Any) -> None:  # noqa: ANN401 - the base's
        super().__init__(work_pool_name=pool, **options)
        metrics.tolerate_a_taken_port(base)
        websockets.do_without_websockets()
        self._pool = pool
        self._launcher = launcher
        self._crash_retries = crash_retries
        self._asides = Asides()
        self.clock = clock.Clock()
        self._attempts: dict[UUID, _Attempt] = {}
        self._unreachable = False
        # Copied for every poll: creating one takes 40 ms, because Prefect reads all settings again.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            self._without_retries = get_settings_context()
        self.draining = False
        # Set after the first successful poll.
        self.polls = anyio.Event()

    @property
    def runs(self) -> int:
        """Number of flow runs in flight, including those that are about to start."""
        return int(self.limiter.borrowed_tokens) if self.is_setup else 0

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Poll for flow runs and start them, unless the worker drains or still waits for its server."""
        if self.draining or not self._has_work_pool():
            return []
        runs: list[FlowRun] = []
        # Prefect's loop exits after several errors, which would end the worker and its flow runs.
        with self._tolerate("Flow runs are not requested"):
            runs = await super().get_and_submit_flow_runs()
            self.polls.set()
        return runs

    def polling(self) -> AbstractContextManager[object]:
        """Return a context without the client's own retries, which would delay polling by minutes."""
        return self._without_retries.model_copy()

    async def sync_with_backend(self) -> None:
        """Send a heartbeat, and read changes to the work pool."""
        if self.is_setup:
            with self.tolerating("The worker pool is not read"), self._without_retries.model_copy():
                await super().sync_with_backend()
        else:
            # Any other error ends the start. Old versions of Prefect do not wait for a server.
            with self._suppress_outages(silent_only=True):
                await super().sync_with_backend()

    def tolerating(self, what: str) -> AbstractContextManager[bool | None]:
        """Return a context that suppresses errors of the body, which may return without an answer from the server."""
        return self._tolerate(what, known_by_return=False)

    @contextmanager
    def _tolerate(self, what: str, *, known_by_return: bool = True) -> Iterator[None]:
        """Suppress errors of the body, which is repeated: of an outage of the API, only the first one is logged.

        Any other error is logged once, with ``what`` did not happen.
        """
        with self._suppress_outages():
            with self._asides.each(what, what):
                yield
            if self._unreachable and known_by_return and what not in self._asides:
                logger.warning("The API answers again")
                self._unreachable = False

    @contextmanager
    def _suppress_outages(self, *, silent_only: bool = False) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            does = outage(error)
            if not does or (silent_only and does != SILENT):
                raise
            if not self._unreachable:
                logger.warning("The API %s the worker, which goes on asking: %s", does, error or type(error).__name__)
            self._unreachable = True

    def _has_work_pool(self) -> bool:
        try:
            return bool(self.work_pool)
        except RuntimeError:
            return False

    async def run(
        self,
        flow_run: FlowRun,
        configuration: JobConfiguration,  # type: ignore[override] # job_configuration says so
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Run a flow run until it has ended."""
        attempt = _Attempt(task_status or anyio.TASK_STATUS_IGNORED)
        self._attempts[flow_run.id] = attempt
        run = run_flow if self._launcher.forks and configuration.can_be_forked() else None
        if self.clock.server_time_at_boot is not None:
            configuration.env[clock.VARIABLE] = f"{self.clock.server_time_at_boot:.3f}"
        try:
            with self._directory(configuration) as directory:
                starter = Starter(flow_run, configuration, directory, self._launcher, run)
                if run_by_executor is None:
                    return await self._execute(flow_run, starter, attempt)
                result = await run_by_executor(flow_run, starter, attempt)
            if attempt.ended:
                await crashes.report(self.client, flow_run.id, attempt.ended, self._crash_retries)
                # Reported above; Prefect's worker must not report it again.
                result.status_code = 0
        finally:
            attempt.close()
            del self._attempts[flow_run.id]
        return result

    async def _execute(self, flow_run: FlowRun, starter: Starter, attempt: _Attempt) -> ProcessWorkerResult:
        """Do what newer versions of Prefect have an executor for: report how a process ended, and run hooks."""
        code = await starter.run(lambda process: attempt.started(process.pid))
        if attempt.cancelled:
            await starter.run_hooks("cancellation", Cancelling())
        if reason := attempt.ended or (starter.explain(f"Process exited with status code: {code}") if code else ""):
            state = await crashes.report(
                self.client,
                flow_run.id,
                reason,
                self._crash_retries,
                known=not attempt.ended,
                cancelled=attempt.cancelled,
            )
            if state and state.is_crashed():
                await starter.run_hooks("crashed", state)
        # Reported above; Prefect's worker must not report it again.
        return ProcessWorkerResult(status_code=0, identifier=str(attempt.pid))

    @contextmanager
    def _directory(self, configuration: JobConfiguration) -> Iterator[str]:
        """Yield a flow run's working directory: a temporary one, unless the deployment names one."""
        directory = "/"
        if configuration.working_dir:
            yield str(configuration.working_dir.absolute())
            return
        # A flow run that needs no disk must not fail because it is full.
        with self._asides.each("directory", f"Flow runs begin in {directory}, not in a temporary directory"):
            directory = tempfile.mkdtemp(prefix="flow-run-")
        try:
            yield directory
        finally:
            if directory != "/":
                shutil.rmtree(directory, ignore_errors=True)

    async def watch(self, peers: Peers) -> None:
        """Fence flow runs and reconcile crashed ones, until cancelled."""
        # Requests fail fast: the loops are the retries.
        with self._without_retries.model_copy():
            async with get_client() as client, anyio.create_task_group() as group:
                group.start_soon(self._compare_clocks_periodically, client)
                group.start_soon(self._fence_periodically, client)
                group.start_soon(self._reconcile_periodically, client, peers)

    async def _compare_clocks_periodically(self, client: PrefectClient) -> None:
        """Say how wrong this host's clock is, request flow runs by the API's, and let heartbeats bear its time."""
        said = 0.0
        while True:
            with self.tolerating("The clocks are not compared"):
                await self.clock.compare(client)
                self.look_ahead(max(0.0, -self.clock.ahead) if self.clock.is_wrong else 0.0)
                if self.clock.is_wrong and abs(self.clock.ahead - said) > clock.TOLERANCE:
                    said = self.clock.ahead
                    logger.warning(
                        "The clock of this host is %s, compared with the API's: correct it. Heartbeats of flow runs "
                        "bear the API's time, so that none is considered crashed",
                        self.clock,
                    )
            await anyio.sleep(_CLOCK_SECONDS)

    async def _fence_periodically(self, client: PrefectClient) -> None:
        """Fence flow runs in time. It is a task of its own because reconciling may take long."""
        contact = time.monotonic()
        while True:
            left = max(contact + CONTACT_SECONDS - time.monotonic(), _RETRY_SECONDS)
            # The limit also covers several attempts to connect.
            with self._tolerate("Flow runs are not looked at"), anyio.fail_after(min(_REQUEST_TIMEOUT_SECONDS, left)):
                await self._fence(client)
                contact = time.monotonic()
            silence = time.monotonic() - contact
            if silence > CONTACT_SECONDS:
                reason = f"Its worker had no contact to the API for {CONTACT_SECONDS} seconds"
                self._kill(list(self._attempts), reason)
            await anyio.sleep(_FENCE_SECONDS if silence < _RETRY_SECONDS else _RETRY_SECONDS)

    async def _reconcile_periodically(self, client: PrefectClient, peers: Peers) -> None:
        """Deliver the events that flow runs could not send, and retry crashed flow runs."""
        outboxes = outbox.Outboxes()
        crashed = crashes.Crashes(self.name, self._pool, self._crash_retries)
        while True:
            if not self.draining:
                with self.tolerating("Events of task runs are not delivered"):
                    await outboxes.deliver(client)
                with self._tolerate("Crashed flow runs are not looked for"):
                    await crashed.reconcile(client, own=None if peers.others() else set(self._attempts))
            await anyio.sleep(_RECONCILE_SECONDS)

    async def _fence(self, client: PrefectClient) -> None:
        """Kill the processes of flow runs that the server considers crashed: they may be retried at any time.

        Also those whose flow run ended long ago.
        """
        found = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=list(self._attempts)))
        )
        for run in found:
            attempt = self._attempts.get(run.id)
            if run.state is None or attempt is None:
                continue
            if run.state.is_crashed():
                # The server or the flow run itself may have given a reason.
                why = f"{run.state.message} " if run.state.message else ""
                self._kill([run.id], f"{why}(The server held it for crashed while it still ran)")
            elif run.state.is_cancelling() and run_by_executor is None:
                attempt.cancel()
            elif not run.state.is_final():
                attempt.final = 0
            elif not attempt.final:
                attempt.final = time.monotonic()
            elif time.monotonic() - attempt.final > _LINGER_SECONDS:
                self._kill(
                    [run.id], f"It was {run.state.name}, and its process still ran {_LINGER_SECONDS} seconds later"
                )

    def _kill(self, flow_runs: Iterable[UUID], reason: str) -> None:
        for flow_run in flow_runs:
            attempt = self._attempts.get(flow_run)
            # One that is already being ended may set itself to Crashed and still clean up.
            if attempt and not attempt.ended:
                logger.error("Flow run %s is ended: %s", flow_run, reason)
                attempt.ended = reason
                attempt.send(signal.SIGKILL)

    async def end(self, reason: str) -> None:
        """End all flow runs, also those that still start, until cancelled: SIGTERM first, then SIGKILL.

        ``reason`` becomes the message of their state.
        """
        while True:
            for flow_run, attempt in self._attempts.items():
                if not attempt.ended:
                    logger.warning("Flow run %s is ended: %s", flow_run, reason)
                    attempt.ended, attempt.asked = reason, time.monotonic()
                    attempt.send(signal.SIGTERM)
                elif time.monotonic() - attempt.asked > _GRACE_SECONDS:
                    attempt.send(signal.SIGKILL)
            await anyio.sleep(0.5)
