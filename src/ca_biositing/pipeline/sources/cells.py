"""Cells as text, with what else is known of them, in the same way for Excel workbooks and Google Sheets."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from itertools import pairwise
from typing import overload

# A number as people may see it: with a decimal point or comma, and thousands separators.
_SEPARATORS = ".,'\u2019 \u00a0\u202f"
_SEEN = re.compile(rf"[.,]?[0-9]+(?:[{_SEPARATORS}][0-9]+)*(?:[eE][+-]?[0-9]+)?")
# Percentages, fractions, limits and multiples make it another number, but not units such as mg/L.
_ANOTHER = re.compile(
    "[%\u2030<>\u2264\u2265\u2248~\u00d7]|[0-9] */ *[0-9]|[0-9] *[x*\u00b7] *1"
    r"|[0-9] *(?:k|thousand|million|billion|Tsd|Mio|Mrd)\b"
)
# What says that a number is below zero, also for accountants and in Japan; and a number that looks so.
_MINUS = re.compile("[-\u2012-\u2015\u2212\uff0d(\u25b2\u25b3\u25bc]")
_NEGATIVE = re.compile(rf"\W*{_MINUS.pattern}\W*[0-9]")
# Groups of thousands, also as in India.
_GROUPS = re.compile(rf"[0-9]*|[0-9]{{1,3}}(?:[{_SEPARATORS}][0-9]{{3}})+|[0-9]{{1,2}}(?:,[0-9]{{2}})*,[0-9]{{3}}")
# What Excel shows in the format General; from 12 characters on it rounds, and programs differ.
_GENERAL_CHARACTERS = 11
HIDDEN_WORKSHEET = "the worksheet itself"
# Of hidden rows, as many are named.
_SHOWN_RANGES = 10


# Day 0 of dates that are stored as numbers.
SERIAL_EPOCH = datetime(1899, 12, 30)


class Kind(StrEnum):
    """What is known of a cell beside its text. Cells from ERROR on have no value."""

    NUMBER = "number"
    # It is shown as another number, such as 0.125 as 12.5%.
    SCALED = "scaled"
    DATE = "date"
    BOOLEAN = "boolean"
    ERROR = "error"
    # Its result is not in the file.
    FORMULA = "formula"
    # Google has not calculated it yet.
    LOADING = "loading"
    # Another cell of a merged range holds the value that people see.
    MERGED = "merged"
    # Its text, or a part of it, is struck out.
    STRUCK = "struck"
    # A superscript or subscript is beside a digit: 10 with a raised 3 has the text 103.
    RAISED = "raised"


class Cell(str):
    """A cell that is not simply the text that people see.

    As a string it is the value: a number with a spreadsheet's 15 digits, a date or time in ISO 8601, ``TRUE`` or
    ``FALSE``, the text of an error, a formula. ``shown`` is what people see; None if that is not known.
    ``is_idle`` says that it is there also where no person has typed anything, as a checkbox or a formula that was
    filled down a column.
    """

    __slots__ = ("is_idle", "kind", "shown")

    def __new__(cls, value: str, kind: Kind, shown: str | None = None, *, is_idle: bool = False) -> "Cell":
        """Return a cell."""
        cell = super().__new__(cls, value)
        cell.kind, cell.shown, cell.is_idle = kind, shown, is_idle
        return cell

    kind: Kind
    shown: str | None
    is_idle: bool


class Row(Sequence[str]):
    """A row's cells up to the last one that is not empty. It holds only those: a worksheet has 16,384 columns."""

    __slots__ = ("_cells", "_length")

    def __init__(self, cells: Mapping[int, str]) -> None:
        self._cells = cells
        self._length = max(cells, default=-1) + 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        """Return a cell, or some of them."""
        if isinstance(index, slice):
            return [self._cells.get(each, "") for each in range(*index.indices(self._length))]
        if index < self._length:
            return self._cells.get(index, "")
        raise IndexError(index)

    def __len__(self) -> int:
        """Return the number of cells."""
        return self._length

    def __iter__(self) -> Iterator[str]:
        """Return the cells."""
        return map(self._cells.get, range(self._length), [""] * self._length)

    def pick(self, indexes: Sequence[int]) -> list[str]:
        """Return the cells at these indexes, empty where there is none."""
        get = self._cells.get
        return [get(index, "") for index in indexes]


@dataclass(frozen=True)
class Merge:
    """Cells that are shown as one, with the value of the first; rows from 1, columns from 0, both ends included."""

    top: int
    left: int
    bottom: int
    right: int


class Merges:
    """The merged ranges of a worksheet, whose rows are gone through once, from row 1, the header."""

    def __init__(self, merges: Iterable[Merge]) -> None:
        self._coming = sorted(merges, key=lambda merge: merge.top, reverse=True)
        # Those that the current row is in, each with whether its first cell has a value.
        self._current: dict[Merge, bool] = {}
        self._width = 0

    def cover(self, number: int, cells: dict[int, str]) -> None:
        """Mark the cells of a row that another cell is shown over. The header, and what lies to its right, stay."""
        while self._coming and self._coming[-1].top <= number:
            merge = self._coming.pop()
            self._current[merge] = merge.top == number and merge.left in cells
        self._current = {merge: is_filled for merge, is_filled in self._current.items() if merge.bottom >= number}
        for merge, is_filled in self._current.items():
            for column in range(merge.left, min(merge.right + 1, self._width)):
                if (number, column) != (merge.top, merge.left) and (is_filled or column in cells):
                    own = cells.get(column, "")
                    cells[column] = Cell(own, Kind.MERGED, is_idle=not own)
        if number == 1:
            self._width = max(cells, default=-1) + 1


@dataclass
class Hidden:
    """What of a worksheet is read, although people do not see it, or see it struck out.

    That is the worksheet itself, rows, columns from 0, and the ranges whose cells a condition strikes out, such as
    ``F2:F9``; a range may be empty, if it is not known.
    """

    is_worksheet: bool = False
    rows: list[int] = field(default_factory=list)
    columns: set[int] = field(default_factory=set)
    struck: set[str] = field(default_factory=set)

    def notes(self, header: Sequence[str]) -> list[str]:
        """Return a note if anything with a value is hidden, and one if cells may be struck out."""
        named = [name for column, name in enumerate(header) if column in self.columns and name.strip()]
        parts = [
            *([HIDDEN_WORKSHEET] if self.is_worksheet else []),
            *([f"row{'s' if len(self.rows) > 1 else ''} {_ranges(self.rows)}"] if self.rows else []),
            *([f"column{'s' if len(named) > 1 else ''} {', '.join(named)}"] if named else []),
        ]
        ranges = ", ".join(sorted(self.struck - {""}))
        struck = (
            f"a conditional format strikes cells out{f' in {ranges}' if ranges else ''}, "
            "and they are read like the rest: delete those that do not count"
        )
        return [
            *([f"hidden, and read like the rest: {'; '.join(parts)}"] if parts else []),
            *([struck] if self.struck else []),
        ]


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as a text such as ``5, 7-9``; of many, the first and how many there are."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:_SHOWN_RANGES]]
    return ", ".join(shown) + (f" and others, {len(numbers):,} in all" if len(ranges) > _SHOWN_RANGES else "")


class BrokenRow(list[str]):
    """A row that is not whole: ``problem`` says why, and what to do."""

    def __init__(self, cells: Iterable[str], problem: str) -> None:
        super().__init__(cells)
        self.problem = problem


def marked_text(runs: Iterable[tuple[str, str, bool]]) -> str:
    """Return a text of runs, each with its mark (``^`` raised, ``_`` lowered), and whether it is struck out."""
    parts = [run for run in runs if run[0]]
    text = "".join(part for part, _, _ in parts)
    if any(part.strip() and is_struck for part, _, is_struck in parts):
        return Cell(text, Kind.STRUCK)
    for (left, left_mark, _), (right, right_mark, _) in pairwise(parts):
        # CO2 and m3 say the same on one line; 10 with a raised 3, or a note's number behind 12.5, do not.
        if left_mark != right_mark and (right[0] if left_mark else left[-1]).isdigit():
            return Cell(text, Kind.RAISED, "".join(mark + part for part, mark, _ in parts))
    return text


def seen(cell: str) -> str:
    """Return what people see of a cell, or its value if that is not known."""
    return cell.shown if isinstance(cell, Cell) and cell.shown is not None else str(cell)


def number_text(number: float) -> str:
    """Return a number's 15 digits, which is what spreadsheets keep, without an exponent."""
    text = format(number + 0, ".15g")  # + 0 turns -0 into 0: spreadsheets have no -0
    return format(Decimal(text), "f") if "e" in text else text


def number_cell(text: str, shown: str | None, *, points: str = ".", is_idle: bool = False) -> str:
    """Return the cell of a number, by its text and what people see of it (None: not known).

    ``points`` are the characters that may be its decimal point.
    """
    if shown == text and not is_idle:
        return text
    kind = Kind.NUMBER if shown is None or _is_seen(Decimal(text), shown, points) else Kind.SCALED
    return Cell(text, kind, shown, is_idle=is_idle)


def general_text(text: str) -> str | None:
    """Return what people see of a number in the format General; None if programs show it differently."""
    return text if len(text) <= _GENERAL_CHARACTERS else None


def moment_text(days: float, epoch: datetime) -> str | None:
    """Return a date and time, by its serial number; of less than a day, the time. None if there is no such day."""
    try:
        # To the millisecond: binary fractions of a day are not exact.
        moment = epoch + timedelta(milliseconds=round(days * 86_400_000))
    except OverflowError:
        return None
    if days < 0:
        return None
    return moment.time().isoformat() if days < 1 else time_text(moment)


def clock_text(days: float) -> str:
    """Return a time or a duration as hours, minutes and seconds."""
    minutes, seconds = divmod(round(days * 86_400), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"


def time_text(value: date | time) -> str:
    """Return a date or time in ISO 8601; without the time of day at midnight."""
    if isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()
    return value.isoformat()


def _is_seen(number: Decimal, shown: str, points: str) -> bool:
    """Return whether people who see this take it for the number, perhaps rounded. Nothing and a dash may be zero."""
    if _ANOTHER.search(shown):
        return False
    seen = _SEEN.findall(shown)
    if not seen:
        # Words such as n.d. are no zero, but a dash beside a currency is.
        return number == 0 and (_MINUS.search(shown) is not None or not re.search(r"[^\W\d_]", shown))
    has_sign = _MINUS.search(shown) if number < 0 and re.search("[1-9]", shown) else not _NEGATIVE.match(shown)
    return bool(has_sign) and any(_rounds_to(abs(number), text, point) for text in seen for point in points)


def _rounds_to(number: Decimal, text: str, point: str) -> bool:
    """Return whether this text with this decimal point is the number, rounded to its last digit."""
    mantissa, _, exponent = text.upper().partition("E")
    whole, _, decimals = mantissa.partition(point)
    if not _GROUPS.fullmatch(whole) or not re.fullmatch("[0-9]*", decimals):
        return False
    seen = Decimal(f"{re.sub('[^0-9]', '', whole)}.{decimals}E{exponent or 0}")
    half_a_digit = Decimal(f"0.5E{int(exponent or 0) - len(decimals)}")
    return abs(number - seen) <= half_a_digit
