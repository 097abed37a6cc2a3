"""Exposure of each service according to `systemd-analyze security`, and its resource limits."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.scenarios.secure.conftest import Platform

# The worker runs users' code, which may need more privileges.
MOST = {
    "prefect-server": 2.0,
    "prefect-worker": 2.5,
    "nginx": 2.0,
    "biocirv-migrations": 2.0,
    "prefect-server-schema": 2.0,
    "biocirv-deployments": 2.0,
    "biocirv-firewall": 2.0,
    "biocirv-base-backup": 1.5,
    "biocirv-restore-drill": 1.5,
}
ACCOUNTS = {
    "nginx": "reverse-proxy",
    "biocirv-migrations": "biocirv",
    "biocirv-deployments": "biocirv",
    "prefect-server-schema": "prefect-server",
    "biocirv-base-backup": "postgres",
    "biocirv-restore-drill": "postgres",
}


@pytest.mark.parametrize("unit", MOST)
def test_a_unit_is_hardly_exposed(platform: "Platform", note: Callable[[str], None], unit: str) -> None:
    """The table is printed."""
    table = platform.host.check_output("systemd-analyze security --no-pager %s", unit)
    found = re.search(r"Overall exposure level for .*: ([\d.]+) (\w+)", table)
    assert found, table
    note(f"exposure {unit:<22} {found[1]:>4} of at most {MOST[unit]} ({found[2]})")
    assert float(found[1]) <= MOST[unit], table


@pytest.mark.parametrize("unit", ["prefect-server", "prefect-worker", "nginx"])
def test_a_service_may_not_take_all_there_is(platform: "Platform", note: Callable[[str], None], unit: str) -> None:
    """The test checks only the properties, as the kernel does not enforce them in these containers."""
    shown = platform.host.check_output("systemctl show --property=MemoryMax,TasksMax,CPUWeight,OOMPolicy %s", unit)
    limits = dict(line.split("=", 1) for line in shown.splitlines())
    memory = int(platform.host.check_output("awk '/MemTotal/ {print $2}' /proc/meminfo")) * 1024
    note(f"limits   {unit:<22} MemoryMax={int(limits['MemoryMax']) >> 20} MB TasksMax={limits['TasksMax']}")
    assert 0 < int(limits["MemoryMax"]) < memory
    assert 0 < int(limits["TasksMax"]) <= 1024


@pytest.mark.parametrize("unit", ["prefect-server", "prefect-worker", "nginx", "biocirv-migrations", "postgresql@*"])
def test_memory_gets_to_no_disk(platform: "Platform", unit: str) -> None:
    """It holds secrets. PostgreSQL may swap, for it holds data that are on the disk anyway."""
    shown = platform.host.check_output("systemctl show --property=LimitCORE,MemorySwapMax %s", unit).splitlines()
    assert "LimitCORE=0" in shown
    assert "MemorySwapMax=0" in shown or unit.startswith("postgresql")


def test_each_service_has_an_account_of_its_own(platform: "Platform") -> None:
    """No login to these accounts is possible; only the firewall runs as root, with a single capability."""
    for unit in MOST:
        user = platform.host.check_output("systemctl show --property=User --value %s", unit)
        if unit == "biocirv-firewall":
            assert user == ""
            bounds = platform.host.check_output("systemctl show --property=CapabilityBoundingSet --value %s", unit)
            assert bounds == "cap_net_admin"
            continue
        assert user == ACCOUNTS.get(unit, unit)
        # Debian's account of PostgreSQL has a shell, and no password.
        if user == "postgres":
            continue
        account = platform.host.check_output("getent passwd %s", user)
        assert account.endswith(":/usr/sbin/nologin")


def test_units_that_run_no_code_of_a_release_have_no_variables_of_it(platform: "Platform") -> None:
    """PYTHONPATH, for example, would let its author be PostgreSQL's superuser."""
    of_release = {"prefect-server", "prefect-worker", *(unit for unit, user in ACCOUNTS.items() if user == "biocirv")}
    of_release.add("prefect-server-schema")
    for unit in MOST:
        files = platform.host.check_output("systemctl show --property=EnvironmentFiles --value %s", unit)
        assert ("/opt/biocirv" in files) is (unit in of_release), (unit, files)


def test_the_server_has_more_descriptors_than_the_proxy_has_connections(platform: "Platform") -> None:
    limit = platform.host.check_output("systemctl show --property=LimitNOFILE --value prefect-server")
    connections = platform.host.check_output("awk '$1 == \"worker_connections\" {print $2}' /etc/biocirv/nginx.conf")
    assert int(limit) > int(connections.rstrip(";"))
