"""The interface that every kind of source implements.

A sheet is a spreadsheet document, a worksheet is one of its tabs. Every kind of source returns the same
:class:`Worksheet`, so that callers do not depend on the kind of source.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

WORKBOOK_SUFFIXES = (".xlsx", ".xlsm")
# Files that people take for sheets, and flows do not read there.
_OTHER_SUFFIXES = (".xls", ".xlsb", ".xltx", ".ods", ".numbers", ".gsheet", ".csv", ".tsv")


class ExtractError(Exception):
    """Data cannot be read; the message says what is missing, where, and what to do."""


class SourceUnavailableError(ExtractError):
    """The source does not answer at the moment: trying again later may help."""


@dataclass(frozen=True)
class Worksheet:
    """A worksheet's header and rows, as text, unchanged.

    ``location`` describes where it is read from. ``rows`` are those below the header, in order: the first is row 2 of
    the spreadsheet, and only blank rows at the end are omitted. They are read lazily; iteration may raise
    :class:`ExtractError`. A row may have fewer or more cells than the header. Cells of which more is known than their
    text are of :class:`.cells.Cell`, in rows of :class:`.cells.Row`. A byte that cannot be decoded is a lone surrogate,
    as by Python's ``surrogateescape``. ``progress`` returns the fraction of the worksheet read, 0 to 1. After the last
    row, ``notes`` returns what people should know of the worksheet although no row is rejected for it.
    """

    sheet: str
    name: str
    location: str
    header: Sequence[str]
    rows: Iterator[Sequence[str]]
    progress: Callable[[], float]
    notes: Callable[[], Sequence[str]] = tuple


class Source(Protocol):
    """A source of sheets."""

    def worksheets(self, sheet: str) -> Sequence[str]:
        """Return the names of a sheet's worksheets, sorted.

        Raises:
            ExtractError: the sheet does not exist, or cannot be read.

        """
        ...

    def open(self, sheet: str, worksheet: str) -> AbstractContextManager[Worksheet]:
        """Open one worksheet for reading.

        Raises:
            ExtractError: the worksheet does not exist, is empty, or cannot be read.

        """
        ...

    def link(self, sheet: str, worksheet: str) -> str:  # noqa: ARG002 - a file has no address
        """Return the address of a worksheet, to which ``&range=A7`` may be added for row 7; empty if it has none.

        Raises:
            ExtractError: the sheet does not exist, or cannot be read.

        """
        return ""


def alternatives(kind: str, wanted: str, present: Iterable[str]) -> str:
    """Return a sentence that lists the names that exist instead of ``wanted``, and suggests the most similar one."""
    names = sorted(present)
    if not names:
        return f"There is no {kind} at all."
    near = nearest(wanted, names)
    hint = f" Did you mean '{near}'?" if near else ""
    return f"Present: {quoted(names)}.{hint}"


def nearest(wanted: str, present: Iterable[str]) -> str | None:
    """Return the most similar name, if there is one."""
    folded = {name.casefold(): name for name in present}
    near = get_close_matches(wanted.casefold(), folded, n=1)
    return folded[near[0]] if near else None


# How programs name the copies of worksheets, folders and files: Excel, browsers, Google, Windows and macOS.
_COPY = re.compile(
    r"(?:(?:Copy of|Kopie von|Copie de|Copia de|C\u00f3pia de) )?(?P<name>.+?)"
    r"(?: ?\([0-9]{1,2}\)| copy(?: [0-9]{1,2})?| - (?:Copy|Kopie|Copie|Copia)(?: ?\([0-9]{1,2}\))?"
    r"| ?\([^()]*conflicted copy[^()]*\))?",
    re.IGNORECASE,
)


def original(name: str, present: Iterable[str]) -> str | None:
    """Return which of the names this is a copy of, as programs name copies: ``Ash`` for ``Ash (2)``."""
    found = _COPY.fullmatch(name)
    stem = found["name"].casefold() if found else ""
    return next((each for each in present if each.casefold() == stem != name.casefold()), None)


def quoted(names: Iterable[str]) -> str:
    """Return a list of names in quotes."""
    return ", ".join(f"'{name}'" for name in names)


def no_folder(directory: Path) -> str:
    """Return the message that a folder of sheets does not exist."""
    return (
        f"The source folder {directory} is not there. "
        "Create it, or set ETL_SOURCE_DIRECTORY to the folder that holds the sheets"
    )


def unreadable(what: str, error: OSError) -> ExtractError:
    """Return the error of something that the operating system does not let this account read."""
    home = "; on a host, flows read no home directory (docs/sheets.md)" if isinstance(error, PermissionError) else ""
    return ExtractError(
        f"{what} cannot be read: {error.strerror}. Give the account that runs the flow the right to read it{home}"
    )


def other_files(directory: Path) -> str:
    """Return a sentence on the files of a folder of sheets that flows do not read; empty if there is none.

    Raises:
        OSError: the folder cannot be read.

    """
    names = sorted(entry.name for entry in directory.iterdir() if is_sheet_file(entry, _OTHER_SUFFIXES))
    return (
        f"Flows do not read {quoted(names)} there: save a workbook as Excel Workbook (.xlsx), and put csv files into a "
        "folder that is named after their sheet. "
        if names
        else ""
    )


def workbooks(directory: Path) -> dict[str, Path]:
    """Return the workbooks of a folder, by the names of their sheets. Capitals in a suffix make no difference.

    Raises:
        OSError: the folder cannot be read.
        ExtractError: two workbooks are one sheet.

    """
    found: dict[str, Path] = {}
    for entry in sorted(directory.iterdir()):
        if is_sheet_file(entry, WORKBOOK_SUFFIXES):
            if entry.stem in found:
                raise ExtractError(
                    f"Sheet '{entry.stem}' is there twice, as {found[entry.stem]} and as {entry}. Remove one of them"
                )
            found[entry.stem] = entry
    return found


def is_sheet_file(entry: Path, suffixes: Sequence[str]) -> bool:
    """Return whether a file of a folder has one of these suffixes, and is neither hidden nor Excel's lock file."""
    return entry.suffix.lower() in suffixes and not entry.name.startswith((".", "~$"))
