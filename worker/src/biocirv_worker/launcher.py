"""The launcher, a program with one thread: holds what flow runs share, and starts each as a fork of itself.

It is started by ``engine`` with a socket, from which it gets the flow runs. Between the launcher and each flow run is a
keeper, a process that adopts whatever the flow run leaves behind, ends it with the flow run, and tells the worker how
the flow run ended. A flow run's process returns to the end of this program, so that it ends as any Python program does:
it waits for its threads, calls its exit handlers, and flushes its output.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from biocirv_worker import cgroups, prctl
from biocirv_worker.cgroups import Groups

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

# Given to processes that outlive their flow run, between SIGTERM and SIGKILL; none if the flow run was killed.
_GRACE_SECONDS = 5
# Processes that a killed one has just started are looked for again after this time.
_RESCAN_SECONDS = 0.1
# What a flow run wrote last to standard error is told to the worker, up to this size.
_SAID_BYTES = 4000
# For the end of the output to arrive, after all that could write it has ended.
_OUTPUT_SECONDS = 5


class _EndedError(Exception):
    """The worker or the launcher has ended."""


def main() -> None:
    """Import what flow runs share, if told to, report it, and start flow runs until the worker ends.

    Arguments: the descriptor of the socket, `forks` or `commands`, and the fields of ``cgroups.Groups``.
    """
    prctl.close_to_others()
    control = socket.socket(fileno=int(sys.argv[1]))
    # Ctrl-C is for the worker, which tells its flow runs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    report: dict[str, Any] = {}
    if sys.argv[2] == "forks":
        from biocirv_worker import preload

        report = preload.prepare()
    control.send(json.dumps(report).encode())
    run = _serve(control, Groups(*sys.argv[3:]))
    run()


def _serve(control: socket.socket, groups: Groups) -> Callable[[], None]:
    """Start flow runs; return in the process of each what it is to run."""
    # Keepers are not waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    launcher = os.getpid()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not message:
            os._exit(0)
        request, channel = descriptors
        try:
            process = os.fork()
        except OSError as error:
            with socket.socket(fileno=os.dup(channel)) as worker, suppress(OSError):
                worker.send(json.dumps({"problem": str(error)}).encode())
        else:
            if process == 0:
                control.close()
                return _keep(launcher, groups, request, channel)
        os.close(request)
        os.close(channel)


def _keep(launcher: int, groups: Groups, request: int, channel: int) -> Callable[[], None]:
    """Start a flow run, and end with all that belongs to it; return only in the flow run's process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, _raise_ended)
    prctl.adopt()
    with os.fdopen(request, "rb") as file:
        wanted = json.load(file)
    worker, keeper = socket.socket(fileno=channel), os.getpid()
    group = None
    output, errors = os.pipe()
    try:
        group = groups.create()
        process = os.fork()
    except OSError as error:
        cgroups.end(group)
        worker.send(json.dumps({"problem": str(error)}).encode())
        os._exit(1)
    if process == 0:
        worker.close()
        os.close(output)
        os.dup2(errors, 2)
        os.close(errors)
        _end_with(keeper, signal.SIGKILL)
        cgroups.enter(group)
        return _begin(**wanted)
    os.close(errors)
    try:
        _keep_alive(launcher, process, group, worker, _Relay(output))
    finally:
        os._exit(0)


class _Relay(threading.Thread):
    """Passes on what a flow run writes to standard error, and keeps the end of it."""

    def __init__(self, output: int) -> None:
        super().__init__(daemon=True)
        self._output = output
        self._end = b""
        # Signals are for the main thread, which waits for them.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)

    def run(self) -> None:
        """Read until all that could write has ended."""
        while data := os.read(self._output, 65536):
            self._end = (self._end + data)[-_SAID_BYTES:]
            with suppress(OSError):
                while data:
                    data = data[os.write(2, data) :]

    def said(self) -> str:
        """Return what was written last."""
        self.join(_OUTPUT_SECONDS)
        return self._end.decode(errors="replace")


def _keep_alive(launcher: int, process: int, group: Path | None, worker: socket.socket, relay: _Relay) -> None:
    status = -signal.SIGKILL
    try:
        descriptor = os.pidfd_open(process)
        socket.send_fds(worker, [json.dumps({"pid": process, "group": str(group or "")}).encode()], [descriptor])
        os.close(descriptor)
        _end_with(launcher, signal.SIGTERM)
        status = _wait(process)
    except (_EndedError, OSError):
        # Nobody is left to be told.
        os.kill(process, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_rest(0 if status == -signal.SIGKILL else _GRACE_SECONDS)
    ended = {"status": status, "for_memory": cgroups.ended_for_memory(group)}
    cgroups.end(group)
    with suppress(OSError):
        worker.send(json.dumps({**ended, "said": relay.said() if status else ""}).encode())


def _raise_ended(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _EndedError


def _end_with(parent: int, number: signal.Signals) -> None:
    """Let the kernel send this process a signal when its parent ends."""
    prctl.get_signal_at_end_of_parent(number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def _wait(process: int) -> int:
    """Wait for a process, and for all that were adopted meanwhile; return its exit code, or minus a signal's number."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == process:
            return os.waitstatus_to_exitcode(status)


def _end_rest(seconds: float) -> None:
    """End all that is left of a flow run: SIGTERM first, SIGKILL after some seconds."""
    deadline, asked = time.monotonic() + seconds, set()
    # A blocked signal stays pending, so that no end of a child is missed.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    with suppress(ChildProcessError):
        while True:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            left = deadline - time.monotonic()
            for child in _children():
                if left <= 0 or child not in asked:
                    asked.add(child)
                    os.kill(child, signal.SIGKILL if left <= 0 else signal.SIGTERM)
            # A child that ends may leave children of its own, which are adopted at that moment.
            signal.sigtimedwait([signal.SIGCHLD], left if left > 0 else _RESCAN_SECONDS)


def _children() -> list[int]:
    """Return this process's children; those that they leave become its own in turn."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # The state and the parent follow the command's name, which is in parentheses.
            state, parent, *_ = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(parent) == os.getpid() and state != "Z":
                found.append(int(process.name))
    return found


def _begin(
    environment: dict[str, str],
    directory: str,
    output: bool,
    command: list[str],
    function: str,
    arguments: list[str],
) -> Callable[[], None]:
    """Make this process a fresh one: return what it is to run, or replace it by a command."""
    prctl.open_to_others()
    # A process group of its own, so that its child processes can be killed with it.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    if not output:
        for descriptor in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    if command:
        os.execvpe(command[0], command, os.environ)  # noqa: S606 - the deployment's
    # As `python -m` does.
    sys.path[0] = str(Path.cwd())
    importlib.invalidate_caches()
    # Python seeds its own generator again in a fork; numpy does not.
    if numpy := sys.modules.get("numpy.random"):
        numpy.seed()
    module, _, name = function.partition(":")
    return partial(getattr(importlib.import_module(module), name), *arguments)


if __name__ == "__main__":
    main()
