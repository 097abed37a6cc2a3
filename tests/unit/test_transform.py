"""Conversion of cells to values, and the errors of those that cannot be converted."""

from datetime import date

import pandera.polars as pa
import polars as pl
import pytest
from pandera.errors import SchemaErrors

from ca_biositing.pipeline.etl.fields import Code, Count, Date, Field, Name, Number, Text
from ca_biositing.pipeline.etl.transform import clean, fold
from ca_biositing.pipeline.etl.validate import _nearest


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("Corn", "Corn"),
        # One by one: each is found, and so cleaned, for its own reason.
        (" Corn", "Corn"),
        ("Corn ", "Corn"),
        ("Corn  stover", "Corn stover"),
        ("  Corn\t stover ", "Corn stover"),
        ("Corn\N{NO-BREAK SPACE}\N{EM SPACE}stover", "Corn stover"),
        ("two\nlines", "two lines"),
        ("Jalapen\N{COMBINING TILDE}o", "Jalapeño"),
        ("\N{ZERO WIDTH NO-BREAK SPACE}Co\N{WORD JOINER}rn\N{ZERO WIDTH SPACE}\N{LEFT-TO-RIGHT MARK}", "Corn"),
        ("", None),
        (" \N{NO-BREAK SPACE}\r\n", None),
        (None, None),
    ],
)
def test_clean(cell: str | None, text: str | None) -> None:
    assert clean(pl.Series(["x", cell], dtype=pl.String)).to_list() == ["x", text]


@pytest.mark.parametrize(
    ("one", "other"),
    [("CORN", "corn"), ("Straße", "STRASSE"), ("JALAPEÑO", "jalapeño"), ("\N{GREEK SMALL LETTER FINAL SIGMA}", "Σ")],
)
def test_spellings_that_differ_in_case_have_one_key(one: str, other: str) -> None:
    keys = fold(pl.Series([one, None, other]))
    assert keys[0] == keys[2]
    assert keys[1] is None


def test_names_that_differ_have_two() -> None:
    assert fold(pl.Series(["Almond hulls", "Almond shells"])).n_unique() == 2


def failure(field: Field, cell: str) -> str | None:
    """Return the first error of a cell."""
    schema = pa.DataFrameSchema({"cell": pa.Column(pl.String, list(field.checks()), nullable=True)})
    try:
        schema.validate(pl.DataFrame({"cell": [None, cell]}), lazy=True)
    except SchemaErrors as errors:
        reason: str = errors.failure_cases.sort("check_number")["check"][0]
        return reason
    return None


def value(field: Field, cell: str) -> object:
    """Return the value of a cell."""
    assert failure(field, cell) is None
    return field.values(pl.Series([cell]))[field.column][0]


@pytest.mark.parametrize(
    ("cell", "day"),
    [
        ("2023-09-07", date(2023, 9, 7)),
        ("2023-9-7", date(2023, 9, 7)),
        ("2023-09-07 00:00:00", date(2023, 9, 7)),
        ("2023-09-07T00:00:00", date(2023, 9, 7)),
        ("9/7/2023", date(2023, 9, 7)),
        ("09/23/23", date(2023, 9, 23)),
        ("26-Nov-23", date(2023, 11, 26)),
        ("26-nov-2023", date(2023, 11, 26)),
        ("26 November 2023", date(2023, 11, 26)),
        ("Nov 26, 2023", date(2023, 11, 26)),
        ("February 29, 2024", date(2024, 2, 29)),
    ],
)
def test_dates(cell: str, day: date) -> None:
    assert value(Date("day"), cell) == day


NO_DAYS = [
    *("2023-02-29", "2024-13-01", "2/30/2024"),
    *("31-Nov-2023", "31-Nov-23", "30 February 2024", "Feb 30, 2024", "29-FEB-2023"),
]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        *((cell, "has no such month; type the month first") for cell in ["23/9/2023", "31/10/24"]),
        *((cell, "is no day of the calendar") for cell in NO_DAYS),
        *((cell, "is a number, perhaps a day as spreadsheets count them") for cell in ["45189", "45596.5"]),
        *((cell, "has a time of day") for cell in ["2024-10-31T14:30:00", "2024-10-31 14:30", "10/31/2024 2:30 PM"]),
        *(
            (cell, "is not a date from 1900 to 2100")
            for cell in ["13-Foo-23", "2023", "0023-01-01", "2203-01-01", "1/1/0023"]
        ),
        *((cell, "is not a date from 1900 to 2100") for cell in ["today", "7.9.2023", "14:30:00", "31-Sept-2023"]),
    ],
)
def test_what_is_no_date_is_refused(cell: str, reason: str) -> None:
    assert (failure(Date("day"), cell) or "").startswith(reason)


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("0", "0"),
        ("0.0", "0.0"),
        ("-3.50", "-3.50"),
        ("\N{MINUS SIGN}3.5", "-3.5"),
        ("+1", "+1"),
        (".5", ".5"),
        ("5.", "5."),
        ("1.9e1", "1.9e1"),
        ("2E-5", "2E-5"),
    ],
)
def test_numbers_keep_their_digits(cell: str, number: str) -> None:
    assert value(Number("x"), cell) == number


@pytest.mark.parametrize("cell", ["12,5", "1,234.5", "-0,1"])
def test_a_comma_is_refused_not_guessed(cell: str) -> None:
    assert (failure(Number("x"), cell) or "").startswith("has a comma")


@pytest.mark.parametrize(
    "cell",
    ["<0.1", "n.d.", "5 %", "1 000", "NaN", "inf", "1e999", "9" * 31, "0x10", "--1", "\N{ARABIC-INDIC DIGIT ONE}"],
)
def test_what_is_no_number_is_refused(cell: str) -> None:
    assert (failure(Number("x"), cell) or "").startswith("is not a number")


@pytest.mark.parametrize(("cell", "count"), [("1", 1), ("2.0", 2), ("32767", 32767), ("007", 7)])
def test_counts(cell: str, count: int) -> None:
    assert value(Count("n"), cell) == count


@pytest.mark.parametrize("cell", ["0", "-1", "1.5", "32768", "999999999", "9" * 20, "x", "1e1"])
def test_what_is_no_count_is_refused(cell: str) -> None:
    assert failure(Count("n"), cell) == "is not a whole number from 1 to 32767; type one, or leave the cell empty"


@pytest.mark.parametrize("field", [Text("x"), Code("x"), Name("x"), Number("x"), Count("x"), Date("x")])
@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("#REF!", "is the error of a formula"),
        ("#DIV/0!", "is the error of a formula"),
        ("a\0b", "holds control characters"),
        ("a\N{REPLACEMENT CHARACTER}", "holds control characters"),
        ("####", "is only ####, which a spreadsheet shows where a column is too narrow"),
        ("9" * 40_000, "has more than 32,767 characters"),
    ],
)
def test_what_no_cell_may_hold(field: Field, cell: str, reason: str) -> None:
    assert (failure(field, cell) or "").startswith(reason)


@pytest.mark.parametrize("field", [Number("x"), Count("x")])
@pytest.mark.parametrize("cell", ["3/4/2026", "2026-03-04", "4-Mar-26"])
def test_a_date_in_a_column_of_numbers_is_named(field: Field, cell: str) -> None:
    assert (failure(field, cell) or "").startswith(
        "is a date, which a spreadsheet made of what was typed; format the column"
    )


def test_what_to_do_where_nothing_was_measured_depends_on_whether_the_cell_may_be_empty() -> None:
    said = {
        required: [str(check.error) for check in Number("x").checks(is_required=required)] for required in (True, False)
    }
    assert any(error.endswith("or remove the row if nothing was measured") for error in said[True])
    assert any(error.endswith("or leave the cell empty if nothing was measured") for error in said[False])


def test_a_code_is_in_capitals() -> None:
    assert value(Code("x"), "prv-08") == "PRV-08"


def test_a_hash_alone_is_no_error() -> None:
    assert value(Text("x"), "#3 bin") == "#3 bin"


SAMPLES = [f"bio-ah-{number:03}" for number in range(1, 21)]


@pytest.mark.parametrize(
    ("cell", "keys", "near"),
    [
        ("BIO-AH-01", SAMPLES, ["bio-ah-001"]),
        ("BIO-AH-01", SAMPLES[1:], []),
        ("BIO-AH-021", SAMPLES, []),
        *((cell, SAMPLES, ["bio-ah-001"]) for cell in ["BIO AH 001", "BIO_AH_001", "BIOAH001", "BIO-AH-1"]),
        *(
            (cell, SAMPLES, ["bio-ah-001"])
            for cell in ["BIO-AH-0O1", "BIO-AH-O01", "BI0-AH-001", "B10-AH-001", "BlO-AH-001", "BIO\u2013AH\u2013001"]
        ),
        ("BIO-\u0410H-001", SAMPLES, ["bio-ah-001"]),
        *((cell, ["exp-001", "exp-002"], ["exp-002"]) for cell in ["EXP-2", "EXP 002", "EXP002"]),
        *((cell, ["bio-001"], ["bio-001"]) for cell in ["BI0-001", "BIO001", "B1O-001"]),
        ("EXP-1-12", ["exp-11-2"], []),
        ("B10-12", ["b1-012"], []),
        ("EXP-2", ["exp-02", "exp-002"], ["exp-002", "exp-02"]),
        ("EXP-2", ["exp-02", "exp-002", "exp 2", "exp_2"], []),
        ("Procesing tomato", ["processing tomato", "almond"], ["processing tomato"]),
        ("Wheat", ["almond"], []),
    ],
)
def test_the_name_that_looks_the_same_is_suggested(cell: str, keys: list[str], near: list[str]) -> None:
    """Another number is another sample, however near it is."""
    assert _nearest(cell, keys) == near
