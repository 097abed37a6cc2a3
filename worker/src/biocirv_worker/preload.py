"""Imported by the process that forks, once: what flow runs would import, as far as a fork may inherit it.

Some libraries start threads when they are imported (polars does), or open connections. The application is imported in
forks first, and what leaves something behind there is left to the flow runs.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from biocirv_worker.inheritance import inheritance


def _in_fork(function: Callable[[], Any]) -> Any:  # noqa: ANN401 - what JSON can say
    """Return what a function returns in a fork of this process, or None where it raised or ended the process."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        try:
            answer = json.dumps(function()).encode()
            with os.fdopen(writer, "wb") as file:
                file.write(answer)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read()
    os.waitpid(process, 0)
    return json.loads(said) if said else None


def _import_all(modules: list[str]) -> None:
    for module in modules:
        importlib.import_module(module)


def _import_flows() -> list[str]:
    """Import the flows of all deployments; return the modules that this loaded, in their order."""
    import yaml
    from prefect.flows import load_flow_from_entrypoint

    before = set(sys.modules)
    deployments = yaml.safe_load(Path("prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    for entrypoint in {deployment["entrypoint"] for deployment in deployments}:
        load_flow_from_entrypoint(entrypoint)
    return [module for module in sys.modules if module not in before]


def _number_of_safe(packages: list[list[str]]) -> int:
    """Import packages one after the other; return how many of them left nothing behind before the first that did."""
    before = inheritance()
    for number, modules in enumerate(packages):
        try:
            _import_all(modules)
        except Exception:  # noqa: BLE001 - left to the flow run, which says it
            return number
        if inheritance() - before:
            return number
    return len(packages)


def _import_application() -> None:
    by_package: dict[str, list[str]] = {}
    for module in _in_fork(_import_flows) or []:
        by_package.setdefault(module.partition(".")[0], []).append(module)
    packages = list(by_package.values())
    while packages:
        safe = _in_fork(partial(_number_of_safe, packages)) or 0
        for package in packages[:safe]:
            _import_all(package)
        # Without the one that is not; others may need it, and are found out in their turn.
        packages = packages[safe + 1 :]


def _prepare() -> str:
    """Import what can be imported; return why nothing can be forked from that."""
    before = inheritance()
    _import_all(
        [
            "prefect.engine",
            "prefect.flow_engine",
            "prefect.task_engine",
            "prefect.workers.process",
            "biocirv_worker.flow_run",
            "biocirv_worker.outbox",
        ]
    )
    os.chdir(os.environ.get("APP_DIRECTORY", "."))
    _import_application()
    os.chdir("/")
    return ", ".join(sorted(inheritance() - before))


PROBLEM = _prepare()
# What is imported stays shared with the forks: the collector would write to each object.
gc.collect()
gc.freeze()
