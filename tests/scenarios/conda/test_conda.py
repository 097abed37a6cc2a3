"""Another application in an environment of conda packages, configured by hosts.yml alone."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

if TYPE_CHECKING:
    from tests.host.conftest import Inventory

WORK = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
ROOT = Path(__file__).parents[3]
SCENARIO = ROOT / "molecule/conda"
WHEEL = "example_wheel-1.0-py3-none-any.whl"
PYTHON = "/opt/biocirv/current/env/bin/python"


def record(server: Host) -> dict[str, list[dict[str, str]]]:
    """Return the active release's record of its conda prefix."""
    noted: dict[str, list[dict[str, str]]] = json.loads(server.file("/opt/biocirv/current/conda.json").content_string)
    return noted


def current(server: Host) -> str:
    """Return the id of the active release."""
    return Path(server.file("/opt/biocirv/current").linked_to).name


def normal(name: str) -> str:
    """Return a package's normalized name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lock(server: Host, *options: str) -> None:
    """Lock the application again."""
    version = server.check_output(f"{PYTHON} -c \"import sys; print('%d.%d' % sys.version_info[:2])\"")
    subprocess.run(["sh", str(SCENARIO / "lock.sh"), str(WORK), version, *options], check=True, cwd=ROOT)


def run_flow(inventory: "Inventory", deployment: str) -> subprocess.CompletedProcess[str]:
    """Run a flow through its deployment."""
    return inventory.playbook("playbooks/run_etl.yml", "--extra-vars", f"run_etl_deployment={deployment}")


def test_the_environment_is_what_the_lock_names(server: Host) -> None:
    """It has all locked packages, and beyond them only the application's own."""
    text = (WORK / "application/pixi.lock").read_text(encoding="utf-8")
    conda = {Path(url).name for url in re.findall(r"(?m)^- conda: (\S+)$", text)}
    wheels = re.findall(r"(?m)^- pypi: (\S+\.whl)\n", text)
    noted = record(server)
    assert {Path(package["url"]).name for package in noted["conda"]} == conda
    assert sorted(package["url"] for package in noted["pypi"]) == sorted(wheels)
    assert all(len(package["sha256"]) == 64 for kind in ("conda", "pypi") for package in noted[kind])
    names = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    installed = server.check_output(f'{PYTHON} -c "{names}"').split()
    ours = {"soil-units", "soil-maps", "soil-survey"}
    assert {normal(name) for name in installed} == {normal(package["name"]) for package in noted["pypi"]} | ours
    assert server.check_output(f"{PYTHON} -c 'import example_wheel; print(example_wheel.ANSWER)'") == "42"


def test_server_and_worker_run_out_of_the_prefix(server: Host) -> None:
    """They use its Python, not the distribution's, with the variables that conda would set."""
    code = "import sys, sysconfig; print(sys.prefix, sysconfig.get_path('stdlib'))"
    prefix, library = server.check_output(f'{PYTHON} -c "{code}"').split()
    assert prefix == f"/opt/biocirv/releases/{current(server)}/env" or prefix == "/opt/biocirv/current/env"
    assert library.startswith(prefix)
    # The server uses the link; a worker stays with its initial release.
    begins = {"prefect-server": "/opt/biocirv/current", "prefect-worker": f"/opt/biocirv/releases/{current(server)}"}
    for unit, begin in begins.items():
        pid = server.check_output(f"systemctl show --property=MainPID --value {unit}")
        assert server.check_output(f"ps -o args= -p {pid}").startswith(f"{begin}/env/bin/python ")
        assert "/opt/biocirv/current/current.env" in server.check_output(
            f"systemctl show --property=EnvironmentFiles {unit}"
        )
    variables = server.file("/opt/biocirv/current/current.env").content_string
    assert 'EXAMPLE_HOME="/opt/biocirv/current/env' in variables
    assert 'CONDA_PREFIX="/opt/biocirv/current/env"' in variables


def test_its_flows_load_and_ask_its_database(inventory: "Inventory", database: Host) -> None:
    """They use PostGIS, the credentials, and the file that was placed in the working directory."""
    for deployment, message in (
        ("soil-survey/survey-nightly", r"10 sites \(\d+ new\), 20 horizons \(\d+ new\), for soil-laboratory"),
        ("soil-survey/survey-nightly", r"10 sites \(0 new\), 20 horizons \(0 new\), for soil-laboratory"),
        ("soil-report/survey-report", r"Crescent City and Imperial are farthest apart: 1248\.8 km"),
        ("soil-summary/survey-summary", r"Davis is the deepest: 150 cm"),
    ):
        done = run_flow(inventory, deployment)
        assert done.returncode == 0, done.stdout
        found = database.check_output(
            "runuser --user postgres -- psql -AtX prefect_db -c"
            " \"SELECT message FROM flow_run_state WHERE type = 'COMPLETED' ORDER BY timestamp DESC LIMIT 1\""
        )
        assert re.fullmatch(message, found), found
    query = "runuser --user postgres -- psql -AtX biocirv_db -c '{}'"
    assert database.check_output(query.format("SELECT count(*) FROM site")) == "10"


def test_status_shows_the_runs_of_its_own_flow(inventory: "Inventory") -> None:
    """The status does not show flows of other applications."""
    ran = inventory.playbook("playbooks/run_etl.yml")
    assert ran.returncode == 0, ran.stdout
    (run, *_) = inventory.status()["last_run"]
    assert (run["flow"], run["state"]) == ("soil-survey", "Completed")


def test_what_the_inventory_asks_for_is_there(server: Host, database: Host) -> None:
    """The extension, role, packages, files and work pool exist, and the command after registration has run."""
    query = 'runuser --user postgres -- psql -AtX {} -c "{}"'
    assert (
        database.check_output(query.format("biocirv_db", "SELECT 1 FROM pg_extension WHERE extname = 'postgis'")) == "1"
    )
    attributes = "SELECT rolcreaterole, rolcreatedb, rolsuper FROM pg_roles WHERE rolname = 'biocirv_owner'"
    assert database.check_output(query.format("biocirv_db", attributes)) == "t|f|f"
    assert database.check_output(query.format("prefect_db", "SELECT name FROM work_pool")) == "soil_pool"
    assert server.package("tree").is_installed
    assert server.file("/opt/biocirv/current/work/sites.csv").exists
    assert server.file("/opt/biocirv/current/work").linked_to.endswith("/app/orchestration")
    credential = server.file("/etc/biocirv/credentials/laboratory.json")
    assert (credential.mode, credential.user) == (0o400, "prefect-worker")
    assert server.file("/var/lib/biocirv/registered").exists


def _tampered_package(server: Host) -> str:
    lock(server, WHEEL)
    server.check_output("for file in /srv/channel/*/example-activation-*.conda; do printf x >> $file; done")
    return r"example-activation-\S+: its SHA-256 is not the one in pixi\.lock"


def _tampered_wheel(server: Host) -> str:
    lock(server, WHEEL)
    # A valid wheel, but not the locked one.
    code = f"import zipfile; zipfile.ZipFile('/srv/channel/wheels/{WHEEL}', 'a').writestr('example_wheel/evil.py', '')"
    server.check_output(f'python3 -c "{code}"')
    return r"example_wheel-1\.0-py3-none-any\.whl: its SHA-256 is not the one in pixi\.lock"


def _newer_glibc(server: Host) -> str:
    lock(server, "", "--conda", "example-new-glibc")
    return r"needs __glibc >=99, this host has __glibc 2\.\d+"


@pytest.fixture
def channel(server: Host) -> Iterator[None]:
    """Allow a test to damage the channel; restore it afterwards, and empty the hosts' caches before."""
    server.check_output("cp --archive /srv/channel /srv/good")
    server.check_output("rm -rf /opt/biocirv/cache")
    yield
    server.check_output("cp --archive /srv/good/. /srv/channel/ && rm -rf /srv/good")


@pytest.mark.usefixtures("channel")
@pytest.mark.parametrize("spoil", [_tampered_package, _tampered_wheel, _newer_glibc])
def test_what_is_not_as_locked_is_refused(inventory: "Inventory", server: Host, spoil: Callable[[Host], str]) -> None:
    """The message names the file or the reason, and the active release stays active."""
    before = current(server)
    # An additional file makes it a new release.
    note = WORK / "application/samples/note.txt"
    note.write_text("to be refused\n", encoding="utf-8")
    words = spoil(server)

    refused = inventory.playbook("playbooks/deploy.yml")

    note.unlink()
    said = " ".join(refused.stdout.split())
    assert refused.returncode != 0
    assert re.search(words, said), refused.stdout
    assert f"release {before} goes on serving" in said
    assert current(server) == before


def test_a_wheel_that_the_lock_drops_is_gone(inventory: "Inventory", server: Host) -> None:
    """Each release is built from scratch, so that a package that is not locked is not in it."""
    before = current(server)
    lock(server)

    deployed = inventory.playbook("playbooks/deploy.yml")

    assert deployed.returncode == 0, deployed.stdout
    assert current(server) != before
    assert "No module named 'example_wheel'" in server.run(f"{PYTHON} -c 'import example_wheel'").stderr
    assert "example-wheel" not in {package["name"] for package in record(server)["pypi"]}
    done = run_flow(inventory, "soil-report/survey-report")
    assert done.returncode == 0, done.stdout


def test_without_a_lock_the_manifest_is_solved(inventory: "Inventory", server: Host) -> None:
    """It is solved with the channels of the inventory, and the release records the solution."""
    lock_file = WORK / "application/pixi.lock"
    lock_file.rename(WORK / "pixi.lock")
    variables = {"release_channels": ["http://127.0.0.1:8099"], "release_requirements": ["requirements.txt"]}

    deployed = inventory.playbook("playbooks/deploy.yml", "--extra-vars", json.dumps(variables))

    (WORK / "pixi.lock").rename(lock_file)
    assert deployed.returncode == 0, deployed.stdout
    noted = record(server)
    assert "python" in {package["name"] for package in noted["conda"]}
    assert all(len(package["sha256"]) == 64 for package in noted["conda"])
    assert noted["pypi"] == []
    done = run_flow(inventory, "soil-report/survey-report")
    assert done.returncode == 0, done.stdout
