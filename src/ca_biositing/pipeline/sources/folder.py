"""Sheets in one folder, each as a folder of csv files or as an Excel workbook, whichever is there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ca_biositing.pipeline.sources.base import (
    ExtractError,
    Source,
    Worksheet,
    alternatives,
    no_folder,
    refuse_other_case,
    unreadable,
)
from ca_biositing.pipeline.sources.csv_folder import CsvFolder


@dataclass(frozen=True)
class Folder:
    """A folder of ``<sheet>/<worksheet>.csv`` and ``<sheet>.xlsx`` files. A sheet that is there as both is an error."""

    directory: Path

    def sheets(self) -> Sequence[str]:
        """Return the names of the sheets, sorted.

        Raises:
            ExtractError: the folder does not exist, or cannot be read.

        """
        try:
            # Excel keeps a file ~$name.xlsx beside a workbook that is open.
            entries = [entry for entry in self.directory.iterdir() if not entry.name.startswith((".", "~$"))]
            refuse_other_case(entries, ".xlsx")
            return sorted({each.stem if each.suffix == ".xlsx" else each.name for each in entries if _is_sheet(each)})
        except (FileNotFoundError, NotADirectoryError):
            raise ExtractError(no_folder(self.directory)) from None
        except OSError as error:
            raise unreadable(f"The source folder {self.directory}", error) from error

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
        folder, workbook = self.directory / sheet, self.directory / f"{sheet}.xlsx"
        csv_files = CsvFolder(self.directory)
        if workbook.exists():
            # A folder without csv files holds something else, such as pictures.
            if folder.is_dir() and csv_files.worksheets(sheet):
                raise ExtractError(
                    f"Sheet '{sheet}' is there twice: as csv files in the folder {folder}, and as the workbook "
                    f"{workbook}. Remove one of them, or set ETL_SOURCE to csv or xlsx"
                )
            # Imported only where it is needed: openpyxl takes a noticeable fraction of a second.
            from ca_biositing.pipeline.sources.workbook import WorkbookFolder

            return WorkbookFolder(self.directory)
        if folder.is_dir():
            return csv_files
        raise ExtractError(
            f"Sheet '{sheet}' is missing: there is neither a folder {folder} nor a workbook {workbook}. "
            f"{alternatives('sheet', sheet, sheets)} Put the sheet there: `make sheets SHEETS=folder` copies sheets "
            "to hosts, and `make up SHEETS=folder` gives them to the local container (docs/sheets.md)"
        )


def _is_sheet(entry: Path) -> bool:
    return entry.is_dir() or entry.suffix == ".xlsx"
