"""docs/troubleshooting.md: what it says of a case is what happens, and the commands that it names cure it."""

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

from tests import limits

if TYPE_CHECKING:
    from tests.host.conftest import Inventory

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")

pytestmark = [pytest.mark.disruptive, pytest.mark.thorough]

Make = Callable[..., str]


def on_page(command: str) -> str:
    """Return a command; the page has it."""
    assert f"`{command}`" in PAGE
    return command


@pytest.fixture
def make(inventory: "Inventory") -> Make:
    """Return what runs a command of the page for the inventory under test, and returns what it prints."""
    # As from a shell, also where make runs the tests.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}

    def run(command: str, said: str = "") -> str:
        words = [*shlex.split(on_page(command)), f"INVENTORY={inventory.path}"]
        done = subprocess.run(words, cwd=ROOT, env=environment, input=said, capture_output=True, text=True, check=False)
        return done.stdout

    return run


def verdict(status: str) -> str:
    """Return what a status begins with: whether all is well, and what is not."""
    return status.split("\n\n", 1)[0]


def test_the_database_does_not_answer(make: Make, database: Host) -> None:
    database.check_output("systemctl stop 'postgresql@*'")
    assert "no response" in make("make check-db-health")
    database.check_output(on_page("systemctl start postgresql"))
    assert "accepting connections" in make("make check-db-health")


@pytest.mark.parametrize(
    ("unit", "cure"), [("prefect-server", "make restart-services"), ("prefect-worker", "make restart-prefect-worker")]
)
def test_a_service_that_is_stopped_is_named(make: Make, inventory: "Inventory", unit: str, cure: str) -> None:
    """Without the one the API does not answer, without the other no flow run is picked up."""
    inventory.host(unit.replace("-", "_")).check_output("systemctl stop %s", unit)
    said = verdict(make("make status"))
    assert said.startswith("Not well")
    assert unit in said
    make(cure)
    limits.wait_until(lambda: verdict(make("make status")).startswith("Well"), "it is well again")


def test_the_worker_s_pool_is_there(make: Make) -> None:
    # Prefect's table is as wide as a terminal, and cuts what is longer.
    assert "biocirv_dev_work" in make('make exec-prefect-worker CMD="prefect work-pool ls"')


def test_the_database_refuses_connections(inventory: "Inventory", database: Host) -> None:
    """From other hosts, as it listens to its own alone; tried at the address under which they know it."""
    assert "`Connection refused`" in PAGE
    address = database.check_output("hostname --all-ip-addresses").split()[0]
    connect = (
        "set -a; . /etc/biocirv/biocirv-migrations.env;"
        f" PGCONNECT_TIMEOUT={limits.limit(5):.0f}"
        f" psql --tuples-only --no-align --command 'SELECT 1' 'host={address} sslmode=require'"
    )
    playbook, *options = shlex.split(on_page("ansible-playbook site.yml --tags database"))[1:]
    refused = database.run(connect)
    assert "Connection refused" in refused.stderr, refused

    change = {"postgresql_listen_addresses": ["*"], "database_clients": ["127.0.0.1/32", f"{address}/32"]}
    changed = inventory.playbook(playbook, *options, "--extra-vars", json.dumps(change))
    accepted = database.run(connect)
    back = inventory.playbook(playbook, *options)

    assert changed.returncode == 0, changed.stdout
    assert accepted.stdout.strip() == "1", accepted
    assert back.returncode == 0, back.stdout
    assert "Connection refused" in database.run(connect).stderr


def test_migrations_fail(make: Make, server: Host) -> None:
    """Where what a migration makes is there; here as the database says that it is at an earlier revision."""
    current = make('make exec-prefect-worker CMD="alembic current"')
    assert "0002 (head)" in current, current
    make("make access-db", "UPDATE alembic_version SET version_num = '0001'")
    assert server.run(on_page("systemctl start biocirv-migrations")).rc != 0
    assert "already exists" in make("make logs UNIT=biocirv-migrations")
    assert "0001" in make('make exec-prefect-worker CMD="alembic current"')

    make("make access-db", "UPDATE alembic_version SET version_num = '0002'")
    server.check_output("systemctl start biocirv-migrations")
    assert make('make exec-prefect-worker CMD="alembic current"') == current
