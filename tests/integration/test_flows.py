"""The rows that the flows load, and the states and artifacts that Prefect shows."""

import csv
import json
import re
import unicodedata
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from prefect import State
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import Artifact, FlowRun, TaskRun
from sqlalchemy import Engine, create_engine, text

from ca_biositing.pipeline.flows import load as flows_load
from ca_biositing.pipeline.flows import master as flows_master
from ca_biositing.pipeline.sources import ExtractError, SourceUnavailableError
from run_prefect_flow import AVAILABLE_FLOWS, master_flow
from tests import limits
from tests.integration.flow_runs import sub_flow_runs

SHEET = "Aim 1-Feedstock Collection and Processing Data-BioCirV"
SAMPLES, EXPERIMENTS = "01-BasicSampleInfo", "03.0-Experiments"
MEASUREMENTS = ("03.1-Proximate", "03.2-Ultimate")
# The table, the sheets' rows and records, and the rejected rows, counted by hand.
EXPECTED = {
    # Rows without a crop or an analysis type say nothing to these two.
    "primary_product": ("primary_product", 57, 11, set()),
    "analysis_type": ("analysis_types", 22, 8, set()),
    "field_sample": ("field_sample", 60, 59, {(SAMPLES, 46)}),
    "experiment": ("experiment", 24, 24, set()),
}


def cells(source: Path, worksheet: str, column: str) -> list[str]:
    """Return a column's cells, trimmed and normalized, by the header as displayed."""
    with (source / SHEET / f"{worksheet}.csv").open(encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    index = [name.strip() for name in header].index(column)
    return [unicodedata.normalize("NFC", " ".join(row[index].split())) for row in rows]


def query(engine: Engine, statement: str, **parameters: object) -> list[tuple[object, ...]]:
    """Return the rows of a query."""
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement), parameters)]


def run_master(client: SyncPrefectClient) -> tuple[FlowRun, dict[str, FlowRun]]:
    """Run the master flow; return the server's record of its run and, by name, of its sub-flow runs."""
    state: State[State[object]] = master_flow(return_state=True)
    assert state.state_details.flow_run_id
    master = client.read_flow_run(state.state_details.flow_run_id)
    children = sub_flow_runs(client, master.id)
    return master, {client.read_flow(child.flow_id).name: child for child in children}


def state_of(run: FlowRun) -> tuple[str | None, str]:
    """Return the state's name and message."""
    assert run.state
    return run.state_name, run.state.message or ""


def artifacts(client: SyncPrefectClient, flow_run_id: UUID) -> dict[str, Artifact]:
    """Return the artifacts of a flow run's tasks by their keys."""
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    )
    return {artifact.key: artifact for artifact in found if artifact.key}


def test_the_sample_data_is_loaded_once(prefect: SyncPrefectClient, migrated_database: Engine, source: Path) -> None:
    """Every row is in its table or rejected; a second run changes nothing."""
    measurements = sum(len(cells(source, worksheet, "Value")) for worksheet in MEASUREMENTS)
    for run in ("first", "second"):
        master, children = run_master(prefect)

        assert master.state_name == "Completed"
        assert set(children) == set(AVAILABLE_FLOWS) == {*EXPECTED, "observation"}
        for flow, (table, read, records, rejected) in EXPECTED.items():
            inserted = records if run == "first" else 0
            unchanged = read - len(rejected) - inserted
            message = (
                f"read {read} = inserted {inserted} + updated 0 + unchanged {unchanged} + rejected {len(rejected)}"
            )
            assert f"{flow}: {message}" in state_of(master)[1]
            if rejected:
                message = f"{len(rejected)} of {read} rows rejected: {message}"
            assert state_of(children[flow]) == ("Completed", message)
            assert query(migrated_database, f"SELECT count(*) FROM {table}") == [(records,)]  # noqa: S608 - a constant
            listed = query(
                migrated_database,
                "SELECT worksheet, row_number FROM rejected_row JOIN etl_run ON etl_run.id = etl_run_id"
                " WHERE flow_run_id = :run",
                run=children[flow].id,
            )
            assert set(listed) == rejected
        inserted, unchanged = (measurements - 8, 1) if run == "first" else (0, measurements - 7)
        message = f"read {measurements} = inserted {inserted} + updated 0 + unchanged {unchanged} + rejected 7"
        assert state_of(children["observation"]) == ("Completed", f"7 of {measurements} rows rejected: {message}")
        assert state_of(master)[1].startswith(
            f"{163 + measurements} rows read, 8 rejected: observation 7, field_sample 1. primary_product: read 57 = "
        )


def test_every_measurement_arrives_as_it_was_typed(
    prefect: SyncPrefectClient, migrated_database: Engine, source: Path
) -> None:
    """It has its sample, experiment and unit; zeros and negative values are included."""
    run_master(prefect)

    typed = []
    for worksheet in MEASUREMENTS:
        columns = ("Sample_name", "Exper_id", "Parameter", "Unit", "Value", "Replicate")
        typed += list(zip(*(cells(source, worksheet, column) for column in columns), strict=True))
    expected = {
        (
            sample.lower(),
            experiment.lower(),
            parameter.lower(),
            unit,
            float(value.replace("\u2212", "-")),
            int(replicate) if replicate else None,
        )
        for sample, experiment, parameter, unit, value, replicate in typed
        # 5.80 and 61.20 contradict each other; the others are not numbers.
        if value not in ("", "<0.1", "n.d.", "11,8", "#DIV/0!")
        and (sample, parameter, replicate) != ("BIO-GP-001", "Hydrogen", "2")
    }
    arrived = query(
        migrated_database,
        "SELECT field_sample.name_key, experiment.name_key, parameter_key, coalesce(unit, ''), value::float8, replicate"
        " FROM observation JOIN field_sample ON field_sample.id = field_sample_id"
        " JOIN experiment ON experiment.id = experiment_id",
    )
    assert set(arrived) == expected
    assert len(arrived) == len(expected)
    assert {0.0} < {row[4] for row in expected if isinstance(row[4], float) and row[4] <= 0}
    assert "" in {row[3] for row in expected}


def test_empty_cells_are_null_and_no_other(prefect: SyncPrefectClient, migrated_database: Engine, source: Path) -> None:
    """A look-up or a date is null exactly where its cell is empty."""
    run_master(prefect)

    columns = {"Primary_crop": "primary_product_id", "County": "county", "Collection_date": "collection_date"}
    rejected = cells(source, SAMPLES, "Sample_amount_kg").index("12,5")
    for header, column in columns.items():
        typed = cells(source, SAMPLES, header)
        typed.pop(rejected)
        nulls = f"SELECT count(*) FROM field_sample WHERE {column} IS NULL"  # noqa: S608 - a constant
        assert query(migrated_database, nulls) == [(typed.count(""),)]
        assert typed.count("") > 0


def test_the_sample_data_is_as_untidy_as_a_lab_s(source: Path) -> None:
    """Otherwise the tests above would prove little."""
    for worksheet, column in ((SAMPLES, "Primary_crop"), (EXPERIMENTS, "Analysis_type")):
        names = [name for name in cells(source, worksheet, column) if name]
        assert len(set(names)) > len({name.casefold() for name in names})
        assert "\u00a0" in (source / SHEET / f"{worksheet}.csv").read_text(encoding="utf-8")
    assert "n\u0303" in (source / SHEET / f"{SAMPLES}.csv").read_text(encoding="utf-8")


def test_prefect_shows_the_accounting(prefect: SyncPrefectClient, migrated_database: Engine, source: Path) -> None:
    """It shows tags, a table with the counts, and the rejected rows with advice, whatever their cells contain."""
    bad = ["S|1", "Ash", "", "", "", "<script>_1_</script>", "`x`", ""]
    path = source / SHEET / f"{SAMPLES}.csv"
    with path.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow(bad)

    _, children = run_master(prefect)

    run = children["field_sample"]
    assert set(run.tags) == {"etl", "field_sample"}
    shown = artifacts(prefect, run.id)
    counts = {
        "table": "field_sample",
        "read": 61,
        "inserted": 59,
        "updated": 0,
        "unchanged": 0,
        "rejected": 2,
        "orphaned": 0,
    }
    assert str(counts).replace("'", '"') in str(shown["accounting-field-sample"].data)
    page = str(shown["rejected-rows-field-sample"].data)
    assert "2 of 61 rows were not loaded. Correct them in the worksheet, and run the flow again" in page
    assert "### 01-BasicSampleInfo" in page
    assert r"- **Row 46** '12,5': Sample\_amount\_kg has a comma" in page
    assert r"- **Row 62** Provider\_code is empty; Collection\_date is not a date" in page
    (run_id,) = query(migrated_database, "SELECT id FROM etl_run WHERE flow_run_id = :run", run=run.id)
    assert f"WHERE etl_run_id = {run_id[0]} " in page
    path.write_text('Primary_crop\n"<b>_1_|`"\n#REF!\n', encoding="utf-8")
    state = AVAILABLE_FLOWS["primary_product"](return_state=True)
    assert state.state_details.flow_run_id
    page = str(artifacts(prefect, state.state_details.flow_run_id)["rejected-rows-primary-product"].data)
    assert r"- **Row 3** '\#REF\!': Primary\_crop is the error of a formula" in page
    assert artifacts(prefect, children["experiment"].id)["rejected-rows-experiment"].data == "No row was rejected."


def test_the_master_run_shows_all_flows(prefect: SyncPrefectClient, migrated_database: Engine, source: Path) -> None:
    """Its own artifacts are the accounting of all flows, and the first rejected rows of each; nothing is lost."""
    with (source / SHEET / f"{EXPERIMENTS}.csv").open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(["", "#N/A", f"<b>{number}"] for number in range(30))

    master, _ = run_master(prefect)

    shown = artifacts(prefect, master.id)
    assert shown.keys() == {"accounting", "rejected-rows"}
    assert all(artifact.task_run_id is None for artifact in shown.values())
    rows = json.loads(str(shown["accounting"].data))
    columns = ("flow", "read", "inserted", "updated", "unchanged", "rejected", "orphaned")
    assert [tuple(row[name] for name in columns) for row in rows] == query(
        migrated_database,
        f"SELECT {', '.join(columns)} FROM etl_run ORDER BY id",  # noqa: S608 - own names
    )
    assert [(row["flow"], row["table"]) for row in rows] == [
        *((flow, table) for flow, (table, *_) in EXPECTED.items()),
        ("observation", "observation"),
    ]
    assert all("failure" not in row for row in rows)
    page = str(shown["rejected-rows"].data)
    assert page.startswith("633 rows read, 68 rejected: analysis_type 30, experiment 30, observation 7, ")
    assert "Correct the worksheets, and run the flows again" in page
    sections = dict(zip(*[iter(re.split(r"(?m)^## (.*)\n", page)[1:])] * 2, strict=True))
    assert list(sections) == ["analysis\\_type", "field\\_sample", "experiment", "observation"]
    assert r"- **Row 46** '12,5': Sample\_amount\_kg has a comma" in sections["field\\_sample"]
    for flow, number in (("experiment", 54), ("analysis\\_type", 52)):
        assert f"30 of {number} rows were not loaded." in sections[flow]
        assert sections[flow].count("\n- **Row ") == 20
        assert "These are the first 20. All of them in the database" in sections[flow]
    assert "The same in the database" in sections["observation"]
    assert {*re.findall(r"(?m)^### (.*)$", sections["observation"])} == {"03.1-Proximate", "03.2-Ultimate"}


@pytest.mark.usefixtures("migrated_database")
def test_the_master_run_says_that_nothing_was_rejected(prefect: SyncPrefectClient, source: Path) -> None:
    for path in (source / SHEET).iterdir():
        path.write_text(path.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")

    master, children = run_master(prefect)

    assert state_of(master)[1].startswith("0 rows read, none rejected. primary_product: read 0 = ")
    assert all(state_of(child)[1].startswith("read 0 = ") for child in children.values())
    assert artifacts(prefect, master.id)["rejected-rows"].data == "No row was rejected."


@pytest.mark.usefixtures("source")
def test_rows_are_loaded_without_artifacts(
    prefect: SyncPrefectClient,
    migrated_database: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An artifact that cannot be made is a warning; neither the load nor its state depends on it."""

    def refuse(*_arguments: object, **_keywords: object) -> None:
        raise httpx.ConnectError("no contact")

    for module in (flows_load, flows_master):
        for kind in ("table", "markdown"):
            monkeypatch.setattr(module, f"create_{kind}_artifact", refuse)
    monkeypatch.setattr(flows_load, "create_progress_artifact", refuse)
    monkeypatch.setattr(flows_load, "_PROGRESS_AFTER_SECONDS", 0)

    master, children = run_master(prefect)

    assert master.state_name == "Completed"
    assert {child.state_name for child in children.values()} == {"Completed"}
    assert query(migrated_database, "SELECT count(*) FROM experiment") == [(24,)]
    # The progress, and the accounting, of each flow, and the accounting of the master run.
    assert caplog.text.count("An artifact is missing, which does not affect the rows: no contact") == 11
    assert "rows read, " in state_of(master)[1]


@pytest.mark.usefixtures("migrated_database", "source")
def test_the_master_run_says_that_its_accounting_is_missing(
    prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the database no longer answers, the run keeps its state, and its page says what is missing."""
    away = create_engine("postgresql://somebody:secret@127.0.0.1:1/nowhere")
    monkeypatch.setattr(flows_master, "engine_from_environment", lambda: away)

    master, _ = run_master(prefect)

    state, message = state_of(master)
    assert state == "Completed"
    assert message.startswith("primary_product: read 57 = ")
    page = str(artifacts(prefect, master.id)["rejected-rows"].data)
    assert page.count("Completed, but its row in etl\\_run could not be read: ") == len(AVAILABLE_FLOWS)


@pytest.mark.usefixtures("migrated_database", "source")
def test_a_long_load_shows_its_progress(prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress artifact ends at 100 percent."""
    monkeypatch.setattr(flows_load, "_PROGRESS_AFTER_SECONDS", 0)
    monkeypatch.setattr(flows_load, "_PROGRESS_EVERY_SECONDS", 0)

    _, children = run_master(prefect)

    progress = artifacts(prefect, children["observation"].id)["progress-observation"]
    assert float(str(progress.data)) == 100
    assert "410 rows read" in str(progress.description)


@pytest.mark.usefixtures("prefect", "migrated_database", "source")
def test_a_load_asks_for_no_concurrency_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect asks for slots of the limits of a task's tags, which takes longer than a small load."""
    asked = []
    deliver = httpx.AsyncHTTPTransport.handle_async_request

    async def note(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return await deliver(transport, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", note)

    state: State[State[object]] = master_flow(return_state=True)

    assert state.is_completed()
    # The task run of each sub-flow run.
    assert asked.count("/api/task_runs/") == len(AVAILABLE_FLOWS)
    assert [path for path in asked if "concurrency" in path] == []


class Sulking:
    """A source that does not answer at first."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.asked = 0

    def worksheets(self, sheet: str) -> list[str]:
        """Raise the configured number of transient errors, then a permanent one."""
        self.asked += 1
        if self.asked <= self.failures:
            raise SourceUnavailableError(f"Sheet '{sheet}' cannot be read at the moment")
        raise ExtractError(f"Sheet '{sheet}' is missing")


@pytest.mark.parametrize(("failures", "asked", "message"), [(2, 3, "is missing"), (9, 4, "at the moment")])
def test_retries_only_where_a_retry_helps(
    prefect: SyncPrefectClient,
    migrated_database: Engine,
    monkeypatch: pytest.MonkeyPatch,
    failures: int,
    asked: int,
    message: str,
) -> None:
    """A source that does not answer is tried four times, one without the sheet once; all within one flow run."""
    source = Sulking(failures)
    monkeypatch.setattr(flows_load, "source_from_environment", lambda: source)
    monkeypatch.setattr(flows_load, "_load", flows_load._load.with_options(retry_delay_seconds=0))

    state = AVAILABLE_FLOWS["experiment"](return_state=True)

    assert source.asked == asked
    assert state.is_failed()
    assert message in (state.message or "")
    assert state.state_details.flow_run_id
    run = prefect.read_flow_run(state.state_details.flow_run_id)
    assert query(migrated_database, "SELECT flow_run_id, status, message FROM etl_run") == [
        (run.id, "failed", state.message)
    ]


@pytest.mark.usefixtures("source")
def test_too_many_rejected_rows_fail_their_flow(
    prefect: SyncPrefectClient, migrated_database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is loaded, its rejected rows are kept and shown, and it is not retried; other flows load theirs."""
    monkeypatch.setenv("ETL_REJECTED_LIMITS", "all=10%, observation=6")

    master, children = run_master(prefect)

    why = (
        "7 of 410 rows were rejected, more than the limit of 6 (ETL_REJECTED_LIMITS): nothing was loaded. Correct "
        "these rows in the worksheet and run the flow again, or raise the limit"
    )
    assert state_of(children["observation"]) == ("Failed", why)
    family = FlowRunFilter(id=FlowRunFilterId(any_=[children["observation"].id]))

    def ended_loads() -> list[TaskRun]:
        return [run for run in prefect.read_task_runs(flow_run_filter=family) if run.state and run.state.is_final()]

    (load,) = limits.wait_until(ended_loads, "the end of the load is recorded", limits.ANSWER)
    assert load.run_count == 1
    assert query(migrated_database, "SELECT count(*) FROM observation") == [(0,)]
    assert query(migrated_database, "SELECT count(*) FROM experiment") == [(24,)]
    runs = (
        "SELECT status, message, read, (SELECT count(*) FROM rejected_row WHERE etl_run_id = etl_run.id) FROM etl_run"
        " WHERE flow = 'observation' ORDER BY id"
    )
    assert query(migrated_database, runs) == [("failed", why, 0, 7)]
    shown = artifacts(prefect, children["observation"].id)
    assert shown.keys() == {"rejected-rows-observation"}
    page = str(shown["rejected-rows-observation"].data)
    assert page.startswith(r"7 of 410 rows were rejected, more than the limit of 6 \(ETL\_REJECTED\_LIMITS\)")
    assert page.count("\n- **Row ") == 7

    assert state_of(master) == (
        "Failed",
        f"1 of 5 flows failed. 163 rows read, 1 rejected: field_sample 1. observation: {why}",
    )
    page = str(artifacts(prefect, master.id)["rejected-rows"].data)
    assert "## observation\n\n**Failed:** 7 of 410 rows were rejected" in page
    assert page.count("\n- **Row ") == 8

    # As many as the limit are not too many.
    monkeypatch.setenv("ETL_REJECTED_LIMITS", "observation=7")
    assert AVAILABLE_FLOWS["observation"](return_state=True).is_completed()
    assert [row[0] for row in query(migrated_database, runs)] == ["failed", "completed"]


@pytest.mark.usefixtures("prefect", "source")
def test_a_malformed_limit_is_one_error(migrated_database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The master run ends before its first flow, and so does a flow that is run alone."""
    for value, words in {"observation=few": "is no limit", "observations=6": "Did you mean 'observation'?"}.items():
        monkeypatch.setenv("ETL_REJECTED_LIMITS", value)
        state = master_flow(return_state=True)
        assert state.is_failed()
        assert words in (state.message or "")
        assert (state.message or "").endswith("No flow was run")
    monkeypatch.setenv("ETL_REJECTED_LIMITS", "observation=few")
    state = AVAILABLE_FLOWS["experiment"](return_state=True)
    assert state.is_failed()
    assert (state.message or "").startswith("ETL_REJECTED_LIMITS is 'observation=few': 'observation=few' is no limit")
    assert query(migrated_database, "SELECT count(*) FROM etl_run") == [(0,)]


@pytest.mark.usefixtures("prefect", "source")
def test_a_database_that_is_away_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run's message then says that the database is unreachable, without its password."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://somebody:secret@127.0.0.1:1/nowhere")
    monkeypatch.setattr(flows_load, "_load", flows_load._load.with_options(retry_delay_seconds=0))

    state = AVAILABLE_FLOWS["experiment"](return_state=True)

    assert state.is_failed()
    assert (state.message or "").startswith("The database refused or did not answer: ")
    assert "Connection refused" in (state.message or "")
    assert "secret" not in (state.message or "")
    assert "Retries are exhausted" in caplog.text


@pytest.mark.thorough
@pytest.mark.usefixtures("migrated_database", "source")
def test_an_answer_that_is_lost_fails_nothing(prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server stored the state, but its reply was lost and the client retries: the run stays Completed."""
    lost = []
    deliver = httpx.HTTPTransport.handle_request

    def lose(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        response = deliver(transport, request)
        flow_run_id = request.url.path.removeprefix("/api/flow_runs/").removesuffix("/set_state")
        if b"COMPLETED" in request.read() and flow_run_id != request.url.path and flow_run_id not in lost:
            lost.append(flow_run_id)
            response.close()
            raise httpx.ReadError("connection reset")
        return response

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", lose)

    master, _ = run_master(prefect)

    assert len(lost) == len(AVAILABLE_FLOWS) + 1
    state, message = state_of(master)
    assert state == "Completed"
    assert all(f"{flow}: read " in message for flow in AVAILABLE_FLOWS)


def _rename_column(sheet: Path) -> None:
    path = sheet / f"{SAMPLES}.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("Primary_crop", "Primary crop"), encoding="utf-8")


def test_one_failing_flow_does_not_stop_the_others(
    prefect: SyncPrefectClient, migrated_database: Engine, source: Path
) -> None:
    """Flows of the broken worksheet are Failed with a reason, the others load their rows, the master is Failed."""
    _rename_column(source / SHEET)

    master, children = run_master(prefect)

    why = f"Column 'Primary_crop' is missing in worksheet '{SAMPLES}'"
    for flow in ("primary_product", "field_sample"):
        state, message = state_of(children[flow])
        assert state == "Failed"
        assert message.startswith(why)
        assert "Rename 'Primary crop' to 'Primary_crop' in the header, row 1" in message
    for flow in ("analysis_type", "experiment", "observation"):
        assert children[flow].state_name == "Completed"
    assert query(migrated_database, "SELECT count(*) FROM primary_product") == [(0,)]
    assert query(migrated_database, "SELECT count(*) FROM experiment") == [(24,)]
    # No measurement is loaded without its sample, and each one is accounted for.
    assert query(migrated_database, "SELECT count(*) FROM observation") == [(0,)]
    assert "read 410 = inserted 0 + updated 0 + unchanged 0 + rejected 410" in state_of(children["observation"])[1]
    state, message = state_of(master)
    assert state == "Failed"
    totals = "456 rows read, 410 rejected: observation 410. "
    assert message.startswith(f"2 of 5 flows failed. {totals}primary_product, field_sample: {why}")
    assert "experiment:" not in message
    shown = artifacts(prefect, master.id)
    rows = {row["flow"]: row for row in json.loads(str(shown["accounting"].data))}
    assert rows["primary_product"] | {"failure": ""} == {
        "flow": "primary_product",
        "table": "primary_product",
        **dict.fromkeys(("read", "inserted", "updated", "unchanged", "rejected", "orphaned")),
        "failure": "",
    }
    assert rows["primary_product"]["failure"] == state_of(children["primary_product"])[1]
    assert (rows["experiment"]["inserted"], rows["experiment"]["failure"]) == (24, None)
    page = str(shown["rejected-rows"].data)
    assert "## primary\\_product\n\n**Failed:** Column 'Primary\\_crop' is missing" in page
    assert "410 of 410 rows were not loaded." in page


def test_every_failing_flow_is_named(prefect: SyncPrefectClient, migrated_database: Engine, source: Path) -> None:
    """A missing sheet fails all flows, for one reason."""
    sheet = source / SHEET
    sheet.rename(sheet.with_name("Aim 1-Feedstock"))

    master, children = run_master(prefect)

    assert {child.state_name for child in children.values()} == {"Failed"}
    state, message = state_of(master)
    assert state == "Failed"
    reason = f"Sheet '{SHEET}' is missing: there is neither a folder {source / SHEET} nor a workbook "
    assert message.startswith(f"5 of 5 flows failed. {', '.join(AVAILABLE_FLOWS)}: {reason}")
    assert message.count(reason) == 1
    assert query(migrated_database, "SELECT count(*), count(DISTINCT flow) FROM etl_run WHERE status = 'failed'") == [
        (5, 5)
    ]


@pytest.mark.usefixtures("source")
def test_a_database_without_the_schema_fails_all(prefect: SyncPrefectClient, engine: Engine) -> None:
    """The message names the missing table, and nothing is left behind."""
    master, _ = run_master(prefect)

    state, message = state_of(master)
    assert state == "Failed"
    assert message.startswith("5 of 5 flows failed. ")
    assert 'relation "etl_run" does not exist' in message
    page = str(artifacts(prefect, master.id)["rejected-rows"].data)
    assert page.count("**Failed:**") == len(AVAILABLE_FLOWS)
    assert query(engine, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


@pytest.mark.parametrize("name", ['Corn, "sweet"', "\\N", "\\.", "a;b|c'd", "NULL", "$$", "%s :name", "\t x"])
@pytest.mark.usefixtures("prefect")
def test_a_name_survives_the_way_into_the_table(migrated_database: Engine, source: Path, name: str) -> None:
    """The name may contain the separators and escapes of the staging format."""
    with (source / SHEET / f"{SAMPLES}.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["Primary_crop"], [name]])

    AVAILABLE_FLOWS["primary_product"]()

    assert query(migrated_database, "SELECT name FROM primary_product") == [(name.strip(),)]
