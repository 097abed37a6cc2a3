"""Databases, roles and privileges in an external PostgreSQL, created through an administrator's login."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

from tests.host.conftest import recap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.conftest import Inventory

PORT = 5544
PASSWORD = "no-secret-of-a-cluster-of-its-own"  # noqa: S105 - of a cluster that is dropped at the end
ROLES = Path(__file__).parents[2] / "roles"
VARIABLES = {
    "database_administrator": {"host": "127.0.0.1", "port": PORT, "user": "administrator", "password": PASSWORD},
    "database_scram_key": "key-of-no-inventory-in-32-letters",
    "database_databases": [{"name": "survey", "owner": "survey_owner", "readers": ["survey_read"]}],
    "database_logins": [{"name": "surveyor", "password": "reads", "role": "survey_read", "connections": 2}],
}


@pytest.fixture
def cluster(database: Host) -> Iterator[None]:
    """Run a separate cluster with the platform's certificate."""
    version = database.check_output("ls /etc/postgresql").split()[0]
    own, platform = f"/etc/postgresql/{version}/elsewhere", f"/etc/postgresql/{version}/main/biocirv"
    settings = f"ssl = on\nssl_cert_file = '{platform}.crt'\nssl_key_file = '{platform}.key'\n"
    clients = "local all postgres peer\nhostssl all all 127.0.0.1/32 scram-sha-256\n"
    database.check_output(f"pg_createcluster --port {PORT} {version} elsewhere")
    database.check_output(f"printf %s > {own}/conf.d/test.conf && printf %s > {own}/pg_hba.conf", settings, clients)
    database.check_output(f"systemctl start postgresql@{version}-elsewhere")
    database.check_output(
        "runuser --user postgres -- psql --port %s --command %s",
        str(PORT),
        f"CREATE ROLE administrator SUPERUSER LOGIN PASSWORD '{PASSWORD}'",
    )
    yield
    database.check_output(f"pg_dropcluster --stop {version} elsewhere")


@pytest.mark.thorough
@pytest.mark.usefixtures("cluster")
def test_an_administrator_s_login_creates_databases_elsewhere(
    inventory: Inventory, database: Host, tmp_path: Path
) -> None:
    script = "/etc/biocirv/postgresql-access.sql"
    database.check_output(f"cp -p {script} {script}.kept")
    play = tmp_path / "play.yml"
    play.write_text(
        json.dumps([{"hosts": "database", "become": True, "gather_facts": False, "roles": [str(ROLES / "database")]}]),
        encoding="utf-8",
    )
    try:
        changes = []
        for _ in range(2):
            done = inventory.playbook(str(play), "--extra-vars", json.dumps(VARIABLES))
            assert done.returncode == 0, done.stdout
            assert PASSWORD not in done.stdout
            changes.append(recap(done.stdout)[0])
        # The first run changes the script and what it creates, the second nothing.
        assert changes == [2, 0]
        login = f"env PGPASSWORD=reads psql --host 127.0.0.1 --port {PORT} --username surveyor -Atc"
        assert database.check_output(f"{login} 'SELECT current_database()' survey") == "survey"
        assert database.run(f"{login} 'CREATE TABLE public.theirs (id int)' survey").rc != 0
        owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'survey'"
        found = database.check_output("runuser --user postgres -- psql --port %s -Atc %s", str(PORT), owner)
        assert found == "survey_owner"
        here = database.check_output("runuser --user postgres -- psql -Atc %s", owner)
        assert here == ""
    finally:
        database.check_output(f"mv {script}.kept {script}")
