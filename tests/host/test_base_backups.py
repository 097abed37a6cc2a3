"""Base backups, the archive of WAL, and restorations from them: what was lost is back, and damage is found."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from testinfra.host import Host

from tests.docs import commands_beginning
from tests.host.conftest import ROOT, properties, recap
from tests.limits import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.conftest import Inventory

# Why some tests run on containers alone.
DESTROYS = "it destroys the database, and a real host may hold one that somebody needs"
RECOVERY = "/opt/biocirv/bin/recovery"
ROWS = "SELECT count(*), md5(string_agg(t::text, ' ' ORDER BY id)) FROM observation AS t"


def psql(host: Host, statement: str, database: str = "biocirv_db") -> str:
    """Run a statement as superuser; return its unaligned output."""
    command = "cd / && runuser --user postgres -- psql --no-psqlrc --quiet -Atc %s %s"
    return str(host.check_output(command, statement, database))


def state(database: Host) -> dict[str, Any]:
    """Return what the program says of backups, archive and drill."""
    found: dict[str, Any] = json.loads(database.check_output(f"{RECOVERY} state"))
    return found


def converge_database(inventory: Inventory, **variables: object) -> int:
    """Converge the database's host with other variables; return the number of changes."""
    done = inventory.playbook("site.yml", "--tags", "database", "--extra-vars", json.dumps(variables))
    changed, unreachable, failed = recap(done.stdout)
    assert (unreachable, failed) == (0, 0), done.stdout
    return changed


@pytest.fixture(scope="module")
def backed_up(inventory: Inventory, database: Host) -> None:
    """Wait until the first base backup, which a converge begins, has ended; load rows."""
    wait_until(lambda: state(database)["backups"], "the first base backup has ended")
    done = inventory.playbook("playbooks/run_etl.yml")
    assert done.returncode == 0, done.stdout


@pytest.mark.usefixtures("backed_up")
def test_what_is_committed_is_archived_and_encrypted(database: Host) -> None:
    found = state(database)
    assert found["archiver"]["on"]
    assert not found["archiver"]["failing"]
    assert [repository["message"] for repository in found["repositories"]] == ["ok"]
    assert found["repositories"][0]["gaps"] == []
    assert found["backup_failed"] is False
    configuration = database.file("/etc/pgbackrest/pgbackrest.conf")
    assert (configuration.user, configuration.mode) == ("postgres", 0o400)
    assert "repo1-cipher-type=aes-256-cbc" in configuration.content_string
    # A file that is not encrypted begins with pgBackRest's own format, or with zstd's mark.
    info = database.check_output("head --bytes 8 /var/lib/pgbackrest/backup/biocirv/backup.info | base64")
    assert info == database.check_output("printf Salted__ | base64")


def test_wal_is_never_dropped(database: Host) -> None:
    """With archive-push-queue-max pgBackRest drops WAL that waits, and PostgreSQL counts it as archived.

    `check`, `verify` and `info` then say that all is well, and a restoration ends at the gap without a word.
    """
    shown = database.check_output("runuser --user postgres -- pgbackrest --stanza=biocirv archive-push 2>&1; true")
    assert "archive-push-queue-max" not in shown
    assert "archive-push-queue-max" not in database.file("/etc/pgbackrest/pgbackrest.conf").content_string


@pytest.mark.parametrize("timer", ["biocirv-base-backup.timer", "biocirv-restore-drill.timer"])
def test_a_timer_makes_up_for_what_a_host_has_missed(database: Host, timer: str) -> None:
    shown = properties(database, timer, "ActiveState", "UnitFileState", "Persistent")
    assert shown == {"ActiveState": "active", "UnitFileState": "enabled", "Persistent": "yes"}


@pytest.mark.thorough
@pytest.mark.usefixtures("backed_up")
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("2026-11-29T10:00:00", "has no time zone"),
        ("2001-01-01T00:00:00Z", "is before the first backup had ended. The nearest is TO="),
        ("2999-01-01T00:00:00Z", "is in the future"),
        ("elsewhere", "There is no restore point 'elsewhere'"),
    ],
)
def test_a_moment_that_cannot_be_restored_is_refused(
    inventory: Inventory, database: Host, target: str, said: str
) -> None:
    databases = psql(database, "SELECT oid, datname FROM pg_database ORDER BY 1")
    refused = inventory.answer("playbooks/restore.yml", "--extra-vars", f"restore_to={target} restore_confirmed=true")
    assert refused.returncode != 0
    assert said in refused.stderr + refused.stdout
    assert "Nothing was changed." in refused.stderr + refused.stdout
    assert psql(database, "SELECT oid, datname FROM pg_database ORDER BY 1") == databases


@pytest.mark.thorough
@pytest.mark.disruptive
@pytest.mark.usefixtures("backed_up")
def test_a_dropped_table_is_back_as_it_was_the_second_before(inventory: Inventory, database: Host) -> None:
    before = psql(database, ROWS)
    moment = psql(database, "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
    psql(database, "DROP TABLE observation CASCADE; DELETE FROM rejected_row")
    # What a person enters afterwards is read from the dump of the replaced database, as the page says.
    psql(database, "INSERT INTO primary_product (name, name_key) VALUES ('Typed by hand', 'typed by hand')")

    compared = inventory.answer("playbooks/restore_check.yml", "--extra-vars", f"restore_to={moment}")

    assert compared.returncode == 0, compared.stdout
    assert re.search(rf"observation +{before.split('|')[0]} +no table", compared.stdout), compared.stdout
    assert "and removed again. Nothing was changed." in compared.stdout
    assert psql(database, "SELECT to_regclass('observation') IS NULL") == "t"

    restored = inventory.answer("playbooks/restore.yml", "--extra-vars", f"restore_to={moment} restore_confirmed=true")

    assert restored.returncode == 0, restored.stdout + restored.stderr
    assert "biocirv_db is restored to " in restored.stdout
    dump = re.search(r"What it held before is in (/var/lib/postgresql/dumps/\S+\.dump), on that host", restored.stdout)
    assert dump, restored.stdout
    assert psql(database, "SELECT name FROM primary_product WHERE name = 'Typed by hand'") == ""
    command = commands_beginning("docs/operate.md", ".venv/bin/python scripts/on_host.py")
    for said, meant in {
        "inventory/local": shlex.quote(str(Path(inventory.path).resolve())),
        "observation": "primary_product",
        "<dump>": dump[1],
    }.items():
        command = command.replace(said, meant)
    listed = subprocess.run(["bash", "-c", command], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (typed,) = (line for line in listed.splitlines() if "Typed by hand" in line)
    assert "\\N" in typed
    assert psql(database, ROWS) == before
    assert database.run("ls -d /var/lib/postgresql/aside*").rc != 0
    assert inventory.status()["problems"] == []


@pytest.mark.thorough
@pytest.mark.disruptive
@pytest.mark.usefixtures("backed_up")
def test_the_cluster_is_put_back_to_a_restore_point(inventory: Inventory, database: Host, server: Host) -> None:
    """What was committed later is not there, the services run, and the next drill succeeds on the new timeline."""
    name = f"before-{datetime.now(UTC):%H%M%S}"
    made = inventory.answer("playbooks/restore_point.yml", "--extra-vars", f"restore_point_name={name}")
    assert made.returncode == 0, made.stdout
    psql(database, "CREATE TABLE later (id integer)")

    restored = inventory.answer(
        "playbooks/restore_all.yml", "--extra-vars", f"restore_to={name} restore_confirmed=true"
    )

    assert restored.returncode == 0, restored.stdout + restored.stderr
    assert psql(database, "SELECT to_regclass('later') IS NULL") == "t"
    assert server.run("systemctl is-active prefect-server prefect-worker").stdout.split() == ["active", "active"]
    kept = re.search(r"is in (/var/lib/postgresql/\S+\.before-\S+) on", restored.stdout)
    assert kept, restored.stdout
    database.check_output("rm -r %s", kept[1])
    drilled = inventory.answer("playbooks/restore_drill.yml")
    assert drilled.returncode == 0, drilled.stdout
    assert inventory.status()["problems"] == []


@pytest.fixture
def damaged(database: Host) -> Iterator[str]:
    """Make a table with a page that a disk has damaged, back it up, and drop it at the end."""
    psql(database, "CREATE TABLE IF NOT EXISTS damaged AS SELECT generate_series(1, 1000) AS id; CHECKPOINT")
    path = psql(database, "SELECT current_setting('data_directory') || '/' || pg_relation_filepath('damaged')")
    database.check_output("printf damage | dd of=%s bs=1 seek=4000 conv=notrunc status=none", path)
    yield "damaged"
    psql(database, "DROP TABLE damaged")


@pytest.mark.thorough
@pytest.mark.disruptive
@pytest.mark.usefixtures("backed_up")
def test_the_drill_finds_a_damaged_table(inventory: Inventory, database: Host, damaged: str) -> None:
    database.run("systemctl start biocirv-base-backup")
    assert database.run("systemctl start biocirv-restore-drill").rc != 0
    found = state(database)["drill"]
    assert found["succeeded"] is False
    assert any(damaged in problem for problem in found["problems"]), found["problems"]
    assert any("The last drill, " in problem for problem in inventory.status()["problems"])
    assert database.run("ls -d /var/lib/postgresql/aside").rc != 0

    psql(database, f"DROP TABLE {damaged}; CREATE TABLE {damaged} (id integer)")
    database.check_output("systemctl start biocirv-base-backup && systemctl start biocirv-restore-drill")
    found = state(database)["drill"]
    assert found["problems"] == []
    assert found["proven"] == found["finished"]
    assert {(table["database"], table["alike"]) for table in found["tables"]} == {
        ("biocirv_db", True),
        ("prefect_db", True),
    }
    assert inventory.status()["problems"] == []


@pytest.mark.thorough
@pytest.mark.disruptive
@pytest.mark.usefixtures("backed_up")
def test_a_killed_backup_is_said_and_the_next_one_succeeds(inventory: Inventory, database: Host) -> None:
    database.check_output("systemctl start --no-block biocirv-base-backup")
    wait_until(lambda: database.run("pgrep --full 'pgbackrest.* backup'").rc == 0, "a backup runs", poll=0.01)
    database.check_output("systemctl kill --signal=KILL biocirv-base-backup")
    wait_until(
        lambda: properties(database, "biocirv-base-backup", "ActiveState") == {"ActiveState": "failed"}, "it has ended"
    )
    assert any(problem.startswith("The last base backup failed: ") for problem in inventory.status()["problems"])
    assert inventory.answer("playbooks/base_backup.yml").returncode == 0
    assert inventory.status()["problems"] == []


@pytest.mark.thorough
@pytest.mark.disruptive
@pytest.mark.usefixtures("backed_up")
def test_a_repository_that_is_away_stops_nothing_and_is_said(inventory: Inventory, database: Host) -> None:
    """WAL waits on the database's disk, and is archived as soon as the repository is back."""
    database.check_output("mv /var/lib/pgbackrest/archive /var/lib/pgbackrest/away")
    try:
        psql(database, "CREATE TABLE meanwhile (id integer); SELECT pg_switch_wal()")
        wait_until(lambda: state(database)["archiver"]["failing"], "archiving has failed")
        problems = inventory.status()["problems"]
        refused = database.run(f"{RECOVERY} point away")
    finally:
        database.check_output("mv /var/lib/pgbackrest/away /var/lib/pgbackrest/archive")
    assert any(problem.startswith("The backup repository /var/lib/pgbackrest cannot be used") for problem in problems)
    assert refused.rc != 0
    psql(database, "DROP TABLE meanwhile; SELECT pg_switch_wal()")
    wait_until(lambda: not state(database)["archiver"]["waiting"], "all WAL is archived")
    assert state(database)["repositories"][0]["gaps"] == []
