"""Services run, report their state correctly, and protect their secrets."""

import re
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

from tests.host.conftest import properties
from tests.services import entry, units

if TYPE_CHECKING:
    from tests.host.conftest import Inventory

RUNNING = units("service")
# Units that run from a release.
UNITS = [unit for unit in RUNNING if "follows" in entry(unit)]
SANDBOXED = units("service", "task", "foundation")
POSTGRESQL = next(unit for unit in units("foundation") if unit.startswith("postgresql"))
# Tasks with an account, and so a login, of their own.
TASKS = [unit for unit in units("task") if "account" in entry(unit)]


def test_systemd_has_no_failed_unit(server: Host) -> None:
    assert server.run("systemctl is-system-running").stdout.strip() == "running", server.check_output(
        "systemctl --failed"
    )


def host_of(inventory: "Inventory", unit: str) -> Host:
    """Return the first host that runs a unit."""
    group = entry(unit)["group"]
    return inventory.host("prefect_server" if group == "all" else group)


def instance(host: Host, unit: str) -> str:
    """Return a unit's name; of PostgreSQL, whose list has a pattern, that of the active instance."""
    if "*" not in unit:
        return unit
    found: list[str] = host.check_output("systemctl list-units --state=active --plain --no-legend %s", unit).split()
    assert found, f"no unit {unit} is active"
    return found[0]


@pytest.mark.parametrize("unit", RUNNING)
def test_unit_runs_and_starts_at_boot(inventory: "Inventory", unit: str) -> None:
    host = host_of(inventory, unit)
    shown = properties(host, unit, "ActiveState", "SubState", "UnitFileState", "User")
    assert shown == {
        "ActiveState": "active",
        "SubState": "running",
        "UnitFileState": "enabled",
        "User": entry(unit)["account"],
    }, host.check_output("journalctl --unit %s --lines 30 --no-pager", unit)


@pytest.mark.parametrize("group", ["prefect_server", "prefect_worker"])
def test_target_is_started_with_all_services_and_at_boot(inventory: "Inventory", group: str) -> None:
    shown = properties(inventory.host(group), "biocirv.target", "ActiveState", "UnitFileState", "Wants")
    wanted = {f"{unit}.service" for unit in units("service", group=group)}
    assert wanted
    assert wanted <= set(shown.pop("Wants").split())
    assert shown == {"ActiveState": "active", "UnitFileState": "enabled"}


def test_postgresql_runs(database: Host) -> None:
    restart = properties(database, instance(database, POSTGRESQL), "Restart", "StartLimitIntervalUSec")
    assert restart == {"Restart": "on-failure", "StartLimitIntervalUSec": "0"}
    assert "accepting connections" in database.check_output("pg_isready")


def test_postgresql_runs_in_its_sandbox(database: Host) -> None:
    """It was started, or started again, with the drop-in: its processes have no privileges and cannot get any."""
    pid = properties(database, instance(database, POSTGRESQL), "MainPID")["MainPID"]
    status = database.check_output("grep --extended-regexp '^(CapBnd|NoNewPrivs|Seccomp):' /proc/%s/status", pid)
    assert dict(line.split(":\t") for line in status.splitlines()) == {
        "CapBnd": "0000000000000000",
        "NoNewPrivs": "1",
        "Seccomp": "2",
    }


@pytest.mark.parametrize("unit", UNITS)
def test_process_runs_from_the_current_release(request: pytest.FixtureRequest, unit: str) -> None:
    host: Host = request.getfixturevalue(unit.removeprefix("prefect-"))
    pid = properties(host, unit, "MainPID")["MainPID"]
    current = host.check_output("readlink --canonicalize /opt/biocirv/current")
    assert current.startswith("/opt/biocirv/releases/")
    # The server uses the link, so that an activation need not restart it; a worker stays with its initial release.
    begins = {"prefect-server": "/opt/biocirv/current", "prefect-worker": current}[unit]
    assert host.check_output("tr '\\0' ' ' < /proc/%s/cmdline", pid).startswith(f"{begins}/env/bin/python ")


@pytest.mark.parametrize("unit", [*UNITS, *TASKS])
def test_environment_is_roots_alone_and_not_in_the_unit(inventory: "Inventory", unit: str) -> None:
    host = host_of(inventory, unit)
    environment = host.file(f"/etc/biocirv/{unit}.env")
    assert (environment.user, environment.group, environment.mode) == ("root", "root", 0o600)
    values = [line.partition("=")[2].strip("'\"") for line in environment.content_string.splitlines()]
    shown = host.check_output("systemctl cat %s", unit)
    # Passwords are 32 letters and digits, alone or within a URL or a login.
    secrets = {secret for value in values for secret in re.findall(r"\b[A-Za-z0-9]{32}\b", value)}
    assert secrets
    assert not [secret for secret in secrets if secret in shown]


@pytest.mark.parametrize("unit", SANDBOXED)
def test_unit_is_sandboxed(inventory: "Inventory", unit: str) -> None:
    host = host_of(inventory, unit)
    verdict = host.check_output("systemd-analyze security --no-pager %s", instance(host, unit)).splitlines()[-1]
    exposure = float(verdict.split(":")[1].split()[0])
    assert exposure <= (2.5 if unit == "prefect-worker" else 2.0), verdict


@pytest.mark.parametrize("file", ["cpuinfo", "meminfo", "stat"])
def test_flows_see_memory_and_processors(worker: Host, file: str) -> None:
    """psutil, and so Dask, reads these files."""
    assert worker.check_output("/opt/biocirv/bin/in-unit --pipe prefect-worker / cat %s", f"/proc/{file}")


def test_the_server_leaves_idle_connections_to_the_proxy(server: Host) -> None:
    """If the server closed an idle connection first (default: 5 s), a request under way on it would end in a 502."""
    ask = """
import http.client, select, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
connection.request("GET", "/api/ready")
connection.getresponse().read()
print(select.select([connection.sock], [], [], 10)[0])
"""
    port = server.check_output("sed --quiet 's/^PREFECT_SERVER_API_PORT=//p' /etc/biocirv/prefect-server.env")
    assert server.check_output("python3 -c %s %s", ask, port.strip('"')) == "[]"


def test_nothing_listens_beyond_loopback_but_what_people_and_other_hosts_reach(
    server: Host, inventory: "Inventory"
) -> None:
    """Only ssh, the proxy, and PostgreSQL if another host needs it, listen on other interfaces."""
    listening = {
        line.split()[3] for line in server.check_output("ss --no-header --listening --tcp --numeric").splitlines()
    }
    beyond = {int(address.rsplit(":", 1)[1]) for address in listening if not address.startswith(("127.", "[::1]"))}
    addresses = inventory.value("hostvars[inventory_hostname].get('postgresql_listen_addresses',['127.0.0.1'])")
    is_database = inventory.name("database") == inventory.name("prefect_server")
    expected = {443, 5432} if is_database and addresses != ["127.0.0.1"] else {443}
    assert beyond - {22} == expected, listening


def test_the_firewall_is_as_it_was_told(server: Host) -> None:
    assert server.check_output("systemctl is-enabled biocirv-firewall") == "enabled"
    assert server.check_output("/opt/biocirv/bin/apply-firewall probe") == ""


def test_release_is_read_only_for_services(worker: Host) -> None:
    denied = worker.run("runuser --user prefect-worker -- touch /opt/biocirv/current/app/written")
    assert denied.rc != 0
    assert not worker.file("/opt/biocirv/current/app/written").exists
