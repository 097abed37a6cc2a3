"""Imported once by the fork server: imports the modules that flow runs need, as far as a fork may inherit them.

Some libraries start threads (polars does) or open connections when they are imported. Therefore the application is
first imported in trial forks; a package that leaves such a resource behind is imported by each flow run instead.
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


def _in_fork(function: Callable[[], Any]) -> Any:  # noqa: ANN401 - any JSON value
    """Call a function in a fork of this process; return its result, or None if it raised or ended the process."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        try:
            result = json.dumps(function()).encode()
            with os.fdopen(writer, "wb") as file:
                file.write(result)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = file.read()
    os.waitpid(process, 0)
    return json.loads(answer) if answer else None


def _import_all(modules: list[str]) -> None:
    for module in modules:
        importlib.import_module(module)


def _import_flows() -> list[str]:
    """Import the flows of all deployments; return the modules that this loaded, in import order."""
    import yaml
    from prefect.flows import load_flow_from_entrypoint

    before = set(sys.modules)
    deployments = yaml.safe_load(Path("prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    for entrypoint in {deployment["entrypoint"] for deployment in deployments}:
        load_flow_from_entrypoint(entrypoint)
    return [module for module in sys.modules if module not in before]


def _count_safe(packages: list[list[str]]) -> int:
    """Import packages one after the other; return how many precede the first one that a fork must not inherit."""
    before = inheritance()
    for number, modules in enumerate(packages):
        try:
            _import_all(modules)
        except Exception:  # noqa: BLE001 - the flow run imports it again and reports the error
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
        safe = _in_fork(partial(_count_safe, packages)) or 0
        for package in packages[:safe]:
            _import_all(package)
        # Skip the unsafe one. Packages that import it are found unsafe in later rounds.
        packages = packages[safe + 1 :]


def _prepare() -> str:
    """Import what a fork may inherit; return why this process cannot be forked, empty if it can."""
    before = inheritance()
    _import_all(
        [
            "prefect.engine",
            "prefect.flow_engine",
            "prefect.task_engine",
            "prefect.workers.process",
            "biocirv_worker.flow_run",
            "biocirv_worker.internals.heartbeats",
            "biocirv_worker.outbox",
        ]
    )
    os.chdir(os.environ.get("APP_DIRECTORY", "."))
    _import_application()
    os.chdir("/")
    return ", ".join(sorted(inheritance() - before))


PROBLEM = _prepare()
# Keeps the pages of imported objects shared with the forks: a garbage collection would write to every object.
gc.collect()
gc.freeze()
