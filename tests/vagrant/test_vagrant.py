"""The life of a Vagrant machine: up, provision, reload, destroy. PROVIDER=docker|libvirt|virtualbox."""

import json
import os
import re
import subprocess
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import limits

ROOT = Path(__file__).parents[2]
PROVIDER = os.environ.get("PROVIDER", "docker")
# Vagrant uses another provider if that is installed, even for a machine that does not exist.
ENVIRONMENT = {**os.environ, "VAGRANT_DEFAULT_PROVIDER": PROVIDER}

# In the last line of a converge that changed something; one that changed nothing ends with the address of the platform.
CHANGES = re.compile("[1-9][0-9]* changes? on 1 host")


def run(*command: str, accepted: Collection[int] = (0,)) -> str:
    """Run a command in the project's directory, print how long it took, and return what it printed."""
    begin = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=limits.limit(limits.EMULATED),
    )
    print(f"{' '.join(command)}: {time.monotonic() - begin:.0f} s {' '.join(CHANGES.findall(done.stdout))}")
    assert done.returncode in accepted, done.stdout + done.stderr
    return done.stdout


def status() -> dict[str, Any]:
    """Return the report of `make status`, whose exit code says whether all is well."""
    report: dict[str, Any] = json.loads(run("make", "status", "JSON=1", "INVENTORY=inventory/vagrant", accepted=(0, 2)))
    return report


@pytest.fixture(scope="module")
def up() -> Iterator[str]:
    """Return the output of the first `vagrant up`; destroy the machine at the end."""
    run("vagrant", "destroy", "--force")
    try:
        yield run("vagrant", "up", "--provider", PROVIDER)
    finally:
        run("vagrant", "destroy", "--force")


def test_up_converges(up: str) -> None:
    assert CHANGES.search(up), up


@pytest.mark.usefixtures("up")
def test_provisioned_again_nothing_changes() -> None:
    again = run("vagrant", "provision")
    assert "The address of the platform" in again
    assert not CHANGES.search(again), again


@pytest.mark.usefixtures("up")
def test_the_master_flow_completes() -> None:
    assert re.search(r"Master ETL Flow +Completed", run("make", "run-etl", "INVENTORY=inventory/vagrant"))
    report = status()
    assert report["problems"] == []
    assert report["rows"]["observation"] > 0


@pytest.mark.usefixtures("up")
def test_after_a_reboot_it_is_well_by_itself() -> None:
    before = status()["rows"]
    run("vagrant", "reload", "--no-provision")
    limits.wait_until(
        lambda: status()["well"], "the status is well", limits.EMULATED if PROVIDER == "libvirt" else limits.START
    )
    assert status()["rows"] == before


@pytest.mark.usefixtures("up")
def test_destroyed_it_leaves_nothing() -> None:
    """Only the operator's secrets are kept."""
    run("vagrant", "destroy", "--force")
    shown = run("vagrant", "status", "--machine-readable")
    assert re.search(r",biocirv,state,(not_created|host_state_unknown|preparing)", shown), shown
    assert not list((ROOT / ".vagrant/machines").rglob("id"))
    if PROVIDER == "docker":
        assert run("docker", "ps", "--all", "--quiet", "--filter", "name=_biocirv_") == ""
