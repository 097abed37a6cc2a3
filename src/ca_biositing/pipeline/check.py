"""Checks the sheets of a folder as flows read them, without a database.

``python -m ca_biositing.pipeline.check DIRECTORY`` prints each worksheet with its number of rows, which sheets,
worksheets and columns are missing, and the rows that flows would reject. A load can also reject a row that names a
record which is not in the database, and rows that contradict each other: only the database tells.

Exit codes: 0 every flow could run, 1 a flow could not run, 2 wrong arguments.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from ca_biositing.datamodels.database import SettingsError
from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.extract import ROW_NUMBER, frames, worksheets
from ca_biositing.pipeline.etl.rejection_limits import VARIABLE, Limit, check_limits, limit_from_environment
from ca_biositing.pipeline.etl.validate import Validator
from ca_biositing.pipeline.flows import datasets
from ca_biositing.pipeline.sources import ExtractError, Source, source_from_environment
from ca_biositing.pipeline.sources.folder import Folder

# Of each flow and worksheet, so that one wrong column of a large worksheet does not hide the others.
_SHOWN_ROWS = 20


@dataclass(frozen=True)
class Finding:
    """What a flow would find in a worksheet: its ``rows``, and how many of them are ``rejected``, with their reasons.

    ``reasons`` has one line for each of the first rejected rows.
    """

    flow: str
    sheet: str
    worksheet: str
    rows: int
    rejected: int
    reasons: Sequence[str]


def check(dataset: Dataset, source: Source) -> list[Finding]:
    """Return what a dataset's flow would find in each of its worksheets.

    Raises:
        ExtractError: the flow could not run, because a worksheet or a column is missing, or cannot be read.

    """
    validator = Validator(dataset, None)
    findings = []
    with worksheets(dataset, source) as opened:
        for worksheet in opened:
            rows = rejected = 0
            reasons: list[str] = []
            for frame in frames(worksheet, [*dataset.columns]):
                bad = validator.validate(frame).rejected
                rows += len(frame)
                rejected += len(bad)
                reasons += [_reason(row) for row in bad.head(_SHOWN_ROWS - len(reasons)).iter_rows(named=True)]
            findings.append(Finding(dataset.name, dataset.sheet, worksheet.name, rows, rejected, reasons))
    return findings


def report(
    source: Source, sheets: Sequence[str], checked: Sequence[Dataset], limits: Mapping[str, Limit | None]
) -> tuple[list[str], bool]:
    """Return the lines of a report on the sheets, and whether every flow could run with its limit of rejected rows."""
    findings: list[Finding] = []
    failures: dict[str, list[str]] = {}
    for dataset in checked:
        try:
            found = check(dataset, source)
        except ExtractError as error:
            failures.setdefault(str(error), []).append(dataset.name)
            continue
        findings += found
        read, refused = sum(each.rows for each in found), sum(each.rejected for each in found)
        limit = limits.get(dataset.name)
        if limit and limit.is_exceeded(read, refused):
            reason = f"{refused:,} of {read:,} rows would be rejected, more than the limit of {limit} ({VARIABLE})"
            failures.setdefault(reason, []).append(dataset.name)
    lines = []
    for sheet in sheets:
        lines += [sheet, *_worksheets(sheet, source, findings), ""]
    if rejected := [finding for finding in findings if finding.rejected]:
        lines += [*_rejected(rejected), ""]
    lines += [f"{', '.join(names)} could not run: {reason}" for reason, names in failures.items()]
    if not failures:
        lines.append(
            "Every flow could run. A load can reject further rows: those that name a record which is not in the "
            "database, and those that contradict each other."
        )
    return lines, not failures


def main(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ca_biositing.pipeline.check",
        description="Check the sheets of a folder as flows read them, without a database.",
        epilog="Exit codes: 0 every flow could run, 1 a flow could not run, 2 wrong arguments.",
    )
    parser.add_argument("directory", type=Path, help="the folder that holds <sheet>/<worksheet>.csv and <sheet>.xlsx")
    parser.add_argument(
        "--as-flows",
        action="store_true",
        help="also fail where ETL_SOURCE or ETL_SOURCE_DIRECTORY make flows read other sheets than these, or where "
        f"{VARIABLE} allows fewer rejected rows",
    )
    parser.add_argument("--at", type=Path, metavar="FOLDER", help="the folder that the sheets will be in, if not there")
    given = parser.parse_args(arguments)
    at = given.at or given.directory
    # Flows read only the kind of file that the environment names; of Google there is nothing in a folder.
    kind = environment.get("ETL_SOURCE", "").replace("google", "")
    names = [dataset.name for dataset in datasets()]
    try:
        limits = {}
        if given.as_flows:
            check_limits(names, environment)
            limits = {name: limit_from_environment(name, environment) for name in names}
        source = source_from_environment({"ETL_SOURCE": kind, "ETL_SOURCE_DIRECTORY": str(given.directory)})
        lines, runs = report(source, Folder(given.directory).sheets(), datasets(), limits)
    except (ExtractError, SettingsError) as error:
        lines, runs = [str(error)], False
    if given.as_flows and (other := _other_source(at, environment)):
        lines.append(other)
        runs = False
    print("\n".join(lines).replace(str(given.directory), str(at)))
    return 0 if runs else 1


def _worksheets(sheet: str, source: Source, findings: Sequence[Finding]) -> Iterator[str]:
    """Return a line for each worksheet of a sheet."""
    try:
        names = source.worksheets(sheet)
    except ExtractError as error:
        yield f"  cannot be read: {error}"
        return
    width = max(map(len, names), default=0)
    for name in names:
        readers = [finding for finding in findings if (finding.sheet, finding.worksheet) == (sheet, name)]
        read = f"{readers[0].rows:>9,} rows, for {', '.join(each.flow for each in readers)}" if readers else ""
        yield f"  {name:<{width}} {read or 'is read by no flow that could run'}"
    if not names:
        yield "  has no worksheet"


def _rejected(findings: Sequence[Finding]) -> Iterator[str]:
    """Return the lines on the rows that would be rejected, by flow and worksheet."""
    yield f"Rows that flows would reject: {sum(finding.rejected for finding in findings):,}"
    for flow, members in groupby(findings, attrgetter("flow")):
        for finding in members:
            yield f"  {flow}, {finding.worksheet}: {finding.rejected:,} of {finding.rows:,}"
            yield from (f"    {reason}" for reason in finding.reasons)
            if hidden := finding.rejected - len(finding.reasons):
                yield f"    and {hidden:,} more"


def _reason(row: Mapping[str, object]) -> str:
    value = " ".join(str(row["value"] or "").split())
    shown = f", '{value}'" if value else ""
    return f"row {row[ROW_NUMBER]}{shown}: {row['reason']}"


def _other_source(directory: Path, environment: Mapping[str, str]) -> str:
    """Return what flows with this environment read instead of the folder; empty if they read the folder."""
    if environment.get("ETL_SOURCE") == "google":
        instead = "Google Sheets, as ETL_SOURCE says"
    elif not environment.get("ETL_SOURCE_DIRECTORY"):
        instead = "nothing, because ETL_SOURCE_DIRECTORY is not set"
    elif Path(environment["ETL_SOURCE_DIRECTORY"]).resolve() != directory.resolve():
        instead = f"{environment['ETL_SOURCE_DIRECTORY']}, as ETL_SOURCE_DIRECTORY says"
    else:
        return ""
    return (
        f"Flows do not read these sheets, but {instead}. On hosts, set ETL_SOURCE_DIRECTORY: {directory} in "
        "flow_environment of the inventory, and converge; the local container gets sheets by `make up SHEETS=folder`."
    )


if __name__ == "__main__":
    sys.exit(main())
