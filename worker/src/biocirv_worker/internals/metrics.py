"""Lets processes live whose port for Prefect's client metrics is taken: all processes of a host have the same."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from prefect.utilities.services import start_client_metrics_server

if TYPE_CHECKING:
    from types import ModuleType

logger = logging.getLogger("prefect.worker.biocirv")


def tolerate_a_taken_port(module: ModuleType) -> None:
    """Let a module of Prefect go on without serving metrics where another process has their port, usually the worker.

    The module is ``prefect.context``, which serves them for flow runs, or ``prefect.workers.base``.
    """
    module.start_client_metrics_server = _start_if_free  # type: ignore[attr-defined]


def _start_if_free() -> None:
    try:
        start_client_metrics_server()
    except OSError as error:
        logger.debug("This process serves no client metrics: %s", error)
