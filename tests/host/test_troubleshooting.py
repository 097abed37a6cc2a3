"""docs/troubleshooting.md: the symptoms of each case are as described, and the commands fix it."""

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
    """Return a command after checking that it is on the page."""
    assert f"`{command}`" in PAGE
    return command


@pytest.fixture
def make(inventory: "Inventory") -> Make:
    """Return a function that runs a command of the page for the inventory under test, and returns its output."""
    # Without make's variables, as in a shell: make may be running these tests.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "ANSIBLE"))
    }

    def run(command: str, said: str = "") -> str:
        words = [*shlex.split(on_page(command)), f"INVENTORY={inventory.path}"]
        done = subprocess.run(words, cwd=ROOT, env=environment, input=said, capture_output=True, text=True, check=False)
        return done.stdout

    return run


def verdict(status: str) -> str:
    """Return the first part of a status: whether all is well, and the problems."""
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
    """Without the server the API does not answer; without the worker no flow run starts."""
    inventory.host(unit.replace("-", "_")).check_output("systemctl stop %s", unit)
    said = verdict(make("make status"))
    assert said.startswith("Not well")
    assert unit in said
    make(cure)
    limits.wait_until(lambda: verdict(make("make status")).startswith("Well"), "`make status` reports no problem")


def test_the_worker_s_pool_is_there(make: Make) -> None:
    # Prefect truncates its table to the terminal's width.
    assert "biocirv_dev_work" in make('make exec-prefect-worker CMD="prefect work-pool ls"')


def test_the_database_refuses_connections(inventory: "Inventory", database: Host) -> None:
    """PostgreSQL listens on loopback only; the test connects to the address that other hosts use."""
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
    """A migration fails if its objects exist; here because the database records an earlier revision."""
    current = make('make exec-prefect-worker CMD="alembic current"')
    assert "0004 (head)" in current, current
    make("make access-db", "UPDATE alembic_version SET version_num = '0001'")
    assert server.run(on_page("systemctl start biocirv-migrations")).rc != 0
    assert "already exists" in make("make logs UNIT=biocirv-migrations")
    assert "0001" in make('make exec-prefect-worker CMD="alembic current"')

    make("make access-db", "UPDATE alembic_version SET version_num = '0004'")
    server.check_output("systemctl start biocirv-migrations")
    assert make('make exec-prefect-worker CMD="alembic current"') == current
