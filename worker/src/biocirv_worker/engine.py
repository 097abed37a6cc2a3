"""Flow runs as forks of one process that has Prefect and the application imported.

The process is multiprocessing's fork server: started afresh, never more than one thread, and nothing of the worker's in
it. It imports ``preload``, which imports the rest; it finds this package by PYTHONPATH. What follows runs in the
worker, in that process or in a fork, as each function says.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

# What runs a flow run in a process of its own, where it cannot be a fork.
COMMAND = [sys.executable, "-m", "biocirv_worker.flow_run"]

_context = multiprocessing.get_context("forkserver")


class UnsafeError(Exception):
    """The application cannot be forked after it has been imported; the message says why."""


def prepare() -> None:
    """Start the process that forks, and let it import Prefect and the application. Runs in the worker.

    The application is what the ``prefect.yaml`` in the directory ``APP_DIRECTORY`` names. Raises ``UnsafeError`` where
    the process then holds what a fork must not inherit.
    """
    _context.set_forkserver_preload([f"{__package__}.preload"])
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=_report, args=(sender,))
    process.start()
    sender.close()
    process.join()
    problem = receiver.recv() if receiver.poll() else f"it ended with exit code {process.exitcode}"
    if problem:
        raise UnsafeError(problem)


def start(environment: dict[str, str], directory: str, function: Callable[..., None], *arguments: str) -> BaseProcess:
    """Fork a process that calls a function. Runs in the worker.

    ``environment`` and ``directory`` become the process's own; ``function`` belongs to a module of this package.
    """
    process = _context.Process(target=_run, args=(environment, directory, function, *arguments))
    process.start()
    return process


def _report(sender: Connection[Any, Any]) -> None:
    from biocirv_worker import preload

    sender.send(preload.PROBLEM)


def _run(environment: dict[str, str], directory: str, function: Callable[..., None], *arguments: str) -> None:
    # A group of its own, so that what it has started can be ended with it.
    os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    gc.unfreeze()
    try:
        function(*arguments)
    finally:
        # Prefect's logs and events are sent by then; before Python 3.13 multiprocessing leaves that out.
        atexit._run_exitfuncs()
