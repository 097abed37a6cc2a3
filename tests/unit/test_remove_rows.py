"""The playbook of `make remove-rows`, without hosts: what it says, and the state in which it leaves the work pool."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.unit.playbooks import ROOT, ansible, messages, stand_ins, this_machine

DUMP = "/var/lib/biocirv/removed-rows/biocirv_db-20240101T000000Z-0002.dump"
# Answers in place of the database. It reads its input, as Ansible cannot write to a program that has ended.
IN_UNIT = f"""
cat >/dev/null
echo "biocirv_db on database.example:5432 (192.0.2.7)"
echo "observation|3"
case "$*" in *remove=on*) echo {DUMP};; esac
"""


class Pool(HTTPServer):
    """An API with one work pool, and flow runs that are in flight."""

    is_paused = False
    running = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)


class Request(BaseHTTPRequestHandler):
    """A request to the API."""

    server: Pool

    def answer(self, code: int, body: object = None) -> None:
        """Send an answer."""
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if code != 204:
            self.wfile.write(json.dumps(body).encode())

    def body(self) -> Any:  # noqa: ANN401 - JSON
        """Read the request's body."""
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def do_GET(self) -> None:
        """Return the work pool."""
        self.answer(200, {"is_paused": self.server.is_paused})

    def do_POST(self) -> None:
        """Return the number of flow runs."""
        self.body()
        self.answer(200, self.server.running)

    def do_PATCH(self) -> None:
        """Pause or resume the work pool."""
        self.server.is_paused = self.body()["is_paused"]
        self.answer(204)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name in the base class
        """Print nothing."""


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Serve the work pool."""
    server = Pool()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


Remove = Callable[..., tuple[int, str]]


@pytest.fixture
def remove(pool: Pool, tmp_path: Path) -> Remove:
    """Return a function that runs the playbook, and returns its exit code and its messages."""
    logger = f"cat >/dev/null\ntest ! -e {tmp_path}/full\n"
    path = stand_ins(tmp_path, in_unit=IN_UNIT, logger=logger)
    inventory = this_machine(tmp_path, "prefect_server")
    given = {
        "ansible_become": False,
        "__migrations_in_unit": str(tmp_path / "bin/in-unit"),
        "prefect_api_url": f"http://127.0.0.1:{pool.server_port}/api",
        "prefect_api_password": "secret",
        "prefect_work_pool": "pool",
        "tls_mode": "acme",
        "database_address": "127.0.0.1",
        "database_port": 5432,
        "alternate_logins": [],
        "biocirv_migrations_password": "secret",
        "migration_environment": {},
        "remove_rows_confirmed": True,
    }

    def run(*options: str, **variables: object) -> tuple[int, str]:
        play = ROOT / "playbooks/remove_rows.yml"
        done = ansible(play, inventory, {**given, **variables}, *options, PATH=path)
        return done.returncode, "\n".join(messages(done))

    return run


@pytest.mark.parametrize("was_paused", [False, True])
@pytest.mark.parametrize("running", [0, 1])
def test_the_work_pool_stays_paused_if_it_was(pool: Pool, remove: Remove, *, was_paused: bool, running: int) -> None:
    pool.is_paused, pool.running = was_paused, running

    code, said = remove()

    assert (code != 0) == (running > 0), said
    assert pool.is_paused == was_paused
    if running:
        assert f"the work pool is {'paused as before' if was_paused else 'resumed'}" in said
    else:
        assert "Removed from biocirv_db on database.example:5432 (192.0.2.7): observation: 3." in said
        assert f"stays until somebody removes it: {DUMP}" in said


def test_the_dump_is_named_also_where_the_journal_cannot_be_written(remove: Remove, tmp_path: Path) -> None:
    (tmp_path / "full").touch()
    code, said = remove()
    assert code != 0
    assert DUMP in said


def test_check_mode_is_refused(pool: Pool, remove: Remove) -> None:
    code, said = remove("--check")
    assert code != 0
    assert "has no check mode, and nothing was changed" in said
    assert not pool.is_paused
