"""The platform does its job: a master run loads the sheets, and a broken sheet fails only its own flow."""

import csv
import json
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from testinfra.host import Host

from tests import limits, services
from tests.host.conftest import properties

if TYPE_CHECKING:
    from tests.host.conftest import Api, Inventory

SHEET = Path(__file__).parents[2] / "data/sample/Aim 1-Feedstock Collection and Processing Data-BioCirV"
COLUMNS = {
    "primary_product": ("01-BasicSampleInfo", "Primary_crop"),
    "analysis_types": ("03.0-Experiments", "Analysis_type"),
    "experiment": ("03.0-Experiments", "Exper_id"),
}
FLOWS = ("primary_product", "analysis_type", "field_sample", "experiment", "observation")


def distinct(worksheet: str, column: str) -> int:
    """Return how many distinct names a column holds, ignoring case, spacing and Unicode composition."""
    with (SHEET / f"{worksheet}.csv").open(encoding="utf-8-sig", newline="") as sheet:
        header, *rows = csv.reader(sheet)
    position = [name.strip() for name in header].index(column)
    cells = [unicodedata.normalize("NFC", row[position]) for row in rows if len(row) > position]
    return len({" ".join(cell.split()).casefold() for cell in cells} - {""})


def count(database: Host, table: str) -> int:
    """Return the number of rows of a table."""
    rows: str = database.check_output("runuser --user postgres -- psql -Atc %s biocirv_db", f"TABLE {table}")
    return len(rows.splitlines())


def test_server_is_healthy(api: "Api") -> None:
    assert api.ask("/health") is True
    assert api.is_ready()


def test_deployment_waits_its_turn_and_has_no_active_schedule(api: "Api") -> None:
    deployment = api.ask("/deployments/name/Master%20ETL%20Flow/master-etl-deployment")
    assert deployment["work_pool_name"] == "biocirv_dev_work_pool"
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert [schedule["active"] for schedule in deployment["schedules"]] in ([], [False])


def test_master_run_loads_what_the_sheets_hold(inventory: "Inventory", database: Host) -> None:
    for _ in range(2):
        done = inventory.playbook("playbooks/run_etl.yml")
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"(?m)^\s+Master ETL Flow +Completed", done.stdout), done.stdout
        for flow in FLOWS:
            line = rf"(?m)^\s+{flow} +Completed +(?:[\d,]+ of [\d,]+ rows rejected: )?read (\d+) = (.+)$"
            accounting = re.search(line, done.stdout)
            assert accounting, done.stdout
            assert int(accounting[1]) == sum(map(int, re.findall(r"\d+", accounting[2]))) > 0
    for table, (worksheet, column) in COLUMNS.items():
        assert count(database, table) == distinct(worksheet, column) > 0
    assert count(database, "observation") > 0


@pytest.mark.thorough
def test_status_names_release_and_schema(inventory: "Inventory", server: Host, database: Host) -> None:
    """The status shows id, age and source of the active release, and the database's revision."""
    release = Path(server.file("/opt/biocirv/current").linked_to).name
    revision = "runuser --user postgres -- psql -AtX biocirv_db -c 'SELECT version_num FROM alembic_version'"
    shown = inventory.answer("playbooks/status.yml")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stdout.startswith("Well, at "), shown.stdout
    assert re.search(rf"Release +{release}, built [-\d]+ [:\d]+ UTC \(\d+ (hours|days) ago\)", shown.stdout), (
        shown.stdout
    )
    assert re.search(rf"Database +{database.check_output(revision)}\n", shown.stdout), shown.stdout


def test_status_says_for_programs_that_it_is_well(inventory: "Inventory") -> None:
    report = inventory.status()
    assert report["problems"] == []
    assert report["well"] is True
    units = {unit["unit"].partition("@")[0]: unit["state"] for unit in report["services"]}
    expected = [unit.partition("@")[0] for unit in services.units("service", "foundation", "timer")]
    assert units == dict.fromkeys(expected, "active")
    assert set(report["work_pool"]["workers"]) >= set(inventory.names("prefect_worker"))
    assert {run["flow"]: run["state"] for run in report["last_run"]} == dict.fromkeys(
        ("Master ETL Flow", *FLOWS), "Completed"
    )
    assert report["rows"]["experiment"] > 0
    assert {certificate["service"] for certificate in report["certificates"]} == {"the proxy", "PostgreSQL"}
    assert {disk["path"] for disk in report["disks"]} >= {"/"}


def self_check(inventory: "Inventory", *options: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code of `make self-check`, and what it prints."""
    done = inventory.answer("playbooks/self_check.yml", *options)
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


def test_self_check_runs_a_flow_that_writes(inventory: "Inventory") -> None:
    code, report = self_check(inventory)
    assert (code, report["well"], report["problems"]) == (0, True, [])
    assert report["state"] == "Completed"
    assert re.fullmatch("biocirv_user(_alternate)? writes to biocirv_db", report["message"])


@pytest.mark.thorough
@pytest.mark.disruptive
def test_self_check_says_that_nobody_runs_flows(inventory: "Inventory", worker: Host) -> None:
    worker.check_output("systemctl stop prefect-worker")
    try:
        code, report = self_check(inventory, "--extra-vars", "self_check_patience=3")
    finally:
        worker.check_output("systemctl start prefect-worker")
    assert code != 0
    assert report["well"] is False
    services, flow_run = report["problems"]
    assert "prefect-worker.service is inactive" in services
    assert re.fullmatch(r"The flow run \S+ is (Scheduled|Late) after 3 s: no worker has taken it", flow_run)


@pytest.mark.thorough
@pytest.mark.disruptive
def test_status_says_what_is_wrong_and_all_else(inventory: "Inventory", server: Host) -> None:
    server.check_output("systemctl stop prefect-server")
    try:
        report = inventory.status()
    finally:
        server.check_output("systemctl start prefect-server")
    name = inventory.name("prefect_server")
    assert len(report["problems"]) == 3, report["problems"]
    silent, timer, stopped = sorted(report["problems"])
    assert silent.startswith(f"{name}, prefect: Prefect's API does not answer: ")
    assert timer.startswith(f"prefect-schedules.timer on {name} is inactive since "), "it stops with the server"
    assert stopped.startswith(f"prefect-server on {name} is inactive since ")
    assert "`make logs UNIT=prefect-server" in stopped
    assert report["rows"]["experiment"] > 0
    assert report["database"]["revision"] == report["database"]["expected"]


@pytest.mark.thorough
@pytest.mark.disruptive
def test_status_names_a_table_that_is_gone(inventory: "Inventory", database: Host) -> None:
    """The schema's revision is that of the release, and yet a table of it is not there."""
    psql = "runuser --user postgres -- psql --no-psqlrc --dbname biocirv_db --command 'ALTER TABLE {} RENAME TO {}'"
    database.check_output(psql.format("rejected_row", "mislaid"))
    try:
        report = inventory.status()
    finally:
        database.check_output(psql.format("mislaid", "rejected_row"))
    (problem,) = report["problems"]
    assert problem.startswith("The database lacks tables of its revision: rejected_row. `make audit")
    assert inventory.status()["well"] is True


@pytest.mark.thorough
@pytest.mark.disruptive
def test_status_names_a_deployment_that_prefect_lacks(inventory: "Inventory", api: "Api") -> None:
    """A restored prefect_db may be empty, or older than a deployment."""
    deployment = api.ask("/deployments/name/Master%20ETL%20Flow/master-etl-deployment")
    api.delete(f"/deployments/{deployment['id']}")

    (problem,) = inventory.status()["problems"]

    assert problem.startswith("Prefect does not have the deployment master-etl-deployment: `make start-services")
    converged = inventory.playbook("site.yml", "--tags", "deploy")
    assert converged.returncode == 0, converged.stdout
    assert inventory.status()["well"] is True


def kill_and_wait(worker: Host) -> None:
    """Kill the worker, and wait until systemd has started it again."""
    first = int(properties(worker, "prefect-worker", "NRestarts")["NRestarts"])
    worker.check_output("systemctl kill --kill-whom=main --signal=KILL prefect-worker")
    expected = {"NRestarts": str(first + 1), "ActiveState": "active"}

    def is_back() -> bool:
        return properties(worker, "prefect-worker", *expected) == expected

    limits.wait_until(is_back, "systemd has started prefect-worker again")


@pytest.mark.thorough
@pytest.mark.disruptive
def test_status_names_a_unit_that_starts_again_and_again(inventory: "Inventory", worker: Host) -> None:
    """Systemd never calls such a unit failed: it is active, or about to be."""
    for _ in range(3):
        kill_and_wait(worker)
    (problem,) = inventory.status()["problems"]
    name = inventory.name("prefect_worker")
    assert problem.startswith(f"prefect-worker on {name} failed and was started again 3 times within an hour: ")
    worker.check_output("systemctl reset-failed prefect-worker")
    assert inventory.status()["problems"] == []


@pytest.mark.thorough
def test_what_is_collected_for_a_helper_holds_no_secret(inventory: "Inventory", worker: Host, tmp_path: Path) -> None:
    """Also where a journal has them: a flow may log its settings."""
    directory = Path(inventory.value("secrets_directory"))
    secrets = [path.read_text(encoding="utf-8").strip() for path in directory.iterdir() if path.is_file()]
    assert len(secrets) >= 7
    for secret in secrets:
        worker.check_output("logger --tag biocirv-audit %s", f"deploy: the password is {secret}")
    file = tmp_path / "doctor.txt"
    collected = inventory.answer("playbooks/doctor.yml", "--extra-vars", f"status_doctor_file={file}")
    assert collected.returncode == 0, collected.stderr
    assert str(file) in collected.stdout
    text = file.read_text(encoding="utf-8")
    assert "deploy: the password is ********" in text
    assert not [secret for secret in secrets if secret in text]
    assert not [line for secret in secrets for line in secret.splitlines() if len(line) > 16 and line in text]
    for part in (
        "Loaded: loaded (/etc/systemd/system/prefect-server.service",
        "usename",
        "table inet biocirv {",
        '"problems"',
    ):
        assert part in text
    assert re.search(r"(?m)^PREFECT_API_AUTH_STRING=\(not shown\)$", text)


@pytest.mark.thorough
@pytest.mark.disruptive
def test_a_unit_that_starts_with_an_older_configuration_is_restarted(inventory: "Inventory", worker: Host) -> None:
    """The worker waits for an API that is not there; its configuration is mended while it waits."""
    file = "/etc/biocirv/prefect-worker.env"
    worker.check_output(f"sed -i 's,^PREFECT_API_URL=.*,PREFECT_API_URL=https://127.0.0.1:9/api,' {file}")
    worker.check_output("systemctl stop prefect-worker && systemctl start --no-block prefect-worker")

    def waits() -> bool:
        return properties(worker, "prefect-worker", "ActiveState") == {"ActiveState": "activating"}

    limits.wait_until(waits, "the worker waits for its API")
    mended = inventory.playbook("site.yml", "--tags", "deploy")
    assert mended.returncode == 0, mended.stdout
    assert properties(worker, "prefect-worker", "ActiveState") == {"ActiveState": "active"}


@pytest.mark.thorough
@pytest.mark.disruptive
def test_a_missing_worksheet_fails_its_flow_alone(inventory: "Inventory", worker: Host, database: Host) -> None:
    """The worker temporarily reads a copy of the sample data in which one worksheet is missing."""
    worksheet = "01-BasicSampleInfo"
    broken = "/var/lib/prefect-worker/broken"
    worker.check_output(
        f"rm -rf {broken} && cp -r /opt/biocirv/current/app/data/sample {broken} && rm {broken}/*/{worksheet}.csv"
        f" && chown -R prefect-worker: {broken}"
    )
    environment = "/etc/biocirv/prefect-worker.env"
    database.check_output("runuser --user postgres -- psql -c 'TRUNCATE analysis_types CASCADE' biocirv_db")
    worker.check_output(f"cp -p {environment} /root/prefect-worker.env")
    worker.check_output(f"sed -i 's#^ETL_SOURCE_DIRECTORY=.*#ETL_SOURCE_DIRECTORY={broken}#' {environment}")
    try:
        worker.check_output("systemctl restart prefect-worker")
        failed = inventory.playbook("playbooks/run_etl.yml")
    finally:
        worker.check_output(
            f"mv /root/prefect-worker.env {environment} && rm -r {broken} && systemctl restart prefect-worker"
        )
    assert failed.returncode != 0
    assert re.search(r"Master ETL Flow +Failed", failed.stdout), failed.stdout
    for flow in ("primary_product", "field_sample"):
        assert re.search(rf"{flow} +Failed .*{worksheet}", failed.stdout), failed.stdout
    for flow in ("analysis_type", "experiment", "observation"):
        assert re.search(rf"{flow} +Completed", failed.stdout), failed.stdout
    assert count(database, "analysis_types") == distinct(*COLUMNS["analysis_types"])
