"""The worker as a process, and the notifications that it sends to systemd."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TypeVar
from uuid import uuid4

from tests.limits import limit, wait_until

T = TypeVar("T")

APPLICATION = Path(__file__).parent / "worker_application"
LIBRARY = Path(__file__).parents[2] / "worker/src"
LIBRARIES = Path(__file__).parent / "worker_libraries"

# Shorter times for the same program, as short as this machine allows.
HASTY = {
    name: limit(seconds)
    for name, seconds in (
        ("worker._FENCE_SECONDS", 2.0),
        ("worker._RECONCILE_SECONDS", 2.0),
        ("worker._GRACE_SECONDS", 2.0),
        ("crashes._OWN_SECONDS", 4.0),
        ("outbox._RECORD_SECONDS", 2.0),
    )
}


class WorkerProgram:
    """A worker in a session of its own; a context manager that ends all its processes on exit.

    ``seconds`` overrides constants of its modules; ``environment`` is added to that of the unit.
    """

    def __init__(
        self,
        directory: Path,
        api_url: str,
        pool: str,
        *options: str,
        name: str = "",
        seconds: dict[str, float] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.name = name or f"worker-{pool}"
        self.pool = pool
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "runtime").mkdir(exist_ok=True)
        self._log = directory / f"{uuid4()}.log"
        self._said: list[str] = []
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = f"biocirv-test-{uuid4()}"
        self._manager.bind(f"\0{address}")
        self._thread = Thread(target=self._listen)
        self._thread.start()
        inherited = {
            variable: value
            for variable, value in os.environ.items()
            if not variable.startswith(("PREFECT_", "CRASH_", "DRAIN_", "SHUTDOWN_"))
        }
        self.environment = {
            **inherited,
            "APP_DIRECTORY": str(APPLICATION),
            "DO_NOT_TRACK": "1",
            "NOTIFY_SOCKET": f"@{address}",
            "PREFECT_API_URL": api_url,
            "PREFECT_HOME": str(directory / "home"),
            "PREFECT_LOGGING_COLORS": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PYTHONPATH": f"{LIBRARY}:{LIBRARIES}",
            "RUNTIME_DIRECTORY": str(directory / "runtime"),
            **(environment or {}),
        }
        self.arguments = [
            *(["-c", _changed(seconds)] if seconds else ["-m", "biocirv_worker"]),
            *("--pool", pool, "--name", self.name, "--limit", "8", *options),
        ]
        with self._log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *self.arguments],
                cwd=directory,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Otherwise SIGINT is inherited as ignored if the tests run in the background.
                start_new_session=True,
            )
        # A worker that replaced another belongs to the session of the process that requested the replacement.
        self.sessions = {self.process.pid}

    def __enter__(self) -> "WorkerProgram":
        """Return the worker, which may not be ready yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes that it has started."""
        self.kill()
        self._manager.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._manager.close()

    def _listen(self) -> None:
        while message := self._manager.recv(65536):
            self._said.append(message.decode())

    def wait_until_ready(self) -> None:
        """Wait until systemd would consider the unit active."""
        self.wait_until(lambda: any("READY=1" in message for message in list(self._said)), "the worker is ready")

    def wait_until(self, condition: Callable[[], T], what: str) -> T:
        """Wait until a condition is true; on a timeout show the worker's log."""
        try:
            return wait_until(condition, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None

    @property
    def log(self) -> str:
        """The output of the worker and its flow runs."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def statuses(self) -> list[str]:
        """The worker's status texts, in order."""
        return [line for message in list(self._said) for line in re.findall(r"(?m)^STATUS=(.*)", message)]

    @property
    def main_pids(self) -> list[int]:
        """The processes that declared themselves the unit's main process."""
        return [int(pid) for message in list(self._said) for pid in re.findall(r"(?m)^MAINPID=(\d+)", message)]

    def wait_for_status(self, pattern: str) -> re.Match[str]:
        """Wait until its last status matches a pattern."""
        self.wait_until(lambda: re.search(pattern, (self.statuses or [""])[-1]) is not None, f"a status of {pattern}")
        found = [match for status in self.statuses if (match := re.search(pattern, status))]
        return found[-1]

    def wait_for_end(self) -> int:
        """Wait until the worker exits, and return its exit code."""
        self.wait_until(lambda: self.process.poll() is not None, "the worker exits")
        return self.process.wait()

    def launcher(self) -> int:
        """Return the process that forks."""
        found = [pid for pid in children(self.process.pid) if "biocirv_worker.launcher" in command(pid)]
        (server,) = found
        return server

    def replace(self, **environment: str) -> int:
        """Replace the worker, as ``systemctl reload`` does; return the exit code."""
        variables = {**self.environment, "MAINPID": str(self.process.pid), **environment}
        with self._log.open("a") as output:
            control = subprocess.Popen(
                [sys.executable, *self.arguments, "--replace"],
                cwd=self.directory,
                env=variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.sessions.add(control.pid)
        self.wait_until(lambda: control.poll() is not None, "the reload ends")
        return control.wait()

    def kill(self) -> None:
        """Kill it and all processes that it has started, as when a host fails."""
        while pids := [pid for session in self.sessions for pid in members(session)]:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            # Init reaps those whose parent was killed; until then they are listed.
            time.sleep(0.01)


def _changed(seconds: dict[str, float]) -> str:
    """Return the program with changed constants, which a reload starts too."""
    changes = "; ".join(f"{constant} = {value}" for constant, value in seconds.items())
    return (
        "import sys; from biocirv_worker import crashes, outbox, worker; from biocirv_worker.__main__ import main; "
        f"{changes}; sys.exit(main())"
    )


def command(pid: int) -> str:
    """Return a process's command line, empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_alive(pid: int) -> bool:
    """Return whether a process is running; a zombie is not."""
    return bool(command(pid))


def children(pid: int) -> list[int]:
    """Return a process's children, of all its threads."""
    return [other for other, fields in _processes() if fields[1] == str(pid)]


def members(session: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    return [pid for pid, fields in _processes() if fields[3] == str(session) and fields[0] != "Z"]


def _processes() -> list[tuple[int, list[str]]]:
    """Return all processes with state, parent, group and session; see proc(5)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            found.append((int(process.name), fields))
    return found
