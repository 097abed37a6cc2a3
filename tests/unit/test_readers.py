"""The table by which the reader of workbooks was chosen: the same cells, as other programs write them.

The parts of the workbooks were written by the programs beside them; LibreOffice 7.4 converted one of openpyxl's.
"""

from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
from openpyxl import load_workbook

from ca_biositing.pipeline.sources.cells import Cell, Kind
from ca_biositing.pipeline.sources.workbook import WorkbookFile

WORKBOOKS = Path(__file__).with_name("workbooks")
Seen = tuple[str, Kind | None, str | None]
WRITERS = ("exceljs", "libreoffice", "libxlsxwriter", "sheetjs")

# What a cell is, what is known of it, and what people see where that differs.
CELLS: dict[str, Seen] = {
    "text": (" Maïs 🌽", None, None),
    "digits": ("0007", None, None),
    "escape": ("lot_x0041_b", None, None),
    "whole": ("18", None, None),
    "decimal": ("12.5", None, None),
    "sum": ("0.3", None, None),
    "third": ("0.333333333333333", Kind.NUMBER, None),
    "small": ("0.00001", None, None),
    "large": ("1000000000000000", Kind.NUMBER, None),
    "date": ("2023-09-07", Kind.DATE, None),
    "day": ("2026-03-01", Kind.DATE, None),
    "east": ("2024-10-31", Kind.DATE, None),
    "time": ("2023-09-07T10:30:00", Kind.DATE, None),
    "true": ("TRUE", Kind.BOOLEAN, None),
    "false": ("FALSE", Kind.BOOLEAN, None),
    "error": ("#N/A", Kind.ERROR, None),
    "zeros": ("7", Kind.NUMBER, "0007"),
    "prefix": ("42", Kind.NUMBER, "BIO-042"),
    "percent": ("0.125", Kind.SCALED, "12.5%"),
    "rounded": ("1234.5678", Kind.NUMBER, "1,234.57"),
    "result": ("2", None, None),
    "no result": ("=1+1", Kind.FORMULA, None),
    "merged": ("Rice", None, None),
    "covered": ("", Kind.MERGED, None),
}
# LibreOffice calculates; libxlsxwriter asks Excel to calculate everything, and cannot write an error.
OTHERWISE: dict[str, dict[str, Seen | None]] = {
    "libreoffice": {"no result": ("2", None, None)},
    "libxlsxwriter": {"result": ("=1+1", Kind.FORMULA, None), "error": None},
}


@pytest.fixture(scope="module")
def workbook(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that packs the parts of a writer's workbook, and returns its path."""
    folder = tmp_path_factory.mktemp("workbooks")

    def pack(writer: str) -> Path:
        path = folder / f"{writer}.xlsx"
        if not path.exists():
            with ZipFile(path, "w", ZIP_DEFLATED) as file:
                for part in sorted((WORKBOOKS / writer).rglob("*")):
                    if part.is_file():
                        file.write(part, part.relative_to(WORKBOOKS / writer))
        return path

    return pack


@pytest.mark.parametrize("case", CELLS)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_cell_is_read_as_it_was_written(workbook: Callable[[str], Path], writer: str, case: str) -> None:
    with WorkbookFile(workbook(writer)).open("Lab", "Cells") as opened:
        cells = {row[0]: row[1] for row in opened.rows}
    cell = cells.get(case)
    known = (cell.kind, cell.shown) if isinstance(cell, Cell) else (None, None)
    assert (None if cell is None else (str(cell), *known)) == OTHERWISE.get(writer, {}).get(case, CELLS[case])


@pytest.mark.parametrize("writer", WRITERS)
def test_openpyxl_would_not_tell_these_cells_from_others(workbook: Callable[[str], Path], writer: str) -> None:
    """The reason for a reader of our own: neither formats nor formulas come with values.

    python-calamine tells them no better, and allocates the whole rectangle of a worksheet's cells.
    """
    page = load_workbook(workbook(writer), read_only=True, data_only=True)["Cells"]
    values = {row[0]: row[1] for row in page.values}
    assert values["zeros"] == 7
    assert values["prefix"] == 42
    assert values["percent"] == 0.125
    assert values["covered"] is None
    assert values["no result"] in (None, 0, 2)
