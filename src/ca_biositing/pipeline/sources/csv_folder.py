"""Sheets as folders of csv files."""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

from ca_biositing.pipeline.sources.base import (
    ExtractError,
    Worksheet,
    alternatives,
    no_folder,
    refuse_other_case,
    unreadable,
)

# After an unclosed quote the rest of the file is one cell. The limit fails before memory is exhausted.
_MAX_CELL_CHARACTERS = 64 * 1024 * 1024


@dataclass(frozen=True)
class CsvFolder:
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
            # Not glob, which takes a folder that it may not read for an empty one.
            entries = [*folder.iterdir()]
            refuse_other_case(entries, ".csv")
            return sorted(entry.stem for entry in entries if entry.suffix == ".csv")
        except OSError as error:
            raise unreadable(f"Sheet '{sheet}' ({folder})", error) from error

    @contextmanager
    def open(self, sheet: str, worksheet: str) -> Iterator[Worksheet]:
        """Open a worksheet's file; see :meth:`Source.open`."""
        path = self.directory / sheet / f"{worksheet}.csv"
        what = f"Worksheet '{worksheet}' of sheet '{sheet}' ({path})"
        try:
            content = path.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            present = self.worksheets(sheet)
            raise ExtractError(
                f"Worksheet '{worksheet}' of sheet '{sheet}' is missing: there is no file {path}. "
                f"{alternatives('worksheet', worksheet, present)} Export the worksheet as CSV UTF-8 under that name"
            ) from None
        except OSError as error:
            raise unreadable(what, error) from error
        with content, TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = _records(file, what)
            header = next(rows, None)
            if header is None:
                raise ExtractError(f"{what} is empty: not even a header is there. Export it again as CSV UTF-8")
            if any("\0" in name for name in header):
                raise ExtractError(f"{what} holds NUL characters, as UTF-16 does. Export it again as CSV UTF-8")
            size = os.fstat(content.fileno()).st_size
            yield Worksheet(sheet, worksheet, str(path), header, rows, lambda: content.tell() / size)


def _records(file: TextIOWrapper, what: str) -> Iterator[Sequence[str]]:
    csv.field_size_limit(_MAX_CELL_CHARACTERS)
    reader = csv.reader(file, strict=True)
    try:
        yield from reader
    except csv.Error as error:
        raise ExtractError(
            f"{what} is not well-formed CSV: {error}, in line {reader.line_num} of the file or before. "
            "A double quote is probably missing or was not doubled. Export it again as CSV UTF-8"
        ) from error
