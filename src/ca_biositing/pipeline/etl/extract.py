"""Extract: read the columns that a flow needs from a worksheet, as frames of text."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import polars as pl

from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.transform import clean
from ca_biositing.pipeline.sources import ExtractError, Source, Worksheet, alternatives

ROW_NUMBER = "row_number"
ROW_PROBLEM = "row_problem"
# A frame ends at whichever limit is reached first: cells may be long, and memory must stay bounded.
_FRAME_ROWS = 50_000
_FRAME_CHARACTERS = 32 * 1024 * 1024


@contextmanager
def worksheets(dataset: Dataset, source: Source) -> Iterator[Sequence[Worksheet]]:
    """Open all worksheets of a dataset, whose headers have every column.

    Raises:
        ExtractError: a worksheet or a column is missing, or cannot be read.

    """
    with ExitStack() as stack:
        opened = [stack.enter_context(source.open(dataset.sheet, name)) for name in dataset.worksheets_in(source)]
        # Check all headers before the first row, so that one message reports every problem.
        if problems := [each for worksheet in opened for each in header_problems(worksheet, [*dataset.columns])]:
            raise ExtractError(" | ".join(problems))
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
        instead = alternatives("column", missing[0], filter(None, header))
        problems.append(f"{what} missing {where}. {instead}{merged} Name the column so in the header, row 1")
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
    A missing cell is empty. Rows whose cells are all blank are skipped.

    Raises:
        ExtractError: the rest of the worksheet cannot be read.

    """
    header = _header(worksheet)
    positions = [header.index(column) for column in columns]
    frame = _Frame(columns)
    for number, cells in enumerate(worksheet.rows, start=2):
        text = "".join(cells)
        if not text or text.isspace():
            continue
        row, problem = cells, None
        if len(cells) != len(header):
            # Cells to the right of the header mean that a comma was not quoted, so the other cells have moved as well.
            if any(cells[len(header) :]):
                problem = (
                    f"has {len(cells)} cells, but the header has {len(header)}; "
                    "name the other columns, or put double quotes around a text that contains a comma"
                )
            row = [*cells, *[""] * (len(header) - len(cells))]
        frame.numbers.append(number)
        frame.problems.append(problem)
        # Column by column: with a list per row, garbage collection would dominate the run time at a million rows.
        for column, position in zip(frame.columns, positions, strict=True):
            column.append(row[position])
        frame.characters += len(text)
        if len(frame.numbers) == _FRAME_ROWS or frame.characters > _FRAME_CHARACTERS:
            yield frame.build()
            frame = _Frame(columns)
    if frame.numbers:
        yield frame.build()


class _Frame:
    """Collects the rows of one frame."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._names = columns
        self.numbers: list[int] = []
        self.problems: list[str | None] = []
        self.columns: list[list[str]] = [[] for _ in columns]
        self.characters = 0

    def build(self) -> pl.DataFrame:
        return pl.DataFrame(
            [
                pl.Series(ROW_NUMBER, self.numbers, dtype=pl.Int32),
                pl.Series(ROW_PROBLEM, self.problems, dtype=pl.String),
                *(_texts(cells).alias(name) for name, cells in zip(self._names, self.columns, strict=True)),
            ]
        )


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
