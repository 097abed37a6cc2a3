"""The schema that migrations make is the one that the models describe."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_up_down_and_up_again(engine: Engine, run: Run) -> None:
    """What an upgrade makes, a downgrade takes away, and the models match the top."""
    for revision, tables in [
        ("upgrade head", {"primary_product", "analysis_types", "alembic_version"}),
        ("downgrade base", {"alembic_version"}),
        ("upgrade head", {"primary_product", "analysis_types", "alembic_version"}),
    ]:
        migration = run("-m", "alembic", *revision.split())
        assert migration.returncode == 0, migration.stderr
        assert set(inspect(engine).get_table_names()) == tables

    check = run("-m", "alembic", "check")
    assert check.returncode == 0, check.stdout + check.stderr


def test_a_forgotten_migration_is_noticed(engine: Engine, run: Run) -> None:
    """Which shows that the check compares with the models."""
    stamp = run("-m", "alembic", "stamp", "head")
    assert stamp.returncode == 0, stamp.stderr
    assert "primary_product" not in inspect(engine).get_table_names()

    check = run("-m", "alembic", "check")

    assert check.returncode != 0
    assert "primary_product" in check.stderr + check.stdout


def test_upgrades_at_once_do_not_collide(engine: Engine, root: Path) -> None:
    """One does the work, the other finds it done."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)"))
    with engine.begin() as connection:
        # Neither can read the current revision before both of them wait.
        connection.execute(text("LOCK TABLE alembic_version"))
        upgrades = [
            subprocess.Popen(
                [sys.executable, "-m", "alembic", "upgrade", "head"],
                cwd=root,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        while waiting_connections(connection) < len(upgrades):
            assert [upgrade.poll() for upgrade in upgrades] == [None, None]
            time.sleep(0.1)
    logs = [upgrade.communicate()[1] for upgrade in upgrades]

    assert [upgrade.returncode for upgrade in upgrades] == [0, 0], "\n".join(logs)
    assert sum("Running upgrade" in log for log in logs) == 1
    assert "primary_product" in inspect(engine).get_table_names()


def waiting_connections(connection: Connection) -> int:
    """Return how many connections to this database wait for a lock of any kind."""
    # Not from pg_stat_activity, of which a transaction sees one and the same snapshot.
    waiting = "SELECT count(*) FROM pg_locks JOIN pg_database ON database = pg_database.oid "
    where = "WHERE datname = current_database() AND NOT granted"
    count: int = connection.execute(text(waiting + where)).scalar_one()
    return count


def test_an_unusable_setting_fails_with_its_name(run: Run) -> None:
    """Before anything is connected to."""
    upgrade = run("-m", "alembic", "upgrade", "head", DATABASE_URL="", POSTGRES_HOST="")

    assert upgrade.returncode != 0
    assert "POSTGRES_HOST" in upgrade.stderr.splitlines()[-1]
