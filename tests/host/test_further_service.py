"""A service that an inventory adds: one entry in the list of services, and one role."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

from tests.host.conftest import properties, recap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.conftest import Inventory

UNIT = "example-exporter"
ENTRY = {
    "unit": f"{UNIT}.service",
    "group": "database",
    "kind": "service",
    "account": UNIT,
    "renewal": "restarted",
    "health_url": "http://127.0.0.1:9199/",
    "role": str(Path(__file__).parent / "roles/example_exporter"),
}


@pytest.fixture
def added(request: pytest.FixtureRequest, inventory: Inventory, tmp_path: Path) -> Iterator[list[str]]:
    """Return the options that add the entry to the inventory; remove the service at the end."""
    entry = {**ENTRY, **getattr(request, "param", {})}
    more = tmp_path / "more.json"
    more.write_text(json.dumps({"all": {"vars": {"other_services": [entry]}}}), encoding="utf-8")
    options = ["--inventory", str(more)]
    yield options
    host = inventory.host(entry["group"])
    host.run(f"systemctl disable --now {UNIT}; rm -f /etc/systemd/system/{UNIT}.service /etc/biocirv/{UNIT}.env")
    host.check_output(f"rm -rf /opt/biocirv/bin/{UNIT}.py /var/lib/{UNIT} && systemctl daemon-reload && userdel {UNIT}")
    # The rules still name the account; without it, the next boot must not leave the host without a firewall.
    host.check_output("systemctl restart biocirv-firewall")


@pytest.mark.thorough
def test_an_entry_and_a_role_add_a_service(inventory: Inventory, database: Host, added: list[str]) -> None:
    converged = inventory.playbook("site.yml", *added, "--tags", "base,services")
    assert converged.returncode == 0, converged.stdout
    assert recap(converged.stdout)[0] > 0
    shown = properties(database, UNIT, "ActiveState", "User", "UnitFileState", "MainPID")
    first = shown.pop("MainPID")
    assert shown == {"ActiveState": "active", "User": UNIT, "UnitFileState": "enabled"}
    again = inventory.playbook("site.yml", *added, "--tags", "base,services")
    assert (again.returncode, recap(again.stdout)[0]) == (0, 0), again.stdout

    report = inventory.status(*added)
    assert report["problems"] == []
    assert UNIT in {service["unit"] for service in report["services"]}
    database.check_output(f"touch /var/lib/{UNIT}/sick")
    (problem,) = inventory.status(*added)["problems"]
    assert problem.startswith(f"{UNIT}.service on {inventory.name('database')} does not answer http://127.0.0.1:9199/")
    database.check_output(f"rm /var/lib/{UNIT}/sick")

    restarted = inventory.playbook("playbooks/restart.yml", *added, "--extra-vars", f"restart_units={UNIT}.service")
    assert (restarted.returncode, recap(restarted.stdout)[0]) == (0, 1), restarted.stdout
    assert properties(database, UNIT, "MainPID")["MainPID"] != first

    stopped = inventory.playbook("playbooks/stop.yml", *added)
    assert stopped.returncode == 0, stopped.stdout
    assert properties(database, UNIT, "ActiveState") == {"ActiveState": "inactive"}
    started = inventory.playbook("site.yml", *added)
    assert started.returncode == 0, started.stdout
    assert properties(database, UNIT, "ActiveState") == {"ActiveState": "active"}
    problems = inventory.status(*added)["problems"]
    assert problems == []


@pytest.mark.thorough
@pytest.mark.parametrize("added", [{"group": "prefect_server", "follows": "release"}], indirect=True)
def test_a_service_that_follows_the_release_is_run_by_a_deploy(
    inventory: Inventory, server: Host, added: list[str]
) -> None:
    deployed = inventory.playbook("site.yml", *added, "--tags", "base,deploy")
    assert deployed.returncode == 0, deployed.stdout
    assert properties(server, UNIT, "ActiveState") == {"ActiveState": "active"}
    again = inventory.playbook("site.yml", *added, "--tags", "base,deploy,services")
    assert (again.returncode, recap(again.stdout)[0]) == (0, 0), again.stdout
