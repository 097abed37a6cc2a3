"""What every kind of source has in common.

A sheet is a spreadsheet document, a worksheet is one of its tabs. Every kind of source gives the same
:class:`Worksheet`, so that nothing behind this package knows what it was read from.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol


class ExtractError(Exception):
    """Data cannot be read; the message says what is missing, where, and what to do."""


class SourceUnavailableError(ExtractError):
    """The source does not answer at the moment: trying again later may help."""


@dataclass(frozen=True)
class Worksheet:
    """A worksheet's header and rows, as text, unchanged.

    ``location`` says where it is read from, in words for people. ``rows`` are those below the header, in order: the
    first is row 2 of the spreadsheet, and none is left out but blank ones at the end. They are read as they are asked
    for, and may raise :class:`ExtractError`. A row may have fewer or more cells than the header. A byte that is no text
    in the worksheet's encoding is there as a lone surrogate, as Python's ``surrogateescape`` has it. ``progress`` tells
    how much of the worksheet was read, 0 to 1.
    """

    sheet: str
    name: str
    location: str
    header: Sequence[str]
    rows: Iterator[Sequence[str]]
    progress: Callable[[], float]


class Source(Protocol):
    """A place that has sheets."""

    def worksheets(self, sheet: str) -> Sequence[str]:
        """Return the names of a sheet's worksheets, sorted.

        Raises:
            ExtractError: the sheet is not there, or cannot be read.

        """
        ...

    def open(self, sheet: str, worksheet: str) -> AbstractContextManager[Worksheet]:
        """Open one worksheet for reading.

        Raises:
            ExtractError: it is not there, is empty, or cannot be read.

        """
        ...


def alternatives(kind: str, wanted: str, present: Iterable[str]) -> str:
    """Return a sentence that lists what is there instead of ``wanted``, and the nearest of it."""
    names = sorted(present)
    if not names:
        return f"There is no {kind} at all."
    folded = {name.casefold(): name for name in names}
    near = get_close_matches(wanted.casefold(), folded, n=1)
    hint = f" Did you mean '{folded[near[0]]}'?" if near else ""
    return "Present: " + ", ".join(f"'{name}'" for name in names) + "." + hint
