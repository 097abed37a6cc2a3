"""The kinds of cells: what each accepts, and how it is stored in the database.

Every kind works on cleaned text (see :func:`ca_biositing.pipeline.etl.transform.clean`), where an empty cell is null.
A check's ``error`` says what is wrong with a cell that fails it and what to type instead. Null passes every check, and
is rejected if the table's column is not nullable.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

import pandera.polars as pa
import polars as pl
from pandera.api.polars.types import PolarsData

from ca_biositing.datamodels.models import NamedRecord
from ca_biositing.pipeline.etl.transform import fold
from ca_biositing.pipeline.sources.cells import Kind

# Excel's limit for a cell.
_MAX_CHARACTERS = 32_767
# The errors of Excel, LibreOffice, Google Sheets and Numbers in their languages. Most end in ! or ?; these are the
# others, in Russian and Greek by code points, because their letters look like Latin ones.
_UNMARKED_ERRORS = (
    *("N/A", "N/A N/A", "N/D", "N/B", "N/V", "I/T", "NA", "NV", "YOK", "HIÁNYZIK", "NEDOSTUPNÝ", "NENÍ_K_DISPOZICI"),
    *("\u041d/\u0414", "\u0394/\u03a5", "GETTING_DATA"),
)
_NUMBERED_ERRORS = (
    *("Err", "Erreur", "Erro", "Errore", "Error", "Fehler", "Fel", "Feil", "Fejl", "Virhe", "Hiba", "Chyba", "Błąd"),
    *("Napaka", "Greška", "Ошибка", "Помилка", "エラー", "错误", "錯誤"),
)
_ERROR_VALUES = (
    rf"(?i)^#([\x{{A1}}\x{{BF}}]?\p{{L}}[\p{{L}}\p{{M}}\p{{N}}_/.]*[!?]|{'|'.join(_UNMARKED_ERRORS)})$"
    rf"|^({'|'.join(_NUMBERED_ERRORS)}) ?: ?[0-9]{{3}}$|^Error 20[0-9]{{2}}$"
)
# What spreadsheets show of a number or a date in a column that is too narrow.
_TOO_NARROW = "^#{2,}$"
# What Google Sheets shows until it has calculated a cell.
_LOADING_WORDS = (
    *("Loading", "Wird geladen", "Chargement", "Chargement en cours", "Cargando", "Carregando", "A carregar"),
    *("Caricamento", "Caricamento in corso", "Laden", "Läser in", "Indlæser", "Laster inn", "Ladataan", "Ładowanie"),
    *(
        "Wczytywanie",
        "Načítání",
        "Betöltés",
        "Yükleniyor",
        "Загрузка",
        "Завантаження",
        "読み込んでいます",
        "読み込み中",
    ),
    *("正在加载", "載入中", "正在載入", "로드 중"),
)
_LOADING = rf"(?i)^({'|'.join(_LOADING_WORDS)}) ?(\.\.\.|…)$"
# Control characters, also those of bytes in a wrong code page, and the replacement character for others.
_NO_TEXT = r"[\x00-\x08\x0e-\x1f\x7f-\x9f\x{FFFD}]"
_TRUTH_VALUES = (
    *("TRUE", "FALSE", "WAHR", "FALSCH", "VRAI", "FAUX", "VERDADERO", "FALSO", "VERDADEIRO", "VERO", "WAAR", "ONWAAR"),
    *("SANT", "FALSKT", "FALSK", "USANN", "TOSI", "EPÄTOSI", "PRAWDA", "FAŁSZ", "PRAVDA", "NEPRAVDA"),
    *("IGAZ", "HAMIS", "DOĞRU", "YANLIŞ", "ИСТИНА", "ЛОЖЬ", "ІСТИНА"),
)
_DAY, _MONTH_NUMBER, _YEAR = "(0?[1-9]|[12][0-9]|3[01])", "(0?[1-9]|1[0-2])", "(19|20)[0-9]{2}"
_TWO_DIGITS = "(0[1-9]|[12][0-9]|3[01])[./](0[1-9]|[12][0-9]|3[01])[./][0-9]{2}"
_SHORT_MONTH = "(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)"
_MONTH_NAMES = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_ANY_MONTH = f"({_SHORT_MONTH}|{'|'.join(_MONTH_NAMES)})"
# A day with its year, as spreadsheets show it in their formats. Names such as 1-2-3, 3.1.26 or 20260301 are not among
# them: no spreadsheet shows a date so unless it is told to.
_WHOLE_DATE = (
    rf"({_YEAR}([-/.]){_MONTH_NUMBER}[-/.]{_DAY}|({_MONTH_NUMBER}/{_DAY}|{_DAY}/{_MONTH_NUMBER})/({_YEAR}|[0-9]{{2}})"
    rf"|({_MONTH_NUMBER}[-.]{_DAY}|{_DAY}[-.]{_MONTH_NUMBER})[-.]{_YEAR}|{_TWO_DIGITS}"
    rf"|{_DAY}[- ]{_ANY_MONTH}[- ]({_YEAR}|[0-9]{{2}})|([A-Z][a-z]+day, )?{_ANY_MONTH} {_DAY}, {_YEAR}"
    rf"|{_YEAR}年{_MONTH_NUMBER}月{_DAY}日)"
    r"([T ][0-9]{1,2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?( ?[AP]M)?)?"
)
_IS_WHOLE_DATE = f"^{_WHOLE_DATE}$"
# What spreadsheets show after they took a text for a date, a number or a truth value: MAR-1, 5E10, true.
_CONVERTED = (
    rf"^({_DAY}-{_SHORT_MONTH}|{_SHORT_MONTH}-[0-9]{{2}}|{_WHOLE_DATE}"
    rf"|-?[0-9]([.,][0-9]+)?E[+-][0-9]{{2,3}}|{'|'.join(_TRUTH_VALUES)})$"
)
# Not \d: it matches the digits of every script, which PostgreSQL does not accept.
_NUMBER = r"^[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,2})?$"
_WHOLE_NUMBER = r"^[0-9]{1,9}(\.0{1,9})?$"
# A month's name, in full or its first three letters, which chrono reads.
_MONTH_NAME = f"(?i:{'|'.join(f'{name}|{name[:3]}' for name in _MONTH_NAMES)})"
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
# Spreadsheets take 29 for 2029, and 30 for 1930; chrono takes 69 for 2069.
_YEAR_OF_THE_1900S = rf"^([0-9]{{1,2}}(?:/[0-9]{{1,2}}/|-{_MONTH}-))([3-6][0-9])$"

_DATE_AND_TIME = r"^(.*[0-9]),?[T ]\s*[0-9]{1,2}:[0-9]{2}(:[0-9.]+)?( ?[AaPp][Mm])?$"


def _check(passes: Callable[[pl.Expr], pl.Expr], error: str) -> pa.Check:
    """Return a check of a column's cells from an expression that is true for a cell that passes; null always passes."""

    def check(data: PolarsData) -> pl.LazyFrame:
        cell = pl.col(data.key)
        return data.lazyframe.select(cell.is_null() | passes(cell).fill_null(value=False))

    return pa.Check(check, error=error)


_IS_ERROR = "is the error of a formula; mend the formula, or type the value"
_IS_FORMULA = (
    "is a formula whose result is not in the file; "
    "open the file in Excel, LibreOffice or Google Sheets and save it there, or type the value"
)
_IS_LOADING = "was not calculated yet; open the sheet, wait until it shows the value, and load it again"
_IS_MERGED = "is a part of a merged cell; unmerge it and fill in each row"
_IS_STRUCK = (
    "is struck out, wholly or in part; remove the strikethrough if it counts, "
    "otherwise delete what is struck out, and the row if nothing is left that it needs"
)
_IS_RAISED = (
    "has a superscript or subscript beside a digit, which are read as one number; "
    "write it without, such as 1000 or 10^3 for 10\N{SUPERSCRIPT THREE}, and delete the number of a footnote"
)
_NUMBER_IS_RAISED = (
    "has a superscript or subscript beside a digit, which are read as one number; "
    "type the number that is meant, such as 1000 for 10\N{SUPERSCRIPT THREE}, and delete the number of a footnote"
)
_AS_TEXT = "format the column as text, and type it again"
_A_DATE_AS_NUMBER = "is the date or time {}; format the column as a number, and type the number again"
_UNKNOWN_NUMBER = f"is the number {{}}, which programs show differently; {_AS_TEXT}"
_EVERY_CELL = (
    _check(
        lambda cell: cell.str.len_chars() <= _MAX_CHARACTERS,
        f"has more than {_MAX_CHARACTERS:,} characters; shorten it, or look for a double quote that is not closed",
    ),
    _check(
        lambda cell: ~cell.str.contains(_NO_TEXT),
        "holds control characters, or bytes that are no UTF-8; type it again; export a csv file again as CSV UTF-8",
    ),
    _check(
        lambda cell: ~cell.str.contains(_TOO_NARROW),
        "is only ####, which a spreadsheet shows where a column is too narrow; "
        "type the value, or widen the column and export a csv file again",
    ),
    _check(lambda cell: ~cell.str.contains(_ERROR_VALUES), _IS_ERROR),
    _check(lambda cell: ~cell.str.contains(_LOADING), _IS_LOADING),
    _check(lambda cell: ~cell.str.contains("^=."), _IS_FORMULA),
)
_NO_VALUE = {
    Kind.ERROR: _IS_ERROR,
    Kind.FORMULA: _IS_FORMULA,
    Kind.LOADING: _IS_LOADING,
    Kind.MERGED: _IS_MERGED,
    Kind.STRUCK: _IS_STRUCK,
    Kind.RAISED: _IS_RAISED,
}
_NO_NUMBER = {
    **_NO_VALUE,
    Kind.SCALED: (
        "holds {}, which its format shows as {}; format the column as a number, and type the number that is right"
    ),
    Kind.DATE: _A_DATE_AS_NUMBER,
    Kind.RAISED: _NUMBER_IS_RAISED,
}
_NO_DATE_AS_NUMBER = _check(
    lambda cell: ~cell.str.contains(_IS_WHOLE_DATE),
    "is a date, which a spreadsheet made of what was typed; format the column as a number, and type the number again",
)


@dataclass(frozen=True)
class Field:
    """A kind of cell, and the table's column that it fills."""

    column: str

    # Whether it holds what people see, and not the value behind it.
    is_as_shown: ClassVar[bool] = True
    # Why it cannot hold a cell of some kinds; {} are the cell's value and what people see.
    refused: ClassVar[Mapping[Kind, str]] = {
        **_NO_VALUE,
        Kind.DATE: f"is the date or time {{}}, which a spreadsheet made of what was typed; {_AS_TEXT}",
        Kind.BOOLEAN: (
            "is the truth value {}, which a spreadsheet made of what was typed, or a checkbox; "
            "format the column as text, and type what is meant in another way, such as T or T_RUE"
        ),
    }

    def fills(self) -> Sequence[str]:
        """Return the names of the table's columns that such a cell fills."""
        return [self.column]

    def checks(self, *, is_required: bool = False) -> Sequence[pa.Check]:  # noqa: ARG002 - some kinds need it
        """Return the checks that a cell must pass, the most informative first.

        ``is_required`` says that it must not be empty.
        """
        return [
            *_EVERY_CELL,
            _check(
                lambda cell: ~cell.str.contains(_CONVERTED),
                "looks like what a spreadsheet makes of texts such as MAR-1, 3-1-26, 5E10 or true; format the column "
                "as text, and type what the label says; if that is just this, put an underscore in it, such as 1_Mar",
            ),
        ]

    def values(self, cells: pl.Series) -> Mapping[str, pl.Series]:
        """Return the values of the table's columns that the cells fill; every cell has passed the checks."""
        return {self.column: cells}

    def read(self, cells: pl.Series, kinds: pl.Series, shown: pl.Series) -> tuple[pl.Series, pl.Series]:
        """Return the texts of cells of which more is known, and why others cannot be read; both may be null.

        See :func:`ca_biositing.pipeline.etl.extract.frames` for the kinds, and for what people see of the cells.
        """
        cell = pl.DataFrame({"value": cells, "kind": kinds, "shown": shown})
        value, kind = pl.col("value"), pl.col("kind")
        seen = pl.when(pl.col("shown") == "").then(pl.lit("nothing")).otherwise("shown")
        problem = pl.coalesce(
            pl.lit(None, dtype=pl.String),
            *(
                pl.when(kind == known).then(pl.format(reason, *[value, seen][: reason.count("{}")]))
                for known, reason in self.refused.items()
            ),
        )
        if self.is_as_shown:
            is_number = kind.is_in([Kind.NUMBER, Kind.SCALED]) & (value.str.len_chars() > 0)
            unknown = pl.format(_UNKNOWN_NUMBER, value)
            problem = pl.coalesce(problem, pl.when(is_number & pl.col("shown").is_null()).then(unknown))
            value = pl.when(is_number).then("shown").otherwise(value)
        read = cell.select(value=value, problem=problem)
        return read["value"].set(read["problem"].is_not_null(), None), read["problem"]


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

    is_as_shown: ClassVar[bool] = False
    refused: ClassVar[Mapping[Kind, str]] = _NO_NUMBER

    def checks(self, *, is_required: bool = False) -> Sequence[pa.Check]:
        """Return the checks of a number."""
        absent = "remove the row" if is_required else "leave the cell empty"
        checks = [
            *_EVERY_CELL,
            _NO_DATE_AS_NUMBER,
            _check(
                lambda cell: ~cell.str.contains("[0-9],[0-9]"),
                "has a comma, which may be a decimal comma; type a decimal point and no thousands separators",
            ),
            _check(
                lambda cell: _ascii_minus(cell).str.contains(_NUMBER),
                "is not a number; type digits with a decimal point and nothing else, "
                f"or {absent} if nothing was measured",
            ),
        ]
        if self.minimum is not None:
            checks.append(
                _check(
                    lambda cell: _ascii_minus(cell).cast(pl.Float64, strict=False) >= float(self.minimum or 0),
                    f"is below {self.minimum}; check the sign",
                )
            )
        return checks

    def values(self, cells: pl.Series) -> Mapping[str, pl.Series]:
        """Return the numbers, as text: PostgreSQL's ``numeric`` reads them without rounding."""
        return {self.column: cells.str.replace_all("\N{MINUS SIGN}", "-", literal=True)}


class Count(Field):
    """A whole number from 1 to 32767."""

    is_as_shown: ClassVar[bool] = False
    refused: ClassVar[Mapping[Kind, str]] = _NO_NUMBER

    def checks(self, *, is_required: bool = False) -> Sequence[pa.Check]:
        """Return the checks of a count."""
        absent = "" if is_required else ", or leave the cell empty"
        return [
            *_EVERY_CELL,
            _NO_DATE_AS_NUMBER,
            _check(
                lambda cell: (
                    cell.str.contains(_WHOLE_NUMBER) & cell.cast(pl.Float64, strict=False).is_between(1, 32_767)
                ),
                f"is not a whole number from 1 to 32767; type one{absent}",
            ),
        ]

    def values(self, cells: pl.Series) -> Mapping[str, pl.Series]:
        """Return the numbers."""
        return {self.column: cells.cast(pl.Float64).cast(pl.Int16)}


class Date(Field):
    """A date, month before day where both are numbers."""

    is_as_shown: ClassVar[bool] = False
    refused: ClassVar[Mapping[Kind, str]] = _NO_VALUE

    def checks(self, *, is_required: bool = False) -> Sequence[pa.Check]:
        """Return the checks of a date."""
        absent = "" if is_required else "; leave the cell empty if it is not known"
        return [
            *_EVERY_CELL,
            _check(
                lambda cell: ~cell.str.contains(r"^[2-5][0-9]{4}(\.[0-9]+)?$"),
                "is a number, perhaps a day as spreadsheets count them; format the cell as a date, and compare it",
            ),
            _check(
                lambda cell: (
                    ~(
                        cell.str.contains(_DATE_AND_TIME)
                        & (_as_date(cell.str.replace(_DATE_AND_TIME, "$1")).is_not_null())
                    )
                    | _as_date(cell).is_not_null()
                ),
                "has a time of day; type the date alone",
            ),
            _check(
                lambda cell: ~cell.str.contains(r"^(1[3-9]|2[0-9]|3[01])/(0?[1-9]|1[0-2])/[0-9]+$"),
                "has no such month; type the month first, as in 10/31/2024",
            ),
            _check(
                lambda cell: ~(_is_like_a_date(cell) & _as_date(cell).is_null()),
                "is no day of the calendar; check the day and the month",
            ),
            _check(
                lambda cell: _as_date(cell).is_between(pl.date(1900, 1, 1), pl.date(2100, 12, 31)),
                "is not a date from 1900 to 2100; "
                f"type it as 2024-10-31, 10/31/2024 (month first) or 31-Oct-2024{absent}",
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


def _is_like_a_date(cell: pl.Expr) -> pl.Expr:
    return pl.any_horizontal(cell.str.contains(pattern.replace(_MONTH, _MONTH_NAME)) for pattern in _DATES)


def _as_date(cell: pl.Expr) -> pl.Expr:
    # A workbook's dates include a time of day.
    text = cell.str.replace(r"^(\d{4}-\d{2}-\d{2})[T ]00:00:00$", "$1")
    text = text.str.replace(_YEAR_OF_THE_1900S, "${1}19$2")
    return pl.coalesce(
        pl.when(text.str.contains(pattern)).then(text.str.to_date(form, strict=False))
        for pattern, form in _DATES.items()
    )
