"""The kinds of cells: what each accepts, and how it is stored in the database.

Every kind works on cleaned text (see :func:`ca_biositing.pipeline.etl.transform.clean`), where an empty cell is null.
A check's ``error`` says what is wrong with a cell that fails it and what to type instead. Null passes every check, and
is rejected if the table's column is not nullable.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import pandera.polars as pa
import polars as pl
from pandera.api.polars.types import PolarsData

from ca_biositing.datamodels.models import NamedRecord
from ca_biositing.pipeline.etl.transform import fold

# Excel's limit for a cell.
_MAX_CHARACTERS = 32_767
_ERROR_VALUES = r"^#(REF!|N/A|VALUE!|DIV/0!|NAME\?|NULL!|NUM!|ERROR!|SPILL!|CALC!|FIELD!|BLOCKED!|GETTING_DATA)$"
# Control characters, and the replacement character for bytes that could not be decoded.
_NO_TEXT = r"[\x00-\x08\x0e-\x1f\x7f\x{FFFD}]"
# Not \d: it matches the digits of every script, which PostgreSQL does not accept.
_NUMBER = r"^[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,2})?$"
_WHOLE_NUMBER = r"^[0-9]{1,9}(\.0{1,9})?$"
_MONTH = r"(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
# Patterns of the accepted dates, with chrono's formats. Patterns are needed because %Y also accepts two digits.
_DATES = {
    r"^[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}$": "%Y-%m-%d",
    r"^[0-9]{1,2}/[0-9]{1,2}/[0-9]{4}$": "%m/%d/%Y",
    r"^[0-9]{1,2}/[0-9]{1,2}/[0-9]{2}$": "%m/%d/%y",
    rf"^[0-9]{{1,2}}-{_MONTH}-[0-9]{{4}}$": "%d-%B-%Y",
    rf"^[0-9]{{1,2}}-{_MONTH}-[0-9]{{2}}$": "%d-%B-%y",
    rf"^[0-9]{{1,2}} {_MONTH} [0-9]{{4}}$": "%d %B %Y",
    rf"^{_MONTH} [0-9]{{1,2}}, [0-9]{{4}}$": "%B %d, %Y",
}


def _check(passes: Callable[[pl.Expr], pl.Expr], error: str) -> pa.Check:
    """Return a check of a column's cells from an expression that is true for a cell that passes; null always passes."""

    def check(data: PolarsData) -> pl.LazyFrame:
        cell = pl.col(data.key)
        return data.lazyframe.select(cell.is_null() | passes(cell).fill_null(value=False))

    return pa.Check(check, error=error)


_EVERY_CELL = (
    _check(
        lambda cell: cell.str.len_chars() <= _MAX_CHARACTERS,
        f"has more than {_MAX_CHARACTERS:,} characters; shorten it, or look for a double quote that is not closed",
    ),
    _check(
        lambda cell: ~cell.str.contains(_NO_TEXT),
        "holds control characters, or bytes that are no UTF-8; type it again, or export the worksheet as CSV UTF-8",
    ),
    _check(
        lambda cell: ~cell.str.contains(_ERROR_VALUES),
        "is the error of a formula; mend the formula, or type the value",
    ),
)


@dataclass(frozen=True)
class Field:
    """A kind of cell, and the table's column that it fills."""

    column: str

    def fills(self) -> Sequence[str]:
        """Return the names of the table's columns that such a cell fills."""
        return [self.column]

    def checks(self) -> Sequence[pa.Check]:
        """Return the checks that a cell must pass, the most informative first."""
        return _EVERY_CELL

    def values(self, cells: pl.Series) -> Mapping[str, pl.Series]:
        """Return the values of the table's columns that the cells fill; every cell has passed the checks."""
        return {self.column: cells}


class Text(Field):
    """Text as it was typed."""


class Code(Field):
    """A code that is not case-sensitive, stored in upper case."""

    def values(self, cells: pl.Series) -> Mapping[str, pl.Series]:
        """Return the codes."""
        return {self.column: cells.str.to_uppercase()}


class Name(Field):
    """A name, and its case-folded key."""

    def fills(self) -> Sequence[str]:
        """Return the columns of the spelling and the key."""
        return [self.column, f"{self.column}_key"]

    def values(self, cells: pl.Series) -> Mapping[str, pl.Series]:
        """Return the spelling and the key."""
        return {self.column: cells, f"{self.column}_key": fold(cells)}


@dataclass(frozen=True)
class Number(Field):
    """A decimal number with a decimal point; its digits are kept as typed. A decimal comma is rejected."""

    minimum: Decimal | None = None

    def checks(self) -> Sequence[pa.Check]:
        """Return the checks of a number."""
        checks = [
            *_EVERY_CELL,
            _check(
                lambda cell: ~cell.str.contains("[0-9],[0-9]"),
                "has a comma, which may be a decimal comma; type a decimal point and no thousands separators",
            ),
            _check(
                lambda cell: _ascii_minus(cell).str.contains(_NUMBER),
                "is not a number; type digits with a decimal point and nothing else",
            ),
        ]
        if self.minimum is not None:
            checks.append(
                _check(
                    lambda cell: _ascii_minus(cell).cast(pl.Float64, strict=False) >= float(self.minimum or 0),
                    f"is below {self.minimum}",
                )
            )
        return checks

    def values(self, cells: pl.Series) -> Mapping[str, pl.Series]:
        """Return the numbers, as text: PostgreSQL's ``numeric`` reads them without rounding."""
        return {self.column: cells.str.replace_all("\N{MINUS SIGN}", "-", literal=True)}


class Count(Field):
    """A whole number from 1 to 32767."""

    def checks(self) -> Sequence[pa.Check]:
        """Return the checks of a count."""
        return [
            *_EVERY_CELL,
            _check(
                lambda cell: (
                    cell.str.contains(_WHOLE_NUMBER) & cell.cast(pl.Float64, strict=False).is_between(1, 32_767)
                ),
                "is not a whole number from 1 to 32767",
            ),
        ]

    def values(self, cells: pl.Series) -> Mapping[str, pl.Series]:
        """Return the numbers."""
        return {self.column: cells.cast(pl.Float64).cast(pl.Int16)}


class Date(Field):
    """A date, month before day where both are numbers."""

    def checks(self) -> Sequence[pa.Check]:
        """Return the checks of a date."""
        return [
            *_EVERY_CELL,
            _check(
                lambda cell: _as_date(cell).is_between(pl.date(1900, 1, 1), pl.date(2100, 12, 31)),
                "is not a date from 1900 to 2100; type it as 2024-10-31, 10/31/2024 (month first) or 31-Oct-2024",
            ),
        ]

    def values(self, cells: pl.Series) -> Mapping[str, pl.Series]:
        """Return the dates."""
        return {self.column: cells.to_frame("cell").select(_as_date(pl.col("cell"))).to_series()}


@dataclass(frozen=True)
class Reference(Field):
    """The name of an existing record in another table; `.validate` looks up its id in the database."""

    model: type[NamedRecord]


def _ascii_minus(cell: pl.Expr) -> pl.Expr:
    return cell.str.replace_all("\N{MINUS SIGN}", "-", literal=True)


def _as_date(cell: pl.Expr) -> pl.Expr:
    # A workbook's dates include a time of day.
    text = cell.str.replace(r"^(\d{4}-\d{2}-\d{2})[T ]00:00:00$", "$1")
    return pl.coalesce(
        pl.when(text.str.contains(pattern)).then(text.str.to_date(form, strict=False))
        for pattern, form in _DATES.items()
    )
