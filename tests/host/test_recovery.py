"""What goes away comes back by itself: PostgreSQL's restart, a killed server or worker, a reboot."""

import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

if TYPE_CHECKING:
    from tests.host.conftest import Inventory

pytestmark = pytest.mark.disruptive

RECOVERY_SECONDS = 120
UNITS = ("prefect-server", "prefect-worker")


def wait_until_well(host: Host, url: str) -> None:
    """Wait until units are active and the API reaches its database; show the journal where they do not."""
    well = f"systemctl is-active {' '.join(UNITS)} && curl --silent --fail --output /dev/null {url}/ready"
    deadline = time.monotonic() + RECOVERY_SECONDS
    while host.run(well).rc != 0:
        if time.monotonic() > deadline:
            pytest.fail(host.run("journalctl --lines 60 --no-pager").stdout)
        time.sleep(1)


@pytest.fixture
def container(inventory: "Inventory") -> str:
    """Return the name of the container that the host is; real hosts are rebooted in the operator's window."""
    if not inventory.is_container("database"):
        pytest.skip("not a container")
    return inventory.name("database")


@pytest.fixture(scope="module")
def url(inventory: "Inventory") -> str:
    """Return the API's URL."""
    return str(inventory.value("prefect_api_url"))


def test_a_restart_of_postgresql_leaves_everything_healthy(
    inventory: "Inventory", database: Host, server: Host, url: str
) -> None:
    database.check_output("systemctl restart postgresql")
    wait_until_well(server, url)
    done = inventory.playbook("playbooks/run_etl.yml")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("unit", UNITS)
def test_a_killed_process_is_started_again(server: Host, url: str, unit: str) -> None:
    before = server.check_output("systemctl show --property=MainPID --value %s", unit)
    server.check_output("kill -9 %s", before)
    deadline = time.monotonic() + RECOVERY_SECONDS
    while server.check_output("systemctl show --property=MainPID --value %s", unit) in (before, "0"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    wait_until_well(server, url)


def test_a_killed_postmaster_is_started_again(database: Host, server: Host, url: str) -> None:
    database.check_output("kill -9 $(head -1 /var/lib/postgresql/*/main/postmaster.pid)")
    deadline = time.monotonic() + RECOVERY_SECONDS
    while database.run("pg_isready").rc != 0:
        assert time.monotonic() < deadline, database.check_output(
            "journalctl --unit 'postgresql@*' --lines 30 --no-pager"
        )
        time.sleep(0.2)
    wait_until_well(server, url)


def test_services_wait_for_what_they_need(database: Host, server: Host, url: str) -> None:
    """Without its database the server is not active, however long; with it, it is."""
    database.check_output("systemctl stop postgresql@*")
    server.check_output("systemctl restart --no-block prefect-server")
    deadline = time.monotonic() + RECOVERY_SECONDS
    while "no response" not in server.check_output("journalctl --unit prefect-server --lines 3 --output cat"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert server.run("systemctl is-active prefect-server").stdout.strip() == "activating"
    database.check_output("systemctl start postgresql")
    wait_until_well(server, url)


def count(database: Host) -> int:
    """Return the number of rows that the master flow loaded."""
    statement = "SELECT (SELECT count(*) FROM primary_product) + (SELECT count(*) FROM analysis_types)"
    return int(database.check_output("runuser --user postgres -- psql -Atc %s biocirv_db", statement))


def test_a_reboot_brings_everything_back(
    inventory: "Inventory", database: Host, server: Host, url: str, container: str
) -> None:
    """A container's stop and start is its reboot."""
    rows = count(database)
    subprocess.run(["docker", "stop", "--time", "60", container], check=True, capture_output=True)
    subprocess.run(["docker", "start", container], check=True, capture_output=True)
    wait_until_well(server, url)
    assert server.run("systemctl is-system-running --wait").stdout.strip() == "running"
    assert count(database) == rows > 0
    done = inventory.playbook("playbooks/run_etl.yml")
    assert done.returncode == 0, done.stdout


@pytest.mark.usefixtures("container")
def test_a_new_container_takes_up_the_data(inventory: "Inventory", database: Host) -> None:
    """What `make down` and `make up` do: the container goes, its volume stays."""
    rows = count(database)
    for playbook in ("target/destroy.yml", "target/create.yml", "site.yml"):
        done = inventory.playbook(playbook)
        assert done.returncode == 0, done.stdout
    assert count(database) == rows > 0
