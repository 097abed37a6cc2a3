"""Lists the resources of a process that a fork of it must not inherit."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def inheritance() -> set[str]:
    """Return this process's resources beyond its main thread and plain files: threads, sockets, pipes, event loops.

    A fork would lack the threads, and share the others with this process and all its other forks.
    """
    held = {f"thread {thread.name}" for thread in Path("/proc/self/task").iterdir() if int(thread.name) != os.getpid()}
    for descriptor in Path("/proc/self/fd").iterdir():
        # The descriptor that iterdir() used is already closed.
        with contextlib.suppress(FileNotFoundError):
            target = str(descriptor.readlink())
            if target.startswith(("socket:", "pipe:", "anon_inode:")):
                held.add(f"file descriptor {descriptor.name}, {target}")
    return held
