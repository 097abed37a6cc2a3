"""Converts spreadsheet cells to text, in the same way for Excel workbooks and Google Sheets."""

from collections.abc import Iterable
from datetime import date, datetime, time
from decimal import Decimal


def cell_text(value: object) -> str:
    """Return a cell's value as text: numbers with a spreadsheet's 15 digits, dates and times in ISO 8601."""
    match value:
        case None:
            return ""
        case bool():
            return "TRUE" if value else "FALSE"
        case int() | float():
            text = format(value + 0, ".15g")  # + 0 turns -0 into 0: spreadsheets have no -0
            return format(Decimal(text), "f") if "e" in text else text
        case datetime() if value.time() == time():
            return value.date().isoformat()
        case date() | time():
            return value.isoformat()
    return str(value)


def row_texts(values: Iterable[object], width: int = 0) -> list[str]:
    """Return a row's texts without trailing empty cells, but padded to at least ``width`` cells."""
    texts = [cell_text(value) for value in values]
    while len(texts) > width and not texts[-1]:
        texts.pop()
    return texts + [""] * (width - len(texts))
