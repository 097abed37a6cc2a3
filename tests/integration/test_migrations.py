"""The schema that the migrations create equals the models."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from ca_biositing.pipeline.etl.run import run as load
from ca_biositing.pipeline.flows.field_sample import FIELD_SAMPLES
from ca_biositing.pipeline.flows.primary_product import PRIMARY_PRODUCTS
from ca_biositing.pipeline.sources.csv_folder import CsvFolder
from tests import limits

Run = Callable[..., subprocess.CompletedProcess[str]]


# The tables that each revision adds, oldest first.
REVISIONS: dict[str, set[str]] = {
    "0001": {"primary_product", "analysis_types"},
    "0002": {"field_sample", "experiment", "observation", "etl_run", "rejected_row"},
    "0003": {"etl_worksheet", "unnamed_row", "row_history"},
    "0004": set(),
}
TABLES = set().union(*REVISIONS.values())


def alembic(run: Run, *command: str) -> None:
    """Run alembic, which must succeed."""
    done = run("-m", "alembic", *command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_up_down_and_up_again(engine: Engine, run: Run) -> None:
    """A downgrade reverts its upgrade, and the newest schema equals the models."""
    for revision, tables in [("upgrade head", TABLES), ("downgrade base", set()), ("upgrade head", TABLES)]:
        alembic(run, *revision.split())
        assert set(inspect(engine).get_table_names()) == tables | {"alembic_version"}

    alembic(run, "check")


def test_data_goes_up_and_down(engine: Engine, run: Run, source: Path) -> None:
    """An upgrade keeps every row and allows a load; a downgrade removes only what the upgrade added."""
    names = text("SELECT id, name, name_key, created_at FROM primary_product ORDER BY id")
    alembic(run, "upgrade", "0001")
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO primary_product (name, name_key, created_at)"
                " VALUES ('Almond', 'almond', '2024-05-01'), ('Medlar', 'medlar', '2024-05-02')"
            )
        )
        before = connection.execute(names).all()

    alembic(run, "upgrade", "head")

    with engine.connect() as connection:
        assert connection.execute(names).all() == before
        updated = text("SELECT count(*) FROM primary_product WHERE updated_at = created_at")
        assert connection.execute(updated).scalar_one() == len(before)
    counts = [load(dataset, CsvFolder(source), engine) for dataset in (PRIMARY_PRODUCTS, FIELD_SAMPLES)]
    assert counts[0].unchanged > 0
    # The sheet has no medlars.
    assert (counts[0].orphaned, counts[1].orphaned) == (1, 0)
    assert counts[1].inserted > 0
    with engine.connect() as connection:
        loaded = connection.execute(names).all()
        assert loaded[: len(before)] == before
        samples = connection.execute(text("SELECT name, residue, updated_at FROM field_sample ORDER BY id")).all()

    alembic(run, "downgrade", "0002")

    with engine.begin() as connection:
        assert connection.execute(names).all() == loaded
        now = connection.execute(text("SELECT name, residue, updated_at FROM field_sample ORDER BY id")).all()
        assert now == samples
        # No trigger is left that would need what is gone.
        assert connection.execute(text("UPDATE field_sample SET county = 'Kern'")).rowcount == len(samples)
        assert connection.execute(text("DELETE FROM field_sample")).rowcount == len(samples)

    alembic(run, "downgrade", "0001")

    assert set(inspect(engine).get_table_names()) == REVISIONS["0001"] | {"alembic_version"}
    with engine.connect() as connection:
        assert connection.execute(names).all() == loaded

    alembic(run, "upgrade", "head")
    again = load(PRIMARY_PRODUCTS, CsvFolder(source), engine)
    assert (again.inserted, again.updated) == (0, 0)


def test_other_roles_only_read_the_history(engine: Engine, run: Run) -> None:
    """A migration takes what the privileges of new tables gave them; after a downgrade the triggers write as before."""
    writer = "writer_of_" + str(engine.url.database)
    held = text(
        "SELECT privilege_type FROM pg_class, aclexplode(relacl) WHERE relname = :table AND grantee = to_regrole(:role)"
    )
    change = "WITH named AS (INSERT INTO primary_product (name, name_key) VALUES ('x', 'x')) SELECT 1"
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {writer}"))
        connection.execute(text(f"ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {writer}"))
        connection.execute(text("ALTER DEFAULT PRIVILEGES GRANT INSERT ON TABLES TO PUBLIC"))
    try:
        for revision in ("head", "0003", "head"):
            alembic(run, *(("downgrade", "0003") if revision == "0003" else ("upgrade", "head")))
            with engine.begin() as connection:
                history, product = (
                    {*connection.execute(held, {"table": table, "role": writer}).scalars()}
                    for table in ("row_history", "primary_product")
                )
                assert (history, product) == ({"SELECT"}, {"SELECT", "INSERT", "UPDATE", "DELETE"})
                everyone = "SELECT has_table_privilege('public', 'row_history', 'INSERT')"
                assert connection.execute(text(everyone)).scalar_one() is False
                connection.execute(text(f"SET ROLE {writer}"))
                connection.execute(text(change))
                connection.execute(text("UPDATE primary_product SET name = name || 'x'"))
                connection.execute(text("DELETE FROM primary_product"))
        with engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM row_history")).scalar_one() == 6
    finally:
        with engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {writer}"))
            connection.execute(text(f"DROP ROLE {writer}"))


def test_a_forgotten_migration_is_noticed(engine: Engine, run: Run) -> None:
    """The failure shows that the check compares the schema with the models."""
    stamp = run("-m", "alembic", "stamp", "head")
    assert stamp.returncode == 0, stamp.stderr
    assert "primary_product" not in inspect(engine).get_table_names()

    check = run("-m", "alembic", "check")

    assert check.returncode != 0
    assert "primary_product" in check.stderr + check.stdout


@pytest.mark.parametrize("begun", [False, True])
def test_upgrades_at_once_do_not_collide(engine: Engine, root: Path, run: Run, begun: bool) -> None:
    """One of them migrates, the other finds nothing to do."""
    if begun:
        run("-m", "alembic", "upgrade", "0001")
    with engine.begin() as connection:
        # Neither of them starts before both wait for the lock. Before the first migration, another one holds the name.
        connection.execute(
            text("LOCK alembic_version IN SHARE UPDATE EXCLUSIVE MODE" if begun else "CREATE TABLE alembic_version ()")
        )
        upgrades = [
            subprocess.Popen(
                [sys.executable, "-m", "alembic", "upgrade", "head"],
                cwd=root,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]

        def both_wait() -> bool:
            assert [upgrade.poll() for upgrade in upgrades] == [None, None]
            return waiting_connections(connection) == len(upgrades)

        limits.wait_until(both_wait, "both upgrades wait for the lock")
        if not begun:
            connection.rollback()
    logs = [upgrade.communicate()[1] for upgrade in upgrades]

    assert [upgrade.returncode for upgrade in upgrades] == [0, 0], "\n".join(logs)
    assert sum("Running upgrade" in log for log in logs) == 1
    assert "primary_product" in inspect(engine).get_table_names()


@pytest.fixture
def hasty(root: Path, tmp_path: Path, run: Run) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs alembic with waits of a second in the place of those of env.py."""
    shutil.copytree(root / "migrations", tmp_path / "migrations")
    environment = tmp_path / "migrations/env.py"
    waits = r'(?m)^(_\w+_WAIT) = "\w+"$'
    text, changed = re.subn(waits, r'\1 = "1s"', environment.read_text(encoding="utf-8"))
    assert changed == 2
    environment.write_text(text, encoding="utf-8")
    settings = (root / "alembic.ini").read_text(encoding="utf-8")
    (tmp_path / "alembic.ini").write_text(
        re.sub(r"(?m)^script_location = .*$", f"script_location = {tmp_path}/migrations", settings), encoding="utf-8"
    )
    return lambda *command: run("-m", "alembic", "--config", str(tmp_path / "alembic.ini"), *command)


@pytest.fixture
def reader(engine: Engine) -> Iterator[Engine]:
    """Return an engine of a login that reads the tables of the test's database."""
    name = "reader_of_" + str(engine.url.database)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'reader'"))
        connection.execute(text(f"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {name}"))
    login = engine.url.set(username=name, password="reader")  # noqa: S106 - of a database that is thrown away
    yield create_engine(login, poolclass=NullPool, connect_args={"application_name": "a notebook"})
    with engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {name}"))
        connection.execute(text(f"DROP ROLE {name}"))


def test_a_reader_cannot_take_the_lock_of_upgrades(engine: Engine, run: Run, reader: Engine) -> None:
    """It can hold each advisory lock, and each lock that a reader of the table can take."""
    alembic(run, "upgrade", "0001")
    with reader.begin() as connection:
        # What upgrades waited for before.
        connection.execute(text("SELECT pg_advisory_lock(x'62696F636972'::bigint)"))
        connection.execute(text("LOCK TABLE alembic_version IN ACCESS SHARE MODE"))
        alembic(run, "upgrade", "0002")
    with reader.connect() as connection, pytest.raises(DBAPIError, match="InsufficientPrivilege"):
        connection.execute(text("LOCK TABLE alembic_version IN SHARE UPDATE EXCLUSIVE MODE"))
    assert "experiment" in inspect(engine).get_table_names()


def test_a_reader_asks_for_the_revision(run: Run, reader: Engine) -> None:
    """It needs no lock, and gets none."""
    url = reader.url.render_as_string(hide_password=False)
    for revision in ("", "0001"):
        asked = run("-m", "alembic", "current", DATABASE_URL=url)
        assert (asked.returncode, asked.stdout.strip()) == (0, revision), asked.stderr
        alembic(run, "upgrade", "0001")


@pytest.mark.parametrize("begun", [False, True])
def test_a_wait_for_another_upgrade_ends_and_says_who(
    engine: Engine, run: Run, hasty: Callable[..., subprocess.CompletedProcess[str]], begun: bool
) -> None:
    if begun:
        alembic(run, "upgrade", "0001")
    with engine.begin() as connection:
        connection.execute(text("SET application_name = 'by hand'"))
        connection.execute(
            text("LOCK alembic_version IN SHARE UPDATE EXCLUSIVE MODE" if begun else "CREATE TABLE alembic_version ()")
        )
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        refused = hasty("upgrade", "head")
        connection.rollback()
    assert refused.returncode != 0
    said = " ".join(refused.stderr.split())
    assert "another migration has the lock of the table alembic_version, for which this one waited 1s" in said, said
    assert f"process {pid} of login postgres, application by hand (" in said
    assert ", in a transaction since 20" in said
    assert f"pg_terminate_backend({pid})" in said
    assert "Traceback" not in said


def test_a_migration_that_waits_for_a_table_says_who_reads_it(
    engine: Engine, run: Run, reader: Engine, hasty: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    alembic(run, "upgrade", "0002")
    with reader.begin() as connection:
        connection.execute(text("SELECT count(*) FROM etl_run"))
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        refused = hasty("upgrade", "head")
    assert refused.returncode != 0
    said = " ".join(refused.stderr.split())
    assert "a statement waited 1s for the lock of a table" in said, said
    assert f"process {pid} of login {reader.url.username}, application a notebook (AccessShareLock of etl_run" in said
    assert f"pg_terminate_backend({pid})" in said
    assert "ALTER TABLE etl_run ADD COLUMN table_name" in said
    assert "etl_worksheet" not in inspect(engine).get_table_names()


def waiting_connections(connection: Connection) -> int:
    """Return how many connections to this PostgreSQL wait for a lock of any kind."""
    # Not from pg_stat_activity, which shows the same snapshot throughout a transaction; and not of this database alone,
    # because a transaction, which is waited for, has none.
    count: int = connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one()
    return count


def test_an_unusable_setting_fails_with_its_name(run: Run) -> None:
    """It fails before any connection is opened."""
    upgrade = run("-m", "alembic", "upgrade", "head", DATABASE_URL="", POSTGRES_HOST="")

    assert upgrade.returncode != 0
    assert "POSTGRES_HOST" in upgrade.stderr.splitlines()[-1]
