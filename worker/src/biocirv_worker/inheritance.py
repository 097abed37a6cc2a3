"""What a process holds that a fork of it must not inherit."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def inheritance() -> set[str]:
    """Return what this process holds beyond its first thread and plain files: threads, sockets, pipes, event loops.

    Each is what a fork of it would share with, or lack from, all the others.
    """
    held = {f"thread {thread.name}" for thread in Path("/proc/self/task").iterdir() if int(thread.name) != os.getpid()}
    for descriptor in Path("/proc/self/fd").iterdir():
        # The one that lists them is closed by now.
        with contextlib.suppress(FileNotFoundError):
            target = str(descriptor.readlink())
            if target.startswith(("socket:", "pipe:", "anon_inode:")):
                held.add(f"file descriptor {descriptor.name}, {target}")
    return held
