"""Extract: from a worksheet, the column that a flow needs."""

from collections.abc import Sequence

from ca_biositing.pipeline.etl.transform import clean
from ca_biositing.pipeline.sources import ExtractError, Source, alternatives


def extract_column(source: Source, sheet: str, worksheet: str, column: str) -> Sequence[str]:
    """Return one text per row of the worksheet, in its order and unchanged; a missing cell is ``""``.

    The header is compared as it is read by people: stray white space does not matter, case does.

    Raises:
        ExtractError: the worksheet cannot be read, or the column is missing or there twice.

    """
    table = source.read(sheet, worksheet)
    header = [clean(name) for name in table.header]
    where = f"in worksheet '{worksheet}' of sheet '{sheet}' ({table.location})"
    if column not in header:
        raise ExtractError(
            f"Column '{column}' is missing {where}. {alternatives('column', column, header)} "
            f"Name the column '{column}' in the header, row 1"
        )
    if header.count(column) > 1:
        raise ExtractError(
            f"Column '{column}' is there {header.count(column)} times {where}. Keep one, rename or delete the others"
        )
    index = header.index(column)
    return [row.cells[index] if index < len(row.cells) else "" for row in table.rows]
