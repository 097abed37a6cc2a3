"""The commands for one's own sheets, without hosts: what the container mounts, and what is copied, checked and said."""

import grp
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.unit.playbooks import ROOT, Done, ansible, messages, results

SHEET = "Aim 1-Feedstock Collection and Processing Data-BioCirV"


def message(done: Done) -> str:
    """Return the last message that is shown, or the one of the failure."""
    return messages(done)[-1]


def own_sheets(folder: Path) -> Path:
    """Make a folder with the sample sheets, which all accounts can read."""
    shutil.copytree(ROOT / "data/sample", folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


class Container:
    """The start of containers/create.yml for a copy of the local inventory: until something would be booted."""

    def __init__(self, directory: Path) -> None:
        self.inventory = shutil.copytree(
            ROOT / "inventory/local", directory / "local", ignore=shutil.ignore_patterns(".secrets", ".sheets")
        )
        self.note = self.inventory / ".sheets"
        (create,) = yaml.safe_load((ROOT / "containers/create.yml").read_text(encoding="utf-8"))
        tasks = create["tasks"]
        (boot,) = (task for task in tasks if task["name"] == "Boot the containers")
        mounts = boot["community.docker.docker_container"]["mounts"]
        shown = {"name": "Mounts", "ansible.builtin.debug": {"msg": mounts}, "loop": boot["loop"]}
        end = next(number for number, task in enumerate(tasks) if "ansible.builtin.meta" in task)
        # Beside the same files as the original.
        (directory / "project/containers").mkdir(parents=True)
        for name in ("containers/tasks", "data"):
            (directory / "project" / name).symlink_to(ROOT / name)
        self.play = directory / "project/containers/create.yml"
        self.play.write_text(yaml.safe_dump([{**create, "tasks": [*tasks[: end + 1], shown]}]), encoding="utf-8")

    def create(self, folder: object = None) -> Done:
        """Run it, with a folder of sheets if one is given."""
        variables: dict[str, object] = {} if folder is None else {"container_sheets_folder": str(folder)}
        return ansible(self.play, self.inventory, variables)

    def mounts(self, folder: object = None) -> object:
        """Return what the container would mount."""
        done = self.create(folder)
        assert done.returncode == 0, done.stdout
        name, result = results(done)[-1]
        assert name == "Mounts"
        return result["results"][0]["msg"]


@pytest.fixture
def container(tmp_path: Path) -> Container:
    """Return a local container that does not boot."""
    return Container(tmp_path)


def test_the_container_mounts_the_folder_until_another_is_named(container: Container, tmp_path: Path) -> None:
    """The sample sheets are the release's: nothing is mounted for them."""
    folder = own_sheets(tmp_path / 'Anna\'s "sheets"')
    mount = {"type": "bind", "source": str(folder), "target": "/srv/biocirv/sheets", "read_only": True}

    assert container.mounts() == []
    # Relative to the present directory, as a user types it.
    assert container.mounts(os.path.relpath(folder, ROOT)) == [mount]
    assert container.note.read_text(encoding="utf-8") == f"{folder}\n"
    assert container.mounts() == [mount]
    assert container.mounts(ROOT / "data/sample") == []
    assert not container.note.exists()


def test_a_folder_that_cannot_be_mounted_is_refused_and_not_noted(container: Container, tmp_path: Path) -> None:
    """One that was noted stays noted."""
    container.note.write_text("/srv/before\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()

    refused = container.create(tmp_path / "empty")

    assert refused.returncode != 0
    assert f"{tmp_path / 'empty'} holds no sheet. It is empty." in message(refused)
    assert "`make up SHEETS=data/sample` goes back" in message(refused)
    assert container.note.read_text(encoding="utf-8") == "/srv/before\n"


def test_a_noted_folder_that_has_gone_is_refused(container: Container, tmp_path: Path) -> None:
    """Docker would create an empty one."""
    container.note.write_text(f"{tmp_path / 'gone'}\n", encoding="utf-8")

    refused = container.create()

    assert refused.returncode != 0
    assert f"{tmp_path / 'gone'} is not there." in message(refused)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, containers see files as their own")
def test_sheets_that_the_container_s_flows_cannot_read_are_refused(container: Container, tmp_path: Path) -> None:
    folder = own_sheets(tmp_path / "sheets")
    (folder / SHEET / "03.1-Proximate.csv").chmod(0o600)

    refused = container.create(folder)

    assert refused.returncode != 0
    assert f"chmod -R o+rX '{folder / SHEET}'" in message(refused)
    assert not container.note.exists()


def test_hosts_mount_nothing(container: Container, tmp_path: Path) -> None:
    """An inventory of hosts is referred to the command that copies."""
    folder = own_sheets(tmp_path / "sheets")

    refused = ansible(container.play, ROOT / "inventory/cluster.example", {"container_sheets_folder": str(folder)})

    assert refused.returncode != 0
    inventory = os.path.relpath(ROOT / "inventory/cluster.example", container.play.parents[1])
    assert f"`make sheets SHEETS=folder INVENTORY={inventory}` copies" in message(refused)


# Runs the check with this interpreter, in place of the program that runs it as the worker. That one's arguments are
# --pipe, the unit, a directory and the release's Python.
IN_UNIT = f"""#!/bin/sh
shift 4
for argument; do
    [ "$before" != --at ] || export ETL_SOURCE_DIRECTORY="$argument"
    before=$argument
done
cd {ROOT} && exec {sys.executable} "$@"
"""
WITHOUT_CHECK = """#!/bin/sh
echo "/opt/biocirv/current/env/bin/python: No module named ca_biositing.pipeline.check" >&2
exit 1
"""
PLAY = """
- hosts: prefect_worker
  gather_facts: false
  connection: local
  vars:
    prefect_worker_sheets_folder: "{{ sheets_folder }}"
  tasks:
    - ansible.builtin.include_role:
        name: prefect_worker
        tasks_from: sheets
"""

Copy = Callable[..., Done]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """Return a function that runs the role's tasks here, as workers, each with a directory of its name."""
    (tmp_path / "play.yml").write_text(PLAY, encoding="utf-8")

    def run(folder: object, *workers: str, in_unit: str = IN_UNIT, check: bool = False, **variables: object) -> Done:
        hosts = {"prefect_worker": {"hosts": dict.fromkeys(workers or ["one"])}}
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump(hosts), encoding="utf-8")
        for worker in workers or ["one"]:
            (tmp_path / worker).mkdir(exist_ok=True)
        (tmp_path / "in-unit").write_text(in_unit, encoding="utf-8")
        (tmp_path / "in-unit").chmod(0o755)
        given = {
            "sheets_folder": str(folder),
            "prefect_worker_sheets_directory": f"{tmp_path}/{{{{ inventory_hostname }}}}",
            "ansible_python_interpreter": sys.executable,
            "__prefect_worker_in_unit": str(tmp_path / "in-unit"),
            "__prefect_worker_sheets_group": grp.getgrgid(os.getegid()).gr_name,
            **variables,
        }
        return ansible(
            tmp_path / "play.yml",
            tmp_path / "hosts.yml",
            given,
            *["--check"] * check,
            ETL_SOURCE="",
            TMPDIR=str(tmp_path),
        )

    return run


def test_sheets_are_copied_checked_and_reported_once(copy: Copy, tmp_path: Path) -> None:
    """Workers that say the same are named together; temporary files are removed."""
    folder = own_sheets(tmp_path / "sheets")
    (folder / "notes.txt").touch()
    # Where hosts get the copy.
    before = {*Path("/var/tmp").glob("biocirv-sheets-*")}  # noqa: S108

    done = copy(folder, "one", "two")

    assert done.returncode == 0, done.stdout
    said = message(done)
    assert f"Copied to {tmp_path / 'one'} on one, two: {SHEET} (" in said
    assert "Ignored, because they are no sheets: notes.txt." in said
    assert said.count("336 rows, for observation") == 1
    assert "\none, two:\n" in said
    assert "row 63, 'n.d.': Value is not a number" in said
    assert said.rstrip().endswith("`make run-etl` loads the sheets.")
    assert len([*(tmp_path / "two" / SHEET).iterdir()]) == 4
    assert [path.name for path in (tmp_path / "one").iterdir()] == [SHEET]
    assert f"New or changed: {SHEET}/01-BasicSampleInfo.csv, " in said
    assert not [*tmp_path.glob("biocirv-sheets-*")]
    assert not {*Path("/var/tmp").glob("biocirv-sheets-*")} - before  # noqa: S108


@pytest.mark.thorough
def test_sheets_that_stop_a_flow_replace_none(copy: Copy, tmp_path: Path) -> None:
    """Unless that is asked for; what is removed is named."""
    folder = own_sheets(tmp_path / "sheets")
    assert copy(folder).returncode == 0
    (folder / SHEET / "03.0-Experiments.csv").unlink()

    refused = copy(folder)

    assert refused.returncode != 0
    assert "A flow could not run with these sheets on one" in message(refused)
    shown = next(str(result["msg"]) for name, result in results(refused) if "Show what was copied" in name)
    assert "analysis_type, experiment could not run: Worksheet '03.0-Experiments'" in shown
    assert "Nothing was changed." in shown
    assert str(tmp_path / "one/.sheets-") not in shown
    assert "make run-etl" not in shown
    assert len([*(tmp_path / "one" / SHEET).iterdir()]) == 4

    forced = copy(folder, prefect_worker_sheets_force=True)

    assert forced.returncode == 0, forced.stdout
    assert f"Removed, because the sheets no longer have them: {SHEET}/03.0-Experiments.csv." in message(forced)
    assert "make run-etl" not in message(forced)
    assert len([*(tmp_path / "one" / SHEET).iterdir()]) == 3
    assert [path.name for path in (tmp_path / "one").iterdir()] == [SHEET]


@pytest.mark.thorough
def test_workers_that_keep_their_sheets_are_named(copy: Copy, tmp_path: Path) -> None:
    """Flows could run on any of them, so that no run is recommended."""
    (tmp_path / "two").mkdir()
    (tmp_path / "two/Lab").symlink_to("/nowhere")
    (tmp_path / "two/.sheets-before").touch()

    done = copy(own_sheets(tmp_path / "sheets"), "one", "two", "three")

    assert done.returncode != 0
    said = next(str(result["msg"]) for name, result in results(done) if "Show what was copied" in name)
    assert "on one, three: " in said
    assert "The sheets from before are still on two," in said
    assert "make run-etl" not in said


def test_sheets_have_no_check_mode(copy: Copy, tmp_path: Path) -> None:
    done = copy(own_sheets(tmp_path / "sheets"), check=True)
    assert done.returncode != 0
    assert "have no check mode" in message(done)
    assert not [*(tmp_path / "one").iterdir()]


def test_an_application_without_a_check_gets_its_sheets(copy: Copy, tmp_path: Path) -> None:
    done = copy(own_sheets(tmp_path / "sheets"), in_unit=WITHOUT_CHECK)

    assert done.returncode == 0, done.stdout
    assert "has no module ca_biositing.pipeline.check that checks sheets: they were copied only." in message(done)
    assert (tmp_path / "one" / SHEET).is_dir()


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"sheets_folder": ""}, "Name the folder that holds the sheets: `make sheets SHEETS=folder`."),
        ({"prefect_worker_sheets_mounted": True}, "is provided from elsewhere (prefect_worker_sheets_mounted)"),
        ({"sheets_folder": "/nowhere"}, "/nowhere is not there. Name the folder"),
    ],
    ids=["none", "mounted", "missing"],
)
def test_what_cannot_be_copied_changes_nothing(
    copy: Copy, tmp_path: Path, variables: dict[str, object], says: str
) -> None:
    done = copy(ROOT / "data/sample", **variables)

    assert done.returncode != 0
    assert any(says in str(result.get("msg")) for _, result in results(done)), done.stdout
    assert not [*(tmp_path / "one").iterdir()]


UNINSTALL = PLAY.replace('sheets_folder: "{{ sheets_folder }}"', "uninstall_data: true").replace(
    "tasks_from: sheets", "tasks_from: uninstall"
)


@pytest.mark.parametrize("is_mounted", [False, True])
def test_uninstalling_removes_no_mounted_sheets(tmp_path: Path, *, is_mounted: bool) -> None:
    """Whether or not the inventory knows of the mount."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host/a.xlsx").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mountpoint").write_text(f"#!/bin/sh\nexit {0 if is_mounted else 32}\n", encoding="utf-8")
    (tmp_path / "bin/mountpoint").chmod(0o755)
    (tmp_path / "play.yml").write_text(UNINSTALL, encoding="utf-8")
    (tmp_path / "hosts.yml").write_text("prefect_worker: {hosts: {one: }}", encoding="utf-8")
    given: dict[str, object] = {
        "prefect_worker_sheets_directory": str(tmp_path / "host"),
        "ansible_python_interpreter": sys.executable,
    }

    done = ansible(
        tmp_path / "play.yml", tmp_path / "hosts.yml", given, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    )

    assert done.returncode == 0, done.stdout
    assert (tmp_path / "host/a.xlsx").exists() == is_mounted


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that runs make, and returns the arguments of each ansible-playbook that it would run."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    (tmp_path / "bin/uv").touch()
    (tmp_path / "controller").touch()
    ansible_playbook = tmp_path / "bin/ansible-playbook"
    ansible_playbook.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>{tmp_path}/played\n', encoding="utf-8")
    ansible_playbook.chmod(0o755)

    def run(*arguments: str) -> list[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        command = ["make", f"VENV={tmp_path}", *arguments]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        return (tmp_path / "played").read_text(encoding="utf-8").splitlines()

    return run


@pytest.mark.parametrize("folder", ["~/my sheets", 'Anna\'s "sheets"', "a, b"])
def test_make_passes_the_folder_as_it_is(make: Callable[..., list[str]], folder: str) -> None:
    assert make("sheets", f"SHEETS={folder}") == [
        f"--inventory inventory/local playbooks/sheets.yml --extra-vars {json.dumps({'sheets_folder': folder})}"
    ]
    variable = json.dumps({"container_sheets_folder": folder})
    assert make("start-services", f"SHEETS={folder}")[1:] == [
        f"--inventory inventory/local containers/create.yml --extra-vars {variable}",
        "--inventory inventory/local site.yml",
    ]


def test_make_forces_only_when_asked(make: Callable[..., list[str]]) -> None:
    assert make("sheets", "SHEETS=a", "FORCE=1")[0].endswith('{"sheets_folder": "a"} --extra-vars sheets_force=true')


def test_make_without_a_folder_names_none(make: Callable[..., list[str]]) -> None:
    assert make("start-services")[0] == "--inventory inventory/local containers/create.yml"
