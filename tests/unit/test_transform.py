"""Cells into distinct names."""

import pytest

from ca_biositing.pipeline.etl.transform import clean, distinct_names


@pytest.mark.parametrize(
    ("cell", "cleaned"),
    [
        ("Almond", "Almond"),
        ("  Almond\t", "Almond"),
        ("Processing\u00a0 \n tomato", "Processing tomato"),
        ("Jalapen\u0303o", "Jalape\u00f1o"),
        ("\u00a0 \u202f", ""),
    ],
)
def test_clean_leaves_one_way_to_write_a_text(cell: str, cleaned: str) -> None:
    """White space of every kind and decomposed accents are what people cannot see."""
    assert clean(cell) == cleaned


def test_the_first_spelling_in_the_sheet_decides() -> None:
    """Names keep the column's order, and the spelling that comes first."""
    distinct = distinct_names(["rice", "Almond", " RICE ", "Rice", "almond"])

    assert list(distinct.names.values()) == ["rice", "Almond"]
    assert distinct.duplicates == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Jalape\u00f1o", "JALAPEN\u0303O"),
        ("Stra\u00dfe", "STRASSE"),  # where lower() is not enough
        ("\u01f0x", "J\u030cX"),  # casefolding takes the first out of the normal form
    ],
)
def test_spellings_that_differ_only_in_case_are_one_name(one: str, other: str) -> None:
    """Keys are compared as Unicode folds case."""
    distinct = distinct_names([one, other])

    assert len(distinct.names) == 1
    assert distinct.duplicates == 1


def test_every_cell_is_counted_once() -> None:
    """Empty cells are counted, also those that only look empty."""
    distinct = distinct_names(["Rice", "", "rice", " \u00a0", "Corn", "Corn"])

    assert (distinct.read, len(distinct.names), distinct.duplicates, distinct.empty) == (6, 2, 2, 2)


def test_no_cells_are_no_names() -> None:
    """A worksheet with nothing but a header is not an error."""
    distinct = distinct_names([])

    assert (distinct.read, distinct.names, distinct.duplicates, distinct.empty) == (0, {}, 0, 0)
