"""Rotation of secrets: no flow run fails, old secrets are refused, and errors are reported before any change."""

import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests import limits
from tests.scenarios.secure.conftest import LOGINS

if TYPE_CHECKING:
    from tests.host.conftest import Inventory
    from tests.scenarios.secure.conftest import Platform

ROTATE = "playbooks/rotate_secrets.yml"
DATABASES = {"prefect_user": "prefect_db"}
RUNS = 3
# Terminal states of a flow run.
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@pytest.fixture(scope="module")
def runs(platform: "Platform") -> list[str]:
    """Return flow runs of which one is running and the others are waiting."""
    deployment = platform.api("/deployments/name/Master%20ETL%20Flow/master-etl-deployment")["id"]
    created = [platform.api(f"/deployments/{deployment}/create_flow_run", {})["id"] for _ in range(RUNS)]
    limits.wait_until(
        lambda: any(state(platform, run)["type"] == "RUNNING" for run in created), "a flow run is running"
    )
    return created


def state(platform: "Platform", run: str) -> dict[str, Any]:
    """Return the state of a flow run."""
    found: dict[str, Any] = platform.api(f"/flow_runs/{run}")["state"]
    return found


def contents(platform: "Platform") -> dict[str, str]:
    """Return the content of every file with secrets."""
    files = [path for path in platform.secrets.rglob("*") if path.is_file()]
    return {str(path.relative_to(platform.secrets)): path.read_text(encoding="utf-8") for path in files}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Return the names of the files that differ; no contents, as pytest shows the values that it compares."""
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_what_cannot_be_rotated_is_refused(inventory: "Inventory", platform: "Platform") -> None:
    """It is refused before any change, with the reason."""
    before, processes = contents(platform), platform.processes()
    unknown = inventory.playbook(ROTATE, "--extra-vars", "rotate_secrets=biocirv_db_password,prefect_encryption_key")
    foreign = platform.secrets / "biocirv_reader_password"
    aside = foreign.with_suffix(".aside")
    foreign.rename(aside)
    try:
        given = {"rotate_secrets": foreign.name, foreign.name: "from-elsewhere-1234567890"}
        options = [option for name, value in given.items() for option in ("--extra-vars", f"{name}={value}")]
        elsewhere = inventory.playbook(ROTATE, *options)
    finally:
        aside.rename(foreign)
    assert unknown.returncode != 0
    assert elsewhere.returncode != 0
    words = " ".join(unknown.stdout.split())
    assert "prefect_api_password: prefect_encryption_key. Nothing was changed." in words
    words = " ".join(elsewhere.stdout.split())
    assert "This inventory does not generate these: biocirv_reader_password. Change them where they come from" in words
    for done in (unknown, elsewhere):
        assert re.search(r"changed=0 .*failed=1", done.stdout), done.stdout
    assert changed(before, contents(platform)) == set()
    assert platform.processes() == processes
    assert platform.api("/work_pools/biocirv_dev_work_pool")["is_paused"] is False


def test_all_are_rotated_while_flows_run(
    inventory: "Inventory", platform: "Platform", runs: list[str], note: Callable[[str], None]
) -> None:
    """The running flow run completes while the others wait; afterwards the old secrets are refused."""
    before = contents(platform)
    old_auth = platform.auth_string
    old = {login: (platform.login(login), platform.password(secret)) for login, secret in LOGINS.items()}
    waiting = [run for run in runs if state(platform, run)["type"] not in ENDED | {"RUNNING"}]
    assert waiting

    begin = time.monotonic()
    # Status codes of requests during the rotation.
    answers: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.5):
            answers.append(platform.curl("/api/health", "--output", "/dev/null", "--write-out", "%{http_code}").stdout)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        rotated = inventory.playbook(ROTATE)
    finally:
        over.set()
        asker.join()
    seconds = time.monotonic() - begin
    assert rotated.returncode == 0, rotated.stdout

    away = sum(answer != "200" for answer in answers)
    note(
        f"rotation of all secrets: {seconds:.0f} s, while {len(waiting)} of {RUNS} flow runs waited;"
        f" {away} of {len(answers)} requests met a server that restarted"
    )
    assert {state(platform, run)["name"] for run in runs if run not in waiting} == {"Completed"}
    made = {*LOGINS.values(), "prefect_api_password"}
    assert changed(before, contents(platform)) == {*made, "alternate_logins"}
    assert platform.api("/work_pools/biocirv_dev_work_pool")["is_paused"] is False

    refused = platform.curl("/api/flow_runs/count", "--json", "{}", "--write-out", "%{http_code}", auth=old_auth)
    assert refused.stdout.endswith("401")
    for login, (name, password) in old.items():
        database = DATABASES.get(login, "biocirv_db")
        lost = platform.psql("SELECT 1", name, database, password=password)
        assert lost.rc == 2
        assert f'password authentication failed for user "{name}"' in lost.stderr
        assert platform.login(login) != name
        assert platform.psql("SELECT session_user", login, database).stdout == f"{platform.login(login)}\n"
        # The old password is refused for the new login too.
        assert platform.psql("SELECT 1", platform.login(login), database, password=password).rc == 2
    held = "SELECT count(*) FROM pg_stat_activity WHERE usename = ANY (ARRAY['{}'])"
    names = "', '".join(name for name, _ in old.values())
    assert platform.host.check_output("runuser --user postgres -- psql -Atc %s", held.format(names)) == "0"


@pytest.mark.usefixtures("runs")
def test_one_is_rotated_alone_and_finished_where_it_was_cut_off(inventory: "Inventory", platform: "Platform") -> None:
    """Its login changes once to the other one of its pair; services that do not use it are not restarted."""
    before, processes = contents(platform), platform.processes()
    name, password = platform.login("biocirv_user"), platform.password("biocirv_db_password")

    # The converge of the rotation fails before any host is changed.
    failing = ("--extra-vars", "rotate_secrets=biocirv_db_password", "--extra-vars", "base_timezone=No/Where")
    cut_off = inventory.playbook(ROTATE, *failing)
    assert cut_off.returncode != 0
    assert "No/Where" in cut_off.stdout
    assert platform.psql("SELECT 1", name, password=password).stdout == "1\n"

    rotated = inventory.playbook(ROTATE)

    assert rotated.returncode == 0, rotated.stdout
    assert changed(before, contents(platform)) == {"biocirv_db_password", "alternate_logins"}
    assert {name, platform.login("biocirv_user")} == {"biocirv_user", "biocirv_user_alternate"}
    lost = platform.psql("SELECT 1", name, password=password)
    assert f'password authentication failed for user "{name}"' in lost.stderr
    assert platform.psql("SELECT 1", "biocirv_user").stdout == "1\n"
    after = platform.processes()
    assert {unit for unit in after if after[unit] != processes[unit]} == {"prefect-worker.service"}
    journal = platform.host.check_output("journalctl BIOCIRV_ACTION=rotate --output=cat").splitlines()
    assert re.search(r"rotate: biocirv_db_password, by \S+@\S+", journal[-1])


def test_no_flow_run_was_lost(platform: "Platform", runs: list[str], note: Callable[[str], None]) -> None:
    """Flow runs that waited use the new secrets, and complete."""
    limits.wait_until(lambda: all(state(platform, run)["type"] in ENDED for run in runs), "all flow runs end")
    states = [state(platform, run)["name"] for run in runs]
    note(f"flow runs that were there when secrets were rotated ended {', '.join(states)}")
    assert states == ["Completed"] * RUNS


@pytest.mark.parametrize("login", LOGINS)
def test_a_login_out_of_use_cannot_log_in(platform: "Platform", login: str) -> None:
    """The other login of each pair has neither a password nor the LOGIN attribute."""
    other = login if platform.login(login) != login else f"{login}_alternate"
    found = platform.host.check_output(
        "runuser --user postgres -- psql -Atc %s",
        f"SELECT rolcanlogin, rolpassword IS NULL FROM pg_authid WHERE rolname = '{other}'",  # noqa: S608 - our own
    )
    assert found in ("f|t", "")
