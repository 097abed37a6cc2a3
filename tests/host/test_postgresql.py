"""PostgreSQL: who may connect, how, and to what."""

import pytest
from testinfra.host import Host


def psql(host: Host, statement: str) -> str:
    """Return what a statement gives the superuser, unaligned."""
    output: str = host.check_output("runuser --user postgres -- psql --no-psqlrc -Atc %s", statement)
    return output


def test_cluster_has_checksums_and_scram(database: Host) -> None:
    assert psql(database, "SHOW data_checksums") == "on"
    assert psql(database, "SHOW password_encryption") == "scram-sha-256"
    hashes = psql(database, "SELECT left(rolpassword, 14) FROM pg_authid WHERE rolcanlogin AND rolname <> 'postgres'")
    assert set(hashes.splitlines()) == {"SCRAM-SHA-256$"}


def test_each_database_has_an_owner_that_is_no_superuser(database: Host) -> None:
    owners = psql(
        database,
        "SELECT datname, rolname, rolsuper, rolcreaterole FROM pg_database JOIN pg_roles ON datdba = pg_roles.oid"
        " WHERE datname IN ('biocirv_db', 'prefect_db') ORDER BY 1",
    )
    assert owners.splitlines() == ["biocirv_db|biocirv_user|f|f", "prefect_db|prefect_user|f|f"]


@pytest.mark.parametrize(
    ("environment", "name"), [("biocirv-migrations", "prefect_db"), ("prefect-server", "biocirv_db")]
)
def test_a_role_may_not_connect_to_the_others_database(server: Host, environment: str, name: str) -> None:
    login = f". /etc/biocirv/{environment}.env; export PGHOST PGPORT PGUSER PGPASSWORD"
    own = server.run(f"set -a; {login}; psql --dbname=$PGDATABASE -Atc 'SELECT 1'")
    assert own.stdout.strip() == "1", own.stderr
    other = server.run(f"set -a; {login}; psql --dbname={name} -Atc 'SELECT 1'")
    assert other.rc != 0
    assert "no pg_hba.conf entry" in other.stderr


def test_a_wrong_password_is_refused(server: Host) -> None:
    refused = server.run(
        "set -a; . /etc/biocirv/biocirv-migrations.env; PGPASSWORD=wrong psql -Atc 'SELECT 1'",
    )
    assert refused.rc != 0
    assert "password authentication failed" in refused.stderr


def test_schema_is_the_releases(server: Host, database: Host) -> None:
    revision = database.check_output(
        "runuser --user postgres -- psql --no-psqlrc -Atc 'SELECT version_num FROM alembic_version' biocirv_db"
    )
    manifest = server.file("/opt/biocirv/current/manifest.json").content_string
    assert f'"{revision}"' in manifest
