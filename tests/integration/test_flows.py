"""What the flows load, and what Prefect then says about them."""

import csv
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pytest
from prefect import State
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun
from sqlalchemy import Engine, text

from ca_biositing.datamodels.models import PrimaryProduct
from ca_biositing.pipeline.etl.load import load_names
from ca_biositing.pipeline.etl.transform import distinct_names
from run_prefect_flow import AVAILABLE_FLOWS, master_flow

SHEET = "Aim 1-Feedstock Collection and Processing Data-BioCirV"
WORKSHEETS = {
    "primary_product": ("01-BasicSampleInfo", 2, "primary_product"),
    "analysis_type": ("03.0-Experiments", 1, "analysis_types"),
}


def worksheet_cells(source: Path, flow: str) -> list[str]:
    """Return the cells of the column that the flow reads, trimmed and composed."""
    worksheet, index, _ = WORKSHEETS[flow]
    with (source / SHEET / f"{worksheet}.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))[1:]
    return [unicodedata.normalize("NFC", " ".join(row[index].split())) for row in rows]


def table_names(engine: Engine, flow: str) -> list[str]:
    """Return the names in the table that the flow loads."""
    with engine.connect() as connection:
        return list(connection.scalars(text(f"SELECT name FROM {WORKSHEETS[flow][2]}")))  # noqa: S608 - a constant


def first_spellings(cells: Iterable[str]) -> set[str]:
    """Return one spelling per name, the first."""
    spellings: dict[str, str] = {}
    for cell in cells:
        if cell:
            spellings.setdefault(cell.lower(), cell)
    return set(spellings.values())


def run_master(client: SyncPrefectClient) -> tuple[FlowRun, dict[str, FlowRun]]:
    """Run the master flow; return its run and those of its sub-flows by name, as the server has them."""
    state: State[State[object]] = master_flow(return_state=True)
    assert state.state_details.flow_run_id
    master = client.read_flow_run(state.state_details.flow_run_id)
    children = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[master.id]))
    )
    return master, {client.read_flow(child.flow_id).name: child for child in children}


def state_of(run: FlowRun) -> tuple[str | None, str]:
    """Return the state's name and message."""
    assert run.state
    return run.state_name, run.state.message or ""


def test_the_sample_data_is_loaded_once(prefect: SyncPrefectClient, migrated_database: Engine, source: Path) -> None:
    """Each distinct name is a row; a second run finds all of them there."""
    for run in ("first", "second"):
        master, children = run_master(prefect)

        assert master.state_name == "Completed"
        assert set(children) == set(AVAILABLE_FLOWS) == set(WORKSHEETS)
        for flow, child in children.items():
            assert child.state_name == "Completed"
            cells = worksheet_cells(source, flow)
            names = first_spellings(cells)
            assert sorted(table_names(migrated_database, flow)) == sorted(names)
            inserted, unchanged = (len(names), 0) if run == "first" else (0, len(names))
            empty = cells.count("")
            assert (
                f"{flow}: read {len(cells)} = inserted {inserted} + unchanged {unchanged} "
                f"+ duplicates {len(cells) - empty - len(names)} + empty {empty}"
            ) in state_of(master)[1]


def test_the_sample_data_is_as_untidy_as_a_lab_s(source: Path) -> None:
    """Otherwise the test above says little."""
    for flow, (worksheet, _, _) in WORKSHEETS.items():
        cells = worksheet_cells(source, flow)
        assert "" in cells
        assert len({cell for cell in cells if cell}) > len(first_spellings(cells))
        assert "\u00a0" in (source / SHEET / f"{worksheet}.csv").read_text(encoding="utf-8")
    crops = (source / SHEET / "01-BasicSampleInfo.csv").read_text(encoding="utf-8")
    assert "n\u0303" in crops


@pytest.mark.usefixtures("prefect")
def test_a_new_name_is_added_and_a_known_one_keeps_its_spelling(migrated_database: Engine, source: Path) -> None:
    """Only the new row is inserted."""
    counts = AVAILABLE_FLOWS["primary_product"]()
    before = table_names(migrated_database, "primary_product")
    (source / SHEET / "01-BasicSampleInfo.csv").write_text("Primary_crop\nALMOND\nMedlar\n", encoding="utf-8")

    again = AVAILABLE_FLOWS["primary_product"]()

    assert (again.read, again.inserted, again.unchanged, again.duplicates, again.empty) == (2, 1, 1, 0, 0)
    assert sorted(table_names(migrated_database, "primary_product")) == sorted([*before, "Medlar"])
    assert counts.read == counts.inserted + counts.unchanged + counts.duplicates + counts.empty


def test_a_name_survives_the_way_into_the_table(migrated_database: Engine) -> None:
    """Whatever the staging format uses for itself."""
    names = ['Corn, "sweet"', "\\N", "\\.", "a;b|c'd", "NULL"]

    counts = load_names(migrated_database, PrimaryProduct, distinct_names(names))

    assert counts.inserted == len(names)
    assert sorted(table_names(migrated_database, "primary_product")) == sorted(names)


def _remove_sheet(sheet: Path) -> None:
    sheet.rename(sheet.with_name("Aim 1-Feedstock"))


def _rename_column(sheet: Path) -> None:
    path = sheet / "01-BasicSampleInfo.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("Primary_crop", "Primary crop"), encoding="utf-8")


def test_one_failing_flow_does_not_stop_the_other(
    prefect: SyncPrefectClient, migrated_database: Engine, source: Path
) -> None:
    """The one before is Failed and says why, the other one's rows are there, the master is Failed."""
    _rename_column(source / SHEET)

    master, children = run_master(prefect)

    why = "Column 'Primary_crop' is missing in worksheet '01-BasicSampleInfo'"
    state, message = state_of(children["primary_product"])
    assert state == "Failed"
    assert why in message
    assert "Did you mean 'Primary crop'?" in message
    assert children["analysis_type"].state_name == "Completed"
    assert set(table_names(migrated_database, "analysis_type")) == first_spellings(
        worksheet_cells(source, "analysis_type")
    )
    assert table_names(migrated_database, "primary_product") == []
    state, message = state_of(master)
    assert state == "Failed"
    assert message.startswith(f"1 of 2 flows failed. primary_product: {why}")
    assert "analysis_type:" not in message


def test_every_failing_flow_is_named(prefect: SyncPrefectClient, migrated_database: Engine, source: Path) -> None:
    """A missing sheet is missed by both."""
    _remove_sheet(source / SHEET)

    master, children = run_master(prefect)

    assert {child.state_name for child in children.values()} == {"Failed"}
    state, message = state_of(master)
    assert state == "Failed"
    for flow in AVAILABLE_FLOWS:
        assert f"{flow}: Sheet '{SHEET}' is missing: there is no folder {source / SHEET}" in message
    assert table_names(migrated_database, "analysis_type") == []


@pytest.mark.usefixtures("source")
def test_a_database_without_the_schema_fails_both(prefect: SyncPrefectClient, engine: Engine) -> None:
    """And says which table it misses, leaving nothing behind."""
    master, _ = run_master(prefect)

    state, message = state_of(master)
    assert state == "Failed"
    assert 'relation "primary_product" does not exist' in message
    assert 'relation "analysis_types" does not exist' in message
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")) == 0
