"""Sheets as Excel workbooks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import BinaryIO

from ca_biositing.pipeline.sources.base import (
    WORKBOOK_SUFFIXES,
    ExtractError,
    Source,
    Worksheet,
    alternatives,
    no_folder,
    other_files,
    unreadable,
    workbooks,
)
from ca_biositing.pipeline.sources.cells import Hidden, Row, seen
from ca_biositing.pipeline.sources.ooxml import Workbook

_ZIP = b"PK"
_OLE = bytes.fromhex("D0CF11E0A1B11AE1")
_NO_CELLS = Row({})


@dataclass(frozen=True)
class WorkbookFile(Source):
    """A workbook, as the only sheet. A formula is read as its result when the file was saved."""

    path: Path

    def worksheets(self, sheet: str) -> Sequence[str]:
        """Return the names of its worksheets; see :meth:`Source.worksheets`."""
        with self._opened(sheet) as workbook:
            return sorted(workbook.pages)

    @contextmanager
    def open(self, sheet: str, worksheet: str) -> Iterator[Worksheet]:
        """Open a worksheet; see :meth:`Source.open`."""
        with self._opened(sheet) as workbook:
            if worksheet not in workbook.pages:
                raise ExtractError(
                    f"Worksheet '{worksheet}' of sheet '{sheet}' is missing: it is not in {self.path}. "
                    f"{alternatives('worksheet', worksheet, workbook.pages)} "
                    "Give the worksheet that name in the workbook"
                )
            what = f"Worksheet '{worksheet}' of sheet '{sheet}' ({self.path})"
            reading = _Reading(workbook, worksheet, what)
            rows = reading.rows()
            header = [seen(cell) for cell in next(rows, _NO_CELLS)]
            if not header:
                raise ExtractError(f"{what} has no header: row 1 is empty. Put the names of the columns there")
            yield Worksheet(
                sheet,
                worksheet,
                str(self.path),
                header,
                rows,
                lambda: reading.progress,
                lambda: reading.hidden.notes(header),
            )

    @contextmanager
    def _opened(self, sheet: str) -> Iterator[Workbook]:
        what = f"Sheet '{sheet}' ({self.path})"
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise unreadable(what, error) from error
        with file:
            try:
                workbook = Workbook(file)
            except Exception as error:  # a damaged file can raise any exception
                raise ExtractError(f"{what} {_no_workbook(file, error)}") from error
            yield workbook


@dataclass(frozen=True)
class WorkbookFolder(Source):
    """A folder of ``<sheet>.xlsx`` or ``<sheet>.xlsm`` files, whose names may be in capitals."""

    directory: Path

    def worksheets(self, sheet: str) -> Sequence[str]:
        """Return the names of a sheet's worksheets; see :meth:`Source.worksheets`."""
        return self._file(sheet).worksheets(sheet)

    @contextmanager
    def open(self, sheet: str, worksheet: str) -> Iterator[Worksheet]:
        """Open a worksheet of a workbook; see :meth:`Source.open`."""
        with self._file(sheet).open(sheet, worksheet) as opened:
            yield opened

    def _file(self, sheet: str) -> WorkbookFile:
        path = self.directory / f"{sheet}{WORKBOOK_SUFFIXES[0]}"
        try:
            files = workbooks(self.directory)
        except (FileNotFoundError, NotADirectoryError):
            raise ExtractError(no_folder(self.directory)) from None
        except OSError as error:
            raise unreadable(f"Sheet '{sheet}' ({path})", error) from error
        if sheet in files:
            return WorkbookFile(files[sheet])
        raise ExtractError(
            f"Sheet '{sheet}' is missing: there is no file {path}. {alternatives('sheet', sheet, files)} "
            f"{other_files(self.directory)}"
            "Put the sheet there as an Excel workbook (.xlsx) of that name"
        )


class _Reading:
    """One pass over a worksheet: ``progress`` is the fraction that was read, ``hidden`` what people do not see."""

    def __init__(self, workbook: Workbook, page: str, what: str) -> None:
        self.progress = 0.0
        self.hidden = Hidden()
        self._workbook = workbook
        self._page = page
        self._what = what

    def rows(self) -> Iterator[Row]:
        """Return all rows from the first to the last that has a value."""
        last = 0
        try:
            for number, row in self._workbook.rows(self._page, self._read, self.hidden):
                yield from repeat(_NO_CELLS, number - last - 1)
                yield row
                last = number
        except Exception as error:
            raise ExtractError(
                f"{self._what} is damaged after row {last} ({_said(error)}). Save the workbook in Excel again"
            ) from error

    def _read(self, fraction: float) -> None:
        self.progress = fraction


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
