"""The receiver of WAL: a lost disk of the database costs milliseconds; without its variable nothing of it is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

from tests import limits
from tests.host.conftest import properties
from tests.host.test_base_backups import DESTROYS, backed_up, converge_database, psql, state
from tests.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.conftest import Inventory

__all__ = ["backed_up"]

pytestmark = [pytest.mark.thorough, pytest.mark.disruptive, pytest.mark.usefixtures("backed_up")]

UNIT = "biocirv-wal-receiver.service"
DIRECTORY = "/srv/wal"
SLOTS = "SELECT slot_name, active, wal_status FROM pg_replication_slots"


def converge(inventory: Inventory, directory: str) -> int:
    """Converge the database's host with or without a directory for WAL; return the number of changes."""
    return converge_database(inventory, backup_wal_directory=directory)


@pytest.fixture(scope="module")
def receiver(inventory: Inventory, database: Host) -> Iterator[None]:
    """Receive WAL in a directory of its own."""
    if not inventory.is_container("database"):
        pytest.skip(DESTROYS)
    assert converge(inventory, DIRECTORY) > 0
    yield
    converge(inventory, "")
    database.check_output(f"rm -r {DIRECTORY}")


@pytest.fixture
def ledger(database: Host) -> Iterator[Ledger]:
    """Commit entries all the time."""
    ledger = Ledger(database)
    ledger.begin()
    yield ledger
    ledger.end()


@pytest.mark.usefixtures("receiver")
def test_it_receives_what_is_not_archived(inventory: Inventory, database: Host) -> None:
    limits.wait_until(lambda: psql(database, SLOTS) == "biocirv_receiver|t|reserved", "WAL is received")
    assert psql(database, "SHOW max_slot_wal_keep_size") == "4GB"
    assert properties(database, UNIT, "ActiveState", "User") == {"ActiveState": "active", "User": "postgres"}
    assert converge(inventory, DIRECTORY) == 0
    segment = psql(database, "SELECT pg_walfile_name(pg_current_wal_lsn())")
    assert database.file(f"{DIRECTORY}/{segment}.partial").exists
    # What is archived is not kept twice.
    psql(database, "SELECT pg_switch_wal()")
    limits.wait_until(lambda: (state(database)["archiver"]["archived"] or "") >= segment, "the segment is archived")
    limits.wait_until(lambda: database.run(f"ls {DIRECTORY}/{segment}*").rc != 0, "the segment is removed")
    assert inventory.status()["problems"] == []


@pytest.mark.usefixtures("receiver")
def test_a_lost_disk_costs_milliseconds(inventory: Inventory, database: Host, ledger: Ledger) -> None:
    """The directory of the configuration is there: one command restores, without a converge before it."""
    limits.wait_until(lambda: int(ledger.sql("SELECT count(*) FROM ledger")) > 100, "entries are committed")
    ledger.lose_disk()
    to = f"restore_to=latest restore_confirmed=true backup_wal_directory={DIRECTORY}"
    restored = inventory.answer("playbooks/restore_all.yml", "--extra-vars", to)
    assert restored.returncode == 0, restored.stdout + restored.stderr
    assert "the last commit that was received" in restored.stdout
    loss = ledger.loss()
    print(f"{loss.committed - loss.kept} of {loss.committed} entries lost, RPO {loss.seconds * 1000:.0f} ms")
    assert loss.kept > 100
    assert loss.seconds < limits.limit(1)
    limits.wait_until(lambda: psql(database, SLOTS) == "biocirv_receiver|t|reserved", "WAL is received again")
    assert inventory.status()["problems"] == []


@pytest.mark.usefixtures("receiver")
def test_without_its_variable_it_is_gone_with_its_slot(inventory: Inventory, database: Host) -> None:
    """A slot would hold WAL back for ever. The files that it has received stay."""
    assert converge(inventory, "") > 0
    files = database.check_output(f"ls {DIRECTORY}")
    assert psql(database, SLOTS) == ""
    assert not database.file(f"/etc/systemd/system/{UNIT}").exists
    assert database.check_output(f"ls {DIRECTORY}") == files != ""
    assert converge(inventory, "") == 0
    assert inventory.status()["problems"] == []
