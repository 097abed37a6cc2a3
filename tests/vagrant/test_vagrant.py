"""`vagrant up`, to the end: converged, provisioned again, rebooted, destroyed. PROVIDER=docker|libvirt|virtualbox."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import limits

ROOT = Path(__file__).parents[2]
PROVIDER = os.environ.get("PROVIDER", "docker")
# Vagrant asks another one where it is installed, also for a machine that is not there.
ENVIRONMENT = {**os.environ, "VAGRANT_DEFAULT_PROVIDER": PROVIDER}


def run(*command: str) -> str:
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
    recap = re.findall(r"biocirv +: (ok=.*?) +unreachable", done.stdout)
    print(f"{' '.join(command)}: {time.monotonic() - begin:.0f} s {' '.join(recap)}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def status() -> dict[str, Any]:
    """Return what `make status` knows."""
    report: dict[str, Any] = json.loads(run("make", "status", "JSON=1", "INVENTORY=inventory/vagrant"))
    return report


@pytest.fixture(scope="module")
def up() -> Iterator[str]:
    """Return what the first `vagrant up` printed; afterwards the machine is gone."""
    run("vagrant", "destroy", "--force")
    try:
        yield run("vagrant", "up", "--provider", PROVIDER)
    finally:
        run("vagrant", "destroy", "--force")


def test_up_converges(up: str) -> None:
    assert re.search(r"biocirv +: ok=\d+ +changed=[1-9]\d* +unreachable=0 +failed=0", up), up


@pytest.mark.usefixtures("up")
def test_provisioned_again_nothing_changes() -> None:
    again = run("vagrant", "provision")
    assert re.search(r"biocirv +: ok=\d+ +changed=0 +unreachable=0 +failed=0", again), again


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
        lambda: status()["well"], "it is well again", limits.EMULATED if PROVIDER == "libvirt" else limits.START
    )
    assert status()["rows"] == before


@pytest.mark.usefixtures("up")
def test_destroyed_it_leaves_nothing() -> None:
    """But the operator's secrets."""
    run("vagrant", "destroy", "--force")
    shown = run("vagrant", "status", "--machine-readable")
    assert re.search(r",biocirv,state,(not_created|host_state_unknown|preparing)", shown), shown
    assert not list((ROOT / ".vagrant/machines").rglob("id"))
    if PROVIDER == "docker":
        assert run("docker", "ps", "--all", "--quiet", "--filter", "name=_biocirv_") == ""
