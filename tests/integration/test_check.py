"""The check of sheets rejects the rows that a load rejects, except for the reasons that only the database has."""

from pathlib import Path

from sqlalchemy import Engine, select

from ca_biositing.datamodels.models import RejectedRow
from ca_biositing.pipeline.check import check
from ca_biositing.pipeline.etl.run import run
from ca_biositing.pipeline.flows import datasets
from ca_biositing.pipeline.sources import source_from_environment
from run_prefect_flow import AVAILABLE_FLOWS

# What a reason says that the check cannot know.
OF_THE_DATABASE = ("is not in ", "the row has the same ")


def test_the_check_rejects_what_a_load_rejects(migrated_database: Engine, source: Path) -> None:
    """Both count the same rows, and name the same cells."""
    assert source.is_dir()
    by_name = {dataset.name: dataset for dataset in datasets()}
    known = 0
    for name in AVAILABLE_FLOWS:
        sheets = source_from_environment()
        found = check(by_name[name], sheets)
        accounting = run(by_name[name], sheets, migrated_database)
        with migrated_database.connect() as connection:
            rows = connection.execute(
                select(RejectedRow.worksheet, RejectedRow.row_number, RejectedRow.reason).where(
                    RejectedRow.etl_run_id == accounting.run_id
                )
            ).all()
        loaded = {(row.worksheet, row.row_number) for row in rows if not any(x in row.reason for x in OF_THE_DATABASE)}
        assert sum(finding.rows for finding in found) == accounting.read
        assert sum(finding.rejected for finding in found) == len(loaded)
        for finding in found:
            assert {reason.split(":")[0].split(",")[0] for reason in finding.reasons} == {
                f"row {number}" for worksheet, number in loaded if worksheet == finding.worksheet
            }
        known += len(loaded)
    assert known > 0
