"""The firewall reverts rules that are not confirmed."""

import math
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

from tests import limits

if TYPE_CHECKING:
    from tests.host.conftest import Inventory
    from tests.scenarios.secure.conftest import Platform

PROGRAM = "/opt/biocirv/bin/apply-firewall"
CANDIDATE = "/etc/biocirv/firewall.candidate.nft"
FIREWALL = "molecule/secure/firewall.yml"
# Long enough to inspect the rules meanwhile.
UNCONFIRMED_SECONDS = 10


def rules(host: Host) -> str:
    """Return the rules that are loaded."""
    return str(host.run("nft --stateless list table inet biocirv").stdout)


def test_nothing_is_amiss(platform: "Platform") -> None:
    assert platform.host.check_output(f"{PROGRAM} probe") == ""
    unit = platform.host.service("biocirv-firewall")
    assert unit.is_enabled
    assert unit.is_running
    assert not platform.host.service("nftables").is_enabled


def test_rules_that_nobody_confirms_undo_themselves(platform: "Platform", attacker: Host) -> None:
    """The test loads rules without any open port."""
    host = platform.host
    before, file = rules(host), host.file("/etc/biocirv/firewall.nft").content
    host.check_output(f"cp -p {CANDIDATE} /run/candidate && sed -i '/tcp dport/d' {CANDIDATE}")
    try:
        host.check_output(f"{PROGRAM} load {math.ceil(limits.limit(UNCONFIRMED_SECONDS))}")
        assert "tcp dport" not in rules(host)
        assert host.check_output(f"{PROGRAM} probe") == "rules"
        # 124 is timeout's exit code; the kernel would accept a permitted connection at once, even for a slow service.
        assert attacker.run(f"timeout 2 bash -c 'exec 3<>/dev/tcp/{platform.name}/443'").rc == 124
        limits.wait_until(lambda: rules(host) == before, "the old rules are back", limits.ANSWER)
        late = host.run(f"{PROGRAM} confirm")
        assert late.rc == 1
        assert "old rules are back" in late.stderr
        assert host.file("/etc/biocirv/firewall.nft").content == file
        assert platform.curl("/api/health", "--fail").rc == 0
    finally:
        host.check_output(f"mv /run/candidate {CANDIDATE}")
    assert host.check_output(f"{PROGRAM} probe") == ""


@pytest.mark.parametrize(
    "harm",
    ["nft delete table inet biocirv", "nft insert rule inet biocirv input tcp dport 1-65535 accept"],
    ids=["deleted", "changed"],
)
def test_rules_harmed_by_hand_are_put_back_by_a_converge(
    inventory: "Inventory", platform: "Platform", harm: str
) -> None:
    before = rules(platform.host)
    platform.host.check_output(harm)
    assert platform.host.check_output(f"{PROGRAM} probe") == "rules"
    done = inventory.playbook(FIREWALL)
    assert done.returncode == 0, done.stdout
    assert rules(platform.host) == before
    assert platform.host.check_output(f"{PROGRAM} probe") == ""


def test_a_boot_loads_the_rules(platform: "Platform") -> None:
    """The test restarts the unit, which loads the rules at boot; stopping it removes only this table."""
    before = rules(platform.host)
    tables = platform.host.check_output("nft list tables").splitlines()
    platform.host.check_output("systemctl stop biocirv-firewall")
    assert platform.host.check_output("nft list tables").splitlines() == [
        table for table in tables if table != "table inet biocirv"
    ]
    platform.host.check_output("systemctl start biocirv-firewall")
    assert rules(platform.host) == before
