"""Playbooks fail where the inventory is missing, or has none of the hosts that they are for."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAYBOOKS = sorted(path.name for path in (ROOT / "playbooks").glob("*.yml"))


def run(playbook: str, inventory: Path) -> subprocess.CompletedProcess[str]:
    """Run a playbook of this project on an inventory."""
    command = ["ansible-playbook", "--inventory", str(inventory), f"playbooks/{playbook}"]
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
