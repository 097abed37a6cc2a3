"""docs/bring-your-project.md works: the tests follow its commands word for word, with the example application.

Its checkout has no lock, and is beside a copy of this one. The compose stack is a host of its own, with its database at
an older revision. The platform's host runs Debian 12, whose PostGIS and pgaudit disagree.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from testinfra.host import Host

from tests.docs import ROOT, Checkout, blocks
from tests.host.conftest import Inventory, recap

PAGE = "docs/bring-your-project.md"
APPLICATION = ROOT / "tests/application"
COMPOSE = "biocirv-project-compose"
KEY = "no-secret-of-a-map-service"
# The page's host, and what is of the machine that the tests run on.
GROUPS = ("database", "prefect_server", "prefect_worker")
HOST = {"ansible_connection": "community.docker.docker", "ansible_python_interpreter": "/usr/bin/python3"}
HERE = ("http_proxy", "https_proxy", "no_proxy", "extra_ca_certificates", "postgresql_shared_buffers_percent")
# Of a compose stack: stops nothing, and runs the rest in the database's container.
DOCKER = """#!/bin/sh
set -eu
[ "$1 $2" != "compose stop" ] || exit 0
[ "$1 $2 $3 $4" = "compose exec -T db" ]
shift 4
exec {docker} exec --interactive {container} "$@"
"""
OLD_TOWN = """
INSERT INTO site (name, location) VALUES ('Old Town', ST_GeomFromEWKT('SRID=4326;POINT(-124.1 40.8)'));
INSERT INTO horizon (site_id, top_cm, bottom_cm, bulk_density) SELECT id, 0, 500, 1.2 FROM site;
"""


class Reader(Checkout):
    """Follows the page, with the project beside the checkout."""

    def __init__(self, directory: Path, programs: Path) -> None:
        super().__init__(directory, INVENTORY="inventory/soil")
        self._programs = programs

    def follow(self, section: str, said: str = "") -> list[str]:
        """Run the commands of a section's blocks, in order; return what each printed."""
        texts = [block.text for block in blocks(PAGE) if (block.section, block.language) == (section, "bash")]
        # Only the page's commands are to meet what stands in for docker.
        programs = {"PATH": f"{self._programs}:{os.environ['PATH']}"}
        return [
            self.run(
                line, said if "/dev/stdin" in line else "", variables=programs if line.startswith("docker ") else {}
            )
            for text in texts
            for line in text.splitlines()
        ]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Return a copy of this checkout."""
    directory = tmp_path_factory.mktemp("home")
    shutil.copytree(APPLICATION, directory / "soil-survey", ignore=shutil.ignore_patterns("requirements.txt", "pixi.*"))
    (directory / "laboratory.json").write_text('{"account": "soil-laboratory"}', encoding="utf-8")
    docker = directory / "bin/docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER.format(docker=shutil.which("docker"), container=COMPOSE), encoding="utf-8")
    docker.chmod(0o755)
    return Reader(directory / "platform", docker.parent)


@pytest.fixture(scope="module")
def mine(checkout: Reader, inventory: Inventory) -> Inventory:
    """Follow the page until the platform runs; return its inventory."""
    checkout.follow("Describe it")
    folder = checkout.directory / "inventory/soil"
    variables = folder / "group_vars/all"
    # As docs/install.md says.
    name = inventory.name("database")
    hosts = {group: {"hosts": {name: HOST}} for group in GROUPS}
    (folder / "hosts.yml").write_text(json.dumps({"all": {"children": hosts}}), encoding="utf-8")
    platform = (variables / "platform.yml").read_text(encoding="utf-8")
    platform = platform.replace("https://biocirv.example.org/api", "https://127.0.0.1/api").replace(
        "192.0.2.0/24", "127.0.0.0/8"
    )
    (variables / "platform.yml").write_text(platform, encoding="utf-8")
    here = {each: inventory.value(each) for each in HERE}
    (variables / "zz.yml").write_text(json.dumps(here), encoding="utf-8")

    (project,) = [block.text for block in blocks(PAGE) if (block.section, block.language) == ("Describe it", "yaml")]
    (variables / "project.yml").write_text(project, encoding="utf-8")
    checkout.follow("Give it its secrets", KEY)
    checkout.follow("Lock it")
    checkout.follow("Run it")
    return Inventory(str(folder))


def sql(host: Host, query: str, database: str = "biocirv_db") -> str:
    """Return what a query answers."""
    return str(host.check_output("runuser --user postgres -- psql -AtX %s -c %s", database, query))


def run_flow(mine: Inventory, host: Host, deployment: str) -> str:
    """Run a deployment; return the message of its last state."""
    done = mine.playbook("playbooks/run_etl.yml", "--extra-vars", f"run_etl_deployment={deployment}")
    assert done.returncode == 0, done.stdout
    completed = "SELECT message FROM flow_run_state WHERE type = 'COMPLETED' ORDER BY timestamp DESC LIMIT 1"
    return sql(host, completed, "prefect_db")


def changes(mine: Inventory) -> int:
    """Converge; return how many tasks changed something."""
    done = mine.playbook("site.yml")
    assert done.returncode == 0, done.stdout
    return recap(done.stdout)[0]


def test_the_platform_runs_the_project(mine: Inventory, server: Host) -> None:
    assert sql(server, "SELECT version_num FROM alembic_version") == "0003"
    assert sql(server, "SELECT extversion FROM pg_extension WHERE extname = 'postgis'").startswith("3.")
    release = "/opt/biocirv/current"
    lock = Path(mine.path, "requirements.txt").read_text(encoding="utf-8")
    assert server.file(f"{release}/requirements.txt").content_string == lock
    assert not server.file("/nonexistent").exists
    assert changes(mine) == 0


def test_a_secret_of_flows_shows_in_no_process_list_and_no_unit(mine: Inventory, server: Host) -> None:
    """Flows have it. Only root reads the file that it is in."""
    run_flow(mine, server, "soil-survey/survey-nightly")
    assert run_flow(mine, server, "soil-summary/survey-summary") == "Davis is the deepest: 150 cm"
    lists = "cat /proc/[0-9]*/cmdline 2>/dev/null; systemctl show prefect-worker; systemctl cat prefect-worker"
    assert KEY not in server.run(lists).stdout
    found = server.check_output(
        "grep --recursive --files-with-matches %s /etc /opt/biocirv/build /var/lib/prefect-worker || true", KEY
    )
    for path in found.splitlines():
        file = server.file(path)
        assert (file.user, file.mode) == ("root", 0o600), path
    assert found


@pytest.fixture(scope="module")
def moved(checkout: Reader, mine: Inventory) -> list[str]:  # noqa: ARG001 - moves into a platform that runs
    """Give the compose stack's database the schema of an older release, and move it in by the page."""
    schema = subprocess.run(
        [sys.executable, "-B", "-m", "alembic", "upgrade", "0002", "--sql"],
        cwd=APPLICATION / "database",
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, APPLICATION.glob("libraries/*/src"))),
            "SOIL_DATABASE_URL": "postgresql://soil@127.0.0.1/soil",
        },
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    psql = [
        "docker",
        "exec",
        "--interactive",
        COMPOSE,
        "psql",
        "--quiet",
        "--set=ON_ERROR_STOP=1",
        "--username=soil",
        "soil",
    ]
    subprocess.run(psql, input=f"CREATE EXTENSION postgis;\n{schema}\n{OLD_TOWN}", check=True, text=True)
    return checkout.follow("Move its data in")


def test_the_data_of_a_compose_stack_moves_in(mine: Inventory, moved: list[str], server: Host) -> None:
    """Its schema is migrated, flows may load and refresh it, nothing else is changed for ever, and all is well."""
    assert moved[-1].startswith("Well"), moved[-1]
    assert sql(server, "SELECT version_num FROM alembic_version") == "0003"
    assert sql(server, "SELECT count(*), count(*) FILTER (WHERE name = 'Old Town') FROM site") == "11|1"
    assert run_flow(mine, server, "soil-summary/survey-summary") == "Old Town is the deepest: 500 cm"
    assert changes(mine) == 0


@pytest.mark.usefixtures("moved")
def test_a_release_of_it_is_deployed_and_rolled_back(checkout: Reader, mine: Inventory, server: Host) -> None:
    before = server.file("/opt/biocirv/current").linked_to
    (checkout.directory.parent / "soil-survey/README.md").write_text("Another release\n", encoding="utf-8")

    checkout.follow("Go on")

    assert server.file("/opt/biocirv/current").linked_to == before
    assert len(server.file("/opt/biocirv/releases").listdir()) == 2
    assert run_flow(mine, server, "soil-report/survey-report").startswith(
        "Crescent City and Imperial are farthest apart"
    )


def test_a_package_that_is_missing_is_named(mine: Inventory, server: Host) -> None:
    """The message begins with the reason in a sentence; the release that is active stays."""
    before = server.file("/opt/biocirv/current").linked_to
    lock = Path(mine.path, "requirements.txt")
    kept = lock.read_text(encoding="utf-8")
    lock.write_text(kept + f"soil-charts-of-nobody==1.0 \\\n    --hash=sha256:{'0' * 64}\n", encoding="utf-8")

    refused = mine.playbook("playbooks/deploy.yml")

    lock.write_text(kept, encoding="utf-8")
    assert refused.returncode != 0
    assert (
        "Installing release_lock failed: soil-charts-of-nobody was not found in the package registry." in refused.stdout
    )
    assert server.file("/opt/biocirv/current").linked_to == before
