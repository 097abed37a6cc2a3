"""Where worksheets come from.

A sheet is a spreadsheet document, a worksheet is one of its tabs. Every kind of source gives the
same :class:`Worksheet`, so that nothing behind this module knows what it was read from.
"""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple, Protocol


class ExtractError(Exception):
    """Data could not be read; the message says what is missing, where, and what to do."""


class Row(NamedTuple):
    """A worksheet's row: its number as a spreadsheet shows it (the header is row 1), and its cells."""

    number: int
    cells: Sequence[str]


@dataclass(frozen=True)
class Worksheet:
    """A worksheet's header and rows, as text, unchanged.

    ``location`` says where it was read from, in words for people. A row may have fewer cells than
    the header: what is missing is empty.
    """

    sheet: str
    name: str
    location: str
    header: Sequence[str]
    rows: Sequence[Row]


class Source(Protocol):
    """A place that has sheets."""

    def read(self, sheet: str, worksheet: str) -> Worksheet:
        """Return one worksheet.

        Raises:
            ExtractError: it is not there, or cannot be read.

        """
        ...


@dataclass(frozen=True)
class CsvFolder:
    """A folder of ``<sheet>/<worksheet>.csv`` files: RFC 4180, UTF-8 with or without a byte order mark."""

    directory: Path

    def read(self, sheet: str, worksheet: str) -> Worksheet:
        """Return the worksheet from its file; see :meth:`Source.read`."""
        path = self.directory / sheet / f"{worksheet}.csv"
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ExtractError(self._what_is_missing(sheet, worksheet)) from None
        except OSError as error:
            raise ExtractError(
                f"Worksheet '{worksheet}' of sheet '{sheet}' cannot be read: {path}: {error.strerror}. "
                "Give the account that runs the flow the right to read it"
            ) from error
        header, rows = _parse(content, f"Worksheet '{worksheet}' of sheet '{sheet}' ({path})")
        return Worksheet(sheet, worksheet, str(path), header, rows)

    def _what_is_missing(self, sheet: str, worksheet: str) -> str:
        folder = self.directory / sheet
        if not self.directory.is_dir():
            return (
                f"The source folder {self.directory} is not there, so sheet '{sheet}' cannot be read. "
                "Create it, or set ETL_SOURCE_DIRECTORY to the folder that holds the sheets"
            )
        if not folder.is_dir():
            sheets = (entry.name for entry in self.directory.iterdir() if entry.is_dir())
            return (
                f"Sheet '{sheet}' is missing: there is no folder {folder}. "
                f"{alternatives('sheet', sheet, sheets)} "
                f"Put the sheet's worksheets there as csv files, worksheet '{worksheet}' as {worksheet}.csv"
            )
        worksheets = (entry.stem for entry in folder.glob("*.csv"))
        return (
            f"Worksheet '{worksheet}' of sheet '{sheet}' is missing: "
            f"there is no file {folder / worksheet}.csv. {alternatives('worksheet', worksheet, worksheets)} "
            "Export the worksheet as CSV UTF-8 under that name"
        )


def source_from_environment(environment: Mapping[str, str] = os.environ) -> Source:
    """Return the source that ``ETL_SOURCE_DIRECTORY`` names.

    Raises:
        ExtractError: the variable is not set.

    """
    directory = environment.get("ETL_SOURCE_DIRECTORY")
    if not directory:
        raise ExtractError("ETL_SOURCE_DIRECTORY is not set: set it to the folder that holds <sheet>/<worksheet>.csv")
    return CsvFolder(Path(directory))


def alternatives(kind: str, wanted: str, present: Iterable[str]) -> str:
    """Return a sentence that lists what is there instead of ``wanted``, and the nearest of it."""
    names = sorted(present)
    if not names:
        return f"There is no {kind} at all."
    folded = {name.casefold(): name for name in names}
    near = get_close_matches(wanted.casefold(), folded, n=1)
    hint = f" Did you mean '{folded[near[0]]}'?" if near else ""
    return "Present: " + ", ".join(f"'{name}'" for name in names) + "." + hint


def _parse(content: bytes, what: str) -> tuple[list[str], list[Row]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ExtractError(
            f"{what} is not UTF-8: byte 0x{content[error.start]:02x} in line {line} of the file. "
            "Export it again as CSV UTF-8"
        ) from error
    if "\0" in text:
        raise ExtractError(f"{what} holds NUL characters, as UTF-16 does. Export it again as CSV UTF-8")
    try:
        records = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ExtractError(f"{what} is not well-formed CSV: {error}. Export it again as CSV UTF-8") from error
    if not records:
        raise ExtractError(f"{what} is empty: not even a header is there. Export it again as CSV UTF-8")
    header, *body = records
    rows = [Row(number, cells) for number, cells in enumerate(body, start=2)]
    for row in rows:
        # Cells to the right of the header mean that a comma was not quoted: the others have moved too.
        if any(row.cells[len(header) :]):
            raise ExtractError(
                f"{what} has {len(row.cells)} cells in row {row.number}, but {len(header)} columns. "
                "Put double quotes around a text that contains a comma"
            )
    return header, rows
