"""The statements of `make remove-rows`: no row is removed that is not in the dump."""

import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container
from sqlalchemy import Engine, inspect, text

from tests import limits

ROLES = Path(__file__).parents[2] / "roles"
TABLES = ("primary_product", "analysis_types")
OWNER = "pg_database_owner"
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """Start a container with PostgreSQL's clients in the server's version; it sees the roles and the tests' files."""
    directory = tmp_path_factory.getbasetemp()
    container = docker.from_env().containers.run(
        "biocirv-postgresql:test",
        entrypoint=["sleep", "infinity"],
        detach=True,
        remove=True,
        init=True,
        network_mode="host",
        volumes={str(ROLES): {"bind": str(ROLES), "mode": "ro"}, str(directory): {"bind": str(directory)}},
    )
    yield container
    container.remove(force=True)


@pytest.fixture
def filled(migrated_database: Engine) -> Engine:
    """Return a database with a row in each of two tables."""
    with migrated_database.begin() as connection:
        for table in TABLES:
            connection.execute(text(f"INSERT INTO {table} (name, name_key) VALUES ('a', 'a')"))  # noqa: S608
        # The superuser also owns PostgreSQL's own tables.
        for table in inspect(connection).get_table_names():
            connection.execute(text(f"ALTER TABLE {table} OWNER TO {OWNER}"))
    return migrated_database


def execute(clients: Container, command: Sequence[str], environment: dict[str, str] | None = None) -> Done:
    """Run a command in the container, by the docker command: the Python client can lose output of a busy engine."""
    variables = [f"--env={name}={value}" for name, value in (environment or {}).items()]
    return subprocess.run(
        ["docker", "exec", "--user=root", *variables, str(clients.id), *command],
        capture_output=True,
        text=True,
        check=False,
    )


def psql(clients: Container, database: Engine, directory: Path, program: Path, *, remove: bool = True) -> Done:
    """Run the statements as the role migrations does, which passes them on standard input."""
    url = database.url
    options = {"remove": "on" if remove else "off", "program": program, "directory": directory}
    login = {
        "PGOPTIONS": f"--role={OWNER}",
        "PGHOST": url.host,
        "PGPORT": str(url.port),
        "PGUSER": url.username,
        "PGPASSWORD": url.password,
        "PGDATABASE": url.database,
    }
    return execute(
        clients,
        ["sh", "-c", 'exec psql "$@" <"$0"', str(ROLES / "migrations/files/rows.sql")]
        + ["--no-psqlrc", "--tuples-only", "--no-align"]
        + [f"--variable={name}={value}" for name, value in options.items()]
        + ["--file=-"],
        {name: value or "" for name, value in login.items()},
    )


def script(path: Path, *commands: str) -> Path:
    """Write a program in place of dump-database."""
    path.write_text("\n".join(["#!/bin/sh", *commands]), encoding="utf-8")
    path.chmod(0o755)
    return path


def counts(database: Engine) -> list[int]:
    """Return the numbers of rows of the tables."""
    with database.connect() as connection:
        return [connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in TABLES]  # noqa: S608


def test_rows_are_counted_with_the_server_that_has_them(clients: Container, filled: Engine, tmp_path: Path) -> None:
    done = psql(clients, filled, tmp_path, Path("/nowhere"), remove=False)

    assert done.returncode == 0, done.stderr
    url = filled.url
    connection, *rows = done.stdout.splitlines()
    assert re.fullmatch(rf"{url.database} on {url.host}:{url.port}( \([0-9a-f.:]+\))?", connection)
    assert rows == ["analysis_types|1", "primary_product|1"]
    assert counts(filled) == [1, 1]


def test_a_row_that_arrives_during_the_dump_stays(clients: Container, filled: Engine, tmp_path: Path) -> None:
    """It waits for the end of the transaction; the dump holds all that is removed, and earlier dumps stay."""
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    earlier = [dumps / f"{filled.url.database}-2024010{day}T000000Z-none.dump" for day in range(1, 9)]
    for dump in earlier:
        dump.touch()
    inserted = tmp_path / "inserted"
    insert = "INSERT INTO primary_product (name, name_key) VALUES ('late', 'late')"
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    program = script(
        tmp_path / "dump",
        f'psql --command "{insert}" >{inserted} 2>&1 &',
        f'until [ "$(psql -Atc "{waiting}")" = 1 ] || grep -s INSERT {inserted} >&2; do sleep 0.1; done',
        f'exec sh {ROLES / "base/files/dump-database"} "$@"',
    )

    done = psql(clients, filled, dumps, program)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:3] == ["analysis_types|1", "primary_product|1"]
    dump = Path(done.stdout.splitlines()[-1])
    assert dump.parent == dumps
    command = ["pg_restore", "--data-only", "--table=primary_product", "--file=-", str(dump)]
    held = execute(clients, command).stdout
    assert "\ta\ta" in held
    assert "late" not in held
    limits.wait_until(lambda: "INSERT" in inserted.read_text(encoding="utf-8"), "the row is inserted")
    assert counts(filled) == [1, 0]
    assert all(dump.exists() for dump in earlier)


@pytest.mark.parametrize(
    ("command", "says"),
    [("echo /half; echo the disk is full >&2; exit 1", "the disk is full"), ("exit 0", "The dump failed.")],
    ids=["fails", "silent"],
)
def test_without_a_dump_no_row_is_removed(
    clients: Container, filled: Engine, tmp_path: Path, command: str, says: str
) -> None:
    done = psql(clients, filled, tmp_path, script(tmp_path / "dump", command))

    assert done.returncode != 0
    assert says in done.stderr
    assert "The dump failed." in done.stderr
    assert "/half" not in done.stdout
    assert counts(filled) == [1, 1]
