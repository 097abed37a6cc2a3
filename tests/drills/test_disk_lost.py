"""The disk of the database is lost in the middle of a load; its host is converged anew, and restored by one command."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests import limits
from tests.drills.conftest import FIGURES
from tests.drills.hosts import Platform
from tests.drills.load import RETRY, Field, Load, Run
from tests.host.test_base_backups import DESTROYS, RECOVERY, state
from tests.ledger import Ledger, Loss

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testinfra.host import Host

    from tests.host.conftest import Inventory

pytestmark = pytest.mark.disruptive

# Seconds of commits that are not archived yet when the disk is lost: most of the minute that a segment is open.
OPEN_SECONDS = 40
# Seconds that archiving a segment takes on an idle machine, with room to spare.
PUSH_SECONDS = 5
# Tables of the application that the restored cluster holds before anything uses it, as `recovery` reads them.
READ = """
import json, time
from recovery.cluster import Cluster
from recovery.host import RecoveryError, settings
living = Cluster(settings().port)
while True:
    try:
        if living.answers() and "ledger" in (tables := living.tables("biocirv_db", digest=True)):
            break
    except RecoveryError:
        pass
    # Between two questions to a server that is not restored yet; the test ends the unit that runs this.
    time.sleep(0.1)
print(json.dumps(tables))
"""
# Flows write here, and a fresh master run does not empty it first.
# The session is idle, so that it ends together with its client.
HOLD = ("BEGIN", "LOCK TABLE rejected_row IN SHARE MODE", "\\! sleep 3600")
LOCKS = "SELECT count(*) FROM pg_locks WHERE relation = 'rejected_row'::regclass AND granted = "
HOLDER = "drill-hold"
READER = "restored-tables"
TABLES = "/var/tmp/restored-tables"  # noqa: S108 - on a host of the tests


@dataclass(frozen=True)
class Recovery:
    """What was lost, and what came back."""

    loss: Loss
    archive_seconds: float
    # Seconds from the loss until all services were healthy.
    seconds: float
    # Rows and digest of each table, before and after, and the number of rows of the loaded ones at the end.
    before: dict[str, str]
    after: dict[str, str]
    counted: dict[str, int]
    expected: dict[str, int]
    # Flow runs that were in flight, with those that repeat them.
    names: list[str]
    runs: list[Run]
    # What TO= of a restore point that was made before means to the new host.
    point: str
    problems: list[str]


@pytest.fixture(scope="module")
def recovery(inventory: Inventory, request: pytest.FixtureRequest) -> Iterator[Recovery]:
    """Lose the disk under load and restore it."""
    platform = Platform(inventory)
    if not platform.container:
        pytest.skip(DESTROYS)
    field, ledger = Field(platform), Ledger(platform.database)
    platform.seconds_until_well()
    platform.wait_until(lambda: bool(state(platform.database)["backups"]), "the first base backup has ended")
    field.prepare()
    try:
        recovery = lose_and_restore(platform, field, ledger)
        loss = recovery.loss
        request.config.stash[FIGURES] = [
            f"{loss.committed} entries committed, {loss.committed - loss.kept} lost",
            f"RPO {loss.seconds:.1f} s (at most {recovery.archive_seconds} s and a push), RTO {recovery.seconds:.0f} s",
        ]
        yield recovery
    finally:
        platform.database.run(f"systemctl stop {HOLDER} {READER}")
        ledger.end()
        field.clear()


def lose_and_restore(platform: Platform, field: Field, ledger: Ledger) -> Recovery:
    """Lose the disk while flow runs are in flight, and converge and restore as docs/operate.md says."""
    database, load, named = platform.database, Load(field, "disk-lost"), f"before-{field.session}"
    database.check_output(f"{RECOVERY} point {named}")
    field.start(load, "steady", (3, 3, 3))
    begin_a_master_run(platform, field, load)
    before = settled_tables(platform)
    ledger.begin()
    # Prefect knows all runs by now. What follows until the loss is in the segment that is not archived.
    known = ledger.sql("SELECT pg_walfile_name(pg_switch_wal())")
    platform.wait_until(lambda: state(database)["archiver"]["archived"] >= known, "what has begun is archived")
    platform.let_pass(OPEN_SECONDS)

    lost_at = time.monotonic()
    ledger.lose_disk()
    # The directory of the configuration is that of another disk; the host is a new one if that is lost, too.
    database.check_output("rm -r /etc/postgresql/*/main /var/lib/biocirv-recovery")
    database.check_output(
        f"systemd-run --quiet --collect --unit {READER} --uid postgres --setenv PYTHONPATH=/opt/biocirv/lib sh -c %s",
        f"python3 -c '{READ}' > {TABLES}",
    )
    converged = platform.inventory.playbook("site.yml")
    assert converged.returncode == 0, converged.stdout
    point = json.loads(database.check_output(f"{RECOVERY} find {named}"))["means"]
    restored = platform.inventory.playbook(
        "playbooks/restore_all.yml", "--extra-vars", "restore_to=latest restore_confirmed=true"
    )
    assert restored.returncode == 0, restored.stdout
    platform.seconds_until_well()
    seconds = time.monotonic() - lost_at

    field.let_count(load)
    platform.wait_until(lambda: field.is_settled(load), "all flow runs have ended", limits.CRASH)
    return Recovery(
        loss=ledger.loss(),
        archive_seconds=float(platform.sql("SELECT setting FROM pg_settings WHERE name = 'archive_timeout'")[0][0]),
        seconds=seconds,
        before=before,
        after=json.loads(database.check_output(f"cat {TABLES}; rm {TABLES}")),
        counted=field.count(),
        expected=field.rows,
        names=[*load.names, *load.masters],
        runs=load.runs(),
        point=point,
        problems=platform.inventory.status()["problems"],
    )


def begin_a_master_run(platform: Platform, field: Field, load: Load) -> None:
    """Begin a master run on empty tables that stays in flight, because another session holds it up."""
    database = platform.database
    psql = "psql --no-psqlrc --quiet --command %s --command %s --command %s biocirv_db"
    database.check_output(f"systemd-run --quiet --collect --unit {HOLDER} --uid postgres {psql}", *HOLD)
    platform.wait_until(lambda: platform.sql(f"{LOCKS} true") != [["0"]], "the table is held")
    field.start_master(load, is_fresh=True)
    platform.wait_until(lambda: platform.sql(f"{LOCKS} false") != [["0"]], "a flow waits for the table")


def settled_tables(platform: Platform) -> dict[str, str]:
    """Return rows and digest of each table once the flows that wait for no other are through."""
    found: list[dict[str, str]] = [{}]

    def is_same() -> bool:
        found.append(tables(platform.database))
        return found[-1] == found[-2]

    platform.wait_until(is_same, "the other flows of the master run have ended")
    return found[-1]


def tables(database: Host) -> dict[str, str]:
    """Return rows and digest of each table of biocirv_db, as far as the load does not write it all the time."""
    read = "import json, recovery.cluster as c; print(json.dumps(c.Cluster(5432).tables('biocirv_db', digest=True)))"
    command = "cd / && runuser --user postgres -- env PYTHONPATH=/opt/biocirv/lib python3 -c %s"
    return without_load(json.loads(database.check_output(command, read)))


def without_load(found: dict[str, str]) -> dict[str, str]:
    """Return the tables without those that the load writes all the time."""
    return {name: table for name, table in found.items() if not name.startswith(("drill.", "ledger"))}


def test_a_minute_is_lost_at_most(recovery: Recovery) -> None:
    assert recovery.loss.kept > 0
    assert OPEN_SECONDS <= recovery.loss.seconds <= recovery.archive_seconds + limits.limit(PUSH_SECONDS)


def test_every_table_is_as_it_was_at_one_moment(recovery: Recovery) -> None:
    """Those that the load had written, to the last digit, and those that it was writing, of the same moment."""
    assert without_load(recovery.after) == recovery.before
    assert recovery.after["ledger"].split()[0] == str(recovery.loss.kept)


def test_what_was_in_flight_ends_truthfully_and_runs_again(recovery: Recovery) -> None:
    by_name = {run.name: run for run in recovery.runs}
    assert sorted(by_name) == sorted([*recovery.names, *(f"{name}{RETRY}" for name in recovery.names)])
    for name in recovery.names:
        assert (by_name[name].state, by_name[f"{name}{RETRY}"].state) == ("CRASHED", "COMPLETED"), recovery.runs
        assert by_name[name].message


def test_the_load_that_was_interrupted_is_complete(recovery: Recovery) -> None:
    assert recovery.counted == recovery.expected
    assert recovery.problems == []


def test_a_restore_point_outlives_the_host_that_made_it(recovery: Recovery) -> None:
    assert recovery.point.startswith("restore point before-")
