"""Extract: read the columns that a flow needs from a worksheet, as frames of text."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import polars as pl

from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.transform import clean, is_blank
from ca_biositing.pipeline.sources import ExtractError, Source, Worksheet
from ca_biositing.pipeline.sources.base import nearest, quoted
from ca_biositing.pipeline.sources.cells import BrokenRow, Cell, Kind, Row

ROW_NUMBER = "row_number"
ROW_PROBLEM = "row_problem"
# A frame ends at whichever limit is reached first: cells may be long, and memory must stay bounded.
_FRAME_ROWS = 50_000
_FRAME_CHARACTERS = 32 * 1024 * 1024
# A title above the header is looked for in so many rows.
_TITLE_ROWS = 10
_OTHERWISE = ", or delete or rename the worksheet if it holds nothing to be loaded"


@contextmanager
def worksheets(dataset: Dataset, source: Source) -> Iterator[Sequence[Worksheet]]:
    """Open all worksheets of a dataset, whose headers have every column.

    Raises:
        ExtractError: a worksheet or a column is missing, or cannot be read.

    """
    with ExitStack() as stack:
        names = dataset.worksheets_in(source)
        # Where a pattern matches several, one of them may be no data.
        otherwise = "" if dataset.is_named(dataset.worksheets) else _OTHERWISE
        try:
            opened = [stack.enter_context(source.open(dataset.sheet, name)) for name in names]
        except ExtractError as error:
            raise type(error)(f"{error}{otherwise}") from error
        # Check all headers before the first row, so that one message reports every problem.
        if problems := [each for worksheet in opened for each in header_problems(worksheet, [*dataset.columns])]:
            raise ExtractError(" | ".join(problems) + otherwise)
        yield opened


def header_problems(worksheet: Worksheet, columns: Sequence[str]) -> Sequence[str]:
    """Return a message for each problem of the worksheet's header; none if it has every column exactly once.

    Stray white space in the header is ignored; case is significant.
    """
    header = _header(worksheet)
    where = f"in worksheet '{worksheet.name}' of sheet '{worksheet.sheet}' ({worksheet.location})"
    problems = []
    if missing := [column for column in columns if column not in header]:
        names = ", ".join(f"'{column}'" for column in missing)
        what = f"Column {names} is" if len(missing) == 1 else f"Columns {names} are"
        unnamed = sum(name is None for name in header)
        merged = f" {unnamed} of the header's cells are empty, as merged cells are." if unnamed else ""
        present = [name for name in header if name]
        found = f"Present: {quoted(sorted(present))}." if present else "There is no column at all."
        others = {column: nearest(column, [name for name in present if name not in columns]) for column in missing}
        renames = ", ".join(f"'{near}' to '{column}'" for column, near in others.items() if near)
        advice = f"{f'Rename {renames}' if renames else 'Name the column so'} in the header, row 1"
        if lower := next((number for number, row in _first_rows(worksheet) if {*columns} <= {*row}), None):
            advice = f"Row {lower} looks like the header: delete the rows above it"
        problems.append(f"{what} missing {where}. {found}{merged} {advice}")
    problems += [
        f"Column '{column}' is there {header.count(column)} times {where}. Keep one, rename or delete the others"
        for column in columns
        if header.count(column) > 1
    ]
    return problems


def frames(worksheet: Worksheet, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Return the worksheet's rows as frames of a bounded size, in order.

    A frame has ``row_number`` (as a spreadsheet shows it: the header is row 1), the unchanged text of each column, in
    which U+FFFD replaces bytes that cannot be decoded, and ``row_problem``: null, or the problem of the row as a whole.
    Where a column has cells of which more is known than their text, :func:`kind_column` and :func:`shown_column` name
    the columns with their :class:`.cells.Kind` and with what people see of them; both are null for other cells.
    A missing cell is empty. Rows that say nothing in these columns are skipped.

    Raises:
        ExtractError: the rest of the worksheet cannot be read.

    """
    header = _header(worksheet)
    positions = [header.index(column) for column in columns]
    names = [*columns]
    frame = _Frame(columns)
    for number, cells in enumerate(worksheet.rows, start=2):
        if not cells:
            continue
        row, problem = _pick(cells, positions), None
        text = "".join(row)
        # Whether something is a list is found in a tenth of the time of whether it is a Row, an abstract sequence.
        is_of_csv = isinstance(cells, list)
        if is_blank(text) or (not is_of_csv and all(map(_says_nothing, row))):
            continue
        if is_of_csv and isinstance(cells, BrokenRow):
            problem = cells.problem
        elif row == names:
            problem = "is a second header; remove it"
        elif not is_of_csv and all(map(_is_struck_or_blank, row)):
            problem = "is struck out; delete it, or remove the strikethrough if it counts"
        elif is_of_csv and len(cells) > len(header):
            # Probably a comma was not quoted, so the other cells have moved as well, and the last one may be empty.
            # Elsewhere it is a note.
            problem = (
                "has more cells than the header; put double quotes around a text that contains a comma, "
                "type a decimal point instead of a comma, or name the last column"
            )
        frame.numbers.append(number)
        frame.problems.append(problem)
        # Column by column: with a list per row, garbage collection would dominate the run time at a million rows.
        for column, cell in zip(frame.columns, row, strict=True):
            column.append(cell)
        frame.characters += len(text)
        if len(frame.numbers) == _FRAME_ROWS or frame.characters > _FRAME_CHARACTERS:
            yield frame.build()
            frame = _Frame(columns)
    if frame.numbers:
        yield frame.build()


def kind_column(header: str) -> str:
    """Return the name of the column with the kinds of a column's cells; see :func:`frames`."""
    return f"{header}\0kind"


def shown_column(header: str) -> str:
    """Return the name of the column with what people see of a column's cells; see :func:`frames`."""
    return f"{header}\0shown"


class _Frame:
    """Collects the rows of one frame."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._names = columns
        self.numbers: list[int] = []
        self.problems: list[str | None] = []
        self.columns: list[list[str]] = [[] for _ in columns]
        self.characters = 0

    def build(self) -> pl.DataFrame:
        series = [
            pl.Series(ROW_NUMBER, self.numbers, dtype=pl.Int32),
            pl.Series(ROW_PROBLEM, self.problems, dtype=pl.String),
        ]
        for name, cells in zip(self._names, self.columns, strict=True):
            series.append(_texts(cells).alias(name))
            if Cell in set(map(type, cells)):
                known = [cell if isinstance(cell, Cell) else None for cell in cells]
                kinds = [None if cell is None else cell.kind for cell in known]
                shown = [None if cell is None else cell.shown for cell in known]
                series.append(pl.Series(kind_column(name), kinds, dtype=pl.String))
                series.append(pl.Series(shown_column(name), shown, dtype=pl.String))
        return pl.DataFrame(series)


def _pick(cells: Sequence[str], positions: Sequence[int]) -> list[str]:
    if not isinstance(cells, list) and isinstance(cells, Row):
        return cells.pick(positions)
    length = len(cells)
    return [cells[position] if position < length else "" for position in positions]


def _says_nothing(cell: str) -> bool:
    """Return whether nothing was typed into a cell, although it may hold a checkbox or a formula's zero."""
    return not cell or (isinstance(cell, Cell) and cell.is_idle)


def _is_struck_or_blank(cell: str) -> bool:
    return is_blank(cell) or (isinstance(cell, Cell) and (cell.kind == Kind.STRUCK or cell.is_idle))


def _first_rows(worksheet: Worksheet) -> Iterator[tuple[int, Sequence[str | None]]]:
    for number, cells in zip(range(2, _TITLE_ROWS + 1), worksheet.rows, strict=False):
        yield number, clean(_texts([*cells])).to_list()


def _header(worksheet: Worksheet) -> list[str | None]:
    return clean(_texts(worksheet.header)).to_list()


def _texts(cells: Sequence[str]) -> pl.Series:
    try:
        return pl.Series(cells, dtype=pl.String)
    except UnicodeEncodeError:
        return pl.Series(
            [cell.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for cell in cells],
            dtype=pl.String,
        )
