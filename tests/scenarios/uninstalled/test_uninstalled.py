"""uninstall.yml leaves only what docs/operate.md lists; data is removed only on request."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import testinfra
from testinfra.host import Host

ROOT = Path(__file__).parents[3]
INVENTORY = os.environ["MOLECULE_INVENTORY_FILE"]
ACCOUNTS = ("prefect-server", "prefect-worker", "reverse-proxy", "biocirv")
# All paths where the platform writes, except PostgreSQL's.
PLACES = (
    "/etc/biocirv",
    "/opt/biocirv",
    "/etc/systemd/system/biocirv*",
    "/etc/systemd/system/prefect*",
    "/etc/systemd/system/*/biocirv*",
    "/etc/systemd/system/*/prefect*",
    "/etc/systemd/system/nginx*",
    "/etc/systemd/system/biocirv.target.wants/*",
    "/etc/apt/apt.conf.d/*biocirv*",
    "/etc/postgresql-common/createcluster.d/biocirv.conf",
    "/usr/local/share/ca-certificates/biocirv*",
    "/etc/ssl/certs/biocirv*",
    "/run/prefect*",
    "/run/biocirv*",
    "/etc/pgbackrest",
    "/etc/postgresql/*/main/conf.d/biocirv-archive.conf",
    "/var/lib/biocirv-recovery",
    "/var/lib/systemd/timers/stamp-biocirv*",
)
BACKUPS = "ls /var/lib/pgbackrest/backup/biocirv"


@pytest.fixture(scope="module")
def host() -> Host:
    """Return the host that was uninstalled."""
    listing = subprocess.run(
        ["ansible-inventory", "--inventory", INVENTORY, "--list"], check=True, capture_output=True, text=True
    ).stdout
    name = json.loads(listing)["database"]["hosts"][0]
    return testinfra.get_host(f"ansible://{name}", ansible_inventory=INVENTORY)


def left(host: Host) -> str:
    """Return what exists in these paths."""
    found: str = host.run(f"ls -d {' '.join(PLACES)}").stdout
    return found


def test_nothing_is_left_but_what_is_listed(host: Host) -> None:
    assert left(host) == ""
    assert "prefect" not in host.check_output("ps -e -o args")
    units = host.check_output("systemctl list-unit-files --no-legend")
    assert "biocirv" not in units
    assert "prefect" not in units
    assert host.run("nft list table inet biocirv").rc != 0
    assert host.check_output("ss --no-header --listening --tcp --numeric 'sport = :443'") == ""
    assert host.file("/srv/biocirv/sheets").is_directory
    # Without the program that archives it, WAL would fill the disk.
    assert host.check_output("runuser --user postgres -- psql -Atc 'SHOW archive_mode'") == "off"
    assert "latest" in host.check_output(BACKUPS)
    listed = (ROOT / "docs/operate.md").read_text(encoding="utf-8")
    assert "`/srv/biocirv/sheets`" in listed
    assert "`/var/lib/pgbackrest`" in listed
    assert all(f"`{account}`" in listed for account in ACCOUNTS)


def test_data_goes_only_when_asked(host: Host) -> None:
    rows = "runuser --user postgres -- psql -Atc 'SELECT count(*) FROM primary_product' biocirv_db"
    assert int(host.check_output(rows)) > 0
    assert all(host.user(account).exists for account in ACCOUNTS)
    host.check_output("mkdir -p '/srv/biocirv/sheets/Lab' && touch '/srv/biocirv/sheets/Lab/a.csv'")

    subprocess.run(
        [
            "ansible-playbook",
            "--inventory",
            INVENTORY,
            "playbooks/uninstall.yml",
            "--extra-vars",
            "uninstall_data=true uninstall_backups=true",
        ],
        check=True,
        cwd=ROOT,
    )

    assert host.check_output("pg_lsclusters --no-header") == ""
    assert host.check_output("find /var/lib/pgbackrest -mindepth 1") == ""
    assert host.run("ls /var/lib/postgresql/*/main").rc != 0
    assert not any(host.user(account).exists for account in ACCOUNTS)
    for account in ACCOUNTS:
        # A volume's directory stays, empty.
        mounted = host.run(f"mountpoint --quiet /var/lib/{account}").rc == 0
        assert host.file(f"/var/lib/{account}").exists == mounted
        assert host.run(f"find /var/lib/{account} -mindepth 1").stdout == ""
    assert not host.file("/srv/biocirv").exists
    assert left(host) == ""
