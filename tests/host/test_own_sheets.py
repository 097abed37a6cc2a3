"""One's own sheets on a host: copied, checked as flows read them, and loaded; and rows that are removed again."""

import csv
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

if TYPE_CHECKING:
    from tests.host.conftest import Api, Inventory

SAMPLE = Path(__file__).parents[2] / "data/sample"
SHEET = "Aim 1-Feedstock Collection and Processing Data-BioCirV"
DIRECTORY = "/srv/biocirv/sheets"
ENVIRONMENT = "/etc/biocirv/prefect-worker.env"


@pytest.fixture(autouse=True)
def empty(worker: Host) -> None:
    """Skip the tests where a folder is mounted, as by `make up SHEETS=`."""
    if worker.run(f"mountpoint --quiet {DIRECTORY}").rc == 0:
        pytest.skip(f"a folder is mounted at {DIRECTORY}")


def copy(inventory: "Inventory", folder: Path) -> tuple[int, str]:
    """Return the exit code and the output of `make sheets`, with single spaces."""
    done = inventory.playbook("playbooks/sheets.yml", "--extra-vars", f"sheets_folder={folder}")
    return done.returncode, " ".join(done.stdout.split())


def psql(database: Host, statement: str) -> str:
    """Run a statement as superuser; return its unaligned output."""
    output: str = database.check_output(
        "cd / && runuser --user postgres -- psql --no-psqlrc -qAtc %s biocirv_db", statement
    )
    return output


def other_rows(database: Host) -> set[str]:
    """Return the names of crops, samples and experiments that are not in the sample sheets."""
    cells: set[str] = set()
    for path in SAMPLE.rglob("*.csv"):
        with path.open(encoding="utf-8-sig", newline="") as file:
            cells.update(" ".join(cell.split()).casefold() for row in csv.reader(file) for cell in row)
    tables = ("primary_product", "analysis_types", "field_sample", "experiment")
    names = psql(database, " UNION ".join(f"SELECT name_key FROM {table}" for table in tables)).splitlines()  # noqa: S608
    return {*names} - cells


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the sample sheets and one more sample."""
    folder = shutil.copytree(SAMPLE, tmp_path / "sheets")
    path = folder / SHEET / "01-BasicSampleInfo.csv"
    text = path.read_text(encoding="utf-8-sig")
    header, row = text.splitlines()[:2]
    name = header.split(",").index("Sample_name")
    cells = row.split(",")
    cells[name] = "OWN-SHEETS-001"
    path.write_text(f"{text.rstrip()}\n{','.join(cells)}\n", encoding="utf-8")
    return folder


@pytest.fixture
def reading(worker: Host) -> Iterator[None]:
    """Let flows read the directory that sheets are copied to; it is empty before and after."""
    assert worker.check_output(f"ls -A {DIRECTORY}") == ""
    worker.check_output(f"cp -p {ENVIRONMENT} /root/prefect-worker.env")
    worker.check_output(f"sed -i 's#^ETL_SOURCE_DIRECTORY=.*#ETL_SOURCE_DIRECTORY={DIRECTORY}#' {ENVIRONMENT}")
    worker.check_output("systemctl restart prefect-worker")
    yield
    worker.check_output(f"mv /root/prefect-worker.env {ENVIRONMENT} && systemctl restart prefect-worker")
    worker.check_output(f"find {DIRECTORY} -mindepth 1 -delete")


def test_the_directory_is_for_flows_only(worker: Host) -> None:
    directory = worker.file(DIRECTORY)
    assert (directory.user, directory.group, directory.mode) == ("root", "prefect-worker", 0o750)


@pytest.mark.thorough
@pytest.mark.disruptive
@pytest.mark.usefixtures("reading")
def test_own_sheets_are_loaded(inventory: "Inventory", worker: Host, database: Host, folder: Path) -> None:
    """Without sheets, the flow's message says how to copy some; a sheet that stops a flow fails the copy."""
    empty = inventory.playbook("playbooks/run_etl.yml")
    assert empty.returncode != 0
    assert "There is no sheet at all. Put the sheet there: `make sheets SHEETS=folder`" in " ".join(
        empty.stdout.split()
    )

    code, said = copy(inventory, folder)
    assert code == 0, said
    assert "01-BasicSampleInfo 61 rows, for field_sample, primary_product" in said
    assert "Every flow could run." in said
    file = worker.file(f"{DIRECTORY}/{SHEET}/01-BasicSampleInfo.csv")
    assert (file.user, file.group, file.mode) == ("root", "prefect-worker", 0o640)
    # A second copy replaces no file that has not changed.
    inode = worker.check_output("stat --format %%i %s", file.path)
    assert copy(inventory, folder)[0] == 0
    assert worker.check_output("stat --format %%i %s", file.path) == inode

    done = inventory.playbook("playbooks/run_etl.yml")
    assert done.returncode == 0, done.stdout
    assert psql(database, "SELECT count(*) FROM field_sample WHERE name = 'OWN-SHEETS-001'") == "1"
    psql(database, "DELETE FROM field_sample WHERE name = 'OWN-SHEETS-001'")

    (folder / SHEET / "03.0-Experiments.csv").unlink()
    code, said = copy(inventory, folder)
    assert code != 0
    assert "analysis_type, experiment could not run: Worksheet '03.0-Experiments'" in said


@pytest.mark.thorough
@pytest.mark.disruptive
def test_sheets_that_flows_do_not_read_are_an_error(inventory: "Inventory", worker: Host, folder: Path) -> None:
    """As with the local container, whose flows read the sample sheets."""
    assert worker.check_output(f"ls -A {DIRECTORY}") == ""
    try:
        code, said = copy(inventory, folder)
        assert worker.check_output(f"ls -A {DIRECTORY}") == ""
    finally:
        worker.check_output(f"find {DIRECTORY} -mindepth 1 -delete")
    assert code != 0
    assert "Flows do not read these sheets, but /opt/biocirv/current/work/data/sample" in said


@pytest.mark.thorough
@pytest.mark.disruptive
def test_rows_are_removed_and_come_back(inventory: "Inventory", server: Host, database: Host, api: "Api") -> None:
    """The revision stays, the dump holds the rows, the work pool goes on, and the next run loads them again."""
    # In production the rows are somebody's.
    if other := other_rows(database):
        pytest.skip(f"the database holds other rows than those of the sample sheets: {', '.join(sorted(other)[:5])}")
    assert inventory.playbook("playbooks/run_etl.yml").returncode == 0
    revision = psql(database, "TABLE alembic_version")
    refused = inventory.playbook("playbooks/remove_rows.yml")
    assert refused.returncode != 0
    assert "Nothing was changed. Type yes" in " ".join(refused.stdout.split())
    assert int(psql(database, "SELECT count(*) FROM observation")) > 0

    done = inventory.playbook("playbooks/remove_rows.yml", "--extra-vars", "remove_rows_confirmed=true")

    assert done.returncode == 0, done.stdout
    for table in ("primary_product", "field_sample", "observation", "etl_run", "rejected_row"):
        assert psql(database, f"SELECT count(*) FROM {table}") == "0"  # noqa: S608 - names of our own tables
    assert psql(database, "TABLE alembic_version") == revision
    dump = re.search(r"/var/lib/biocirv/removed-rows/biocirv_db-\S+\.dump", done.stdout)
    assert dump, done.stdout
    listed = server.check_output(f"pg_restore --list {dump[0]}")
    assert "TABLE DATA public observation" in listed
    assert not api.ask("/work_pools/biocirv_dev_work_pool")["is_paused"]
    shown = server.check_output("journalctl --identifier biocirv-audit --output cat --lines 1")
    assert shown.startswith("remove rows: biocirv_db lost analysis_types: "), shown
    assert "remove rows" in inventory.playbook("playbooks/audit.yml").stdout
    nothing = inventory.playbook("playbooks/remove_rows.yml", "--extra-vars", "remove_rows_confirmed=true")
    assert nothing.returncode == 0
    server.check_output(f"rm {dump[0]}")
    assert "have no rows. Nothing was changed." in nothing.stdout

    assert inventory.playbook("playbooks/run_etl.yml").returncode == 0
    assert int(psql(database, "SELECT count(*) FROM observation")) > 0


@pytest.mark.thorough
@pytest.mark.disruptive
def test_rows_are_not_removed_under_a_load(inventory: "Inventory", database: Host, api: "Api") -> None:
    """A load that is not Prefect's, too: it holds a lock, and no row is removed."""
    assert inventory.playbook("playbooks/run_etl.yml").returncode == 0
    # The server does not notice that the client has gone while it sleeps, unless it looks.
    statement = (
        "SET client_connection_check_interval = 1000; BEGIN; LOCK TABLE observation IN SHARE MODE; SELECT pg_sleep(600)"
    )
    database.check_output(
        f"systemd-run --quiet --unit=load --collect --uid=postgres psql --dbname=biocirv_db --command '{statement}'"
    )
    try:
        refused = inventory.playbook("playbooks/remove_rows.yml", "--extra-vars", "remove_rows_confirmed=true")
    finally:
        database.check_output("systemctl stop load")
    assert refused.returncode != 0
    assert "No row was removed" in refused.stdout
    assert "lock timeout" in refused.stdout
    for table in ("primary_product", "observation", "etl_run"):
        assert int(psql(database, f"SELECT count(*) FROM {table}")) > 0  # noqa: S608 - names of our own tables
    assert not api.ask("/work_pools/biocirv_dev_work_pool")["is_paused"]
