"""Imports into the launcher what all flow runs share: Prefect, and the libraries that the application imports first.

For the application's own code a fork is a fresh process: each flow run imports that code itself, and nobody else does.
Therefore its modules are not imported here but read (``imports``). A library is shared if every entrypoint imports it
before any other code of the application runs, which might change how the library begins. Some libraries start threads
(polars does) or open connections when they are imported, and some wait: each is first imported in a trial fork, and one
that leaves such a resource behind, fails, or takes too long is imported by each flow run instead.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
from pathlib import Path
from typing import Any

from biocirv_worker.imports import Import, shared_imports
from biocirv_worker.inheritance import inheritance

# Longest time for the import of one library.
_IMPORT_SECONDS = 60


def prepare() -> dict[str, Any]:
    """Import what flow runs share; return a report for the worker.

    It names the ``libraries`` that are shared, has ``notes`` on those that are not, and a ``problem`` if this process
    holds what a fork must not inherit.
    """
    before = inheritance()
    for module in (
        "prefect.engine",
        "prefect.flow_engine",
        "prefect.task_engine",
        "prefect.workers.process",
        # All that forks need of this package: an upgrade changes nothing for a worker that drains.
        "biocirv_worker.clock",
        "biocirv_worker.flow_run",
        "biocirv_worker.internals.heartbeats",
        "biocirv_worker.internals.metrics",
        "biocirv_worker.outbox",
        "biocirv_worker.processes",
    ):
        importlib.import_module(module)
    wanted, notes = shared_imports(Path(os.environ.get("APP_DIRECTORY", ".")))
    libraries, left = _import(wanted)
    if left:
        notes.append(f"Each flow run imports these libraries itself: {', '.join(sorted(left))}")
    # Keeps the pages of imported objects shared with the forks, to their end: a garbage collection, as Python has one
    # when it exits, would write to every object. That took three quarters of a small flow run's CPU time.
    gc.collect()
    gc.freeze()
    return {
        "libraries": sorted(libraries),
        "notes": notes,
        "problem": ", ".join(sorted(inheritance() - before)),
    }


def _import(wanted: list[Import]) -> tuple[set[str], set[str]]:
    """Import what a fork may inherit; return the packages that were imported, and those that were not."""
    libraries: dict[str, list[Import]] = {}
    for each in wanted:
        libraries.setdefault(each.module.partition(".")[0], []).append(each)
    names, done, left = list(libraries), set[str](), set[str]()
    while names:
        safe = _count_safe([libraries[name] for name in names])
        for name in names[:safe]:
            for each in libraries[name]:
                each.execute()
        done.update(names[:safe])
        # Pass over the unsafe one. Libraries that import it are found unsafe in later rounds.
        left.update(names[safe : safe + 1])
        names = names[safe + 1 :]
    return done, left


def _count_safe(libraries: list[list[Import]]) -> int:
    """Import libraries in a fork of this process; return how many precede the first one that must not be shared."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            before = inheritance()
            for imports in libraries:
                for each in imports:
                    each.execute()
                if inheritance() - before:
                    break
                os.write(writer, b"1")
        finally:
            os._exit(0)
    os.close(writer)
    count = 0
    while select.select([reader], [], [], _IMPORT_SECONDS)[0] and os.read(reader, 1):
        count += 1
    os.close(reader)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return count
