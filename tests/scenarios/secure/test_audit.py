"""Audit: changes of schema and privileges, connections, deployments; in the journal and in `make audit`."""

import json
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.host.conftest import Inventory
    from tests.scenarios.secure.conftest import Platform


@pytest.fixture(scope="module")
def table(platform: "Platform") -> str:
    """Create, grant and drop a table as owner; return its unique name."""
    name = f"audited_{uuid.uuid4().hex[:12]}"
    for statement in (
        f"CREATE TABLE {name} (id int)",
        f"GRANT SELECT ON {name} TO {platform.login('biocirv_monitor')}",
        f"DROP TABLE {name}",
    ):
        done = platform.psql(statement, "biocirv_migrations")
        assert done.rc == 0, done.stderr
    platform.psql(f"SELECT '{name}'", platform.login("biocirv_reader"), password="wrong")  # noqa: S106
    platform.host.check_output("journalctl --sync")
    return name


@pytest.mark.parametrize(
    ("kind", "statement"),
    [("DDL,CREATE TABLE", "CREATE TABLE"), ("ROLE,GRANT", "GRANT SELECT ON"), ("DDL,DROP TABLE", "DROP TABLE")],
)
def test_a_change_of_schema_or_rights_is_on_record(platform: "Platform", table: str, kind: str, statement: str) -> None:
    """The record has the login, the database, and the client's address."""
    journal = platform.host.check_output("journalctl --identifier=postgres --output=cat --grep=%s", table)
    (line,) = [
        line for line in journal.splitlines() if re.search(rf"AUDIT: SESSION,\d+,1,{kind},.*{statement} {table}", line)
    ]
    assert f"user={platform.login('biocirv_migrations')} db=biocirv_db client=172." in line


def test_connections_are_on_record(platform: "Platform", table: str) -> None:
    """Both accepted and refused connections are recorded."""
    assert table
    journal = platform.host.check_output("journalctl --identifier=postgres --output=cat --lines 2000")
    login = platform.login("biocirv_migrations")
    assert re.search(
        rf"client=172\S+ LOG:  connection authorized: user={login} database=biocirv_db .*SSL enabled", journal
    )
    assert f'FATAL:  password authentication failed for user "{platform.login("biocirv_reader")}"' in journal


def test_a_flood_of_lines_hides_no_deed(platform: "Platform") -> None:
    """Journald drops what a unit writes beyond a limit, by default."""
    login, mark = platform.login("biocirv_reader"), uuid.uuid4().hex
    flood = "DO $$BEGIN FOR i IN 1..60000 LOOP RAISE LOG 'noise %', i; END LOOP; END$$"
    done = platform.psql(f"{flood}; ALTER ROLE {login} /* {mark} */ RESET work_mem", login)
    assert done.rc == 0, done.stderr
    platform.host.check_output("journalctl --sync")
    journal = platform.host.check_output("journalctl --identifier=postgres --output=cat --grep=%s", mark)
    assert re.search(rf"user={login} .*AUDIT: SESSION", journal)


def test_a_load_does_not_fill_the_record(platform: "Platform") -> None:
    """Temporary tables of flows are not recorded."""
    name = f"staged_{uuid.uuid4().hex[:12]}"
    done = platform.psql(f"CREATE TEMPORARY TABLE {name} (id int)", "biocirv_user")
    assert done.rc == 0, done.stderr
    journal = platform.host.run("journalctl --sync; journalctl --identifier=postgres --output=cat --grep=%s", name)
    assert "AUDIT" not in journal.stdout


def test_a_deployment_is_on_record(platform: "Platform") -> None:
    """The journal has fields by which entries can be selected."""
    journal = platform.host.check_output("journalctl BIOCIRV_ACTION=deploy --output=json").splitlines()
    assert journal
    release = Path(platform.host.file("/opt/biocirv/current").linked_to).name
    entry = json.loads(journal[-1])
    assert entry["BIOCIRV_RELEASE"] == release
    assert re.fullmatch(r"\S+@\S+", entry["BIOCIRV_OPERATOR"])
    assert entry["SYSLOG_IDENTIFIER"] == "biocirv-audit"


def test_entries_of_other_accounts_are_not_shown(inventory: "Inventory", platform: "Platform") -> None:
    """Any account can write to the journal under the names of operators and of PostgreSQL."""
    mark = uuid.uuid4().hex[:12]
    for name, text in (("biocirv-audit", "deploy: release"), ("postgres", "user=x AUDIT: SESSION,1,1,ROLE,DROP ROLE")):
        forge = f"runuser --user prefect-worker -- logger --tag {name} '{text} {mark}'"
        platform.host.check_output(forge)
    fields = f"MESSAGE=rotate: {mark}\nSYSLOG_IDENTIFIER=biocirv-audit\n_UID=0\n"
    platform.host.check_output(f"printf '{fields}' | runuser --user prefect-worker -- logger --journald")
    assert platform.host.check_output(f"journalctl --sync; journalctl --output=cat --grep={mark}").count(mark) == 3
    shown = inventory.playbook("playbooks/audit.yml")
    assert shown.returncode == 0, shown.stdout
    assert mark not in shown.stdout


def test_a_line_feed_hides_nothing(inventory: "Inventory", platform: "Platform") -> None:
    """Neither the rest of a statement, nor what a login's name is followed by; and it forges no entry."""
    login, mark = platform.login("biocirv_reader"), uuid.uuid4().hex[:12]
    done = platform.psql(f"ALTER ROLE {login} /* {mark} */\n RESET work_mem", login)
    assert done.rc == 0, done.stderr
    # PostgreSQL cuts a login's name after 63 bytes.
    forged = f"2026-11-30T09:00:00+00:00 biocirv-audit: {mark}"
    refused = platform.psql("SELECT 1", f"'evil\n{forged}'", password="wrong")  # noqa: S106
    assert refused.rc == 2, refused.stdout
    platform.host.check_output("journalctl --sync")
    shown = inventory.playbook("playbooks/audit.yml")
    assert shown.returncode == 0, shown.stdout
    lines = [line.strip() for line in shown.stdout.splitlines() if mark in line]
    assert any(f"ALTER ROLE {login} /* {mark} */\\n RESET work_mem" in line for line in lines), lines
    assert any(f"user=evil\\n{forged}" in line and "FATAL:" in line for line in lines), lines
    assert not any(line.startswith("2026-11-30T09:00:00") for line in lines), lines


def test_make_audit_shows_it(inventory: "Inventory", platform: "Platform", table: str) -> None:
    shown = inventory.playbook("playbooks/audit.yml")
    assert shown.returncode == 0, shown.stdout
    release = Path(platform.host.file("/opt/biocirv/current").linked_to).name
    assert re.search(rf"deploy: release {release} serves, by \S+@", shown.stdout), shown.stdout
    assert f"CREATE TABLE {table}" in shown.stdout
    assert "password authentication failed for user" in shown.stdout
    assert platform.needles().within(shown.stdout) == set()
    nothing = inventory.playbook("playbooks/audit.yml", "--extra-vars", '{"audit_since": "2100-01-01"}')
    assert nothing.returncode == 0, nothing.stdout
    assert "nothing" in nothing.stdout
