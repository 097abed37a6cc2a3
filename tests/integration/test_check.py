"""The check of sheets comes to what a load of them into an empty database comes to."""

from pathlib import Path

from sqlalchemy import Engine, select

from ca_biositing.datamodels.models import RejectedRow
from ca_biositing.pipeline.check import Names, check
from ca_biositing.pipeline.etl.run import run
from ca_biositing.pipeline.flows import datasets
from ca_biositing.pipeline.sources import source_from_environment
from run_prefect_flow import AVAILABLE_FLOWS


def test_the_check_rejects_what_a_load_rejects(migrated_database: Engine, source: Path) -> None:
    """Both count the same rows, and reject the same ones, with references and contradictions."""
    assert source.is_dir()
    by_name = {dataset.name: dataset for dataset in datasets()}
    names: Names = {}
    reasons = ""
    for name in AVAILABLE_FLOWS:
        sheets = source_from_environment()
        checked, found = check(by_name[name], sheets, names)
        accounting = run(by_name[name], sheets, migrated_database)
        with migrated_database.connect() as connection:
            rows = connection.execute(
                select(RejectedRow.worksheet, RejectedRow.row_number, RejectedRow.reason).where(
                    RejectedRow.etl_run_id == accounting.run_id
                )
            ).all()
        assert (checked.read, checked.loaded, checked.repeated, checked.rejected) == (
            accounting.read,
            accounting.inserted,
            accounting.unchanged,
            accounting.rejected,
        )
        said: dict[tuple[str, int], list[str]] = {}
        for problem in (problem for finding in found for problem in finding.problems):
            subject = problem.column or "the row"
            said.setdefault((problem.worksheet, problem.row), []).append(f"{subject} {problem.reason}")
        assert {place: "; ".join(each) for place, each in said.items()} == {
            (row.worksheet, row.row_number): row.reason for row in rows
        }
        reasons += " ".join(row.reason for row in rows)
    assert "the row has the same " in reasons
    assert "is not a number" in reasons
