"""The schema that migrations make is the one that the models describe."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine, inspect

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
    """One does the work, the others find it done."""
    upgrades = [
        subprocess.Popen(
            [sys.executable, "-m", "alembic", "upgrade", "head"],
            cwd=root,
            env=dict(os.environ),
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    logs = [upgrade.communicate()[1] for upgrade in upgrades]

    assert [upgrade.returncode for upgrade in upgrades] == [0, 0, 0], "\n".join(logs)
    assert sum("Running upgrade" in log for log in logs) == 1
    assert "primary_product" in inspect(engine).get_table_names()


def test_an_unusable_setting_fails_with_its_name(run: Run) -> None:
    """Before anything is connected to."""
    upgrade = run("-m", "alembic", "upgrade", "head", DATABASE_URL="", POSTGRES_HOST="")

    assert upgrade.returncode != 0
    assert "POSTGRES_HOST" in upgrade.stderr.splitlines()[-1]
