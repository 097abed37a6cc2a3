"""What root does where an account of a service could lead it elsewhere: by links, or by variables."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = Path(__file__).parents[2] / "roles"
UNITS = [*ROLES.rglob("*.j2"), *ROLES.rglob("*.service"), *ROLES.rglob("*.conf")]


def tasks(found: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - YAML
    """Yield all tasks of a file, with those of blocks."""
    for task in found or []:
        yield task
        for part in ("block", "rescue", "always"):
            yield from tasks(task.get(part))


def test_what_links_lead_to_is_not_given_away() -> None:
    """With `recurse`, the module file follows links, unless it is told not to."""
    found = {
        f"{path.relative_to(ROLES)}: {task['name']}": task["ansible.builtin.file"].get("follow")
        for path in ROLES.glob("*/tasks/*.yml")
        for task in tasks(yaml.safe_load(path.read_text(encoding="utf-8")))
        if task.get("ansible.builtin.file", {}).get("recurse")
    }
    assert found
    assert set(found.values()) == {False}, found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_link_in_the_cache_gives_nothing_to_who_builds(tmp_path: Path) -> None:
    """Code of a source can write to the cache."""
    tmp_path.chmod(0o755)
    root = tmp_path / "root"
    (root / "build").mkdir(parents=True)
    cache, of_root = root / "cache", tmp_path / "of_root"
    for directory in (cache, of_root):
        directory.mkdir(mode=0o755)
    for name in ("uv", "conda"):
        (cache / name).symlink_to(of_root)
    os.chown(cache, 65534, 65534)
    (root / "builder").mkdir()
    (root / "builder/finished").touch()
    script = (ROLES / "release/files/build.sh").read_text(encoding="utf-8")
    program = root / "build/build.sh"
    # This machine need not have the account.
    program.write_text(
        re.sub("account=biocirv-build", "account=nobody", script).replace('-g "$account"', "-g nogroup"),
        encoding="utf-8",
    )
    (root / "build/build.py").touch()

    subprocess.run(
        ["sh", program, root / "build/x.json", root / "builder", "none"],
        check=True,
        env={**os.environ, "UV_CACHE_DIR": str(cache / "uv")},
    )

    assert (of_root.stat().st_uid, of_root.stat().st_mode & 0o777) == (0, 0o755)
    assert (cache.stat().st_uid, cache.stat().st_mode & 0o777) == (65534, 0o700)


def test_root_s_commands_in_units_have_no_variables_of_a_release() -> None:
    """With DBUS_SYSTEM_BUS_ADDRESS, systemctl runs a program; install heeds none that a release can set."""
    commands = [
        line
        for path in UNITS
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"Exec\w+=[-@:]*[+!]", line)
    ]
    assert commands
    harmless = ("/usr/bin/install ", "/usr/bin/env --ignore-environment ")
    assert [line for line in commands if not line.partition("=")[2].lstrip("-@:+!").startswith(harmless)] == []


def test_no_superuser_reads_an_application_s_database_for_a_command() -> None:
    """A view's functions would run as who reads it, and can lay down a role that was only assumed."""
    makefile = (ROLES.parent / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    assert [line for line in makefile.splitlines() if "psql" in line and "--user postgres" in line] == []
