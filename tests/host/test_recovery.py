"""Recovery from a killed proxy, a stop, a reboot and a new container; tests/drills covers more faults."""

import signal
import subprocess
import uuid
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

from tests.host.conftest import properties, recap
from tests.limits import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.conftest import Api, Inventory

pytestmark = pytest.mark.disruptive

UNITS = ("nginx", "prefect-server", "prefect-worker")


def wait_until_well(host: Host, api: "Api") -> None:
    """Wait until all units are active and the API reaches its database."""
    active = ["active"] * len(UNITS)
    wait_until(
        lambda: host.run(f"systemctl is-active {' '.join(UNITS)}").stdout.split() == active and api.is_ready(),
        "units are active and the API is ready",
    )


def test_a_killed_proxy_is_started_again(server: Host, api: "Api") -> None:
    """Drills kill the other services."""
    pid = "systemctl show --property=MainPID --value nginx"
    before = server.check_output(pid)
    server.check_output("kill -9 %s", before)
    wait_until(lambda: server.check_output(pid) not in (before, "0"), "systemd restarts the proxy")
    wait_until_well(server, api)


@pytest.mark.thorough
def test_services_wait_for_what_they_need(database: Host, server: Host, api: "Api") -> None:
    """The server is not active while its database is down, and becomes active when it is up."""
    database.check_output("systemctl stop postgresql@*")
    server.check_output("systemctl restart --no-block prefect-server")
    journal = "journalctl --unit prefect-server --lines 3 --output cat"
    wait_until(lambda: "no response" in server.check_output(journal), "the server waits for its database")
    assert server.run("systemctl is-active prefect-server").stdout.strip() == "activating"
    database.check_output("systemctl start postgresql")
    wait_until_well(server, api)


def test_what_was_stopped_is_started_again(inventory: "Inventory", server: Host, api: "Api") -> None:
    """A service that was started alone is stopped too; a second stop changes nothing."""
    states = f"systemctl is-active biocirv.target {' '.join(UNITS)}"
    # Stop the target by hand, and start one of its services alone.
    server.check_output("systemctl stop biocirv.target && systemctl start nginx")
    for changes in (True, False):
        done = inventory.playbook("playbooks/stop.yml")
        assert done.returncode == 0, done.stdout
        assert server.run(states).stdout.split() == ["inactive"] * (1 + len(UNITS))
        assert (recap(done.stdout)[0] > 0) == changes, done.stdout
    server.check_output("systemctl start biocirv.target")
    wait_until_well(server, api)


# A request that is never completed.
STALLED = r"""
. /etc/biocirv/biocirv-deployments.env
. /etc/biocirv/prefect-server.env
exec 3<>/dev/tcp/127.0.0.1/$PREFECT_SERVER_API_PORT
login=$(printf %s "$PREFECT_API_AUTH_STRING" | base64 --wrap 0)
printf "POST /api/flows/filter HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic $login\r\n" >&3
printf "Content-Length: 9\r\n\r\n{" >&3
systemd-notify --ready
sleep 300
"""


@pytest.mark.thorough
def test_a_stalled_client_does_not_hold_up_the_server_s_end(server: Host, api: "Api") -> None:
    """The unit stops in time, and ends as inactive, not as failed."""
    server.check_output(
        "systemd-run --quiet --collect --unit stalled --property Type=notify --property NotifyAccess=all bash -c %s",
        STALLED,
    )
    try:
        server.check_output("systemctl stop prefect-server")
        shown = properties(server, "prefect-server", "ActiveState", "Result", "ExecMainStatus")
    finally:
        server.check_output("systemctl stop stalled; systemctl start prefect-server")
    # The server waited for the request, and then closed it.
    assert shown == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": str(signal.SIGUSR2.value)}
    wait_until_well(server, api)


STATES = ("biocirv", "prefect-server", "prefect-worker")


def count(database: Host) -> int:
    """Return the number of rows that the master flow loaded."""
    statement = "SELECT (SELECT count(*) FROM primary_product) + (SELECT count(*) FROM observation)"
    return int(database.check_output("runuser --user postgres -- psql -Atc %s biocirv_db", statement))


def test_a_reboot_brings_everything_back(
    inventory: "Inventory", database: Host, server: Host, api: "Api", container: str
) -> None:
    """Stopping and starting a container is its reboot."""
    rows = count(database)
    subprocess.run(["docker", "stop", "--time", "60", container], check=True, capture_output=True)
    subprocess.run(["docker", "start", container], check=True, capture_output=True)
    wait_until_well(server, api)
    state = server.run("systemctl is-system-running --wait").stdout.strip()
    # A unit of the early boot may have failed before there was a journal.
    assert state == "running", server.run("systemctl status --state=failed --no-pager --full").stdout
    assert count(database) == rows > 0
    done = inventory.playbook("playbooks/run_etl.yml")
    assert done.returncode == 0, done.stdout


@pytest.mark.thorough
@pytest.mark.usefixtures("container")
def test_a_new_container_takes_up_the_data(inventory: "Inventory", server: Host, database: Host) -> None:
    """`make down` keeps the volumes, which `make up` reuses, even if the accounts have other numbers then."""
    rows = count(database)
    # Some inventories have a volume for PostgreSQL only.
    kept = [account for account in STATES if server.run(f"mountpoint --quiet /var/lib/{account}").rc == 0]
    for account in kept:
        server.check_output(f"install -D --owner 4711 /dev/null /var/lib/{account}/dumps/kept")
        server.check_output(f"chown 4711 /var/lib/{account}")
    for playbook in ("containers/destroy.yml", "containers/create.yml", "site.yml"):
        done = inventory.playbook(playbook)
        assert done.returncode == 0, done.stdout
    assert count(database) == rows > 0
    for account in kept:
        assert server.file(f"/var/lib/{account}/dumps/kept").user == account
        server.check_output(f"rm /var/lib/{account}/dumps/kept")


@pytest.fixture
def limit(api: "Api") -> "Iterator[str]":
    """Return the name of a concurrency limit of which one slot is taken, by a lease."""
    name = f"test-{uuid.uuid4().hex[:6]}"
    api.ask("/v2/concurrency_limits/", {"name": name, "limit": 2})
    lease = {"slots": 1, "names": [name], "mode": "concurrency", "lease_duration": 3600}
    api.ask("/v2/concurrency_limits/increment-with-lease", lease)
    yield name
    api.delete(f"/v2/concurrency_limits/{name}")


@pytest.mark.thorough
def test_slots_that_no_lease_holds_are_freed(server: Host, api: "Api", limit: str) -> None:
    """Prefect keeps slots in its database and leases in files, which a restoration or a power cut may lose."""

    def taken_after_a_restart() -> int:
        server.check_output("systemctl restart prefect-server")
        return int(api.ask(f"/v2/concurrency_limits/{limit}")["active_slots"])

    assert taken_after_a_restart() == 1
    server.check_output("rm --recursive /var/lib/prefect-server/concurrency_leases")
    assert taken_after_a_restart() == 0
    freed = f"1 slots of the concurrency limit {limit} are free: no lease holds them"
    assert freed in server.check_output("journalctl --unit prefect-server --since=-5min --output cat")
