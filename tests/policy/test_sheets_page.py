"""docs/sheets.md and docs/add-a-flow.md agree with the code on columns, kinds of cells and reasons."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandera.polars as pa
import polars as pl
import pytest
from pandera.errors import SchemaErrors

from ca_biositing.datamodels.models import FieldSample
from ca_biositing.pipeline import check
from ca_biositing.pipeline.etl import extract, fields, load, validate
from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.fields import Code, Count, Date, Field, Name, Number, Reference, Text
from ca_biositing.pipeline.etl.transform import clean
from ca_biositing.pipeline.flows import datasets
from ca_biositing.pipeline.sources import csv_folder

ROOT = Path(__file__).parents[2]
SHEETS = (ROOT / "docs/sheets.md").read_text(encoding="utf-8")
KINDS = (ROOT / "docs/add-a-flow.md").read_text(encoding="utf-8")
# The placeholder in a reason for a value that varies by row.
VARIABLE = "…"


def table(text: str, header: str) -> list[list[str]]:
    """Return the cells of the markdown tables whose header begins with ``header``, without the header."""
    found = []
    for block in re.findall(r"(?m)(?:^\|.*\n)+", text):
        header_line, _, *rows = block.splitlines()
        if header_line.startswith(header):
            found += [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return found


def in_code_style(cells: Iterable[str]) -> list[str]:
    """Return the text in backticks in the cells."""
    return [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]


def worksheets() -> dict[str, str]:
    """Return the page's sections on worksheets, by the name or pattern in their heading."""
    sections = re.split(r"(?m)^### (.*)\n", re.split(r"(?m)^## ", SHEETS)[1])
    return {heading.strip("`"): text for heading, text in zip(sections[1::2], sections[2::2], strict=True)}


def what_to_type(field: Field) -> str:
    """Return the page's name for a kind of cell."""
    match field:
        case Reference():
            return f"name that is in `{field.model.__tablename__}`"
        case Number():
            return "number" if field.minimum is None else f"number, {field.minimum} or more"
        case Name():
            return "name"
        case Code():
            return "code"
        case Count():
            return "whole number from 1"
        case Date():
            return "date"
        case Text():
            return "text"
    pytest.fail(f"docs/sheets.md does not describe the kind {type(field).__name__}: say how a cell of it is read")


def row(dataset: Dataset, header: str, field: Field) -> list[str]:
    """Return the page's row for a column."""
    return [
        f"`{header}`",
        what_to_type(field),
        # A row that is empty in all columns of a flow is no row for that flow.
        "no" if dataset.is_required(field) and len(dataset.columns) > 1 else "yes",
        f"`{dataset.name}`",
        f"`{dataset.table.name}.{field.column}`",
    ]


def natural_key_headers(dataset: Dataset) -> list[str]:
    """Return the headers of a dataset's natural key."""
    key = {column.name for column in dataset.natural_key}
    return [h for h, field in dataset.columns.items() if {field.column, f"{field.column}_key"} & key]


def test_columns_are_those_that_flows_read() -> None:
    expected: dict[str, list[list[str]]] = {dataset.worksheets: [] for dataset in datasets()}
    for dataset in datasets():
        expected[dataset.worksheets] += [row(dataset, header, field) for header, field in dataset.columns.items()]
    described = {name: table(text, "| Column | What to type |") for name, text in worksheets().items()}
    assert described.keys() == expected.keys()
    for name, rows in expected.items():
        assert sorted(described[name]) == sorted(rows), name


def test_keys_are_those_by_which_rows_are_found() -> None:
    expected = {(d.worksheets, d.table.name): natural_key_headers(d) for d in datasets()}
    described = {
        (name, line[1]): in_code_style([line[2]])
        for name, text in worksheets().items()
        for line in re.finditer(r"(?m)^- `(\w+)` has one row for each (.*)\.$", text)
    }
    assert described == expected


def test_every_sheet_is_named() -> None:
    for sheet in {dataset.sheet for dataset in datasets()}:
        assert f"`{sheet}`" in SHEETS


def problems(field: Field, cell: str) -> list[str]:
    """Return the errors of the checks that a cleaned cell fails."""
    cells = pl.DataFrame({"cell": clean(pl.Series([cell]))})
    try:
        pa.DataFrameSchema({"cell": pa.Column(pl.String, list(field.checks()))}).validate(cells, lazy=True)
    except SchemaErrors as errors:
        return [str(check) for check in errors.failure_cases["check"]]
    return []


@pytest.mark.parametrize(("cell", "kind"), [("number", Number("x")), ("date", Date("x"))])
def test_examples_are_read(cell: str, kind: Field) -> None:
    (described,) = (reading for name, reading in table(SHEETS, "| Cell | Is read as |") if name == cell)
    for example in in_code_style([described]):
        assert problems(kind, example) == [], example


def kind_named(name: str) -> Field:
    """Return a field of the kind of that name."""
    kind = getattr(fields, name)
    field: Field = Reference("x", FieldSample) if kind is Reference else kind("x")
    return field


def test_kinds_are_those_that_there_are() -> None:
    rows = table(KINDS, "| Kind |")
    names = [in_code_style([kind])[0].split("(")[0] for kind, *_ in rows]
    assert sorted(names) == sorted(kind.__name__ for kind in Field.__subclasses__())
    for name, (_, accepted, refused, _) in zip(names, rows, strict=True):
        for example in in_code_style([accepted]):
            assert problems(kind_named(name), example) == [], f"{name}: {example}"
        for example in in_code_style([refused]):
            assert problems(kind_named(name), example), f"{name}: {example}"


def texts_in_code() -> Iterator[str]:
    """Return the texts in the modules that create reasons, with VARIABLE for interpolated values."""
    for module in (check, csv_folder, extract, fields, load, validate):
        assert module.__file__
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(v.value) if isinstance(v, ast.Constant) else VARIABLE for v in node.values)
                yield re.sub(r"%s|\{\}", VARIABLE, text)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value.replace("{}", VARIABLE)


def reasons_of_kinds() -> Iterator[str]:
    """Return why fields do not take cells of some kinds."""
    kinds: list[type[Field]] = [Field, *Field.__subclasses__()]
    reasons = [reason for kind in kinds for reason in kind.refused.values()]
    reasons += [value for value in vars(fields).values() if isinstance(value, str)]
    return (reason.replace("{}", VARIABLE) for reason in reasons)


def errors_of_checks() -> set[str]:
    """Return the error messages of the checks of all cells."""
    fields_ = ((field, dataset.is_required(field)) for dataset in datasets() for field in dataset.columns.values())
    return {str(check.error) for field, required in fields_ for check in field.checks(is_required=required)}


def reasons() -> list[str]:
    """Return the page's reasons."""
    return in_code_style(reason for reason, _ in table(SHEETS, "| Reason |"))


def test_reasons_are_those_of_the_code() -> None:
    texts = [*texts_in_code(), *errors_of_checks(), *reasons_of_kinds()]
    assert "; did you mean …?" in SHEETS
    for reason in [*reasons(), "; did you mean …?"]:
        assert any(reason.removeprefix("the row ") in text for text in texts), f"the code has no reason {reason!r}"


def test_every_reason_of_a_check_is_explained() -> None:
    patterns = [re.escape(reason).replace(re.escape(VARIABLE), ".*") for reason in reasons()]
    for error in errors_of_checks():
        assert any(re.fullmatch(pattern, error) for pattern in patterns), error
