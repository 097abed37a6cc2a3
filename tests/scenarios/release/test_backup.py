"""Dumps: a backup restores its content in place and on a fresh host; an unusable dump is refused."""

import base64
import re
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from testinfra.host import Host

if TYPE_CHECKING:
    from tests.host.conftest import Inventory

DATABASES = ("biocirv_db", "prefect_db")
DUMPS = "/var/lib/biocirv/dumps"
MIGRATIONS = "biocirv-migrations.service"
REVISION = "SELECT version_num FROM alembic_version"
# Rows, owners, and the values of sequences.
CONTENTS = """
SELECT tablename, tableowner, md5(query_to_xml(format('SELECT * FROM %I ORDER BY 1', tablename), true, false, '')::text)
  FROM pg_tables WHERE schemaname = 'public' ORDER BY 1;
SELECT sequencename, sequenceowner, last_value FROM pg_sequences ORDER BY 1;
SELECT extname FROM pg_extension ORDER BY 1;
SELECT extract(epoch FROM setting::interval) FROM pg_settings WHERE name = 'lock_timeout';
SELECT datname, rolname FROM pg_database JOIN pg_roles ON datdba = pg_roles.oid ORDER BY 1
"""


def psql(host: Host, statement: str, name: str = "biocirv_db") -> str:
    """Run a statement as superuser; return its unaligned output."""
    output: str = host.check_output("cd / && runuser --user postgres -- psql --no-psqlrc -qAtc %s %s", statement, name)
    return output


def state(database: Host, server: Host) -> list[str]:
    """Return what a refused restore must not change: the databases, and the processes that use them."""
    units = "systemctl show --property=MainPID --value prefect-server prefect-worker"
    return [psql(database, "SELECT oid, datname FROM pg_database ORDER BY 1"), server.check_output(units)]


def back_up(inventory: "Inventory", directory: Path) -> dict[str, Path]:
    """Back up; return the dumps by database name."""
    done = inventory.playbook("playbooks/backup.yml", "--extra-vars", f"backup_directory={directory}")
    assert done.returncode == 0, done.stdout
    return {path.name.rsplit("-", 1)[0]: path for path in directory.iterdir()}


def restore(inventory: "Inventory", dump: Path, *variables: str) -> str:
    """Restore a dump; return the output."""
    done = inventory.playbook("playbooks/restore.yml", *arguments(dump, "restore_confirmed=true", *variables))
    assert done.returncode == 0, done.stdout
    return " ".join(done.stdout.split())


def arguments(dump: Path, *variables: str) -> list[str]:
    """Return extra variables as arguments of ansible-playbook."""
    return [word for variable in (f"restore_file={dump}", *variables) for word in ("--extra-vars", variable)]


def load(inventory: "Inventory") -> None:
    """Run the master flow."""
    done = inventory.playbook("playbooks/run_etl.yml")
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def dumps(inventory: "Inventory", tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return dumps of databases that are not empty."""
    load(inventory)
    return back_up(inventory, tmp_path_factory.mktemp("backups"))


def test_a_backup_is_the_caller_s_alone_and_leaves_nothing_on_the_host(dumps: dict[str, Path], database: Host) -> None:
    assert set(dumps) == set(DATABASES)
    for name, dump in dumps.items():
        assert re.fullmatch(rf"{name}-\d{{8}}T\d{{6}}Z\.dump", dump.name)
        assert dump.stat().st_mode & 0o777 == 0o600
        assert dump.read_bytes()[:5] == b"PGDMP"
    assert database.run("ls -d /var/tmp/biocirv-*").rc != 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "cannot be read: No such file or directory."),
        ("text", "is no dump as `make backup` makes them"),
        ("torn", "cannot be read: pg_restore: error: "),
        ("stranger", "is a dump of biocirv_xx, and the databases of the platform are biocirv_db, prefect_db."),
        ("future", "does not know: deploy the release that it is of, or a newer one, first."),
        ("unconfirmed", "Type yes, or where nobody can be asked, `make restore CONFIRM=1 FILE="),
    ],
)
def test_what_cannot_be_restored_is_refused_before_any_change(
    inventory: "Inventory",
    dumps: dict[str, Path],
    database: Host,
    server: Host,
    tmp_path: Path,
    name: str,
    reason: str,
) -> None:
    dump, whole = tmp_path / "file.dump", dumps["biocirv_db"].read_bytes()
    if name == "text":
        dump.write_text("SELECT 1;\n", encoding="utf-8")
    elif name == "torn":
        dump.write_bytes(whole[:1000])
    elif name == "stranger":
        dump.write_bytes(whole.replace(b"biocirv_db", b"biocirv_xx", 1))
    elif name == "future":
        # An uncompressed dump contains the revision as plain text.
        revision = psql(database, REVISION)
        output = "pg_dump --format=custom --compress=0 --table=alembic_version biocirv_db | base64 --wrap=0"
        plain = base64.b64decode(database.check_output(f"cd / && runuser --user postgres -- {output}"))
        dump.write_bytes(plain.replace(f"{revision}\n".encode(), b"x" * len(revision) + b"\n"))
    elif name == "unconfirmed":
        dump.write_bytes(whole)
    before_it = state(database, server)

    refused = inventory.playbook(
        "playbooks/restore.yml", *arguments(dump, *(["restore_confirmed=true"] if name != "unconfirmed" else []))
    )

    assert refused.returncode != 0
    said = " ".join(refused.stdout.split())
    assert reason in said, refused.stdout
    assert "Nothing was changed." in said
    assert state(database, server) == before_it
    assert database.run("ls -d /var/tmp/biocirv-*").rc != 0


@pytest.mark.disruptive
def test_what_was_lost_comes_back(inventory: "Inventory", dumps: dict[str, Path], database: Host, server: Host) -> None:
    psql(database, "ALTER DATABASE biocirv_db SET lock_timeout = '1h'")
    before = psql(database, CONTENTS)
    psql(database, "DELETE FROM observation; TRUNCATE primary_product RESTART IDENTITY CASCADE")
    assert psql(database, CONTENTS) != before

    said = restore(inventory, dumps["biocirv_db"])

    assert psql(database, CONTENTS) == before
    psql(database, "ALTER DATABASE biocirv_db RESET lock_timeout")
    assert "and started again: prefect-worker on" in said, said
    safety = re.search(r"What it held before is in (/var/lib/postgresql/dumps/\S+\.dump), on that host", said)
    assert safety, said
    assert database.file(safety[1]).mode == 0o600
    assert "COPY public.observation" in database.check_output("pg_restore --data-only --file=- %s", safety[1])
    assert server.run("systemctl is-active prefect-server prefect-worker").stdout.split() == ["active", "active"]
    load(inventory)


@pytest.mark.disruptive
@pytest.mark.parametrize("step", ["restoring", "dumping"])
def test_a_failure_leaves_the_old_database(
    inventory: "Inventory", dumps: dict[str, Path], database: Host, server: Host, tmp_path: Path, step: str
) -> None:
    """The dump is truncated, or the directory for the old database's dump cannot be written to."""
    dump, variables = dumps["biocirv_db"], ["restore_confirmed=true"]
    if step == "restoring":
        dump = tmp_path / "torn.dump"
        dump.write_bytes(dumps["biocirv_db"].read_bytes()[:-3000])
    else:
        variables.append("backup_replaced_directory=/proc/dumps")
    before = state(database, server)[0], psql(database, CONTENTS)

    failed = inventory.playbook("playbooks/restore.yml", *arguments(dump, *variables))

    assert failed.returncode != 0
    said = " ".join(failed.stdout.split())
    assert "biocirv_db holds what it held, and the services run as before." in said, failed.stdout
    assert ("pg_restore: error" if step == "restoring" else "cannot create directory") in said, failed.stdout
    assert (state(database, server)[0], psql(database, CONTENTS)) == before
    assert server.run("systemctl is-active prefect-server prefect-worker").stdout.split() == ["active", "active"]


def alembic(server: Host, command: str) -> None:
    """Run an alembic command with the account, environment and program of the migrations' unit."""
    shown = server.check_output(f"systemctl show --property=ExecStart --value {MIGRATIONS}")
    program = re.search(r"argv\[\]=(.*) upgrade head ;", shown)
    assert program, shown
    properties = [f"EnvironmentFile=/etc/biocirv/{MIGRATIONS.removesuffix('.service')}.env"]
    properties.append(server.check_output(f"systemctl show --property=WorkingDirectory {MIGRATIONS}"))
    options = " ".join(f"--property={line}" for line in properties)
    server.check_output(f"systemd-run --quiet --wait --pipe --collect --uid=biocirv {options} {program[1]} {command}")


@pytest.mark.disruptive
def test_a_migration_dumps_first_and_not_without(
    inventory: "Inventory", dumps: dict[str, Path], database: Host, server: Host, tmp_path: Path
) -> None:
    """A dump of an older revision is migrated when it is restored, or kept as it is for a rollback."""
    head = psql(database, REVISION)
    server.check_output("systemctl stop prefect-worker")
    alembic(server, "downgrade -1")
    older = psql(database, REVISION)
    assert older != head
    old_dump = back_up(inventory, tmp_path)["biocirv_db"]

    server.check_output(f"rm -rf {DUMPS} && touch {DUMPS}")
    refused = server.run(f"systemctl start {MIGRATIONS}")
    assert refused.rc != 0
    assert "cannot create directory" in server.check_output(f"journalctl --unit {MIGRATIONS} --lines 5 --output cat")
    assert psql(database, REVISION) == older

    names = " ".join(f"{DUMPS}/biocirv_db-2000010{day}T000000Z-none.dump" for day in range(1, 8))
    server.check_output(f"rm {DUMPS} && install -d -o biocirv -g biocirv -m 700 {DUMPS} && touch {names}")
    server.check_output(f"systemctl start {MIGRATIONS}")
    assert psql(database, REVISION) == head
    *others, newest = server.check_output(f"ls {DUMPS}").splitlines()
    assert re.fullmatch(rf"biocirv_db-\d{{8}}T\d{{6}}Z-{older}\.dump", newest)
    assert others == [f"biocirv_db-2000010{day}T000000Z-none.dump" for day in range(4, 8)]
    made = server.file(f"{DUMPS}/{newest}")
    assert (made.user, made.mode) == ("biocirv", 0o600)
    assert "TABLE public primary_product" in server.check_output("pg_restore --list %s", made.path)

    said = restore(inventory, old_dump)
    assert f"It was brought from revision {older} to {head}." in said
    assert psql(database, REVISION) == head

    server.check_output("systemctl start prefect-worker")
    said = restore(inventory, old_dump, "restore_migrate=false")
    assert f"It stays at revision {older}, and these stay stopped: prefect-worker on" in said
    assert psql(database, REVISION) == older
    assert server.run("systemctl is-active prefect-worker").rc != 0

    restore(inventory, dumps["biocirv_db"])
    server.check_output("systemctl start prefect-worker")
    assert psql(database, REVISION) == head


@pytest.mark.disruptive
def test_a_moment_is_restored_aside_and_compared(inventory: "Inventory", database: Host) -> None:
    """The verbs of base backups with the pgBackRest of Debian 12."""
    point = f"release-{uuid4().hex[:6]}"
    assert inventory.answer("playbooks/base_backup.yml").returncode == 0
    made = inventory.answer("playbooks/restore_point.yml", "--extra-vars", f"restore_point_name={point}")
    assert made.returncode == 0, made.stdout + made.stderr
    psql(database, "CREATE TABLE meanwhile AS SELECT 1 AS id")
    try:
        compared = inventory.answer("playbooks/restore_check.yml", "--extra-vars", f"restore_to={point}")
        assert compared.returncode == 0, compared.stdout + compared.stderr
        assert re.search(r"meanwhile +no table +1", compared.stdout), compared.stdout
        drilled = inventory.answer("playbooks/restore_drill.yml")
        assert drilled.returncode == 0, drilled.stdout + drilled.stderr
    finally:
        psql(database, "DROP TABLE meanwhile")
    shown = inventory.answer("playbooks/backups.yml").stdout
    assert "Any second can be restored from" in shown
    assert point in shown
    assert re.search(r"Last drill .* succeeded: ", shown), shown


@pytest.mark.disruptive
@pytest.mark.usefixtures("container")
def test_a_backup_restores_into_a_fresh_host(
    inventory: "Inventory", database: Host, server: Host, tmp_path: Path
) -> None:
    """The test empties the cluster instead: it drops databases and login roles, and a converge recreates them."""
    load(inventory)
    server.check_output("systemctl stop prefect-worker prefect-server")
    before = {name: psql(database, CONTENTS, name) for name in DATABASES}
    backup = back_up(inventory, tmp_path)
    kept = "ls /var/lib/biocirv/dumps /var/lib/prefect-server/dumps 2>/dev/null"
    earlier = server.run(kept).stdout
    for name, role in (("biocirv_db", "biocirv_owner"), ("prefect_db", "prefect_owner")):
        psql(database, f"DROP DATABASE {name}", "postgres")
        psql(database, f"DROP ROLE {role}", "postgres")
    done = inventory.playbook("site.yml")
    assert done.returncode == 0, done.stdout
    assert server.run(kept).stdout == earlier, "an empty database needs no dump"
    assert psql(database, "SELECT count(*) FROM observation") == "0"

    restore(inventory, backup["biocirv_db"])
    server.check_output("systemctl stop prefect-worker prefect-server")
    said = restore(inventory, backup["prefect_db"])

    assert {name: psql(database, CONTENTS, name) for name in DATABASES} == before
    assert "these stay" not in said
    server.check_output("systemctl start prefect-server prefect-worker")
    load(inventory)
