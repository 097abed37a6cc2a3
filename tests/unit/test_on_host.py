"""Commands on hosts run with the account of the service."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import on_host
from tests.services import SERVICES


def test_services_of_the_platform_and_of_the_inventory_have_accounts() -> None:
    listed = on_host.services({"other_services": [{"unit": "exporter.service", "account": "exporter"}]})
    assert listed[:-1] == SERVICES
    for unit in ("biocirv-migrations", "exporter"):
        on_host.check_account(unit, listed)


def test_a_unit_without_an_account_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(SystemExit, match=r"No service 'nosuch' .* choose one of .*prefect-worker"):
        on_host.check_account("nosuch", on_host.services({}))


def test_journals_of_several_hosts_name_the_host(tmp_path: Path) -> None:
    """A program in place of docker prints what it is asked; the worst exit code counts."""
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho "$*"\n[ "$3" != two-of-them ]\n')
    docker.chmod(0o755)
    hosts = dict.fromkeys(("one", "two-of-them"))
    inventory = tmp_path / "hosts.yml"
    variables = {"ansible_connection": "community.docker.docker"}
    inventory.write_text(json.dumps({"all": {"hosts": hosts, "vars": variables}}), encoding="utf-8")
    command = [sys.executable, str(Path(on_host.__file__)), "--inventory", str(inventory), "--journal", "w"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def journal(host: str) -> subprocess.CompletedProcess[str]:
        shown = [*command, host, "--lines", "9"]
        return subprocess.run(shown, check=False, capture_output=True, text=True, env=environment)

    asked = "journalctl --no-hostname --lines 9 --unit=w"
    lines = {
        f"one          exec --interactive one {asked}",
        f"two-of-them  exec --interactive two-of-them {asked}",
    }
    both = journal("all")
    assert (set(both.stdout.splitlines()), both.returncode) == (lines, 1), both
    assert journal("one").stdout == f"exec --interactive one {asked}\n"
