"""What docs/flows.md says that a flow may expect of its host holds in the worker's sandbox."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from testinfra.host import Host

from tests import limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.conftest import Api, Inventory

FLOWS = Path(__file__).parent / "flows"
# On the worker's host: the flows, and packages that the platform does not have.
DIRECTORY = "/opt/biocirv-expectations"
PACKAGES = ("dask[distributed]", "matplotlib", "psutil", "scikit-learn")


@pytest.fixture
def installed(inventory: "Inventory", worker: Host) -> "Iterator[None]":
    """Put flows and packages on the worker's host."""
    worker.check_output("mkdir --parents %s/packages", DIRECTORY)
    for path in FLOWS.glob("*.py"):
        worker.check_output("printf %%s %s > %s", path.read_text(encoding="utf-8"), f"{DIRECTORY}/{path.name}")
    variables = {
        **{name: inventory.value(name) for name in ("http_proxy", "https_proxy", "no_proxy")},
        "UV_CACHE_DIR": f"{DIRECTORY}/cache",
        "UV_NO_CONFIG": "true",
        "UV_SYSTEM_CERTS": "true",
    }
    given = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    worker.check_output(
        f"env {given} $(ls /opt/biocirv/builder/*/bin/uv | head -n 1) pip install --quiet"
        f" --python /opt/biocirv/current/env/bin/python --target {DIRECTORY}/packages {shlex.join(PACKAGES)}"
    )
    worker.check_output("chmod --recursive a+rX %s", DIRECTORY)
    yield
    worker.check_output("rm --recursive %s", DIRECTORY)


@pytest.mark.thorough
@pytest.mark.disruptive
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("process", ["a new process", "a fork"])
def test_a_flow_may_do_what_the_docs_say(inventory: "Inventory", api: "Api", process: str) -> None:
    deployment = {
        "name": "expectations",
        "flow_id": api.ask("/flows/", {"name": "expectations"})["id"],
        "entrypoint": "expectations.py:expectations",
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": DIRECTORY}}],
        "work_pool_name": inventory.value("prefect_work_pool"),
        # A deployment with variables gets a new process.
        "job_variables": {"env": {"EXPECTATIONS": "1"}} if process == "a new process" else {},
        "enforce_parameter_schema": False,
    }
    found = api.ask("/deployments/", deployment)["id"]
    run = api.ask(f"/deployments/{found}/create_flow_run", {})["id"]

    def end() -> dict[str, Any] | None:
        state: dict[str, Any] = api.ask(f"/flow_runs/{run}")["state"]
        return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    state = limits.wait_until(end, "the flow run ends", limits.CRASH)
    api.delete(f"/deployments/{found}")
    assert state is not None
    assert state["type"] == "COMPLETED", state["message"]
