"""The host that this runs on: its settings, programs, and the lock that keeps backups and restores apart."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

SETTINGS = Path("/etc/biocirv/recovery.json")
# Tables of file systems: those that are mounted, and those that are mounted at boot.
MOUNTED, WANTED = "/proc/self/mountinfo", "/etc/fstab"


class RecoveryError(Exception):
    """What was asked for cannot be done; the message says why, and what to do.

    ``returncode`` is the exit code of the program that failed, if one did.
    """

    def __init__(self, message: str, returncode: int = 0) -> None:
        super().__init__(message)
        self.returncode = returncode


class SilentError(RecoveryError):
    """A program gave no answer in time."""


@dataclass(frozen=True)
class Settings:
    """What role backup writes to SETTINGS."""

    # Name of the cluster in the repositories.
    stanza: str
    # The cluster: port, data directory, and the directory of its programs.
    port: int
    data: str
    programs: str
    # Databases that are counted and compared.
    databases: list[str]
    # Each repository's place, as people know it, and its directory on this host; empty where it is elsewhere.
    repositories: list[dict[str, str]]
    # Units that make backups and drills.
    timers: list[str]
    # Directory for what is restored aside; its parent must exist.
    aside: str
    # Directory for what outlives a run: the drill's result, restore points.
    state: str
    # Days after which a full backup follows the last one.
    full_days: float
    # Seconds after which PostgreSQL completes a segment of WAL.
    archive_seconds: int
    # Directory that WAL is received in as it is written; empty: none is.
    wal_directory: str

    @property
    def directories(self) -> list[str]:
        """Return the directories of this host that hold backups and WAL."""
        return [path for path in (*(each["directory"] for each in self.repositories), self.wal_directory) if path]


def settings() -> Settings:
    """Return the settings of this host."""
    return Settings(**json.loads(SETTINGS.read_text(encoding="utf-8")))


def run(*command: str, env: dict[str, str] | None = None, timeout: float | None = None, stdin: str = "") -> str:
    """Run a program and return its output.

    Raises:
        RecoveryError: it failed; the message is what it printed.
        SilentError: it took longer than `timeout` seconds.

    """
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            input=stdin,
            timeout=timeout,
            cwd="/",
            env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        )
    except subprocess.TimeoutExpired:
        raise SilentError(f"`{Path(command[0]).name}` gave no answer within {timeout:.0f} s") from None
    if done.returncode:
        said = "\n".join(line for line in (done.stderr + done.stdout).splitlines() if line.strip())
        raise RecoveryError(said or f"`{' '.join(command[:2])}` failed with {done.returncode}", done.returncode)
    return done.stdout


def wait_until(condition: Callable[[], bool], seconds: float, problem: str) -> None:
    """Wait until a condition holds.

    Raises:
        RecoveryError: it did not within so many seconds; `problem` is the message.

    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RecoveryError(problem)
        # PostgreSQL does not tell when it has started or archived a segment: it is asked, which takes some 30 ms.
        time.sleep(0.2)


def mount_point(path: str, table: str = MOUNTED) -> str:
    """Return where the file system is mounted that holds a path, according to a table: MOUNTED or WANTED.

    Of file systems that are mounted at boot, empty: none but the root's.
    """
    column = 4 if table == MOUNTED else 1
    text = Path(table).read_text(encoding="utf-8") if Path(table).is_file() else ""
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    # Spaces and backslashes are written as octal numbers.
    named = [line[column] for line in lines if line[column:]]
    points = {re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), name) for name in named}
    above = [str(each) for each in (Path(path), *Path(path).parents)]
    return next((each for each in above if each in points and (each != "/" or table == MOUNTED)), "")


@contextmanager
def alone(state: str, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of this host that backups, restores and drills share, so that they run one after the other.

    Raises:
        RecoveryError: something else holds it, and `wait` is false.

    """
    with (Path(state) / "lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise RecoveryError(
                "A backup, a restore or a drill is running: try again when it has ended "
                "(`systemctl list-units 'biocirv-*'` shows it)."
            ) from None
        yield


def shown(moment: datetime) -> str:
    """Return a time as people read it, in UTC and in the host's zone."""
    utc, local = f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC", moment.astimezone()
    return utc if not local.utcoffset() else f"{utc} ({local:%Y-%m-%d %H:%M:%S %Z} here)"
