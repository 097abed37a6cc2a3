"""Starts flow runs by the launcher: as forks of it, or as commands.

The launcher is a fresh interpreter with a single thread, which inherits nothing from the worker, and imports Prefect
and the libraries of the application. It finds this package by PYTHONPATH.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biocirv_worker import cgroups

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("prefect.worker.biocirv")

# Runs a flow run in a new process, for flow runs that cannot be forks.
COMMAND = [sys.executable, "-m", "biocirv_worker.flow_run"]

_MESSAGE_BYTES = 65536


class StartError(Exception):
    """A process could not be started; the message says why."""


@dataclass
class Process:
    """A flow run's process.

    ``returncode`` is its exit code, or minus a signal's number; None while it runs. ``said`` is the end of what it
    wrote to standard error, if it failed; ``for_memory`` says whether the kernel killed it for lack of memory.
    """

    pid: int
    returncode: int | None
    _descriptor: int
    _keeper: socket.socket
    _group: Path | None
    said: str = ""
    for_memory: bool = False

    def fileno(self) -> int:
        """Return a descriptor that is readable when the process and all that belongs to it have ended."""
        return self._keeper.fileno()

    def read_status(self) -> None:
        """Set how it ended, once ``fileno()`` is readable. A process without a keeper is killed."""
        message = self._keeper.recv(_MESSAGE_BYTES)
        ended: dict[str, Any] = (
            json.loads(message) if message else {"status": -signal.SIGKILL, "said": "", "for_memory": False}
        )
        self.returncode, self.said, self.for_memory = ended["status"], ended["said"], ended["for_memory"]

    def close(self) -> None:
        """Kill the process and its cgroup if they are still there, and close the descriptors."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
        # Its keeper has ended it, unless the flow run ended the keeper.
        cgroups.end(self._group)
        os.close(self._descriptor)
        self._keeper.close()


class Launcher:
    """The launcher's process, which is started again if it ends."""

    def __init__(self, *, forks: bool, groups: cgroups.Groups | None = None) -> None:
        self.forks = forks
        self._groups = groups or cgroups.Groups()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def prepare(self) -> None:
        """Start the launcher, which imports Prefect and the libraries of the application, if it is to fork.

        The application is what the ``prefect.yaml`` in the directory ``APP_DIRECTORY`` names. If the launcher then
        holds a resource that a fork must not inherit, such as a thread, flow runs are started as commands: ``forks`` is
        False.
        """
        with self._lock:
            self._connect()

    def _connect(self) -> socket.socket:
        self._disconnect()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            mode = "forks" if self.forks else "commands"
            self._process = subprocess.Popen(  # noqa: S603 - this package's program
                [
                    *(sys.executable, "-s", "-m", "biocirv_worker.launcher", str(theirs.fileno()), mode),
                    *astuple(self._groups),
                ],
                # It must not import what flow runs leave in the working directory.
                cwd="/",
                pass_fds=[theirs.fileno()],
            )
        message = self._control.recv(_MESSAGE_BYTES)
        report = json.loads(message) if message else {"problem": "the launcher ended"}
        if self.forks:
            if libraries := report.get("libraries"):
                logger.info("Flow runs share these libraries: %s", ", ".join(libraries))
            for note in report.get("notes", []):
                logger.info("%s", note)
        if problem := report.get("problem"):
            if not self.forks:
                raise StartError(problem)
            logger.warning("Flow runs start in processes of their own, which takes longer: %s", problem)
            self.forks = False
            return self._connect()
        return self._control

    def _disconnect(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def start(
        self,
        environment: dict[str, str],
        directory: str,
        *,
        command: list[str] | None = None,
        function: Callable[..., None] | None = None,
        arguments: list[str] | None = None,
        output: bool = True,
    ) -> Process:
        """Start a process that executes a command, or calls a function of a module of this package in a fork.

        ``environment`` and ``directory`` become its environment and working directory; without ``output``, what it
        prints is dropped.

        Raises:
            StartError: there is no process.

        """
        request: dict[str, Any] = {
            "environment": environment,
            "directory": directory,
            "output": output,
            "command": command or [],
            "function": f"{function.__module__}:{function.__qualname__}" if function else "",
            "arguments": arguments or [],
        }
        with os.fdopen(os.memfd_create("request"), "w+b") as file:
            file.write(json.dumps(request).encode())
            file.seek(0)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs, self._lock:
                self._send([file.fileno(), theirs.fileno()])
        message, descriptors, _, _ = socket.recv_fds(ours, _MESSAGE_BYTES, 1)
        answer: dict[str, Any] = json.loads(message) if message else {"problem": "the launcher ended"}
        if "pid" not in answer:
            ours.close()
            raise StartError(answer["problem"])
        group = Path(answer["group"]) if answer["group"] else None
        return Process(answer["pid"], None, descriptors[0], ours, group)

    def _send(self, descriptors: list[int]) -> None:
        if self._control is None:
            self._connect()
        assert self._control is not None  # noqa: S101 - connected above
        try:
            socket.send_fds(self._control, [b"1"], descriptors)
        except OSError:
            # The launcher was killed, and its flow runs with it.
            socket.send_fds(self._connect(), [b"1"], descriptors)
