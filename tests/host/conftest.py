"""Fixtures for the hosts of an inventory: by default the local container, in molecule its instances.

`pytest tests/host --ansible-inventory inventory/mine` tests real hosts; add `-m 'not disruptive'` there to exclude
tests that stop services.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

from tests import limits

ROOT = Path(__file__).parents[2]
# The project's configuration, without colours, which molecule enables, and with each task's result.
ENVIRONMENT = {
    **os.environ,
    "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    "ANSIBLE_FORCE_COLOR": "0",
    "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
}


class Inventory:
    """An Ansible inventory: which hosts are in which group, and the variables that a converge sees."""

    def __init__(self, path: str) -> None:
        self.path = path
        listing = self._run("ansible-inventory", "--list")
        self._groups: dict[str, dict[str, Any]] = json.loads(listing)

    def _run(self, *command: str) -> str:
        return subprocess.run(
            [command[0], "--inventory", self.path, *command[1:]],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**ENVIRONMENT, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
        ).stdout

    def name(self, group: str) -> str:
        """Return the name of a group's first host."""
        return self.names(group)[0]

    def all_names(self) -> list[str]:
        """Return the names of all hosts."""
        return sorted(self._groups["_meta"]["hostvars"])

    def names(self, group: str) -> list[str]:
        """Return the names of a group's hosts."""
        return [str(name) for name in self._groups[group]["hosts"]]

    def variables(self, name: str) -> dict[str, Any]:
        """Return a host's variables, not templated."""
        found: dict[str, Any] = self._groups["_meta"]["hostvars"].get(name, {})
        return found

    def is_container(self, group: str) -> bool:
        """Return whether a group's first host is a container on this machine, accessed through the container engine."""
        return self._is_container(self.name(group))

    def _is_container(self, name: str) -> bool:
        return "docker" in str(self.variables(name).get("ansible_connection"))

    def host(self, group: str) -> Host:
        """Return the first host of a group, as root."""
        return self.host_named(self.name(group))

    def host_named(self, name: str) -> Host:
        """Return a host, as root."""
        sudo = not self._is_container(name)
        return testinfra.get_host(f"ansible://{name}", ansible_inventory=self.path, sudo=sudo)

    def value(self, name: str) -> Any:  # noqa: ANN401 - a variable is what the inventory makes it
        """Return a variable of the first database host, templated."""
        output = self._run("ansible", self.name("database"), "-m", "ansible.builtin.debug", "-a", f"var={name}")
        return json.loads(output.split("=>", 1)[1])[name]

    def playbook(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run ansible-playbook on the inventory; the caller checks the result."""
        return subprocess.run(
            [str(shutil.which("ansible-playbook")), "--inventory", self.path, *arguments],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**ENVIRONMENT, **environment},
            timeout=limits.limit(limits.PLAYBOOK),
            # A process group of its own, which a test can kill without killing pytest.
            start_new_session=True,
        )

    def answer(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ansible-playbook as people do: its standard output is the answer, and nothing else."""
        return self.playbook(*arguments, ANSIBLE_STDOUT_CALLBACK="concise")

    def status(self, *options: str) -> dict[str, Any]:
        """Return what `make status JSON=1` prints; its exit code tells whether all is well."""
        done = self.answer("playbooks/status.yml", "--extra-vars", "status_format=json", *options)
        report: dict[str, Any] = json.loads(done.stdout)
        assert (done.returncode == 0) is report["well"], done
        return report


RECAP = re.compile(r"ok=\d+ +changed=(\d+) +unreachable=(\d+) +failed=(\d+)")


def recap(output: str) -> tuple[int, int, int]:
    """Return changed, unreachable and failed tasks of all hosts together."""
    rows = [tuple(map(int, row)) for row in RECAP.findall(output)]
    assert rows, output
    changed, unreachable, failed = (sum(column) for column in zip(*rows, strict=True))
    return changed, unreachable, failed


def properties(host: Host, unit: str, *names: str) -> dict[str, str]:
    """Return properties of a unit, as systemd shows them."""
    shown = host.check_output("systemctl show --property=%s %s", ",".join(names), unit)
    return dict(line.split("=", 1) for line in shown.splitlines())


CURL = (
    "set -a; . /etc/biocirv/biocirv-deployments.env;"
    # Options that curl reads from its configuration do not show in process listings.
    ' printf \'user = "%s"\' "$PREFECT_API_AUTH_STRING" | curl --config - --silent --show-error --fail'
    ' --cacert "$PREFECT_API_SSL_CERT_FILE"'
)


class Api:
    """Client of Prefect's API on the server's host: through the proxy, TLS verified, with the platform's password."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
        """Return the API's response to a GET, or to a POST if there is a body."""
        data = f" --header 'Content-Type: application/json' --data '{json.dumps(body)}'" if body is not None else ""
        answer: str = self._host.check_output(f'{CURL}{data} "$PREFECT_API_URL{path}"')
        return json.loads(answer)

    def delete(self, path: str) -> None:
        """Delete an object by its path in the API."""
        self._host.check_output(f'{CURL} --request DELETE "$PREFECT_API_URL{path}"')

    def is_ready(self) -> bool:
        """Return whether the API answers and reaches its database."""
        return bool(self._host.run(f'{CURL} --output /dev/null "$PREFECT_API_URL/ready"').rc == 0)


@pytest.fixture(scope="session")
def inventory(request: pytest.FixtureRequest) -> Inventory:
    """Return the inventory under test: testinfra's option, or the local one."""
    return Inventory(request.config.getoption("--ansible-inventory") or str(ROOT / "inventory/local"))


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


@pytest.fixture(scope="session")
def api(server: Host) -> Api:
    """Return Prefect's API."""
    return Api(server)


@pytest.fixture
def container(inventory: Inventory) -> str:
    """Return the name of the host's container; skip the test on real hosts."""
    if not inventory.is_container("database"):
        pytest.skip("not a container")
    return inventory.name("database")
