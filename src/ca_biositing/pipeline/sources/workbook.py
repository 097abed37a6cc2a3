"""Sheets as Excel workbooks."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from openpyxl import load_workbook
from openpyxl.utils.escape import unescape
from openpyxl.worksheet._read_only import ReadOnlyWorksheet

from ca_biositing.pipeline.sources.base import (
    ExtractError,
    Worksheet,
    alternatives,
    no_folder,
    refuse_other_case,
    unreadable,
)
from ca_biositing.pipeline.sources.cells import row_texts

_ZIP = b"PK"
_OLE = bytes.fromhex("D0CF11E0A1B11AE1")


@dataclass(frozen=True)
class WorkbookFolder:
    """A folder of ``<sheet>.xlsx`` files. A formula is read as its result when the file was saved."""

    directory: Path

    def worksheets(self, sheet: str) -> Sequence[str]:
        """Return the names of a sheet's worksheets; see :meth:`Source.worksheets`."""
        with self._pages(sheet) as pages:
            return sorted(pages)

    @contextmanager
    def open(self, sheet: str, worksheet: str) -> Iterator[Worksheet]:
        """Open a worksheet of a workbook; see :meth:`Source.open`."""
        path = self._path(sheet)
        with self._pages(sheet) as pages:
            if worksheet not in pages:
                raise ExtractError(
                    f"Worksheet '{worksheet}' of sheet '{sheet}' is missing: it is not in {path}. "
                    f"{alternatives('worksheet', worksheet, pages)} Give the worksheet that name in the workbook"
                )
            what = f"Worksheet '{worksheet}' of sheet '{sheet}' ({path})"
            reading = _Reading(pages[worksheet], what)
            rows = reading.rows()
            header = next(rows, [])
            if not header:
                raise ExtractError(f"{what} has no header: row 1 is empty. Put the names of the columns there")
            reading.width = len(header)
            yield Worksheet(sheet, worksheet, str(path), header, rows, reading.progress)

    def _path(self, sheet: str) -> Path:
        return self.directory / f"{sheet}.xlsx"

    @contextmanager
    def _pages(self, sheet: str) -> Iterator[Mapping[str, ReadOnlyWorksheet]]:
        path = self._path(sheet)
        what = f"Sheet '{sheet}' ({path})"
        try:
            file = path.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            raise ExtractError(self._missing(sheet)) from None
        except OSError as error:
            raise unreadable(what, error) from error
        with file:
            try:
                workbook = load_workbook(file, read_only=True, data_only=True, keep_links=False)
            except Exception as error:  # openpyxl does not validate its input: a damaged file can raise any exception
                raise ExtractError(f"{what} {_no_workbook(file, error)}") from error
            yield {page.title: page for page in workbook.worksheets if isinstance(page, ReadOnlyWorksheet)}

    def _missing(self, sheet: str) -> str:
        if not self.directory.is_dir():
            return no_folder(self.directory)
        refuse_other_case(self.directory.glob("*"), ".xlsx")
        # Excel keeps a file ~$name.xlsx beside a workbook that is open.
        sheets = (entry.stem for entry in self.directory.glob("*.xlsx") if not entry.name.startswith("~$"))
        return (
            f"Sheet '{sheet}' is missing: there is no file {self._path(sheet)}. {alternatives('sheet', sheet, sheets)} "
            "Put the sheet there as an Excel workbook (.xlsx) of that name"
        )


class _Reading:
    """One pass over a worksheet. ``width`` is the minimum number of cells of a row."""

    def __init__(self, page: ReadOnlyWorksheet, what: str) -> None:
        self.width = 0
        self._page = page
        self._what = what
        self._number = 0
        self._ended = False
        # Some exporters store a wrong size, to which openpyxl would truncate the rows.
        self._last = page.max_row or 0
        page.reset_dimensions()

    def rows(self) -> Iterator[list[str]]:
        blank = 0
        try:
            for values in self._page.values:
                self._number += 1
                row = row_texts(map(_unescaped, values), self.width)
                if any(row) or self._number == 1:
                    yield from ([""] * self.width for _ in range(blank))
                    blank = 0
                    yield row
                else:
                    # Perhaps after the last row, where a million rows can be formatted but empty.
                    blank += 1
        except Exception as error:
            raise ExtractError(
                f"{self._what} is damaged after row {self._number} ({_said(error)}). Save the workbook in Excel again"
            ) from error
        self._ended = True

    def progress(self) -> float:
        if self._ended:
            return 1.0
        # Past the stored size, that size was wrong and the progress is unknown.
        return self._number / self._last if self._number < self._last else 0.0


def _unescaped(cell: object) -> object:
    """Return a cell without Excel's escapes for characters that XML cannot hold, such as _x000D_ (carriage return)."""
    if not isinstance(cell, str) or "_x" not in cell:
        return cell
    return unescape(cell).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _no_workbook(file: BinaryIO, error: Exception) -> str:
    file.seek(0)
    start = file.read(len(_OLE))
    if start == _OLE:
        return (
            "is an old .xls workbook or protected by a password. "
            "Open it in Excel, remove the password if it has one, and save it as Excel Workbook (.xlsx)"
        )
    if start.startswith(_ZIP):
        return f"is damaged, or no Excel workbook ({_said(error)}). Copy it again, or save it in Excel again as .xlsx"
    return "is no Excel workbook, whatever its name says. Open it in Excel and save it as Excel Workbook (.xlsx)"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
