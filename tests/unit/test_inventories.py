"""Every inventory sets all required variables, and none that is unused."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

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


def test_what_services_write_outlives_the_local_container() -> None:
    """Dumps, and the states of flow runs that the worker has not reported."""
    text = (ROOT / "inventory/local/hosts.yml").read_text(encoding="utf-8")
    volumes = yaml.safe_load(text)["all"]["hosts"]["biocirv"]["container_volumes"]
    mounted = {target: name for name, _, target in (volume.partition(":") for volume in volumes)}
    for account in ("postgresql", "biocirv", "prefect-server", "prefect-worker"):
        assert mounted[f"/var/lib/{account}"].startswith("biocirv-")
    assert len({*mounted.values()}) == len(volumes)


PLAY = """
- hosts: all
  gather_facts: false
  connection: local
  tasks:
    - ansible.builtin.debug:
        msg: >-
          {{ {'reads': flow_environment.ETL_SOURCE_DIRECTORY, 'folder': container_sheets | default(''),
              'directory': prefect_worker_sheets_directory, 'mounted': prefect_worker_sheets_mounted | default(false)}
             | to_json }}
"""


def sheets_of(inventory: Path, directory: Path) -> list[dict[str, Any]]:
    """Return what an inventory says about the sheets that flows read, for each host."""
    play = directory / "play.yml"
    play.write_text(PLAY, encoding="utf-8")
    environment = {**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.json"}
    done = subprocess.run(
        ["ansible-playbook", "--inventory", str(inventory), str(play)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (task,) = json.loads(done.stdout)["plays"][0]["tasks"]
    return [json.loads(host["msg"]) for host in task["hosts"].values()]


def test_the_local_container_reads_the_folder_that_is_noted(tmp_path: Path) -> None:
    """Without a note it reads the sample sheets of the release."""
    inventory = shutil.copytree(
        ROOT / "inventory/local", tmp_path / "local", ignore=shutil.ignore_patterns(".secrets", ".sheets")
    )
    directory = yaml.safe_load((ROOT / "roles/prefect_worker/defaults/main.yml").read_text(encoding="utf-8"))[
        "prefect_worker_sheets_directory"
    ]
    sample = {"reads": "/opt/biocirv/current/work/data/sample", "folder": "", "directory": directory, "mounted": False}
    assert sheets_of(inventory, tmp_path) == [sample]

    folder = "/home/anna/Anna's sheets, 2026"
    (inventory / ".sheets").write_text(f"{folder}\n", encoding="utf-8")

    noted = {"reads": directory, "folder": folder, "directory": directory, "mounted": True}
    assert sheets_of(inventory, tmp_path) == [noted]


@pytest.mark.parametrize("example", ["single-host.example", "cluster.example"])
def test_hosts_read_the_directory_that_sheets_are_copied_to(example: str, tmp_path: Path) -> None:
    """It is empty at first: no sample rows are loaded into a database that will be used."""
    for found in sheets_of(ROOT / "inventory" / example, tmp_path):
        assert found["reads"] == found["directory"] == "/srv/biocirv/sheets"
        assert not found["mounted"]
