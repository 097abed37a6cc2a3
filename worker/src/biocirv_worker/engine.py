"""Starts flow runs as forks of one process that has imported Prefect and the application.

The process is multiprocessing's fork server: a fresh interpreter with a single thread, which inherits nothing from the
worker. It imports ``preload``, which imports the rest; it finds this package by PYTHONPATH. Each function says whether
it runs in the worker, in the fork server or in a fork.
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

# Runs a flow run in a new process, for flow runs that cannot be forks.
COMMAND = [sys.executable, "-m", "biocirv_worker.flow_run"]

_context = multiprocessing.get_context("forkserver")


class UnsafeError(Exception):
    """The application cannot be forked after it has been imported; the message says why."""


def prepare() -> None:
    """Start the fork server, which imports Prefect and the application. Runs in the worker.

    The application is what the ``prefect.yaml`` in the directory ``APP_DIRECTORY`` names. Raises ``UnsafeError`` if the
    fork server then holds a resource that a fork must not inherit, such as a thread or a socket.
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

    ``environment`` and ``directory`` become its environment and working directory; ``function`` must be defined in a
    module of this package.
    """
    process = _context.Process(target=_run, args=(environment, directory, function, *arguments))
    process.start()
    return process


def _report(sender: Connection[Any, Any]) -> None:
    from biocirv_worker import preload

    sender.send(preload.PROBLEM)


def _run(environment: dict[str, str], directory: str, function: Callable[..., None], *arguments: str) -> None:
    # A process group of its own, so that its child processes can be killed with it.
    os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    gc.unfreeze()
    try:
        function(*arguments)
    finally:
        # Prefect sends its remaining logs and events in exit handlers, which multiprocessing skips before Python 3.13.
        atexit._run_exitfuncs()
