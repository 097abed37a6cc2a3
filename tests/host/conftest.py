"""Every host of an inventory, as testinfra sees it: by default the local container, in molecule its instances.

`pytest tests/host --inventory inventory/mine` looks at real hosts; tests marked `disruptive` stop services and are
left out there by `-m 'not disruptive'`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

ROOT = Path(__file__).parents[2]


class Inventory:
    """An Ansible inventory: which hosts are in which group, and the variables that a converge sees."""

    def __init__(self, path: str) -> None:
        self.path = path
        listing = self._run("ansible-inventory", "--list")
        self._groups: dict[str, dict[str, list[str]]] = json.loads(listing)

    def _run(self, *command: str) -> str:
        return subprocess.run(
            [command[0], "--inventory", self.path, *command[1:]],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
        ).stdout

    def host(self, group: str) -> Host:
        """Return the first host of a group, as root."""
        name = self._groups[group]["hosts"][0]
        return testinfra.get_host(f"ansible://{name}", ansible_inventory=self.path, sudo=False)

    def value(self, name: str) -> Any:  # noqa: ANN401 - a variable is what the inventory makes it
        """Return a variable of the first database host, templated."""
        host = self._groups["database"]["hosts"][0]
        output = self._run("ansible", host, "--one-line", "-m", "ansible.builtin.debug", "-a", f"var={name}")
        return json.loads(output.split("=>", 1)[1])[name]

    def playbook(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ansible-playbook on the inventory; its output is for the caller to judge."""
        return subprocess.run(
            ["ansible-playbook", "--inventory", self.path, *arguments],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the inventory."""
    parser.addoption("--inventory", default=os.environ.get("MOLECULE_INVENTORY_FILE", str(ROOT / "inventory/local")))


@pytest.fixture(scope="session")
def inventory(request: pytest.FixtureRequest) -> Inventory:
    """Return the inventory under test."""
    path = Path(request.config.getoption("--inventory"))
    # Molecule names the file; the directory has the group variables beside it.
    return Inventory(str(path.parent if path.name == "ansible_inventory.yml" else path.resolve()))


@pytest.fixture(scope="session")
def database(inventory: Inventory) -> Host:
    """Return the database's host."""
    return inventory.host("database")


@pytest.fixture(scope="session")
def server(inventory: Inventory) -> Host:
    """Return the first host of Prefect's server."""
    return inventory.host("prefect_server")


@pytest.fixture(scope="session")
def worker(inventory: Inventory) -> Host:
    """Return the first worker's host."""
    return inventory.host("prefect_worker")
