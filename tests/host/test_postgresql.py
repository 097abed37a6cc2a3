"""PostgreSQL: roles, privileges, and connections."""

import json

import pytest
from testinfra.host import Host


def psql(host: Host, statement: str, name: str = "postgres") -> str:
    """Run a statement as superuser; return its unaligned output."""
    output: str = host.check_output("runuser --user postgres -- psql --no-psqlrc -Atc %s %s", statement, name)
    return output


def test_cluster_has_checksums_and_scram(database: Host) -> None:
    assert psql(database, "SHOW data_checksums") == "on"
    assert psql(database, "SHOW password_encryption") == "scram-sha-256"
    hashes = psql(database, "SELECT left(rolpassword, 14) FROM pg_authid WHERE rolcanlogin AND rolname <> 'postgres'")
    assert set(hashes.splitlines()) == {"SCRAM-SHA-256$"}


def test_each_database_has_an_owner_that_nobody_logs_in_as(database: Host) -> None:
    owners = psql(
        database,
        "SELECT datname, rolname, rolcanlogin, rolsuper FROM pg_database JOIN pg_roles ON datdba = pg_roles.oid"
        " WHERE datname IN ('biocirv_db', 'prefect_db') ORDER BY 1",
    )
    assert owners.splitlines() == ["biocirv_db|biocirv_owner|f|f", "prefect_db|prefect_owner|f|f"]


def test_nobody_logs_in_over_the_network_as_a_superuser(database: Host) -> None:
    assert psql(database, "SELECT rolname FROM pg_roles WHERE rolsuper AND rolcanlogin") == "postgres"
    rules = psql(
        database, "SELECT type, user_name, auth_method FROM pg_hba_file_rules ORDER BY line_number"
    ).splitlines()
    assert rules[0] == "local|{postgres}|peer"
    assert rules[1:]
    # Owners and readers also over the socket, by the account postgres.
    local = {"local|{+biocirv_owner,+biocirv_read}|peer", "local|{+prefect_owner}|peer"}
    assert local <= set(rules)
    remote = [rule for rule in rules[1:] if rule not in local]
    assert all(rule.startswith("hostssl|{+") and rule.endswith("|scram-sha-256") for rule in remote), rules


def test_every_connection_is_encrypted_and_of_a_login_with_a_limit(database: Host) -> None:
    """The test examines the connections that are open now: Prefect's server always has some."""
    connections = psql(
        database,
        "SELECT DISTINCT rolname, ssl, version, rolconnlimit > 0 FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)"
        " JOIN pg_roles ON rolname = usename WHERE client_addr IS NOT NULL",
    ).splitlines()
    assert connections
    assert all(connection.endswith("|t|TLSv1.3|t") for connection in connections), connections


def test_tables_are_the_owners_and_flows_can_no_more_than_write_them(database: Host) -> None:
    """A table that a flow creates would have another owner."""
    tables = psql(
        database,
        # has_table_privilege() is true if the role has any of several privileges: ask for each.
        # Only the trigger of migration 0003 writes row_history.
        "SELECT tableowner, (SELECT bool_and(has_table_privilege('biocirv_write', tablename::text, privilege)"
        "     = (tablename <> 'row_history'))"
        "   FROM unnest(ARRAY['INSERT', 'UPDATE', 'DELETE']) privilege),"
        " has_table_privilege('biocirv_read', tablename::text, 'SELECT'),"
        " has_table_privilege('biocirv_read', tablename::text, 'INSERT, UPDATE, DELETE, TRUNCATE'),"
        " has_table_privilege('biocirv_write', tablename::text, 'TRUNCATE')"
        " FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'",
        "biocirv_db",
    )
    assert set(tables.splitlines()) == {"biocirv_owner|t|t|f|f"}
    schema = (
        "SELECT has_schema_privilege(role, 'public', 'CREATE') FROM unnest(ARRAY['biocirv_write', 'biocirv_read']) role"
    )
    assert set(psql(database, schema, "biocirv_db").splitlines()) == {"f"}


@pytest.mark.parametrize(
    ("environment", "name"), [("biocirv-migrations", "prefect_db"), ("prefect-server", "biocirv_db")]
)
def test_a_role_may_not_connect_to_the_others_database(server: Host, environment: str, name: str) -> None:
    login = f". /etc/biocirv/{environment}.env; export PGHOST PGPORT PGUSER PGPASSWORD PGSSLMODE PGSSLROOTCERT"
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
    manifest = json.loads(server.file("/opt/biocirv/current/manifest.json").content_string)
    assert manifest["application_schema"] == [revision]
