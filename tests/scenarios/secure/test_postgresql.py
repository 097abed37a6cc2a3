"""Access to PostgreSQL from another host: what it refuses, and what it permits."""

import base64
import hashlib
import hmac
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import limits
from tests.scenarios.secure.conftest import LOGINS

if TYPE_CHECKING:
    from tests.scenarios.secure.conftest import Platform

# The connection limits of playbooks/group_vars.
LIMITS = {"biocirv_user": 40, "biocirv_migrations": 5, "biocirv_reader": 10, "biocirv_monitor": 3, "prefect_user": 30}
DATABASES = {"prefect_user": "prefect_db"}
# A table of the session's own, in the place of PostgreSQL's list of owners, and what a flow would write then.
FORGED_OWNER = (
    "CREATE TEMPORARY TABLE pg_class (oid oid, relowner oid);"
    " INSERT INTO pg_temp.pg_class SELECT 'public.row_history'::regclass, usesysid FROM pg_user"
    " WHERE usename = current_user;"
)
WRITES = (
    "INSERT INTO row_history (table_name, row_id, change, before) VALUES ('field_sample', 1, 'update', '{}')",
    "UPDATE row_history SET changed_by = 'somebody'",
    "DELETE FROM row_history",
)


def test_verified_tls_is_the_way_in(platform: "Platform", note: Callable[[str], None]) -> None:
    """Every login connects with verified TLS; the transcript is printed."""
    for login in LIMITS:
        database = DATABASES.get(login, "biocirv_db")
        done = platform.psql(
            # The assumed role does not see the login's connection in pg_stat_ssl: reset the role first.
            "SELECT session_user, 'as', current_user; SET ROLE NONE;"
            " SELECT version, cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
            login,
            database,
        )
        assert done.stdout.startswith(f"{platform.login(login)}|as|"), done.stderr
        assert "TLSv1.3|" in done.stdout
        note(f"psql sslmode=verify-full dbname={database}: {' '.join(done.stdout.replace('|', ' ').split())}")


def test_a_salt_tells_nothing_of_its_password(platform: "Platform") -> None:
    """PostgreSQL sends the salt to whoever begins to log in."""
    for login in LIMITS:
        name = platform.login(login)
        query = "SELECT split_part(split_part(rolpassword, '$', 2), ':', 2) FROM pg_authid WHERE rolname = :'name'"
        ask = f"cd / && echo %s | runuser --user postgres -- psql -AtX --set=name={name}"
        salt = base64.b64decode(platform.host.check_output(ask, query))
        password = platform.password(LOGINS[login]).encode()
        assert len(salt) == 16
        assert salt != hmac.digest(password, name.encode(), hashlib.sha256)[:16]


def test_the_account_postgres_alone_uses_logins_over_the_socket(platform: "Platform") -> None:
    """Restoring dumps and counting rows need no superuser."""
    for account, refused in (("postgres", False), ("prefect-worker", True), ("prefect-server", True), ("root", True)):
        connect = f"psql --username={platform.login('biocirv_reader')} --dbname=biocirv_db --command='SELECT 1'"
        done = platform.host.run(f"cd / && runuser --user {account} -- {connect}")
        assert ("Peer authentication failed" in done.stderr) is refused, done.stderr


def test_connections_without_tls_are_refused(platform: "Platform") -> None:
    for login in LIMITS:
        refused = platform.psql("SELECT 1", login, DATABASES.get(login, "biocirv_db"), sslmode="disable")
        assert refused.rc == 2
        assert "no pg_hba.conf entry for host" in refused.stderr
        assert "no encryption" in refused.stderr


def test_a_client_that_trusts_another_authority_refuses_the_server(platform: "Platform", tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.crt"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=biocirv"
    subprocess.run([*make.split(), "-keyout", tmp_path / "key", "-out", foreign], check=True, capture_output=True)
    platform.copy("biocirv-attacker", "/root/foreign.crt", foreign.read_text(encoding="utf-8"))
    refused = platform.psql("SELECT 1", "biocirv_reader", sslrootcert="/root/foreign.crt")
    assert refused.rc == 2
    assert "certificate verify failed" in refused.stderr


@pytest.mark.parametrize("login", [*LIMITS, "nobody_at_all"])
def test_a_wrong_password_is_refused(platform: "Platform", login: str) -> None:
    database = DATABASES.get(login, "biocirv_db")
    known = login in LIMITS
    refused = platform.psql("SELECT 1", platform.login(login) if known else login, database, password="wrong")  # noqa: S106
    assert refused.rc == 2
    assert ("password authentication failed" if known else "no pg_hba.conf entry") in refused.stderr


@pytest.mark.parametrize("database", ["postgres", "biocirv_db", "prefect_db", "template1"])
def test_the_superuser_does_not_come_over_the_network(platform: "Platform", database: str) -> None:
    refused = platform.psql("SELECT 1", "postgres", database, password="postgres")  # noqa: S106
    assert refused.rc == 2
    assert "no pg_hba.conf entry for host" in refused.stderr
    assert platform.host.run("runuser --user postgres -- psql -Atc 'SELECT 1' %s", database).stdout == "1\n"


@pytest.mark.parametrize(
    ("login", "database"),
    [
        ("prefect_user", "biocirv_db"),
        ("biocirv_user", "prefect_db"),
        ("biocirv_migrations", "prefect_db"),
        ("biocirv_reader", "prefect_db"),
        *((login, "postgres") for login in LIMITS),
    ],
)
def test_a_login_may_not_connect_to_anothers_database(platform: "Platform", login: str, database: str) -> None:
    refused = platform.psql("SELECT 1", login, database)
    assert refused.rc == 2
    assert "no pg_hba.conf entry for host" in refused.stderr
    assert platform.psql("SELECT 1", login, DATABASES.get(login, "biocirv_db")).stdout == "1\n"


def test_what_a_load_forgets_is_limited(platform: "Platform") -> None:
    """A flow can change the times, which are for what it forgets."""
    names = ("idle_in_transaction_session_timeout", "lock_timeout", "temp_file_limit")
    shown = platform.psql("; ".join(f"SHOW {name}" for name in names), "biocirv_user")
    assert shown.stdout.split() == ["1h", "1h", "20GB"], shown.stderr
    assert platform.psql("SHOW lock_timeout", "biocirv_migrations").stdout.strip() == "0"


def test_the_reader_reads(platform: "Platform") -> None:
    assert platform.psql("SELECT count(*) >= 0 FROM primary_product", "biocirv_reader").stdout == "t\n"


def test_the_writer_writes(platform: "Platform") -> None:
    """It has all privileges for a load; the transaction is rolled back."""
    done = platform.psql(
        "BEGIN; CREATE TEMPORARY TABLE staging AS TABLE primary_product;"
        " INSERT INTO primary_product (name, name_key) VALUES ('probe', 'probe');"
        " UPDATE primary_product SET name = 'probed' WHERE name = 'probe';"
        " DELETE FROM primary_product WHERE name = 'probed' RETURNING name; ROLLBACK",
        "biocirv_user",
    )
    assert "probed" in done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize(
    ("login", "statement", "words"),
    [
        (
            "biocirv_reader",
            "INSERT INTO primary_product (name) VALUES ('x')",
            "permission denied for table primary_product",
        ),
        ("biocirv_reader", "UPDATE primary_product SET name = 'x'", "permission denied for table primary_product"),
        ("biocirv_reader", "DELETE FROM primary_product", "permission denied for table primary_product"),
        ("biocirv_reader", "CREATE TABLE mine ()", "permission denied for schema public"),
        ("biocirv_reader", "DROP TABLE primary_product", "must be owner of table primary_product"),
        ("biocirv_user", "CREATE TABLE mine ()", "permission denied for schema public"),
        ("biocirv_user", "CREATE SCHEMA mine", "permission denied for database biocirv_db"),
        ("biocirv_user", "DROP TABLE primary_product", "must be owner of table primary_product"),
        ("biocirv_user", "ALTER TABLE primary_product ADD mine int", "must be owner of table primary_product"),
        ("biocirv_user", "TRUNCATE primary_product CASCADE", "permission denied for table "),
        ("biocirv_user", "DELETE FROM row_history", "permission denied for table row_history"),
        *(("biocirv_user", f"{FORGED_OWNER} {write}", "permission denied for table row_history") for write in WRITES),
        ("biocirv_user", "SET ROLE biocirv_owner", 'permission denied to set role "biocirv_owner"'),
        ("biocirv_user", "UPDATE alembic_version SET version_num = 'x'", "permission denied for table alembic_version"),
        ("biocirv_user", "DELETE FROM alembic_version", "permission denied for table alembic_version"),
        ("biocirv_user", "SET temp_file_limit = -1", 'permission denied to set parameter "temp_file_limit"'),
        ("biocirv_user", "SET pgaudit.log = 'none'", 'permission denied to set parameter "pgaudit.log"'),
        ("biocirv_user", "CREATE ROLE mine", "permission denied to create role"),
        ("biocirv_user", "COPY (SELECT 1) TO PROGRAM 'id'", "pg_execute_server_program"),
        ("biocirv_user", "SELECT pg_read_file('/etc/passwd')", "permission denied for function pg_read_file"),
        ("biocirv_user", "TABLE pg_authid", "permission denied for table pg_authid"),
        ("biocirv_migrations", "CREATE ROLE mine", "permission denied to create role"),
        ("biocirv_migrations", "SET pgaudit.log = 'none'", 'permission denied to set parameter "pgaudit.log"'),
        ("biocirv_migrations", "TABLE pg_authid", "permission denied for table pg_authid"),
        ("biocirv_monitor", "TABLE primary_product", "permission denied for table primary_product"),
        ("biocirv_monitor", "CREATE TABLE mine ()", "permission denied for schema public"),
        (
            "biocirv_monitor",
            "CREATE TEMPORARY TABLE mine ()",
            "permission denied to create temporary tables in database",
        ),
        ("prefect_user", "CREATE ROLE mine", "permission denied to create role"),
    ],
)
def test_what_is_not_its_own_business_is_refused(platform: "Platform", login: str, statement: str, words: str) -> None:
    """The error is a lack of privilege, not another one."""
    refused = platform.psql(statement, login, DATABASES.get(login, "biocirv_db"))
    assert refused.rc == 1, refused.stdout
    assert "ERROR:  42501: " in refused.stderr
    assert words in refused.stderr


def test_the_monitor_sees_what_everybody_does(platform: "Platform") -> None:
    """It sees the queries of other sessions, which other logins do not."""
    others = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = 'prefect_db' AND query <> '' AND query NOT LIKE '<insufficient%'"
    )
    assert int(platform.psql(others, "biocirv_monitor").stdout) > 0
    assert int(platform.psql(others, "biocirv_reader").stdout) == 0


@pytest.mark.parametrize(
    ("login", "other"), [("biocirv_monitor", "biocirv_reader"), ("biocirv_reader", "biocirv_user")]
)
def test_a_login_takes_no_more_connections_than_its_own(platform: "Platform", login: str, other: str) -> None:
    """One more connection is refused, while other logins can still connect."""
    asleep = f"FROM pg_stat_activity WHERE usename = '{platform.login(login)}' AND query LIKE '%pg_sleep%'"
    psql = "runuser --user postgres -- psql -Atc %s"
    count, leave = f"SELECT count(*) {asleep}", f"SELECT pg_terminate_backend(pid) {asleep}"
    with ThreadPoolExecutor(LIMITS[login]) as sessions:
        held = [
            sessions.submit(platform.psql, f"SELECT pg_sleep({limits.limit(limits.START)})", login)
            for _ in range(LIMITS[login])
        ]
        try:
            limits.wait_until(
                lambda: int(platform.host.check_output(psql, count)) == LIMITS[login],
                "all sessions are connected",
                limits.ANSWER,
            )
            refused, welcome = platform.psql("SELECT 1", login), platform.psql("SELECT 1", other)
        finally:
            platform.host.check_output(psql, leave)
    assert refused.rc == 2
    assert f'too many connections for role "{platform.login(login)}"' in refused.stderr
    assert welcome.stdout == "1\n"
    # All of them were connected until they were terminated.
    ends = [session.result().stderr for session in held]
    assert all("terminating connection due to administrator command" in end for end in ends), ends
    limits.wait_until(
        lambda: platform.psql("SELECT 1", login).stdout == "1\n", "the login can connect again", limits.ANSWER
    )


def test_every_login_has_its_limit_and_no_attribute(platform: "Platform") -> None:
    """Together the limits leave some connections for the superuser."""
    rows = platform.host.check_output(
        "runuser --user postgres -- psql -Atc %s",
        "SELECT rolname, rolconnlimit, rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls"
        " FROM pg_roles WHERE rolcanlogin AND rolname <> 'postgres' ORDER BY 1",
    ).splitlines()
    assert rows == sorted(f"{platform.login(login)}|{limit}|f" for login, limit in LIMITS.items())
    most = platform.host.check_output("runuser --user postgres -- psql -Atc 'SHOW max_connections'")
    assert sum(LIMITS.values()) < int(most) - 3
