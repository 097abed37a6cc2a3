"""One variable replaces this project's worker with Prefect's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

from tests.host.conftest import properties, recap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.conftest import Inventory

STOCK = ("--extra-vars", '{"prefect_worker_stock": true}')


@pytest.fixture
def stock(inventory: Inventory) -> Iterator[None]:
    """Converge with Prefect's own worker, and at the end with this project's again."""
    converged = inventory.playbook("site.yml", "--tags", "deploy", *STOCK)
    assert converged.returncode == 0, converged.stdout
    yield
    again = inventory.playbook("site.yml", "--tags", "deploy")
    assert again.returncode == 0, again.stdout


@pytest.mark.thorough
@pytest.mark.usefixtures("stock")
def test_prefect_s_own_worker_runs_the_flows(inventory: Inventory, worker: Host) -> None:
    shown = properties(worker, "prefect-worker", "ActiveState", "User", "MainPID")
    first = shown.pop("MainPID")
    assert shown == {"ActiveState": "active", "User": "prefect-worker"}
    command = worker.check_output("tr '\\0' ' ' < /proc/%s/cmdline", first)
    assert "/env/bin/prefect worker start --type process" in command
    again = inventory.playbook("site.yml", "--tags", "deploy", *STOCK)
    assert (again.returncode, recap(again.stdout)[0]) == (0, 0), again.stdout

    ran = inventory.playbook("playbooks/run_etl.yml")
    assert ran.returncode == 0, ran.stdout
    only = ("--extra-vars", "restart_units=prefect-worker.service")
    renewed = inventory.playbook("playbooks/restart.yml", *STOCK, *only)
    assert renewed.returncode == 0, renewed.stdout
    checked = inventory.playbook("playbooks/self_check.yml", *STOCK)
    assert checked.returncode == 0, checked.stdout
    assert properties(worker, "prefect-worker", "MainPID")["MainPID"] != first
