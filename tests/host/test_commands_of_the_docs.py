"""Commands of the pages run as they stand, in a checkout of its own whose `inventory/mine` is the inventory under test.

Only names are replaced: of hosts, and of rows and releases that the page makes up.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

from tests import limits
from tests.docs import ROOT, Checkout, commands_beginning
from tests.host.test_base_backups import psql

if TYPE_CHECKING:
    from tests.host.conftest import Inventory

pytestmark = [pytest.mark.disruptive, pytest.mark.thorough]

DIRECTORY = "/srv/biocirv/sheets"
# The directory of an analyst on the database's host, with a stand-in for ssh, which forwards a port there.
ANALYST = "/root/analyst"
SSH = """#!/usr/bin/python3
import contextlib, re, select, socket, sys
port, host, to = re.search(r"-N -L ([0-9]+):([0-9.]+):([0-9]+) ", " ".join(sys.argv) + " ").groups()
with socket.create_server(("127.0.0.1", int(port))) as server:
    while True:
        near, far = server.accept()[0], socket.create_connection((host, int(to)))
        ends, data = {near: far, far: near}, b"-"
        # An end that goes away ends its connection, not the tunnel.
        with near, far, contextlib.suppress(OSError):
            while data:
                for end in select.select(ends, [], [])[0]:
                    data = end.recv(65536)
                    ends[end].sendall(data)
"""


@pytest.fixture(scope="module")
def checkout(inventory: "Inventory", worker: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """Return a copy of this checkout, with the sheets of the page in a home directory; converge afterwards."""
    if not inventory.is_container("database"):
        pytest.skip("a home directory without the operator's ssh keys reaches only containers")
    if worker.run(f"mountpoint --quiet {DIRECTORY}").rc == 0:
        pytest.skip(f"a folder is mounted at {DIRECTORY}")
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "data/sample", home / "my-sheets")
    own = Path(inventory.path).resolve()
    variables = home / "variables.json"
    variables.write_text(json.dumps({"flow_environment": {"ETL_SOURCE_DIRECTORY": DIRECTORY}}), encoding="utf-8")
    checkout = Checkout(
        home / "platform",
        CONFIRM="1",
        HOME=str(home),
        INVENTORY="inventory/mine",
        OPTIONS=f"--extra-vars @{variables}",
    )
    (checkout.directory / "inventory/mine").symlink_to(own if own.is_dir() else own.parent)
    yield checkout
    again = inventory.playbook("site.yml")
    worker.check_output(f"find {DIRECTORY} -mindepth 1 -delete")
    assert again.returncode == 0, again.stdout


@pytest.fixture(scope="module")
def platform(checkout: Checkout) -> list[str]:
    """Follow the pages until the platform has loaded its sheets; return what was printed."""
    installed = checkout.run(commands_beginning("docs/install.md", "make start-services"))
    return [installed, checkout.run(commands_beginning("README.md", "make up"))]


def current(server: Host) -> str:
    """Return the id of the active release."""
    return Path(server.file("/opt/biocirv/current").linked_to).name


def test_a_host_gets_the_platform_and_its_sheets(platform: list[str], worker: Host) -> None:
    installed, up = platform
    assert "Every flow could run." in installed
    assert worker.check_output(f"ls -A {DIRECTORY}") != ""
    assert "Master ETL Flow" in up
    assert re.search(r"(?m)^Well", up), up


@pytest.mark.usefixtures("platform")
def test_the_history_of_a_row_is_shown(checkout: Checkout) -> None:
    said = checkout.run(commands_beginning("docs/sheets.md", "make history"))
    assert "BIO-AH-001" in said
    assert "Moisture" in said


@pytest.mark.usefixtures("platform")
def test_orphaned_rows_are_listed_and_removed(checkout: Checkout, database: Host) -> None:
    """The page's rows are two that a person inserted."""
    added = "INSERT INTO analysis_types (name, name_key) VALUES ('By hand 1', 'by hand 1'), ('By hand 2', 'by hand 2')"
    rows = psql(database, f"{added} RETURNING id").splitlines()
    checkout.run("make run-etl")
    written = commands_beginning("docs/operate.md", "make orphaned-rows")
    listing, removal = written.splitlines()
    assert "by hand 1" in checkout.run(listing).casefold()
    checkout.run(removal.replace("TABLE=observation ROWS=12,15", f"TABLE=analysis_types ROWS={','.join(rows)}"))
    assert psql(database, "SELECT count(*) FROM analysis_types WHERE name LIKE 'By hand _'") == "0"


@pytest.mark.usefixtures("platform")
def test_releases_are_deployed_rolled_back_and_installed_from_an_archive(checkout: Checkout, server: Host) -> None:
    first = current(server)
    variables = checkout.directory.parent / "another.json"
    variables.write_text(json.dumps({"release_files": {"another.toml": "pyproject.toml"}}), encoding="utf-8")
    checkout.run(
        commands_beginning("docs/add-a-flow.md", "make rebuild-services"),
        variables={"OPTIONS": f"--extra-vars @{variables}"},
    )
    second = current(server)
    assert second != first

    back, again = commands_beginning("docs/releases.md", "make rollback").splitlines()
    checkout.run(back)
    assert current(server) == first
    checkout.run(again.replace("<id>", second))
    assert current(server) == second

    checkout.run(commands_beginning("docs/releases.md", "make release-archive FILE=biocirv.release\n"))
    assert current(server) == first


@pytest.mark.usefixtures("platform")
def test_an_archive_is_signed(checkout: Checkout, inventory: "Inventory") -> None:
    """An inventory that demands the signature accepts it, and no other."""
    home = checkout.directory.parent
    key, signers = home / ".ssh/id_ed25519", checkout.directory / "inventory/mine/release_signers"
    key.parent.mkdir(mode=0o700)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    try:
        checkout.run(commands_beginning("docs/releases.md", "make release-archive FILE=biocirv.release OPTIONS"))
        archive = checkout.directory / "biocirv.release"
        demanded = f"release_archive={archive} release_archive_signers={signers}"
        accepted = inventory.playbook("playbooks/deploy.yml", "--check", "--extra-vars", demanded)
        signers.write_text("releases@example.org ssh-ed25519 AAAA\n", encoding="utf-8")
        refused = inventory.playbook("playbooks/deploy.yml", "--check", "--extra-vars", demanded)
    finally:
        signers.unlink(missing_ok=True)
    assert accepted.returncode == 0, accepted.stdout
    assert refused.returncode != 0


@pytest.fixture
def analyst(inventory: "Inventory", database: Host) -> Iterator[str]:
    """Return the environment of an analyst who has the password and the authority's certificate."""
    database.check_output(f"mkdir -p {ANALYST}/bin && cp /etc/biocirv/tls/ca.crt {ANALYST}")
    database.check_output(f"printf %s %s > {ANALYST}/bin/ssh && chmod +x {ANALYST}/bin/ssh", "%s", SSH)
    yield f"cd {ANALYST}; export PATH={ANALYST}/bin:$PATH PGPASSWORD={inventory.value('biocirv_reader_password')}"
    database.check_output(f"test ! -e {ANALYST}/pid || kill $(cat {ANALYST}/pid); rm -r {ANALYST}")


QUESTION = "echo 'SELECT session_user' | "


def test_an_analyst_reaches_the_database(inventory: "Inventory", database: Host, analyst: str) -> None:
    """PostgreSQL of a single host listens on loopback only."""
    command = commands_beginning("docs/operate.md", "psql").replace("db.example.org", inventory.name("database"))
    answer = database.check_output(f"{analyst} PGHOSTADDR=127.0.0.1; {QUESTION} {command}")
    assert "biocirv_reader" in answer


def test_a_tunnel_leads_to_the_database(inventory: "Inventory", database: Host, analyst: str) -> None:
    written = commands_beginning("docs/security.md", "ssh -N")
    tunnel, query = written.replace("biocirv.example.org", inventory.name("database")).splitlines()
    database.check_output(f"{analyst}; exec >/dev/null 2>&1\n{tunnel}\necho $! > pid")
    limits.wait_until(
        lambda: database.run(f"{analyst}; {QUESTION} {query}").rc == 0, "psql reaches the database through the tunnel"
    )
    assert "biocirv_reader" in database.check_output(f"{analyst}; {QUESTION} {query}")
