"""Releases: build, activation, rollback, refusal of a broken release, installation without a package index."""

import json
import os
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
import httpx
import pytest
from testinfra.host import Host

from tests import limits
from tests.source import copy_source

if TYPE_CHECKING:
    from tests.host.conftest import Inventory

ROOT = Path(__file__).parents[3]
DEPLOYMENT = "master-etl-deployment"
POLL_SECONDS = 0.2
# A power cut after every task takes half an hour: POWER_CUT_EVERY=1. After every sixth it takes two minutes.
POWER_CUT_EVERY = int(os.environ.get("POWER_CUT_EVERY", "6"))
# A package that the application does not lock.
MISSING = "tabulate"
# The name and content of every file, and the target of every link, except files that contain build times: manifest,
# bytecode, and the local package's uv metadata and RECORD, which has the metadata's digest.
CONTENTS = (
    "cd /opt/biocirv/releases/{id} && find . -type f ! -name manifest.json ! -name '*.pyc' ! -name uv_cache.json"
    " ! -path '*/ca_biositing-*/RECORD' -print0 | sort -z"
    " | xargs -0 sha256sum | sha256sum && find . -type l -printf '%p %l\\n' | sort | sha256sum"
)

Deploy = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def other(inventory: "Inventory") -> Host:
    """Return the host that only runs a worker."""
    return inventory.host_named("biocirv-release-worker")


@pytest.fixture(scope="session")
def api(inventory: "Inventory") -> Iterator[httpx.Client]:
    """Return a client of the server's API, at the container's own address."""
    name = inventory.name("prefect_server")
    (network,) = docker.from_env().containers.get(name).attrs["NetworkSettings"]["Networks"].values()
    trust = ssl.create_default_context(cafile=inventory.value("tls_directory") + "/ca.crt")
    # The certificate is for the name, not for the address.
    trust.check_hostname = False
    with httpx.Client(
        base_url=f"https://{network['IPAddress']}/api",
        auth=("biocirv", inventory.value("prefect_api_password")),
        verify=trust,
        # A late response on a busy machine is not a failure.
        timeout=limits.limit(limits.ANSWER),
        trust_env=False,
    ) as client:
        yield client


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a copy of the application that a test may change."""
    return copy_source(tmp_path / "source")


@pytest.fixture
def deploy(inventory: "Inventory", source: Path) -> Deploy:
    """Return a function that deploys the changed copy."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return inventory.playbook(
            "playbooks/deploy.yml", "--extra-vars", f"release_source={source}", *arguments, **environment
        )

    return run


def current(host: Host) -> str:
    """Return the id of the active release."""
    return Path(host.file("/opt/biocirv/current").linked_to).name


def previous(host: Host) -> str:
    """Return the id of the previous release."""
    notes = host.check_output(
        "cd /opt/biocirv/served && for note in *.json; do echo $note $(cat $note); done"
    ).splitlines()
    ended = {json.loads(note)["until"]: Path(name).stem for name, note in (line.split(" ", 1) for line in notes)}
    return next(ended[until] for until in sorted(ended, reverse=True) if ended[until] != current(host))


def processes(server: Host) -> list[str]:
    """Return the main processes of Prefect's server and worker."""
    return str(server.check_output("systemctl show --property=MainPID --value prefect-server prefect-worker")).split()


def revision(database: Host) -> str:
    """Return the revision of the application's schema."""
    statement = "runuser --user postgres -- psql -Atc 'SELECT version_num FROM alembic_version' biocirv_db"
    return str(database.check_output(statement))


def contents(host: Host, release: str) -> str:
    """Return a digest of all files of a release."""
    return str(host.check_output(CONTENTS.replace("{id}", release)))


def version(api: httpx.Client) -> str:
    """Return the version of the deployment, which begins with the release's id."""
    body = {"deployments": {"name": {"any_": [DEPLOYMENT]}}}
    (deployment,) = api.post("/deployments/filter", json=body).raise_for_status().json()
    return str(deployment["version"])


def figures(rollback: subprocess.CompletedProcess[str]) -> tuple[float, float]:
    """Return the seconds until a release was active again, and until all checks were done."""
    assert rollback.returncode == 0, rollback.stdout
    said = " ".join(rollback.stdout.split())
    ((serving, checked),) = re.findall(r"serves again, ([\d.]+) s after .* checked after ([\d.]+) s", said)
    return float(serving), float(checked)


def run_etl(inventory: "Inventory") -> str:
    """Run the master flow; return the output with the results of its sub-flows."""
    done = inventory.playbook("playbooks/run_etl.yml")
    assert done.returncode == 0, done.stdout
    return done.stdout


class Client(threading.Thread):
    """A client that requests health and the deployment every 200 ms, and starts a flow run at times."""

    def __init__(self, api: httpx.Client, runs: int) -> None:
        super().__init__()
        self._api = api
        self._wanted = runs
        self._told = threading.Event()
        self.asked = 0
        self.failed: list[str] = []
        self.runs: list[str] = []

    def run(self) -> None:
        """Send requests until ``stop`` is called."""
        while not self._told.wait(POLL_SECONDS):
            self.asked += 2
            try:
                self._api.get("/health").raise_for_status()
                body = {"deployments": {"name": {"any_": [DEPLOYMENT]}}}
                (deployment,) = self._api.post("/deployments/filter", json=body).raise_for_status().json()
                if len(self.runs) < self._wanted and self.asked % 20 == 0:
                    created = self._api.post(f"/deployments/{deployment['id']}/create_flow_run", json={})
                    self.runs.append(created.raise_for_status().json()["id"])
            except (httpx.HTTPError, ValueError) as error:
                self.failed.append(repr(error))

    def stop(self) -> dict[str, str]:
        """Stop; wait for the flow runs, and return the final state of each."""
        self._told.set()
        self.join()
        states: dict[str, dict[str, str]] = {}

        def have_ended() -> bool:
            for run in self.runs:
                states[run] = self._api.get(f"/flow_runs/{run}").raise_for_status().json()["state"]
            return all(state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") for state in states.values())

        limits.wait_until(have_ended, "all flow runs end", poll=0.5)
        return {run: state["name"] for run, state in states.items()}


def report(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Print a figure in the test's output."""
    with capsys.disabled():
        print(f"\n    {text}")


def test_one_host_builds_for_all(server: Host, other: Host) -> None:
    """The other hosts have the same files under the same path, and neither build tools nor a cache."""
    release = current(server)
    assert current(other) == release
    assert contents(other, release) == contents(server, release)
    assert server.file("/opt/biocirv/cache").exists
    assert not other.file("/opt/biocirv/cache").exists
    assert not other.file("/opt/biocirv/builder").exists
    assert not other.package("python3-venv").is_installed


def test_a_switch_and_the_way_back_lose_nothing(
    inventory: "Inventory",
    deploy: Deploy,
    source: Path,
    server: Host,
    other: Host,
    api: httpx.Client,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After a change of the application only, no request fails, and every flow run completes; figures are printed.

    Files that the releases have in common are compiled and stored once.
    """
    first = current(server)
    before = processes(server)[0]
    package = source / "src/ca_biositing/pipeline/flows/load.py"
    message = "{rejected}{accounting}"
    text = package.read_text(encoding="utf-8")
    assert text.count(message) == 1
    package.write_text(text.replace(message, f"{message}, by the second"), encoding="utf-8")
    client = Client(api, runs=4)
    client.start()

    deployed = deploy()
    second = current(server)
    at_second = version(api)
    said_by_second = run_etl(inventory)
    back = inventory.playbook("playbooks/rollback.yml", "--extra-vars", "rollback_confirmed=true")

    said_by_first = run_etl(inventory)
    states = client.stop()
    assert said_by_second.count(", by the second") == 5
    assert said_by_first.count(", by the second") == 0
    assert deployed.returncode == 0, deployed.stdout
    serving, checked = figures(back)
    assert second != first
    compiled = f"find /opt/biocirv/releases/{second}/env/lib/python3.*/site-packages/prefect -name '*.pyc'"
    assert int(server.check_output(f"{compiled} -links +1 | wc -l")) > 100
    assert server.check_output(f"{compiled} -links 1") == ""
    assert at_second.startswith(second)
    assert (current(server), current(other)) == (first, first)
    assert version(api).startswith(first)
    lost = [state for state in states.values() if state != "Completed"]
    report(capsys, f"same environment: {len(client.failed)} of {client.asked} requests failed,")
    report(
        capsys, f"{len(lost)} of {len(states)} flow runs lost; back after {serving} s, all checked after {checked} s"
    )
    assert client.asked > 50
    assert client.failed == []
    assert len(states) == 4
    assert lost == []
    assert processes(server)[0] == before


def _failing_import(source: Path) -> str:
    with (source / "src/ca_biositing/pipeline/etl/load.py").open("a", encoding="utf-8") as file:
        file.write(f"\nimport {MISSING}\n")
    return rf"does not work on .*No module named '{MISSING}'"


def _add_package(source: Path) -> None:
    """Fix the missing package: add it to pyproject.toml, and run `make lock`."""
    project = source / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    project.write_text(text.replace("dependencies = [\n", f'dependencies = [\n    "{MISSING}",\n', 1), encoding="utf-8")
    _lock(source)


def _lock(source: Path) -> None:
    shutil.copy(ROOT / "Makefile", source)
    shutil.copytree(ROOT / "tests/application", source / "tests/application")
    shutil.copytree(ROOT / "scripts", source / "scripts")
    # The copy has no environment of its own: use that of this checkout.
    environment = f"{ROOT}/.venv"
    command = ["make", f"VENV={environment}", f"--assume-old={environment}/controller", "lock"]
    subprocess.run(command, cwd=source, check=True)


def test_another_environment_restarts_what_holds_it(
    inventory: "Inventory",
    deploy: Deploy,
    source: Path,
    server: Host,
    api: httpx.Client,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The output announces the restart; figures are printed.

    The flows import another package, which is added as docs/troubleshooting.md describes for `No module named`.
    """
    first = current(server)
    _failing_import(source)
    _add_package(source)
    client = Client(api, runs=0)
    client.start()
    before = processes(server)

    deployed = deploy("--extra-vars", '{"release_extra_requirements": ["toolz==1.0.0"]}')
    second, between = current(server), processes(server)
    failed_going = len(client.failed)
    back = inventory.playbook("playbooks/rollback.yml", "--extra-vars", "rollback_confirmed=true")

    client.stop()
    assert deployed.returncode == 0, deployed.stdout
    serving, checked = figures(back)
    assert current(server) == first != second
    # Both the deploy and the rollback restarted both services.
    assert all(len(set(pids)) == 3 for pids in zip(before, between, processes(server), strict=True))
    server.check_output(f"/opt/biocirv/releases/{second}/env/bin/python -c 'import {MISSING}, toolz'")
    report(capsys, f"another environment: of {client.asked} requests {failed_going} failed in the switch,")
    report(
        capsys,
        f"{len(client.failed) - failed_going} on the way back; back after {serving} s, checked after {checked} s",
    )
    assert version(api).startswith(first)


def _next_migration(source: Path) -> None:
    (source / "migrations/versions/0005_note.py").write_text(
        '"""Note."""\nfrom alembic import op\nrevision = "0005"\ndown_revision = "0004"\n'
        'def upgrade():\n    op.execute("CREATE TABLE note (id int)")\n'
        'def downgrade():\n    op.execute("DROP TABLE note")\n',
        encoding="utf-8",
    )


def _old_prefect(source: Path) -> str:
    """Lock a Prefect that is too old, and add a migration, which must not run before the worker's trial has failed."""
    _next_migration(source)
    project = source / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    changes = {
        r'"prefect>=[^"]*"': '"prefect==3.3.7", "fastapi<0.151"',
        r'"rich>=15"': '"rich"',
        r'"whenever>=[^"]*"': '"whenever"',
    }
    for wanted, old in changes.items():
        text = re.sub(wanted, old, text)
    project.write_text(text, encoding="utf-8")
    options = (
        "--quiet",
        "--universal",
        "--python-version",
        "3.11",
        "--generate-hashes",
        "--no-header",
        "--no-emit-index-url",
    )
    compile_ = ["uv", "pip", "compile", *options, "pyproject.toml", "--output-file", "requirements/application.txt"]
    subprocess.run(compile_, cwd=source, check=True)
    return r"worker does not run with Prefect 3\.3\.7 of .*needs Prefect 3\.4\.0 or newer.*`prefect_worker_stock: true`"


def _failing_migration(source: Path) -> str:
    (source / "migrations/versions/0099_fails.py").write_text(
        '"""Fails."""\nfrom alembic import op\nrevision = "0099"\ndown_revision = "0004"\n'
        'def upgrade():\n    op.execute("CREATE TABLE half (id int)")\n    op.execute("SELECT 1/0")\n',
        encoding="utf-8",
    )
    return r"databases could not be brought to release .*division by zero"


def _missing_flow(source: Path) -> str:
    path = source / "prefect.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("run_prefect_flow.py:master_flow", "run_prefect_flow.py:mastr_flow"), encoding="utf-8")
    return r"does not work on .*deployment master-etl-deployment: entrypoint run_prefect_flow.py:mastr_flow"


def _requirement_without_hash(source: Path) -> str:
    with (source / "requirements/application.txt").open("a", encoding="utf-8") as file:
        file.write("\ntabulate==0.9.0\n")
    return r"could not be built on .*Installing requirements/application.txt failed:.*tabulate"


@pytest.mark.parametrize(
    "spoil", [_requirement_without_hash, _failing_import, _missing_flow, _old_prefect, _failing_migration]
)
def test_a_release_that_cannot_serve_is_not_activated(
    deploy: Deploy,
    source: Path,
    server: Host,
    other: Host,
    database: Host,
    api: httpx.Client,
    spoil: Callable[[Path], str],
) -> None:
    """The old release stays active, the exit code is not 0, and the message names step and cause."""
    before, schema = current(server), revision(database)
    cause = spoil(source)

    failed = deploy()

    assert failed.returncode != 0
    assert re.search(cause, failed.stdout, re.DOTALL), failed.stdout
    assert f"release {before} goes on serving" in " ".join(failed.stdout.split())
    assert (current(server), current(other), revision(database)) == (before, before, schema)
    assert api.get("/ready").is_success
    assert version(api).startswith(before)


def test_a_release_that_does_not_come_up_is_rolled_back(
    deploy: Deploy, source: Path, server: Host, api: httpx.Client
) -> None:
    """If the failure shows only after the activation, this is rolled back automatically."""
    before = current(server)
    (source / "data/sample/note.txt").write_text("does not come up\n", encoding="utf-8")

    failed = deploy("--extra-vars", '{"prefect_deployments_names": ["master-etl-deployment", "nope"]}')

    assert failed.returncode != 0
    assert f"release {before} serves again" in " ".join(failed.stdout.split()), failed.stdout
    assert "prefect.yaml declares no such deployment" in failed.stdout
    assert current(server) == before
    assert version(api).startswith(before)
    assert api.get("/ready").is_success


def test_a_release_that_cannot_read_the_schema_is_not_rolled_back_to(
    inventory: "Inventory", deploy: Deploy, source: Path, server: Host, database: Host
) -> None:
    """The failed release has migrated the schema, so it stays active; the journal records a single activation."""
    before = current(server)
    _next_migration(source)

    failed = deploy("--extra-vars", '{"prefect_deployments_names": ["master-etl-deployment", "nope"]}')

    assert failed.returncode != 0
    said = " ".join(failed.stdout.split())
    assert f"release {before} does not know the schema that the databases have by now" in said, failed.stdout
    assert (current(server) != before, revision(database)) == (True, "0005")
    journal = server.check_output("journalctl BIOCIRV_ACTION='go back' --output=json").splitlines()[-1]
    entry = json.loads(journal)
    assert (entry["BIOCIRV_RELEASE"], entry["BIOCIRV_RELEASE_BEFORE"]) == (current(server), before)
    back = inventory.playbook(
        "playbooks/rollback.yml", "--extra-vars", "rollback_confirmed=true rollback_downgrade=true"
    )
    assert back.returncode == 0, back.stdout
    assert (current(server), revision(database)) == (before, "0004")


def test_a_way_back_past_the_schema_is_refused(
    inventory: "Inventory", deploy: Deploy, source: Path, server: Host, database: Host
) -> None:
    """With rollback_downgrade the schema is downgraded, after a dump of the database."""
    first = current(server)
    _next_migration(source)
    deployed = deploy()
    assert deployed.returncode == 0, deployed.stdout
    second = current(server)
    assert revision(database) == "0005"
    dumps = "ls /var/lib/biocirv/dumps | grep -c 0005"
    before = int(server.run(dumps).stdout)

    refused = inventory.playbook("playbooks/rollback.yml", "--extra-vars", "rollback_confirmed=true")

    assert refused.returncode != 0
    assert "biocirv_db is at 0005, it knows up to 0004" in " ".join(refused.stdout.split()), refused.stdout
    assert current(server) == second
    back = inventory.playbook(
        "playbooks/rollback.yml", "--extra-vars", "rollback_confirmed=true rollback_downgrade=true"
    )
    assert back.returncode == 0, back.stdout
    assert (current(server), revision(database)) == (first, "0004")
    assert int(server.run(dumps).stdout) == before + 1


def test_an_impossible_rollback_is_refused(inventory: "Inventory", server: Host) -> None:
    """A missing release, the active one, and a lack of confirmation are refused; nothing changes."""
    before = current(server)
    for arguments, words in (
        (["rollback_to=0123456789ab"], f"Release 0123456789ab is not there on .* which has: .*{before}"),
        ([f"rollback_to={before}"], f"Release {before} serves already"),
        ([], "Nothing was changed. Type yes"),
    ):
        refused = inventory.playbook("playbooks/rollback.yml", *[part for one in arguments for part in ("-e", one)])
        assert refused.returncode != 0
        assert re.search(words, " ".join(refused.stdout.split())), refused.stdout
    assert current(server) == before


def test_services_cannot_write_into_a_release(inventory: "Inventory", server: Host) -> None:
    """They do not need to: a flow run writes no bytecode."""
    for account in ("prefect-server", "prefect-worker", "biocirv"):
        written = server.run(
            f"runuser --user {account} -- find -H /opt/biocirv /opt/biocirv/current/ -writable ! -type l"
        )
        assert written.stdout == ""
    server.check_output("touch /tmp/before")

    done = inventory.playbook("playbooks/run_etl.yml")

    assert done.returncode == 0, done.stdout
    assert server.check_output("find /opt/biocirv/releases -newer /tmp/before") == ""


def test_an_archive_installs_without_an_index(
    inventory: "Inventory", source: Path, server: Host, other: Host, tmp_path: Path
) -> None:
    """The hosts reach only each other; a damaged archive is refused before anything is changed.

    Its source is a git repository, whose first commit contains no application.
    """
    (source / "data/sample/note.txt").write_text("another release\n", encoding="utf-8")
    git = ["git", "-C", str(source), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    archive = tmp_path / "biocirv.release"

    def write(*steps: list[str]) -> tuple[str, subprocess.CompletedProcess[str]]:
        for step in steps:
            subprocess.run([*git, *step], check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        variables = f"release_git_repository={source} release_git_version={head} release_archive_file={archive}"
        return head, inventory.playbook("playbooks/release_archive.yml", "--extra-vars", variables)

    _, nothing = write(["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "--message=Begin"])
    assert "correct release_source or release_source_paths" in " ".join(nothing.stdout.split()), nothing.stdout
    commit, written = write(["add", "--all"], ["commit", "--quiet", "--amend", "--message=It"])
    assert written.returncode == 0, written.stdout
    before = current(server)
    damaged = tmp_path / "damaged.release"
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)

    refused = inventory.playbook("playbooks/deploy.yml", "--extra-vars", f"release_archive={damaged}")
    assert refused.returncode != 0
    assert f"{damaged} is damaged" in " ".join(refused.stdout.split()), refused.stdout
    assert current(server) == before

    routes = {host: host.check_output("ip route show default") for host in (server, other)}
    try:
        for host in routes:
            host.check_output("ip route del default")
            connect = "import socket; socket.create_connection(('192.0.2.1', 443))"
            assert "Network is unreachable" in host.run("python3 -c %s", connect).stderr
        deployed = inventory.playbook("playbooks/deploy.yml", "--extra-vars", f"release_archive={archive}")
    finally:
        for host, route in routes.items():
            host.check_output(f"ip route add {route}")
    assert deployed.returncode == 0, deployed.stdout
    assert current(server) == current(other) != before
    manifest: dict[str, Any] = json.loads(server.file("/opt/biocirv/current/manifest.json").content_string)
    assert commit.startswith(manifest["revision"])
    done = inventory.playbook("playbooks/run_etl.yml")
    assert done.returncode == 0, done.stdout


def test_releases_are_pruned_but_not_what_serves_or_served(server: Host, other: Host) -> None:
    """The tests above have built many releases; the inventory keeps three."""
    for host in (server, other):
        kept = host.check_output("ls /opt/biocirv/releases").split()
        assert {current(host), previous(host)} <= set(kept)
        assert len(kept) <= 4  # and the candidate of a deploy that failed


def test_a_run_that_is_cut_off_anywhere_is_finished_by_the_next(
    deploy: Deploy, inventory: "Inventory", source: Path, server: Host, other: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    """The playbook is killed after each task in turn: in the end both hosts are as after an uninterrupted run."""
    (source / "data/sample/note.txt").write_text("cut off\n", encoding="utf-8")
    kills = 0
    while True:
        done = deploy(
            ANSIBLE_CALLBACK_PLUGINS=str(Path(__file__).parent / "callback_plugins"),
            ANSIBLE_CALLBACKS_ENABLED="power_cut",
            POWER_CUT_AFTER=str(kills * POWER_CUT_EVERY + 1),
        )
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stdout
        kills += 1
    release = current(server)
    report(capsys, f"killed {kills} times, each time {POWER_CUT_EVERY} task(s) of the role later")
    assert kills > 1
    cut_off = [contents(host, release) for host in (server, other)]
    left = [
        host.check_output("ls -A /opt/biocirv /opt/biocirv/build /var/tmp | grep -v systemd")
        for host in (server, other)
    ]

    back = inventory.playbook("playbooks/rollback.yml", "--extra-vars", "rollback_confirmed=true")
    assert back.returncode == 0, back.stdout
    for host in (server, other):
        host.check_output(f"rm -rf /opt/biocirv/releases/{release}")
    undisturbed = deploy()

    assert undisturbed.returncode == 0, undisturbed.stdout
    assert current(server) == release
    assert [contents(host, release) for host in (server, other)] == cut_off
    assert [
        host.check_output("ls -A /opt/biocirv /opt/biocirv/build /var/tmp | grep -v systemd")
        for host in (server, other)
    ] == left


def test_a_build_is_repeated_after_a_power_cut(
    deploy: Deploy, inventory: "Inventory", source: Path, server: Host
) -> None:
    """The next deploy rebuilds an incomplete environment."""
    before = current(server)
    (source / "data/sample/note.txt").write_text("power cut\n", encoding="utf-8")
    outcome: list[subprocess.CompletedProcess[str]] = []
    thread = threading.Thread(target=lambda: outcome.append(deploy()))
    thread.start()
    limits.wait_until(lambda: server.run("pgrep -f '[u]v pip install'").rc == 0, "an environment is being built")

    container = docker.from_env().containers.get(inventory.name("prefect_server"))
    container.kill()
    thread.join()
    container.start()
    assert outcome[0].returncode != 0
    assert current(server) == before
    halves = server.check_output(
        "cd /opt/biocirv/releases && for id in *; do test -e $id/manifest.json || echo $id; done"
    )

    deployed = deploy()

    assert deployed.returncode == 0, deployed.stdout
    assert current(server) in halves.split()
    assert server.file("/opt/biocirv/current/manifest.json").exists
    done = inventory.playbook("playbooks/run_etl.yml")
    assert done.returncode == 0, done.stdout
