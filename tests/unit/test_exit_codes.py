"""Playbooks fail where the inventory is missing, or has none of the hosts that they are for."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAYBOOKS = sorted(path.name for path in (ROOT / "playbooks").glob("*.yml"))


def run(playbook: str, inventory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook of this project on an inventory."""
    command = ["ansible-playbook", "--inventory", str(inventory), f"playbooks/{playbook}", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("playbook", ["backup.yml", "run_etl.yml", "login.yml", "status.yml"])
def test_an_inventory_that_is_not_there_is_an_error(playbook: str, tmp_path: Path) -> None:
    done = run(playbook, tmp_path / "nosuch")
    assert done.returncode != 0, done.stdout
    assert "nosuch" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_an_inventory_without_the_groups_is_an_error(playbook: str, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all: {children: {}}\n", encoding="utf-8")
    done = run(playbook, inventory)
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("playbook", ["audit.yml", "restore.yml", "restore_all.yml", "restore_check.yml"])
def test_a_host_on_which_nothing_can_be_run_is_an_error_with_its_reason(playbook: str, tmp_path: Path) -> None:
    """As of a container that is not there, Ansible has a result without the command's output."""
    host = {"ansible_connection": "local", "ansible_python_interpreter": "/nosuch/python", "ansible_become": False}
    groups = {group: {"hosts": {"one": host}} for group in ("database", "prefect_server", "prefect_worker")}
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(json.dumps(groups), encoding="utf-8")
    done = run(playbook, inventory, "--extra-vars", '{"restore_to": "latest", "audit_since": "today"}')
    assert done.returncode == 2, done.stderr
    assert "/nosuch/python" in done.stderr
    assert "has no attribute" not in done.stderr
