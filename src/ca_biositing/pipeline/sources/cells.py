"""The text of a spreadsheet's cells: the same whether it is an Excel workbook or a Google Sheet."""

from collections.abc import Iterable
from datetime import date, datetime, time
from decimal import Decimal


def cell_text(value: object) -> str:
    """Return a cell's value as text: 15 digits of a number as spreadsheets keep them, dates and times as ISO 8601."""
    match value:
        case None:
            return ""
        case bool():
            return "TRUE" if value else "FALSE"
        case int() | float():
            text = format(value + 0, ".15g")  # + 0: there is no -0 in a spreadsheet
            return format(Decimal(text), "f") if "e" in text else text
        case datetime() if value.time() == time():
            return value.date().isoformat()
        case date() | time():
            return value.isoformat()
    return str(value)


def row_texts(values: Iterable[object], width: int = 0) -> list[str]:
    """Return a row's texts up to its last cell that is not empty, at least ``width`` of them."""
    texts = [cell_text(value) for value in values]
    while len(texts) > width and not texts[-1]:
        texts.pop()
    return texts + [""] * (width - len(texts))
