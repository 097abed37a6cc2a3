"""Four hosts that are reached over ssh, and reach each other by name over TLS."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.host.conftest import recap

if TYPE_CHECKING:
    from tests.host.conftest import Inventory

ROOT = Path(__file__).parents[3]
WORKERS = ("worker1.example.org", "worker2.example.org")
HOSTS = ("db.example.org", "prefect.example.org", *WORKERS)


def test_hosts_are_reached_as_an_ordinary_user(inventory: "Inventory") -> None:
    """The connection uses ssh, and the user becomes root with sudo."""
    for name in HOSTS:
        host = inventory.host_named(name)
        assert host.check_output("echo $SUDO_USER; id --user --name").split() == ["admin", "root"]
        # sshd on this host is an ancestor of the shell.
        assert host.check_output("pgrep --count sshd") != "0"
    assert "StrictHostKeyChecking=yes" in os.environ["ANSIBLE_SSH_COMMON_ARGS"]


def test_a_host_with_another_key_is_not_talked_to(inventory: "Inventory", tmp_path: Path) -> None:
    """A wrong host key, as with another machine at the same address, changes nothing on any host."""
    options = os.environ["ANSIBLE_SSH_COMMON_ARGS"]
    (known,) = re.findall(r"UserKnownHostsFile=(\S+)", options)
    addresses, keys = zip(
        *(line.split(" ", 1) for line in Path(known).read_text(encoding="utf-8").splitlines()), strict=True
    )
    others = tmp_path / "known_hosts"
    # Swap the keys of the hosts.
    others.write_text(
        "".join(f"{address} {key}\n" for address, key in zip(addresses, (*keys[1:], keys[0]), strict=True))
    )
    # An open ssh connection would be reused without a check of the key.
    changed = f"{options.replace(known, str(others))} -o ControlPath=none"

    refused = inventory.playbook("site.yml", ANSIBLE_SSH_COMMON_ARGS=changed)

    assert refused.returncode != 0
    assert "Host key verification failed" in refused.stdout
    assert all(f"\n{host} " in refused.stdout.partition("PLAY RECAP")[2] for host in HOSTS), refused.stdout
    assert recap(refused.stdout)[0] == 0, refused.stdout


def test_each_host_has_only_what_is_its(inventory: "Inventory") -> None:
    """Each host has only the packages and open ports of its services."""
    listening = {}
    for name in HOSTS:
        shown = inventory.host_named(name).check_output("ss --no-header --listening --tcp --numeric")
        addresses = [line.split()[3] for line in shown.splitlines()]
        beyond = [address for address in addresses if not address.startswith(("127.", "[::1]"))]
        listening[name] = {int(address.rsplit(":", 1)[1]) for address in beyond}
    assert listening == {
        "db.example.org": {22, 5432},
        "prefect.example.org": {22, 443},
        **{worker: {22} for worker in WORKERS},
    }
    for name in WORKERS:
        host = inventory.host_named(name)
        assert not host.package("nginx").is_installed
        assert not host.file("/etc/biocirv/prefect-server.env").exists


@pytest.mark.parametrize("name", WORKERS)
def test_sheets_are_on_each_worker_and_readable_by_flows_only(inventory: "Inventory", name: str) -> None:
    """playbooks/sheets.yml has copied them, with ssh and sudo; the example's flows read them there."""
    host = inventory.host_named(name)
    shown = host.check_output("find /srv/biocirv/sheets -printf '%u:%g %m %y\\n'").splitlines()
    assert sorted(set(shown)) == ["root:prefect-worker 640 f", "root:prefect-worker 750 d"]
    assert len(shown) == 2 + len([*(ROOT / "data/sample").glob("*/*.csv")])
    assert host.run("ls -d /var/tmp/biocirv-sheets-*").rc != 0
    refused = host.run("runuser --user biocirv -- ls /srv/biocirv/sheets")
    assert "Permission denied" in refused.stderr


@pytest.mark.disruptive
@pytest.mark.parametrize("name", WORKERS)
def test_each_worker_runs_the_master_flow(inventory: "Inventory", name: str) -> None:
    """It runs it alone, while the other worker is stopped."""
    (other,) = (inventory.host_named(each) for each in WORKERS if each != name)
    other.check_output("systemctl stop prefect-worker")
    try:
        done = inventory.playbook("playbooks/run_etl.yml")
    finally:
        other.check_output("systemctl start prefect-worker")
    assert done.returncode == 0, done.stdout
    journal = inventory.host_named(name).check_output("journalctl --unit prefect-worker --output cat")
    assert re.search(r"Finished in state Completed\('573 rows read, 8 rejected: ", journal)
