"""Validate: separate the rows that can be loaded from the others, with reasons."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import pandera.polars as pa
import polars as pl
from pandera.errors import SchemaErrors
from sqlalchemy import Connection, select

from ca_biositing.datamodels.models import NamedRecord
from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.extract import ROW_NUMBER, ROW_PROBLEM, kind_column, shown_column
from ca_biositing.pipeline.etl.fields import Reference
from ca_biositing.pipeline.etl.transform import clean, fold

_SHOWN_CHARACTERS = 200
# The search for the nearest name compares all names, so limit it to some cells and to small tables.
_MAX_SUGGESTIONS = 50
_MAX_SUGGESTED_NAMES = 5_000
_NEAR = 0.92
# Names that are equally near; of more, none is suggested.
_MAX_ALTERNATIVES = 3
# Cyrillic letters that look like Latin ones, as in ABEKMHOPCTXYIS; and digits like letters.
_LOOK_ALIKE = str.maketrans(
    "\u0430\u0432\u0435\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0445\u0443\u0456\u0455", "abekmhopctxyis"
)
_DIGIT_OR_LETTER = str.maketrans("01i", "oll")
# As in BI0-001 for BIO-001.
_O_BEHIND_LETTERS = re.compile(r"(?<=[^\W\d_])0(?![0-9])")
_LEADING_ZEROS = re.compile(r"(?:(?<=[\W_])o|(?<![0-9])0)[0o]*(?=[0-9])")


class NamedId(NamedTuple):
    """A record that others refer to: its key, its name as people see it, and its id."""

    key: str
    name: str
    id: int


@dataclass(frozen=True)
class Validated:
    """A frame's rows, separated into valid and rejected ones.

    ``records`` has ``row_number`` and the table's columns. ``rejected`` has one row per bad row: ``row_number``,
    ``column_name`` and ``value`` of its first problem (null if the problem is the row as a whole), and ``reason``.
    ``problems`` has one row per bad cell, with the same columns; its ``reason`` does not name the column.
    """

    records: pl.DataFrame
    rejected: pl.DataFrame
    problems: pl.DataFrame


class Validator:
    """Validates frames of one dataset against its fields' checks and the records that it refers to.

    Cells can refer to the records that are in the database when the validator is created, or, without a connection, to
    the ``names`` of each table. References to other tables are not looked up: ``records`` lacks their ids, and
    ``rejected`` has the other problems only.
    """

    def __init__(
        self,
        dataset: Dataset,
        connection: Connection | None,
        names: Mapping[type[NamedRecord], Sequence[NamedId]] = MappingProxyType({}),
    ) -> None:
        self._dataset = dataset
        self._schema = pa.DataFrameSchema(
            {
                header: pa.Column(pl.String, list(field.checks(is_required=required)), nullable=not required)
                for header, field in dataset.columns.items()
                for required in (dataset.is_required(field),)
            }
        )
        self._references = {
            header: _Names(field, names[field.model] if connection is None else _stored(field, connection))
            for header, field in dataset.columns.items()
            if isinstance(field, Reference) and (connection is not None or field.model in names)
        }

    def validate(self, frame: pl.DataFrame) -> Validated:
        """Return the frame's rows as records, and the rejected ones; see :func:`.extract.frames` for the frame."""
        numbers = frame[ROW_NUMBER]
        cells, unreadable = self._read(frame)
        ids = {header: names.ids(cells[header]) for header, names in self._references.items()}
        problems = pl.concat(
            [
                _row_problems(frame),
                *unreadable,
                self._cell_problems(cells),
                *(
                    names.problems(header, cells[header], ids[header], len(frame.columns))
                    for header, names in self._references.items()
                ),
            ]
        )
        bad = problems["index"].unique()
        good = ~pl.Series(range(len(frame)), dtype=pl.Int32).is_in(bad.implode())
        records = pl.DataFrame([numbers.filter(good)])
        for header, field in self._dataset.columns.items():
            if header in ids:
                records = records.with_columns(ids[header].filter(good).alias(field.column))
            elif not isinstance(field, Reference):
                values = field.values(cells[header].filter(good))
                records = records.with_columns(series.alias(column) for column, series in values.items())
        first = self._first(problems)
        return Validated(records, self._rejected(frame, first), self._problems(frame, first))

    def _read(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
        """Return the cleaned cells, null where one cannot be read, and the problems of those."""
        columns = []
        problems = []
        for header, field in self._dataset.columns.items():
            cells = frame[header]
            if kind_column(header) in frame.columns:
                cells, reasons = field.read(cells, frame[kind_column(header)], frame[shown_column(header)])
                problems.append(
                    pl.DataFrame({"reason": reasons})
                    .with_row_index("index")
                    .filter(pl.col("reason").is_not_null())
                    .select(
                        index=pl.col("index").cast(pl.Int32),
                        column=pl.lit(header),
                        # Before all others: the cell is then empty.
                        order=pl.lit(-2, dtype=pl.Int32),
                        reason="reason",
                    )
                )
            columns.append(clean(cells.alias(header)))
        return pl.DataFrame(columns), problems

    def _cell_problems(self, cells: pl.DataFrame) -> pl.DataFrame:
        try:
            self._schema.validate(cells, lazy=True)
        except SchemaErrors as errors:
            cases: pl.DataFrame = errors.failure_cases
        else:
            return _no_problems()
        return cases.select(
            index=pl.col("index").cast(pl.Int32),
            column=pl.col("column").cast(pl.String),
            # Null means that the cell is empty, which is reported before any other problem.
            order=pl.col("check_number").cast(pl.Int32).fill_null(-1),
            reason=pl.when(pl.col("check") == "not_nullable").then(pl.lit("is empty")).otherwise(pl.col("check")),
        )

    def _first(self, problems: pl.DataFrame) -> pl.DataFrame:
        """Return the first problem of each bad cell, in the order of rows and columns."""
        position = {header: place for place, header in enumerate(self._dataset.columns)}
        first = (
            problems.with_columns(position=pl.col("column").replace_strict(position, default=-1, return_dtype=pl.Int32))
            .sort("index", "position", "order")
            .unique(["index", "position"], keep="first", maintain_order=True)
        )
        # If the row as a whole is wrong, its cells cannot be attributed to columns.
        return first.filter((pl.col("position") == -1) | (pl.col("position").min().over("index") >= 0))

    def _rejected(self, frame: pl.DataFrame, first: pl.DataFrame) -> pl.DataFrame:
        """Return one row per rejected row."""
        by_row = first.group_by("index", maintain_order=True).agg(
            column=pl.col("column").first(),
            reason=pl.format("{} {}", pl.col("column").fill_null("the row"), pl.col("reason")).str.join("; "),
        )
        return self._problems(frame, by_row)

    def _problems(self, frame: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
        """Return the number, the column's name, the value and the reason of rows or cells that were found."""
        cells = frame.with_row_index("index").with_columns(pl.col("index").cast(pl.Int32))
        value = pl.coalesce(
            pl.when(pl.col("column") == header).then(
                pl.coalesce(name for name in (shown_column(header), header) if name in frame.columns)
            )
            for header in self._dataset.columns
        )
        shown = pl.when(value.str.len_chars() > _SHOWN_CHARACTERS).then(value.str.head(_SHOWN_CHARACTERS) + "…")
        return (
            found.select("index", "column", found_reason="reason")
            .join(cells, on="index", maintain_order="left")
            .select(
                ROW_NUMBER,
                column_name="column",
                value=shown.otherwise(value).str.replace_all("\0", "\N{REPLACEMENT CHARACTER}", literal=True),
                reason="found_reason",
            )
        )


def _stored(field: Reference, connection: Connection) -> Sequence[NamedId]:
    rows = connection.execute(select(field.model.name_key, field.model.name, field.model.id))
    return [NamedId(*row) for row in rows]


class _Names:
    """The names and ids of the records in a referenced table."""

    def __init__(self, field: Reference, names: Sequence[NamedId]) -> None:
        self._table = field.model.__tablename__
        self._spellings: Mapping[str, str] = {each.key: each.name for each in names}
        self._ids = pl.DataFrame(
            {"key": [each.key for each in names], "id": [each.id for each in names]},
            schema={"key": pl.String, "id": pl.Int32},
        )
        self._suggestions = Suggestions([*self._spellings])

    def ids(self, cells: pl.Series) -> pl.Series:
        """Return the ids of the records that the cells name; null if there is no such record."""
        return fold(cells).to_frame("key").join(self._ids, on="key", how="left", maintain_order="left")["id"]

    def problems(self, header: str, cells: pl.Series, ids: pl.Series, order: int) -> pl.DataFrame:
        """Return a problem for each cell that names no record."""
        missing = (
            pl.DataFrame({"cell": cells, "id": ids})
            .with_row_index("index")
            .filter(pl.col("cell").is_not_null() & pl.col("id").is_null())
        )
        reasons = {cell: self._reason(cell) for cell in missing["cell"].unique()}
        return missing.select(
            index=pl.col("index").cast(pl.Int32),
            column=pl.lit(header),
            order=pl.lit(order, dtype=pl.Int32),
            reason=pl.col("cell").replace_strict(reasons, return_dtype=pl.String) if reasons else pl.lit(""),
        )

    def _reason(self, cell: str) -> str:
        names = " or ".join(f"'{self._spellings[key]}'" for key in self._suggestions.near(cell))
        return f"is not in {self._table}, where it must be entered first" + (
            f"; did you mean {names}?" if names else ""
        )


class Suggestions:
    """Finds the keys that cells may stand for, as long as the search is cheap."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = keys
        self._found: dict[str, Sequence[str]] = {}

    def near(self, cell: str) -> Sequence[str]:
        """Return the keys that the cell may stand for."""
        if cell not in self._found and len(self._found) < _MAX_SUGGESTIONS and len(self._keys) <= _MAX_SUGGESTED_NAMES:
            self._found[cell] = _nearest(cell, self._keys)
        return self._found.get(cell, [])


def _nearest(name: str, keys: Sequence[str]) -> Sequence[str]:
    """Return the keys that a name may stand for: those that look like it, or else those that are spelled most like it.

    Another number is another thing: BIO-AH-015 is never suggested for BIO-AH-01.
    """
    wanted = name.casefold()[:_SHOWN_CHARACTERS]
    near = [key for key in keys if _look(key) == _look(wanted)]
    if not near:
        alike = [key for key in keys if _numbers(key) == _numbers(wanted)]
        ratios = {
            key: SequenceMatcher(None, key, wanted).ratio()
            for key in get_close_matches(wanted, alike, n=_MAX_ALTERNATIVES + 1, cutoff=_NEAR)
        }
        near = [key for key, ratio in ratios.items() if ratio == max(ratios.values())]
    return sorted(near) if len(near) <= _MAX_ALTERNATIVES else []


@lru_cache(maxsize=2 * _MAX_SUGGESTED_NAMES)
def _look(key: str) -> str:
    """Return a key without what people overlook: punctuation, leading zeros, and which of 0 and O, or 1, l and I."""
    text = _O_BEHIND_LETTERS.sub("o", unicodedata.normalize("NFKC", key).translate(_LOOK_ALIKE))
    text = re.sub(r"(?<![0-9])[\W_]+|[\W_]+(?![0-9])", "", _LEADING_ZEROS.sub("", text))
    # Between digits it makes a difference: 1-12 is not 11-2.
    return re.sub(r"[\W_]+", "-", text).translate(_DIGIT_OR_LETTER)


def _numbers(key: str) -> Sequence[str]:
    return [number.lstrip("0") for number in re.findall("[0-9]+", key)]


def _row_problems(frame: pl.DataFrame) -> pl.DataFrame:
    return (
        frame.with_row_index("index")
        .filter(pl.col(ROW_PROBLEM).is_not_null())
        .select(
            index=pl.col("index").cast(pl.Int32),
            column=pl.lit(None, dtype=pl.String),
            order=pl.lit(0, dtype=pl.Int32),
            reason=ROW_PROBLEM,
        )
    )


def _no_problems() -> pl.DataFrame:
    return pl.DataFrame(schema={"index": pl.Int32, "column": pl.String, "order": pl.Int32, "reason": pl.String})
