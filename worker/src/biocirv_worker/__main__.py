"""The command line; see ``--help``."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from biocirv_worker import prctl

if TYPE_CHECKING:
    from collections.abc import Callable

    from biocirv_worker.systemd import Peers
    from biocirv_worker.worker import Worker

_REPLACE_SECONDS = 120
_EXIT_SECONDS = 10
# Longest interval between two notifications to systemd's watchdog.
_WATCHDOG_SECONDS = 10


def main() -> int:
    """Run the command line; return the exit code."""
    prctl.close_to_others()
    options = _parse()
    if options.release_link:
        _pin_release(options.release_link)
    if not options.replace:
        return _serve(options, lambda: None)
    return _replace(options)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="biocirv_worker", description="Run the flow runs of a Prefect work pool.")
    parser.add_argument("--pool", required=True, help="work pool; created if it does not exist")
    parser.add_argument("--name", default=platform.node(), help="the worker's name (default: the host's, %(default)s)")
    parser.add_argument("--limit", type=int, required=True, help="maximum number of concurrent flow runs")
    parser.add_argument("--no-forks", dest="forks", action="store_false", help="start a process for each flow run")
    parser.add_argument(
        "--release-link",
        type=Path,
        help="link to a release: a program started through it stays with the release that it points to at the start",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="take over from the unit's main process, which then drains; returns when the new worker polls",
    )
    for variable, what in (("RUN_MEMORY_MAX", "bytes of memory"), ("RUN_TASKS_MAX", "processes and threads")):
        parser.add_argument(
            f"--{variable.lower().replace('_', '-')}",
            default=os.environ.get(variable, ""),
            help=f"limit of each flow run: {what}, or percentage of the unit's own limit; needs a delegated cgroup",
        )
    environment = parser.add_argument_group("from the environment; timeouts in seconds")
    for variable, default in (("DRAIN_TIMEOUT", 3600), ("SHUTDOWN_TIMEOUT", 60), ("CRASH_RETRIES", 1)):
        environment.add_argument(
            f"--{variable.lower().replace('_', '-')}", type=int, default=os.environ.get(variable, default)
        )
    return parser.parse_args()


def _pin_release(link: Path) -> None:
    """Re-execute this program from the link's target, so that flow runs import from one release if it changes."""
    executable, release = Path(sys.executable), link.resolve()
    if link in executable.parents:
        pinned = release / executable.relative_to(link)
        # Without the working directory and the account's own packages, as the unit starts it.
        os.execv(pinned, [str(pinned), "-P", "-s", "-m", __package__, *sys.argv[1:]])  # noqa: S606 - this same program


def _replace(options: argparse.Namespace) -> int:
    before = int(os.environ["MAINPID"])
    ours, theirs = socket.socketpair()
    if os.fork():
        theirs.close()
        return _announce(before, ours)
    # Fork twice: systemd adopts the orphan, as it expects a unit's main process to be its own child.
    if os.fork():
        os._exit(0)
    ours.close()

    def ready() -> None:
        theirs.send(str(os.getpid()).encode())
        if not theirs.recv(1):
            raise SystemExit("The process that systemd reloads by has ended")
        theirs.close()

    signal.alarm(_REPLACE_SECONDS)
    return _serve(options, ready)


def _announce(before: int, worker: socket.socket) -> int:
    """Wait for the new worker, and put it into the place of the one before; return the exit code.

    `systemctl reload` waits for this process, which alone may name another main process: no flow run can.
    """
    from biocirv_worker.systemd import notify

    pid = worker.recv(16)
    if not pid:
        return 1
    notify(f"MAINPID={pid.decode()}", wait=True)
    os.kill(before, signal.SIGUSR2)
    worker.send(b"1")
    return 0


def _serve(options: argparse.Namespace, ready: Callable[[], None]) -> int:
    import anyio

    anyio.run(_run, options, ready)
    return 0


async def _run(options: argparse.Namespace, ready: Callable[[], None]) -> None:
    import anyio

    from biocirv_worker import cgroups, engine
    from biocirv_worker.systemd import Peers
    from biocirv_worker.trial import lacking
    from biocirv_worker.worker import Worker, logger

    for line in lacking():
        logger.info("%s", line)
    limited = options.run_memory_max or options.run_tasks_max
    groups = cgroups.prepare(options.run_memory_max, options.run_tasks_max) if limited else None
    launcher = engine.Launcher(forks=options.forks, groups=groups)
    await anyio.to_thread.run_sync(launcher.prepare)
    # systemd's RuntimeDirectory=; without it there is no worker to take over from.
    peers = Peers(Path(os.environ.get("RUNTIME_DIRECTORY") or tempfile.mkdtemp(prefix="biocirv-worker-")))
    worker = Worker(
        launcher=launcher,
        crash_retries=options.crash_retries,
        pool=options.pool,
        name=options.name,
        limit=options.limit,
    )
    async with anyio.create_task_group() as group:
        group.start_soon(worker.start)
        group.start_soon(worker.watch, peers)
        service = _Service(options, worker, peers)
        group.start_soon(service.listen)
        await service.wait_until_polling()
        if worker.polls.is_set():
            signal.alarm(0)
            ready()
            await service.wait_until_drained()
        peers.leave()
        # All flow runs have ended. Prefect's shutdown can hang when the server is unreachable.
        exit_timer = threading.Timer(_EXIT_SECONDS, os._exit, [0])
        exit_timer.start()
        group.cancel_scope.cancel()
    exit_timer.cancel()


class _Service:
    """Connects a worker to systemd: handles signals and sends notifications."""

    def __init__(self, options: argparse.Namespace, worker: Worker, peers: Peers) -> None:
        self._options = options
        self._worker = worker
        self._peers = peers
        # Monotonic time at which flow runs that are still in flight are ended; None while the worker polls.
        self._deadline: float | None = None
        self._limit = 0
        self._replaced = False

    async def listen(self) -> None:
        """Handle signals until cancelled.

        SIGTERM and SIGINT drain; SIGUSR1 drains within the shutdown timeout because the host shuts down; SIGUSR2 drains
        because another worker has taken over.
        """
        import anyio

        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2) as signals:
            async for number in signals:
                if number == signal.SIGUSR2:
                    self._replaced = True
                shutdown = number == signal.SIGUSR1
                self._drain(self._options.shutdown_timeout if shutdown else self._options.drain_timeout)
                if not self._replaced:
                    for pid in self._peers.others():
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, number)

    def _drain(self, limit: int) -> None:
        self._worker.draining = True
        deadline = time.monotonic() + limit
        if self._deadline is None or deadline < self._deadline:
            self._deadline, self._limit = deadline, limit

    async def wait_until_polling(self) -> None:
        """Return when the worker polls, or is told to stop: a server that it waits for may never come."""
        import anyio

        while not self._worker.polls.is_set() and self._deadline is None:
            await anyio.sleep(0.1)

    async def wait_until_drained(self) -> None:
        """Return when this worker drains and neither it nor its predecessors have flow runs left."""
        import anyio

        from biocirv_worker.asides import Asides
        from biocirv_worker.systemd import notify

        ending, sent, due = False, "", 0.0
        asides = Asides(api=False)
        async with anyio.create_task_group() as group:
            while True:
                runs = self._worker.runs
                self._peers.write(runs)
                others = self._peers.others()
                status = self._status(runs, sum(others.values()))
                if not self._replaced and (status != sent or time.monotonic() > due):
                    with asides.each("systemd", "systemd is not told the worker's status"):
                        notify("READY=1", "WATCHDOG=1", f"STATUS={status}")
                        sent, due = status, time.monotonic() + _WATCHDOG_SECONDS
                if self._deadline is not None:
                    if runs == 0 and (self._replaced or not others):
                        group.cancel_scope.cancel()
                        return
                    if time.monotonic() > self._deadline and not ending:
                        ending = True
                        group.start_soon(
                            self._worker.end,
                            f"It had not ended {self._limit} seconds after its worker was told to stop",
                        )
                await anyio.sleep(0.5)

    def _status(self, runs: int, others: int) -> str:
        beside = f"; beside it {others} end(s) of workers before it" if others else ""
        if self._deadline is None:
            clock = f"; this host's clock is {self._worker.clock}" if self._worker.clock.is_wrong else ""
            return f"Polls {self._options.pool}: {runs} of {self._options.limit} flow runs{beside}{clock}"
        left = max(0, round(self._deadline - time.monotonic()))
        return f"Draining: {runs + others} flow run(s) left, to be ended in {left} s at the latest"


if __name__ == "__main__":
    sys.exit(main())
