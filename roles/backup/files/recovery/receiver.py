"""The receiver: keeps WAL on another disk as it is written, until it is archived."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from .cluster import Cluster
from .host import RecoveryError, Settings
from .repository import NAME, Repositories

# The replication slot, which holds WAL back until it is received.
SLOT = "biocirv_receiver"
UNIT = Path("/etc/systemd/system/biocirv-wal-receiver.service")
# Seconds between two removals of what is archived, and until a connection is tried again.
INTERVAL, PAUSE = 10, 2
# Suffix of the segment that is being received.
PARTIAL = ".partial"


def receive(settings: Settings) -> NoReturn:
    """Receive WAL for ever; note once why it cannot be received."""
    noted = ""
    while True:
        try:
            _receive_until_it_ends(settings)
            noted = ""
        except RecoveryError as error:
            if str(error) != noted:
                noted = str(error)
                print(noted, file=sys.stderr, flush=True)
        # PostgreSQL does not tell when it is there again.
        time.sleep(PAUSE)


def _receive_until_it_ends(settings: Settings) -> None:
    living, directory = Cluster(settings.port), Path(settings.wal_directory)
    if not living.answers():
        raise RecoveryError("PostgreSQL does not answer.")
    # Only this program makes the slot, and no restoration brings it back. Without it the cluster may be an empty one in
    # the place of a lost one, whose last WAL is here.
    if not living.slot(SLOT):
        _check_cluster(settings, living)
    _begin(living, directory)
    command = [f"{settings.programs}/pg_receivewal", "--no-loop", "--no-password", f"--slot={SLOT}"]
    command += [f"--directory={directory}", f"--port={settings.port}", "--status-interval=1"]
    with subprocess.Popen(command) as program:
        while program.poll() is None:
            try:
                program.wait(INTERVAL)
            except subprocess.TimeoutExpired:
                remove_archived(directory, living)


def _check_cluster(settings: Settings, living: Cluster) -> None:
    states, _ = Repositories(settings).info()
    held = {each.system for each in states if each.system}
    if not held:
        raise RecoveryError("No repository answers, so that it is not known whether they hold this cluster.")
    if living.archiver()["system"] not in held:
        raise RecoveryError("The repositories hold another cluster, whose WAL stays here until it is restored.")


def _begin(living: Cluster, directory: Path) -> None:
    """Make the slot. Where it is new, or has lost WAL, what was received before has no continuation."""
    status = living.slot(SLOT)
    timeline = living.timeline()
    if status in ("reserved", "extended") and all(name.startswith(timeline) for name in received(directory)):
        return
    if status:
        living.drop_slot(SLOT)
    for path in [*directory.glob("*")]:
        path.unlink()
    living.make_slot(SLOT)


def received(directory: Path) -> list[str]:
    """Return the names of the segments that a directory holds."""
    names = (path.name.removesuffix(PARTIAL) for path in directory.iterdir())
    return sorted(name for name in names if NAME.fullmatch(name))


def remove_archived(directory: Path, living: Cluster) -> None:
    """Remove the segments until the one that was archived last."""
    with suppress(RecoveryError):
        archived = living.archiver()["archived"] or ""
        for name in received(directory):
            if name <= archived:
                (directory / name).unlink(missing_ok=True)


def restore_option(settings: Settings) -> list[str]:
    """Return pgBackRest's option that restores WAL from the archive, and what is not archived from the receiver."""
    directory = settings.wal_directory
    if not directory or not Path(directory).is_dir() or not received(Path(directory)):
        return []
    places = [f'cp "{directory}/%f{suffix}" "%p"' for suffix in ("", PARTIAL)]
    command = " || ".join([f'pgbackrest --stanza={settings.stanza} archive-get %f "%p"', *places])
    return [f"--recovery-option=restore_command={command}"]
