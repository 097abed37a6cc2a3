"""Each SQL statement of the pages for scientists and operators runs as it stands, and finds what its page says."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from ca_biositing.pipeline.etl.run import run
from ca_biositing.pipeline.flows.analysis_type import ANALYSIS_TYPES
from ca_biositing.pipeline.flows.experiment import EXPERIMENTS
from ca_biositing.pipeline.flows.field_sample import FIELD_SAMPLES
from ca_biositing.pipeline.flows.observation import OBSERVATIONS
from ca_biositing.pipeline.flows.primary_product import PRIMARY_PRODUCTS
from ca_biositing.pipeline.sources.csv_folder import CsvFolder

ROOT = Path(__file__).parents[2]
# By a part of the statement: what makes the table differ from a first load, and the first row that is found then.
# None: the number of changed rows is 1.
FOUND: dict[str, tuple[str, Sequence[object] | None]] = {
    "FROM rejected_row": ("", ("01-BasicSampleInfo", 46)),
    "FROM etl_run ORDER BY id": ("", (5, "observation", "completed")),
    "FROM etl_run WHERE status": ("", ("analysis_type", "analysis_types", 0)),
    "LEFT JOIN etl_worksheet": ("UPDATE field_sample SET county = 'Yolo' WHERE name = 'BIO-AH-001'", ("BIO-AH-001",)),
    "LEFT JOIN row_history": (
        "UPDATE field_sample SET county = 'Yolo' WHERE name = 'BIO-AH-001'",
        ("BIO-AH-001", "Yolo"),
    ),
    "INSERT INTO observation": ("DELETE FROM observation WHERE id = 17", None),
    "DELETE FROM row_history": (
        "UPDATE field_sample SET county = 'Yolo' WHERE name = 'BIO-AH-001'; "
        "UPDATE row_history SET changed_at = now() - interval '400 days'",
        None,
    ),
}


def statements() -> list[str]:
    """Return the SQL blocks of the pages."""
    pages = "\n".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("sheets.md", "operate.md"))
    return re.findall(r"^```sql\n(.*?)^```", pages, re.MULTILINE | re.DOTALL)


@pytest.fixture
def loaded(migrated_database: Engine) -> Engine:
    """Return a database with the sample data."""
    for dataset in (PRIMARY_PRODUCTS, ANALYSIS_TYPES, FIELD_SAMPLES, EXPERIMENTS, OBSERVATIONS):
        run(dataset, CsvFolder(ROOT / "data/sample"), migrated_database)
    return migrated_database


@pytest.mark.parametrize("statement", statements(), ids=lambda statement: " ".join(statement.split())[:50])
def test_a_statement_of_the_pages_finds_what_they_say(loaded: Engine, statement: str) -> None:
    ((before, found),) = [expected for part, expected in FOUND.items() if part in " ".join(statement.split())]
    with loaded.connect() as connection:
        for change in filter(None, before.split("; ")):
            connection.execute(text(change))
        result = connection.execute(text(statement))
        if found is None:
            assert result.rowcount == 1
        else:
            assert tuple(result.first() or ())[: len(found)] == tuple(found)
