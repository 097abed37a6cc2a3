"""A library that inspects the state of a process; imported before the fork, it also does so right after it."""

import asyncio
import gc
import os
import random
import sys
import threading
from pathlib import Path
from uuid import uuid4

import httpx

# Equal in all flow runs that share this library.
TOKEN = str(uuid4())
IMPORTED_BY = os.getpid()

# The state when the flow run's own code began.
at_start: dict[str, object] = {}

_PREFECT_THREADS = ("APILogWorker", "EventsWorker", "EventLoopThread")


def look() -> dict[str, object]:
    """Return the threads, connections, event loops, clients and services of this process."""
    objects = gc.get_objects()
    return {
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "python threads": [thread.name for thread in threading.enumerate()],
        "descriptors": _descriptors(),
        "loops": [repr(item) for item in objects if isinstance(item, asyncio.AbstractEventLoop)],
        "clients": [repr(item) for item in objects if isinstance(item, httpx.Client | httpx.AsyncClient)],
        "services": [repr(item) for item in objects if type(item).__name__ in _PREFECT_THREADS],
        "random": random.random(),  # noqa: S311 - no secret
        "uuid": str(uuid4()),
        "prefect.flow_engine": "prefect.flow_engine" in sys.modules,
        "token": TOKEN,
        "imported by": IMPORTED_BY,
    }


def launcher() -> dict[str, object]:
    """Return id, command line and number of threads of the process that forks: the parent of this process's keeper."""
    keeper = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
    process = Path("/proc") / keeper[1]
    return {
        "pid": int(keeper[1]),
        "command": (process / "cmdline").read_text().split("\0"),
        "threads": len(list((process / "task").iterdir())),
    }


def _descriptors() -> list[str]:
    """Return the open descriptors except standard input, output, error and regular files."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue  # the descriptor that lists them
        if int(descriptor.name) > 2 and not target.startswith("/"):
            found.append(target.partition(":[")[0])
    return sorted(found)


def _look_before_the_flow_run() -> None:
    """Make the worker's fork inspect itself before it calls Prefect's engine."""
    module = sys.modules.get("biocirv_worker.flow_run")
    if module is None:
        return
    main = module.main

    def look_and_run() -> None:
        at_start.update(look())
        main()

    # A fork gets the function by its name.
    look_and_run.__module__, look_and_run.__qualname__ = main.__module__, main.__qualname__
    module.main = look_and_run  # type: ignore[attr-defined]


_look_before_the_flow_run()
