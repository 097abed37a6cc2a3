"""Sheets in one folder, each as a folder of csv files or as an Excel workbook, whichever is there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ca_biositing.pipeline.sources.base import (
    WORKBOOK_SUFFIXES,
    ExtractError,
    Source,
    Worksheet,
    alternatives,
    is_sheet_file,
    no_folder,
    other_files,
    unreadable,
    workbooks,
)
from ca_biositing.pipeline.sources.csv_folder import SUFFIX, CsvFolder
from ca_biositing.pipeline.sources.workbook import WorkbookFile


@dataclass(frozen=True)
class Folder(Source):
    """A folder of ``<sheet>/<worksheet>.csv`` and ``<sheet>.xlsx`` or ``.xlsm`` files.

    A sheet that is there in two forms is an error.
    """

    directory: Path

    def sheets(self) -> Sequence[str]:
        """Return the names of the sheets, sorted.

        Raises:
            ExtractError: the folder does not exist, or cannot be read.

        """
        try:
            folders = [
                each.name for each in self.directory.iterdir() if each.is_dir() and not each.name.startswith(".")
            ]
            return sorted({*folders, *workbooks(self.directory)})
        except (FileNotFoundError, NotADirectoryError):
            raise ExtractError(no_folder(self.directory)) from None
        except OSError as error:
            raise unreadable(f"The source folder {self.directory}", error) from error

    def others(self) -> Sequence[str]:
        """Return the files that are neither workbooks nor worksheets, by their paths in the folder, sorted."""
        found = []
        for path in (*self.directory.glob("*"), *self.directory.glob("*/*")):
            place = path.relative_to(self.directory)
            suffixes = WORKBOOK_SUFFIXES if path.parent == self.directory else (SUFFIX,)
            is_hidden = any(part.startswith((".", "~$")) for part in place.parts)
            if path.is_file() and not is_hidden and not is_sheet_file(path, suffixes):
                found.append(str(place))
        return sorted(found)

    def worksheets(self, sheet: str) -> Sequence[str]:
        """Return the names of a sheet's worksheets; see :meth:`Source.worksheets`."""
        return self._source_of(sheet).worksheets(sheet)

    @contextmanager
    def open(self, sheet: str, worksheet: str) -> Iterator[Worksheet]:
        """Open a worksheet; see :meth:`Source.open`."""
        with self._source_of(sheet).open(sheet, worksheet) as opened:
            yield opened

    def _source_of(self, sheet: str) -> Source:
        sheets = self.sheets()
        folder = self.directory / sheet
        csv_files = CsvFolder(self.directory)
        if workbook := workbooks(self.directory).get(sheet):
            # A folder without csv files holds something else, such as pictures.
            if folder.is_dir() and csv_files.worksheets(sheet):
                raise ExtractError(
                    f"Sheet '{sheet}' is there twice: as csv files in the folder {folder}, and as the workbook "
                    f"{workbook}. Remove one of them, or set ETL_SOURCE to csv or xlsx"
                )
            return WorkbookFile(workbook)
        if folder.is_dir():
            return csv_files
        raise ExtractError(
            f"Sheet '{sheet}' is missing: there is neither a folder {folder} nor a workbook {folder}.xlsx. "
            f"{alternatives('sheet', sheet, sheets)} "
            f"{other_files(self.directory)}Put the sheet there: `make sheets SHEETS=folder` copies sheets "
            "to hosts, and `make up SHEETS=folder` gives them to the local container (docs/sheets.md)"
        )
