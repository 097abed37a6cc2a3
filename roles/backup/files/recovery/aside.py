"""A copy of the cluster, restored into a directory of its own, without network and archiving, beside the living one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

from .cluster import Cluster
from .host import RecoveryError, Settings, wait_until
from .repository import Repositories
from .target import Route, Target

# Nothing of it needs to survive a crash; hot_standby is off because it would need the sizes of the living cluster.
CONFIGURATION = """\
listen_addresses = ''
unix_socket_directories = '{socket}'
port = 5432
hot_standby = off
archive_mode = off
fsync = off
full_page_writes = off
autovacuum = off
jit = off
max_connections = 10
shared_buffers = 32MB
maintenance_work_mem = 64MB
shared_preload_libraries = ''
log_min_messages = warning
"""
# Restored files take the size of the cluster, and WAL comes on top.
ROOM = 1.2


@dataclass(frozen=True)
class Copy:
    """A copy that runs."""

    cluster: Cluster
    # Seconds from the beginning of the restoration until it answered.
    seconds: float


def check_room(directory: Path, needed: float, what: str) -> None:
    """Raise RecoveryError unless the file system of a directory has so many bytes free."""
    # On a disk that is new, nothing is there.
    free = shutil.disk_usage(next(each for each in (directory, *directory.parents) if each.exists())).free
    if free < needed:
        raise RecoveryError(
            f"{what} needs {needed / 1e9:.1f} GB in {directory}, where {free / 1e9:.1f} GB are free: free some, or set "
            "backup_aside_directory to a directory on another disk."
        )


def restore_options(target: Target, route: Route) -> list[str]:
    """Return the options of `pgbackrest restore` that lead to a target."""
    options = [
        f"--repo={route.backup.repository}",
        f"--set={route.backup.label}",
        # By its number, PostgreSQL asks for its history, which a repository lacks that was begun on it.
        f"--target-timeline={'current' if route.timeline == route.backup.timeline else route.timeline}",
    ]
    if target.point:
        return [*options, "--type=name", f"--target={target.point}", "--target-action=promote"]
    if target.time:
        moment = f"{target.time.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}+00"
        return [*options, "--type=time", f"--target={moment}", "--target-action=promote"]
    return [*options, "--type=default"]


@contextmanager
def restored(settings: Settings, target: Target, route: Route, *, patience: float = 3600) -> Iterator[Copy]:
    """Restore a copy of the whole cluster aside, run it, and remove it again.

    Not of one database alone: pgBackRest would leave out one that had another name, or none, when the backup was made.
    patience: seconds for the replay of WAL.

    Raises:
        RecoveryError: there is no room, or the target cannot be reached.

    """
    place = Path(settings.aside)
    check_room(place.parent, route.backup.size * ROOM, "A restoration aside")
    # The remnants of one that was killed.
    shutil.rmtree(place, ignore_errors=True)
    for directory in (place, place / "data", place / "spool", place / "lock"):
        directory.mkdir(mode=0o700)
    began = time.monotonic()
    # With the living cluster's own, the living one's spool would be emptied.
    environment = {
        "PGBACKREST_SPOOL_PATH": f"{place}/spool",
        "PGBACKREST_LOCK_PATH": f"{place}/lock",
        "PGBACKREST_ARCHIVE_ASYNC": "n",
    }
    try:
        Repositories(settings).pgbackrest(
            "restore",
            *restore_options(target, route),
            f"--pg1-path={place}/data",
            f"--tablespace-map-all={place}/tablespaces",
            "--no-delta",
            "--archive-mode=off",
            env=environment,
        )
        with _running(settings, place, environment, patience) as cluster:
            yield Copy(cluster, time.monotonic() - began)
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _running(settings: Settings, place: Path, environment: dict[str, str], patience: float) -> Iterator[Cluster]:
    """Run PostgreSQL on what was restored, from when it has reached its target."""
    for name, text in (
        ("postgresql.conf", CONFIGURATION.format(socket=place)),
        ("pg_hba.conf", "local all postgres peer\n"),
        ("pg_ident.conf", ""),
    ):
        (place / name).write_text(text, encoding="utf-8")
    files = [f"-c{kind}_file={place}/{name}" for kind, name in (("config", "postgresql.conf"), ("hba", "pg_hba.conf"))]
    command = [f"{settings.programs}/postgres", "-D", f"{place}/data", *files, f"-cident_file={place}/pg_ident.conf"]
    with (place / "log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}
        )
    try:
        cluster = Cluster(5432, str(place))

        def answers() -> bool:
            if server.poll() is not None:
                raise RecoveryError(why_it_ended((place / "log").read_text(encoding="utf-8", errors="replace")))
            return cluster.answers()

        wait_until(answers, patience, f"The copy has not reached its target within {patience:.0f} s.")
        yield cluster
    finally:
        # Without waiting for clients, and without a checkpoint: it is removed.
        if server.poll() is None:
            server.send_signal(signal.SIGQUIT)
        server.wait()


def why_it_ended(log: str) -> str:
    """Return why a recovery did not reach its target, from the server's log, with the nearest that it reached."""
    # Not what it answers to those who connect meanwhile.
    fatal = re.findall(r"(?:FATAL|PANIC): +(?! |the database system is )(.*)", log)
    last = re.findall(r"last completed transaction was at log time (.*)", log)
    if "recovery ended before configured recovery target was reached" in log and last:
        return (
            f"The archive holds no commit after that time: the last one is of {last[-1]}. Restore TO=latest, or a time "
            "before it."
        )
    return "The copy cannot be started: " + (fatal[-1] if fatal else log[-500:].strip() or "it says nothing") + "."
