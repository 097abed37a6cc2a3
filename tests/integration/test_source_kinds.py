"""The sample data loads alike from csv files, from a workbook and from Google Sheets, as the environment says."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook
from prefect import State

from ca_biositing.pipeline.etl.run import Accounting
from run_prefect_flow import AVAILABLE_FLOWS
from tests.unit.google_api import Spreadsheet, google_api

SHEET = "Aim 1-Feedstock Collection and Processing Data-BioCirV"


@pytest.fixture
def worksheets(source: Path) -> dict[str, list[list[str]]]:
    """Return the sample data's worksheets, as cells."""
    cells = {}
    for path in (source / SHEET).glob("*.csv"):
        with path.open(encoding="utf-8-sig", newline="") as file:
            cells[path.stem] = list(csv.reader(file))
    return cells


@pytest.fixture(params=["xlsx", "", "google"], ids=["xlsx", "workbook-in-folder", "google"])
def kind(
    request: pytest.FixtureRequest,
    worksheets: dict[str, list[list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """Put the worksheets into a source of each kind, which the environment selects during the test."""
    if request.param != "google":
        workbook = Workbook()
        workbook.remove(workbook.worksheets[0])
        for name, rows in worksheets.items():
            tab = workbook.create_sheet(name)
            for row in rows:
                tab.append([cell or None for cell in row])
        workbook.save(tmp_path / f"{SHEET}.xlsx")
        monkeypatch.setenv("ETL_SOURCE_DIRECTORY", str(tmp_path))
        monkeypatch.setenv("ETL_SOURCE", request.param)
        yield
        return
    with google_api() as api:
        api.spreadsheets = [Spreadsheet("1", SHEET, dict(worksheets))]
        key = tmp_path / "key.json"
        key.write_text(json.dumps(api.credentials), encoding="utf-8")
        monkeypatch.setenv("CREDENTIALS_PATH", str(key))
        monkeypatch.setenv("ETL_GOOGLE_API_URL", api.url)
        monkeypatch.setenv("ETL_SOURCE", "google")
        yield


def load_all() -> dict[str, Accounting]:
    """Run all flows; return the accounting of each."""
    accounts = {}
    for name, flow in AVAILABLE_FLOWS.items():
        state: State[Any] = flow(return_state=True)
        assert state.is_completed(), f"{name}: {state.message}"
        accounts[name] = state.result()
    return accounts


@pytest.mark.usefixtures("prefect", "migrated_database", "kind")
def test_another_source_changes_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All five flows read the same rows, and find them in the tables as loaded from the csv files."""
    before = load_all()
    monkeypatch.setenv("ETL_SOURCE", "csv")
    monkeypatch.setenv("ETL_SOURCE_DIRECTORY", str(source))

    after = load_all()

    for name, accounting in before.items():
        assert accounting.inserted > 0
        assert (after[name].read, after[name].rejected) == (accounting.read, accounting.rejected)
        assert (after[name].inserted, after[name].updated) == (0, 0)
