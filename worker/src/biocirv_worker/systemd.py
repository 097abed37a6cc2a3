"""Notifications to systemd, and the workers of one unit."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from biocirv_worker.asides import Asides

# Removed from the environment, which flow runs inherit.
_ADDRESS = os.environ.pop("NOTIFY_SOCKET", "")


def notify(*lines: str, wait: bool = False) -> None:
    """Send the service manager assignments such as ``READY=1``, as sd_notify(3); do nothing if there is none.

    ``wait``: return when it has dealt with them.
    """
    if not _ADDRESS:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        # An abstract address is written with an @ for its null byte.
        manager.connect("\0" + _ADDRESS[1:] if _ADDRESS.startswith("@") else _ADDRESS)
        manager.sendall("\n".join(lines).encode())
        if wait:
            # It closes the descriptor when it comes to this message.
            receiver, sender = os.pipe()
            socket.send_fds(manager, [b"BARRIER=1"], [sender])
            os.close(sender)
            os.read(receiver, 1)
            os.close(receiver)


class Peers:
    """The workers of one unit: the one that polls, and its predecessors that still have flow runs.

    Each worker holds a lock on a file ``worker-<pid>`` in the unit's runtime directory, which contains the number of
    its flow runs. A file without a lock was left by a worker that was killed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = (directory / f"worker-{os.getpid()}").open("w", encoding="ascii")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._asides = Asides(api=False)

    def write(self, runs: int) -> None:
        """Publish the number of this worker's flow runs."""
        with self._asides.each("own", "Other workers of this unit do not see this worker's flow runs"):
            self._file.seek(0)
            self._file.write(f"{runs:8}")
            self._file.flush()

    def others(self) -> dict[int, int]:
        """Return the number of flow runs of every other live worker, by process id; pass over what is no worker's."""
        found: dict[int, int] = {}
        for path in self._directory.glob("worker-*"):
            with self._asides.each(path, f"{path} is of no worker, and is passed over"):
                found |= self._other(path)
        return found

    def _other(self, path: Path) -> dict[int, int]:
        pid = int(path.name.removeprefix("worker-"))
        if pid == os.getpid():
            return {}
        # Opening something else than a file could wait for ever.
        if not path.is_file():
            raise ValueError("It is no regular file")
        with path.open(encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return {pid: int(file.read().strip() or 0)}
            path.unlink(missing_ok=True)
        return {}

    def leave(self) -> None:
        """Remove this worker's file and release its lock."""
        Path(self._file.name).unlink(missing_ok=True)
        self._file.close()
