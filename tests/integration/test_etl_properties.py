"""Properties that hold for any worksheet, whatever its cells contain."""

import csv
import random
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, insert, text

from ca_biositing.datamodels.models import Base, Experiment, FieldSample
from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.run import Accounting, run
from ca_biositing.pipeline.flows.field_sample import FIELD_SAMPLES
from ca_biositing.pipeline.flows.observation import OBSERVATIONS
from ca_biositing.pipeline.flows.primary_product import PRIMARY_PRODUCTS
from ca_biositing.pipeline.sources.csv_folder import CsvFolder

Table = list[list[str]]

# The database and the folder are emptied before each example.
# The examples are the same each time, so that the test does not fail at random. Raise the number to search for more.
EXAMPLES = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
NUMBERS = st.sampled_from(["0", "0.0", "-0", "-3.5", "1.9e1", "12.50", ".5", "\N{MINUS SIGN}2", " 7 "])
ANYTHING = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
BROKEN = st.sampled_from(["", "12,5", "<0.1", "n.d.", "#REF!", "1 000", "NaN", "Infinity", "9" * 40, "1e999", "\0"])
# Few keys, so that rows share them.
OBSERVATION = st.tuples(
    st.sampled_from(["S1", "s1", " S2", "S9", ""]),
    st.sampled_from(["E1", "e1\N{NO-BREAK SPACE}", "E7"]),
    st.sampled_from(["Ash", "ash ", "ASH", "pH", ""]),
    st.sampled_from(["", " ", "%", "mW", "MW"]),
    NUMBERS | BROKEN | ANYTHING,
    st.sampled_from(["", "1", "1.0", "2", "0", "x", "99999"]),
).map(list)
SAMPLE = st.tuples(
    st.sampled_from(["S3", "s3", "S4", "Straße", "STRASSE"]) | ANYTHING,
    st.sampled_from(["Rice hulls", "rice hulls", ""]),
    st.sampled_from(["", "Corn"]),
    st.sampled_from(["prv-1", "PRV-1", ""]),
    st.just("") | ANYTHING,
    st.sampled_from(["", "2024-09-01", "9/1/24", "1-Sep-2024", "13/13/2024", "yesterday"]),
    NUMBERS | BROKEN,
).map(list)


class Folder:
    """A csv folder with one worksheet, and the database that it is loaded into."""

    def __init__(self, directory: Path, engine: Engine) -> None:
        self.directory = directory
        self.engine = engine

    def load(self, dataset: Dataset, rows: Table) -> Accounting:
        """Write the rows as the dataset's worksheet and load them."""
        path = self.directory / dataset.sheet / f"{dataset.worksheets.replace('[1-9]*-*', '1-Any')}.csv"
        path.parent.mkdir(exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([[*dataset.columns], *rows])
        return run(dataset, CsvFolder(self.directory), self.engine)

    def rows(self, statement: str, **parameters: object) -> list[tuple[object, ...]]:
        """Return the rows of a query."""
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement), parameters)]

    def content(self, dataset: Dataset) -> list[tuple[object, ...]]:
        """Return the table's rows, without ids and times."""
        columns = ", ".join(column.name for column in dataset.loaded_columns)
        return sorted(self.rows(f"SELECT {columns} FROM {dataset.table}"), key=repr)  # noqa: S608 - own names

    def clear(self) -> None:
        """Empty the tables, and insert two samples and an experiment."""
        with self.engine.begin() as connection:
            tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
            connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY"))
            for name in ("S1", "S2"):
                sample = {"residue": "Ash", "residue_key": "ash", "provider_code": "P"}
                connection.execute(insert(FieldSample).values(name=name, name_key=name.lower(), **sample))
            connection.execute(insert(Experiment).values(name="E1", name_key="e1"))


@pytest.fixture
def folder(migrated_database: Engine, tmp_path: Path) -> Folder:
    """Return a folder and a database for one test."""
    return Folder(tmp_path, migrated_database)


def is_row(cells: Sequence[str]) -> bool:
    """Return whether any cell is not empty."""
    return bool("".join(cells).strip())


def check(folder: Folder, dataset: Dataset, rows: Table, seed: int) -> None:
    """Load rows, load them again, load them shuffled, and compare."""
    folder.clear()
    before = len(folder.content(dataset))
    first = folder.load(dataset, rows)

    assert first.read == sum(is_row(row) for row in rows)
    assert first.read == first.inserted + first.updated + first.unchanged + first.rejected
    assert (first.updated, len(folder.content(dataset))) == (0, before + first.inserted)
    rejected = folder.rows("SELECT row_number, reason FROM rejected_row WHERE etl_run_id = :id", id=first.run_id)
    assert len(rejected) == first.rejected
    assert all(is_row(rows[number - 2]) and reason for number, reason in rejected if isinstance(number, int))
    recorded = folder.rows(
        "SELECT status, read, inserted, updated, unchanged, rejected FROM etl_run WHERE id = :id", id=first.run_id
    )
    assert recorded == [("completed", first.read, first.inserted, first.updated, first.unchanged, first.rejected)]

    content = folder.content(dataset)
    times = folder.rows(f"SELECT id, created_at, updated_at FROM {dataset.table} ORDER BY id")  # noqa: S608 - own name
    again = folder.load(dataset, rows)

    assert (again.inserted, again.updated, again.rejected) == (0, 0, first.rejected)
    assert folder.content(dataset) == content
    assert folder.rows(f"SELECT id, created_at, updated_at FROM {dataset.table} ORDER BY id") == times  # noqa: S608

    folder.clear()
    shuffled = random.Random(seed).sample(rows, len(rows))  # noqa: S311 - no secret
    moved = folder.load(dataset, shuffled)

    assert (moved.inserted, moved.unchanged, moved.rejected) == (first.inserted, first.unchanged, first.rejected)
    assert folder.content(dataset) == content


@pytest.mark.thorough
@EXAMPLES
@given(st.lists(OBSERVATION, max_size=12), st.integers())
@example([["S1", "E1", "Ash", "%", "2", "1"], ["S1", "E1", "Ash", "%", "2.0", "1"]], 1)
@example([["S1", "E1", "Ash", "", "2", ""], ["s1", "E1", "ash", " ", "3", ""], ["S2", "E1", "ash", "", "3", ""]], 2)
def test_any_observations(folder: Folder, rows: Table, seed: int) -> None:
    check(folder, OBSERVATIONS, rows, seed)


@pytest.mark.thorough
@EXAMPLES
@given(st.lists(SAMPLE, max_size=12), st.integers())
def test_any_samples(folder: Folder, rows: Table, seed: int) -> None:
    check(folder, FIELD_SAMPLES, rows, seed)


@pytest.mark.thorough
@EXAMPLES
@given(
    st.lists((st.sampled_from(["Corn", "CORN", "corn "]) | ANYTHING).map(lambda name: [name]), max_size=12),
    st.integers(),
)
def test_any_names(folder: Folder, rows: Table, seed: int) -> None:
    check(folder, PRIMARY_PRODUCTS, rows, seed)


@EXAMPLES
@given(
    st.lists(
        st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20, places=6),
        min_size=1,
        max_size=40,
    )
)
@example([Decimal(0), Decimal("0.0"), Decimal("-1"), Decimal("-0.000001")])
def test_every_number_arrives_exactly(folder: Folder, values: list[Decimal]) -> None:
    """The numbers include 0, 0.0 and negative ones."""
    folder.clear()
    rows = [["S1", "E1", "Ash", "%", str(value), str(number)] for number, value in enumerate(values, start=1)]

    accounting = folder.load(OBSERVATIONS, rows)

    assert accounting.inserted == len(values)
    arrived = folder.rows("SELECT value FROM observation ORDER BY replicate")
    assert [value for (value,) in arrived] == values


def test_an_empty_unit_is_a_value(folder: Folder) -> None:
    """Rows without a unit have the same key, and are updated in place."""
    folder.clear()
    first = folder.load(OBSERVATIONS, [["S1", "E1", "pH", "", "6.8", ""]])
    second = folder.load(OBSERVATIONS, [["S1", "E1", "pH", " ", "6.9", ""], ["S1", "E1", "pH", "mV", "6.9", ""]])

    assert (first.inserted, second.inserted, second.updated) == (1, 1, 1)
    assert folder.rows("SELECT unit, value FROM observation ORDER BY unit NULLS FIRST") == [
        (None, Decimal("6.9")),
        ("mV", Decimal("6.9")),
    ]


def test_updated_rows_say_when(folder: Folder) -> None:
    """An update changes updated_at and keeps created_at."""
    folder.clear()
    folder.load(OBSERVATIONS, [["S1", "E1", "pH", "", "6.8", ""], ["S2", "E1", "pH", "", "7", ""]])
    folder.load(OBSERVATIONS, [["S1", "E1", "pH", "", "6.9", ""], ["S2", "E1", "pH", "", "7.0", ""]])

    assert folder.rows("SELECT value, updated_at > created_at FROM observation ORDER BY value") == [
        (Decimal("6.9"), True),
        (Decimal(7), False),
    ]


def test_the_spelling_that_most_rows_use_is_kept(folder: Folder) -> None:
    """The spelling in the table changes if that in the sheet does."""
    folder.clear()
    folder.load(PRIMARY_PRODUCTS, [["CORN"], ["Corn"], ["corn"], ["Corn"]])
    assert folder.content(PRIMARY_PRODUCTS) == [("Corn", "corn")]

    accounting = folder.load(PRIMARY_PRODUCTS, [["CORN"], ["CORN"]])

    assert (accounting.updated, accounting.unchanged) == (1, 1)
    assert folder.content(PRIMARY_PRODUCTS) == [("CORN", "corn")]


def test_contradictions_are_rejected_with_each_other_s_place(folder: Folder) -> None:
    """None of them is loaded, the previous row is kept, and all other rows are loaded."""
    folder.clear()
    folder.load(OBSERVATIONS, [["S1", "E1", "Ash", "%", "1", "1"]])
    rows = [["S1", "E1", "Ash", "%", "2", "1"], ["S2", "E1", "Ash", "%", "5", "1"], ["s1", "E1", "ash", "%", "3", "1"]]

    accounting = folder.load(OBSERVATIONS, rows)

    assert (accounting.inserted, accounting.updated, accounting.rejected) == (1, 0, 2)
    assert folder.rows("SELECT value FROM observation ORDER BY value") == [(Decimal(1),), (Decimal(5),)]
    reason = "the row has the same Sample_name, Exper_id, Parameter, Unit, Replicate as row {} of worksheet 03.1-Any, "
    assert folder.rows("SELECT row_number, column_name, reason FROM rejected_row ORDER BY row_number") == [
        (2, None, reason.format(4) + "but another Value; keep one of them"),
        (4, None, reason.format(2) + "but another Value; keep one of them"),
    ]


def test_a_name_that_is_nowhere_is_no_null(folder: Folder) -> None:
    """The row is rejected, and the reason suggests similar names."""
    folder.clear()
    folder.load(PRIMARY_PRODUCTS, [["Processing tomato"]])
    sample = ["S5", "Pomace", "Processing tomatoe", "P", "", "", ""]

    accounting = folder.load(FIELD_SAMPLES, [sample, [*sample[:2], "", *sample[3:]]])

    assert (accounting.inserted, accounting.rejected) == (1, 1)
    assert folder.rows("SELECT column_name, value, reason FROM rejected_row") == [
        (
            "Primary_crop",
            "Processing tomatoe",
            "Primary_crop is not in primary_product, where it must be entered first; did you mean 'Processing tomato'?",
        )
    ]
