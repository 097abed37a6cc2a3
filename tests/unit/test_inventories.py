"""Every inventory sets all required variables, and none that is unused."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
INVENTORIES = sorted(path.parent for path in (ROOT / "inventory").glob("*/hosts.yml"))


@pytest.fixture(scope="module")
def preflight(load_plugin: Callable[[str], ModuleType]) -> ModuleType:
    """Return the action plugin that checks an inventory and a host, as a module."""
    return load_plugin("preflight/action_plugins/preflight.py")


def test_a_copy_of_an_example_is_its_own() -> None:
    """An example contains no links, which would still point into this repository, and generates its own secrets."""
    secrets = "group_vars/all/secrets.yml"
    for example in (ROOT / "inventory").glob("*.example"):
        assert not [path for path in example.rglob("*") if path.is_symlink()]
        assert (example / secrets).read_text() == (ROOT / "inventory/local" / secrets).read_text()


@pytest.mark.parametrize("inventory", INVENTORIES, ids=lambda path: path.name)
def test_every_inventory_is_complete(preflight: ModuleType, inventory: Path) -> None:
    done = subprocess.run(
        ["ansible-inventory", "--inventory", str(inventory), "--list"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    listing: dict[str, Any] = json.loads(done.stdout)
    groups = {name: group["hosts"] for name, group in listing.items() if "hosts" in group}
    specs = preflight.read_specs(ROOT / "roles")
    known = {name for options in specs.values() for name in options}
    required = {name for name, option in specs["preflight (inventory)"].items() if option.get("required")}

    assert preflight.group_problems(groups, []) == []
    for host, variables in listing["_meta"]["hostvars"].items():
        assert required - variables.keys() == set(), host
        assert preflight.name_problems(variables, known, {role.split()[0] for role in specs}) == []
