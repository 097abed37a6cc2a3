"""Sheets as folders of csv files."""

import csv
import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

from ca_biositing.pipeline.sources.base import (
    ExtractError,
    Source,
    Worksheet,
    alternatives,
    is_sheet_file,
    no_folder,
    unreadable,
)
from ca_biositing.pipeline.sources.cells import BrokenRow

# After an unclosed quote the rest of the file is one cell. The limit fails before memory is exhausted.
_MAX_CELL_CHARACTERS = 64 * 1024 * 1024
SUFFIX = ".csv"
_CUT = (
    "is the last of the file and has no line end, as in a file that was cut off; "
    "export the worksheet again, or end the line if it is whole"
)
_NO_LINE_END = (
    "row {}, the last one, has no line end, as in files of Google Sheets, and in a file that was cut off: "
    "compare its last cell, '{}', and whether rows are missing"
)
_SHOWN_CHARACTERS = 50
_SPLIT = (
    "is a part of one that a line break in a cell has split; "
    "put double quotes around that cell, or export the worksheet again"
)


@dataclass(frozen=True)
class CsvFolder(Source):
    """A folder of ``<sheet>/<worksheet>.csv`` files: RFC 4180, UTF-8 with or without a byte order mark."""

    directory: Path

    def worksheets(self, sheet: str) -> Sequence[str]:
        """Return the names of a sheet's worksheets; see :meth:`Source.worksheets`."""
        folder = self.directory / sheet
        try:
            if not self.directory.is_dir():
                raise ExtractError(no_folder(self.directory))
            if not folder.is_dir():
                sheets = (entry.name for entry in self.directory.iterdir() if entry.is_dir())
                raise ExtractError(
                    f"Sheet '{sheet}' is missing: there is no folder {folder}. {alternatives('sheet', sheet, sheets)} "
                    "Put the sheet's worksheets there as csv files, one <worksheet>.csv for each"
                )
            return sorted(_worksheets(folder))
        except OSError as error:
            raise unreadable(f"Sheet '{sheet}' ({folder})", error) from error

    @contextmanager
    def open(self, sheet: str, worksheet: str) -> Iterator[Worksheet]:
        """Open a worksheet's file; see :meth:`Source.open`."""
        path = self.directory / sheet / f"{worksheet}{SUFFIX}"
        present = self.worksheets(sheet)
        if worksheet not in present:
            raise ExtractError(
                f"Worksheet '{worksheet}' of sheet '{sheet}' is missing: there is no file {path}. "
                f"{alternatives('worksheet', worksheet, present)} Export the worksheet as CSV UTF-8 under that name"
            )
        what = f"Worksheet '{worksheet}' of sheet '{sheet}' ({path})"
        try:
            path = _worksheets(self.directory / sheet)[worksheet]
            content = path.open("rb")
        except OSError as error:
            raise unreadable(what, error) from error
        with content, TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            # Excel, which begins its files so, ends every line. Google Sheets and editors do neither.
            is_of_excel = content.peek(len(BOM_UTF8)).startswith(BOM_UTF8)
            notes: list[str] = []
            rows = _rows(file, what, notes, ends_every_line=is_of_excel)
            header = next(rows, None)
            if header is None:
                raise ExtractError(f"{what} is empty: not even a header is there. Export it again as CSV UTF-8")
            if any("\0" in name for name in header):
                raise ExtractError(f"{what} holds NUL characters, as UTF-16 does. Export it again as CSV UTF-8")
            if header[:1] and (header[0].startswith("sep=") or (len(header) == 1 and re.search("[;\t]", header[0]))):
                raise ExtractError(
                    f"{what} has other separators than commas, as Excel writes where the decimal comma is usual. "
                    "Save all worksheets as Excel Workbook (.xlsx), or export this one with commas"
                )
            size = os.fstat(content.fileno()).st_size
            yield Worksheet(sheet, worksheet, str(path), header, rows, lambda: content.tell() / size, lambda: notes)


def _worksheets(folder: Path) -> dict[str, Path]:
    """Return the csv files of a folder, by the names of their worksheets. Capitals in a suffix make no difference."""
    found: dict[str, Path] = {}
    # Not glob, which takes a folder that it may not read for an empty one.
    for entry in sorted(folder.iterdir()):
        if is_sheet_file(entry, (SUFFIX,)):
            if entry.stem in found:
                raise ExtractError(
                    f"Worksheet '{entry.stem}' is there twice, as {found[entry.stem]} and as {entry}. "
                    "Remove one of them"
                )
            found[entry.stem] = entry
    return found


class _Lines:
    """The lines of a file. ``end`` is the line end of the last one that was read."""

    def __init__(self, file: TextIOWrapper) -> None:
        self._file = file
        self.end = ""

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.end = line[len(line.rstrip("\r\n")) :]
            yield line


def _rows(file: TextIOWrapper, what: str, notes: list[str], *, ends_every_line: bool) -> Iterator[Sequence[str]]:
    """Return the header and the rows; one that is not whole is a :class:`BrokenRow`.

    A note is added if it cannot be known whether the last one is.
    ``ends_every_line`` says that the program that wrote the file ends the last line as well.
    """
    lines = _Lines(file)
    records = _records(lines, what)
    for header in records:
        yield header
        yield from _whole_rows(records, lines, len(header), notes, ends_every_line=ends_every_line)


def _whole_rows(
    records: Iterator[Sequence[str]], lines: _Lines, width: int, notes: list[str], *, ends_every_line: bool
) -> Iterator[Sequence[str]]:
    # Where a text with a line break is not in quotes, the line end is seldom that of the file, and a row has not all
    # cells. Excel leaves out empty cells at the end of a row, so that alone a row with fewer cells may be whole.
    usual = (lines.end, "\r\n", "")
    previous: Sequence[str] | None = None
    is_split = was_unusual = False
    number = 1  # of the header
    for row in records:
        number += 1
        splits = was_unusual and not (len(row) in (0, width) and len(previous or ()) in (0, width))
        if previous is not None:
            yield BrokenRow(previous, _SPLIT) if is_split or splits else previous
        previous, is_split, was_unusual = row, splits, lines.end not in usual
    if previous is not None:
        is_cut = not lines.end and any(previous) and (ends_every_line or len(previous) < width)
        problem = _SPLIT if is_split else _CUT if is_cut else None
        if not lines.end and any(previous) and not problem:
            last = previous[-1].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            shown = f"{last[:_SHOWN_CHARACTERS]}…" if len(last) > _SHOWN_CHARACTERS else last
            notes.append(_NO_LINE_END.format(number, shown))
        yield BrokenRow(previous, problem) if problem else previous


def _records(lines: _Lines, what: str) -> Iterator[Sequence[str]]:
    csv.field_size_limit(_MAX_CELL_CHARACTERS)
    reader = csv.reader(lines, strict=True)
    start = 1
    try:
        for row in reader:
            yield row
            start = reader.line_num + 1
    except csv.Error as error:
        raise ExtractError(
            f"{what} is not well-formed CSV: {error}, in the row that begins in line {start} of the file. "
            "A double quote is probably missing there, or was not doubled. Correct that line, or export the worksheet "
            "again as CSV UTF-8"
        ) from error
