"""Code of a source, which runs while a release is built and tested, does so without any right."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.source import copy_source

if TYPE_CHECKING:
    from tests.host.conftest import Inventory
    from tests.scenarios.secure.conftest import Platform

# What it does, and then says in the error with which it ends.
ATTACK = """
import os, pwd, socket, subprocess
from pathlib import Path

def attempt(what, action):
    try:
        action()
    except OSError:
        return f"{what}: refused"
    return f"{what}: DONE"

def bus():
    socket.socket(socket.AF_UNIX).connect("/run/dbus/system_bus_socket")

def setuid():
    Path("/tmp/sh").touch()
    Path("/tmp/sh").chmod(0o4755)

def attack():
    # Not the pipes of the build, which would wait for their end.
    nowhere = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.Popen(["sleep", "7777"], start_new_session=True, **nowhere)
    said = [f"account {pwd.getpwuid(os.getuid()).pw_name}"]
    for path in ("/etc/shadow", "/etc/biocirv/prefect-worker.env", *Path("/opt/biocirv/build").glob("*.json")):
        said.append(attempt(f"read {path}", lambda: Path(path).read_bytes()))
    for path in ("/etc/cron.d", "/opt/biocirv/build", "/opt/biocirv/current/app", "/opt/biocirv/releases", "/srv"):
        said.append(attempt(f"write {path}", lambda: Path(path, "probe").touch()))
    said += [attempt("ask systemd", bus), attempt("setuid", setuid), attempt("become root", lambda: os.setuid(0))]
    raise RuntimeError("; ".join(said))
"""
BACKEND = f"{ATTACK}\ndef build_wheel(*_arguments, **_options):\n    attack()\n"
ACCOUNT = "biocirv-build"


def in_the_backend(source: Path) -> None:
    """Let it run while the application's package is built."""
    (source / "src/backend.py").write_text(BACKEND, encoding="utf-8")
    project = source / "pyproject.toml"
    system = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["src"]\n'
    text = re.sub(r"(?s)\[build-system\].*?(?=\n\[)", system, project.read_text(encoding="utf-8"))
    project.write_text(text, encoding="utf-8")


def in_a_migration(source: Path) -> None:
    """Let it run while the schema's revisions are read."""
    migration = max((source / "migrations/versions").glob("*.py"))
    migration.write_text(f"{migration.read_text(encoding='utf-8')}\n{ATTACK}\nattack()\n", encoding="utf-8")


def in_a_flow(source: Path) -> None:
    """Let it run while the finished release is tested."""
    flows = source / "run_prefect_flow.py"
    flows.write_text(f"{flows.read_text(encoding='utf-8')}\n{ATTACK}\nattack()\n", encoding="utf-8")


@pytest.mark.parametrize("place", [in_the_backend, in_a_migration, in_a_flow])
def test_code_of_a_source_has_no_rights_on_the_host(
    inventory: "Inventory", platform: "Platform", tmp_path: Path, place: Callable[[Path], None]
) -> None:
    source = copy_source(tmp_path / "source")
    place(source)
    active = platform.host.check_output("readlink /opt/biocirv/current")

    failed = inventory.playbook("playbooks/deploy.yml", "--extra-vars", f"release_source={source}")

    said = " ".join(failed.stdout.split())
    assert failed.returncode != 0
    assert f"account {ACCOUNT}; read /etc/shadow: refused;" in said, failed.stdout
    assert "become root: refused" in said
    assert "DONE" not in said
    assert platform.host.run(f"pgrep --uid {ACCOUNT} --list-full").stdout == ""
    assert platform.host.check_output("readlink /opt/biocirv/current") == active


def test_releases_are_root_s_alone(platform: "Platform") -> None:
    """Also the one that the account has made."""
    assert platform.host.check_output("find /opt/biocirv/releases -not -user root -o -perm /7022 -not -type l") == ""
    assert platform.host.check_output("stat --format '%U %a' /opt/biocirv/cache") == f"{ACCOUNT} 700"
