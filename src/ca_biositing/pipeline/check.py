"""Checks sheets as a load would, without a database: look before you load.

``python -m ca_biositing.pipeline.check SHEETS`` reads a folder of sheets, a workbook, or the address of a Google Sheet,
and prints each worksheet, the accounting of a load into an empty database, and each cell that keeps a row from being
loaded. Names that cells refer to are looked for in the worksheets; a name that only the database has counts as missing.

Exit codes: 0 every row would be loaded, 1 a row would be rejected, a flow could not run, or a worksheet has the columns
of a flow and a name that no flow reads, 2 wrong arguments.
"""

import argparse
import csv
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from functools import lru_cache
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import polars as pl
from sqlalchemy import Numeric

from ca_biositing.datamodels.database import SettingsError
from ca_biositing.datamodels.models import NamedRecord
from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.extract import ROW_NUMBER, frames, header_problems, worksheets
from ca_biositing.pipeline.etl.fields import Reference
from ca_biositing.pipeline.etl.rejection_limits import VARIABLE, Limit, check_limits, limit_from_environment
from ca_biositing.pipeline.etl.transform import clean, fold
from ca_biositing.pipeline.etl.validate import NamedId, Suggestions, Validator
from ca_biositing.pipeline.flows import datasets
from ca_biositing.pipeline.sources import ExtractError, Source, source_from_environment
from ca_biositing.pipeline.sources.base import WORKBOOK_SUFFIXES, original, unreadable
from ca_biositing.pipeline.sources.cells import HIDDEN_WORKSHEET
from ca_biositing.pipeline.sources.folder import Folder
from ca_biositing.pipeline.sources.workbook import WorkbookFile

# Of those with the same reason in a worksheet, so that one wrong column does not hide the others.
_SHOWN_CELLS = 20
_MENDED_ELSEWHERE = "that row is rejected: correct that one first"
# What a cell or a file's name holds must not control the terminal, nor reverse the direction of what is shown.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_GOOGLE_SHEET = re.compile(r"https://docs\.google\.com/spreadsheets/d/([A-Za-z0-9_-]+)")
_WORKSHEET = "worksheet"
_FORMATS = ("text", "csv", "json")

Names = dict[type[NamedRecord], Sequence[NamedId]]
# Of each table, the rows of worksheets that are rejected, by the keys of their names: the name, and the place.
Rejected = dict[type[NamedRecord], dict[str, tuple[str, str]]]
Progress = Callable[[str, float], None]


def harmless(text: str) -> str:
    """Return text with characters as escapes that control the terminal, or turn what follows around."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


@dataclass(frozen=True)
class Problem:
    """A cell that keeps a row from being loaded; without ``column``, the row as a whole."""

    flow: str
    sheet: str
    worksheet: str
    row: int
    column: str | None
    value: str | None
    reason: str

    def __str__(self) -> str:
        """Return the problem as a line of text."""
        value = " ".join((self.value or "").split())
        subject = "the row" if self.column is None else self.column
        return f"row {self.row}{f', {value!r}' if value else ''}: {subject} {self.reason}"


@dataclass(frozen=True)
class Finding:
    """What a flow would find in a worksheet: its ``rows``, and how many of them are ``rejected``, with each problem.

    ``notes`` are those of the worksheet, such as what of it is hidden.
    """

    flow: str
    sheet: str
    worksheet: str
    rows: int
    rejected: int
    problems: Sequence[Problem]
    notes: Sequence[str]


@dataclass(frozen=True)
class Accounting:
    """The rows of a flow: ``read == loaded + repeated + rejected``. ``repeated`` rows say what another one says."""

    flow: str
    read: int
    loaded: int
    repeated: int
    rejected: int


@dataclass(frozen=True)
class Unread:
    """A worksheet that no flow would read, and why; ``is_misnamed`` if it has all columns of a flow."""

    sheet: str
    worksheet: str
    reason: str
    is_misnamed: bool = False

    def __str__(self) -> str:
        """Return it as a line of text."""
        return f"Not read: worksheet '{self.worksheet}' of sheet '{self.sheet}': {self.reason}"


@dataclass
class Report:
    """What a load of all flows would come to. ``failures`` has the flows that could not run, by the reason."""

    accounting: list[Accounting] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    failures: dict[str, list[str]] = field(default_factory=dict)
    unread: list[Unread] = field(default_factory=list)
    # The tables whose flow could not run, although cells of the worksheets refer to them.
    unchecked: set[str] = field(default_factory=set)

    @property
    def problems(self) -> list[Problem]:
        """Return the problems of all cells."""
        return [problem for finding in self.findings for problem in finding.problems]


def check(
    dataset: Dataset,
    source: Source,
    names: Names | None = None,
    on_progress: Progress = lambda _text, _fraction: None,
    rejected_names: Rejected | None = None,
) -> tuple[Accounting, list[Finding]]:
    """Return the accounting of a dataset, and what its flow would find in each of its worksheets.

    ``names`` are those that cells can refer to; those of this dataset are added. References to other tables are not
    looked up. ``on_progress`` is called with a worksheet's name and the fraction of it that was read. The names of
    rejected rows are added to ``rejected_names``.

    Raises:
        ExtractError: the flow could not run, because a worksheet or a column is missing, or cannot be read.

    """
    names = {} if names is None else names
    validator = Validator(dataset, None, names)
    records: list[pl.DataFrame] = []
    read: dict[str, int] = {}
    notes: dict[str, Sequence[str]] = {}
    # The key and the name of rows that are rejected, by their place.
    keys: dict[tuple[str, int], tuple[str, str]] = {}
    problems: dict[str, list[Problem]] = {}
    with worksheets(dataset, source) as opened:
        for worksheet in opened:
            read[worksheet.name] = 0
            problems[worksheet.name] = []
            for frame in frames(worksheet, [*dataset.columns]):
                validated = validator.validate(frame)
                read[worksheet.name] += len(frame)
                if issubclass(dataset.model, NamedRecord):
                    bad_rows = frame.filter(pl.col(ROW_NUMBER).is_in(validated.rejected[ROW_NUMBER].implode()))
                    bad_names = clean(bad_rows[dataset.filled["name"]])
                    found = zip(bad_rows[ROW_NUMBER], fold(bad_names), bad_names, strict=True)
                    keys |= {(worksheet.name, row): (key, name) for row, key, name in found if key and key[0] != "="}
                problems[worksheet.name] += [
                    Problem(dataset.name, dataset.sheet, worksheet.name, *row) for row in validated.problems.rows()
                ]
                records.append(validated.records.select(pl.lit(worksheet.name).alias(_WORKSHEET), pl.all()))
                on_progress(worksheet.name, worksheet.progress())
            notes[worksheet.name] = worksheet.notes()
    staged = pl.concat(records) if records else None
    loaded = 0
    if staged is not None:
        # A key with a reference that was not looked up is not known.
        if not {column.name for column in dataset.natural_key} - {*staged.columns}:
            for problem in _contradictions(dataset, staged):
                problems[problem.worksheet].append(problem)
            bad = {(each.worksheet, each.row) for members in problems.values() for each in members}
            places = [*zip(staged[_WORKSHEET], staged[ROW_NUMBER], strict=True)]
            if issubclass(dataset.model, NamedRecord):
                contradicted = zip(places, staged["name_key"], staged["name"], strict=True)
                keys |= {place: (key, name) for place, key, name in contradicted if place in bad}
            staged = staged.filter(pl.Series([place not in bad for place in places], dtype=pl.Boolean))
            staged = staged.unique([column.name for column in dataset.natural_key], keep="first", maintain_order=True)
        loaded = len(staged)
    if issubclass(dataset.model, NamedRecord):
        named = [] if staged is None else zip(staged["name_key"], staged["name"], strict=True)
        if rejected_names is not None:
            rejected_names[dataset.model] = {
                key: (name, f"row {row} of worksheet {worksheet_name}")
                for (worksheet_name, row), (key, name) in keys.items()
            }
        names[dataset.model] = [NamedId(key, name, number) for number, (key, name) in enumerate(named)]
    findings = [
        Finding(dataset.name, dataset.sheet, name, rows, len({each.row for each in found}), found, notes[name])
        for name, rows, found in ((name, rows, problems[name]) for name, rows in read.items())
    ]
    rejected = sum(finding.rejected for finding in findings)
    total = sum(read.values())
    return Accounting(dataset.name, total, loaded, total - loaded - rejected, rejected), findings


def check_all(
    source: Source,
    checked: Sequence[Dataset],
    limits: Mapping[str, Limit | None],
    on_progress: Progress = lambda _text, _fraction: None,
) -> Report:
    """Return what a load of these datasets into an empty database would come to, with their limits of rejected rows."""
    report = Report()
    names: Names = {}
    rejected: Rejected = {}
    for dataset in _referenced_first(checked):
        try:
            accounting, findings = check(dataset, source, names, on_progress, rejected)
        except ExtractError as error:
            report.failures.setdefault(str(error), []).append(dataset.name)
            continue
        report.accounting.append(accounting)
        report.findings += [_with_places(each, dataset, checked, rejected) for each in findings]
        report.unchecked |= {model.__tablename__ for model in _references(dataset) if model not in names}
        limit = limits.get(dataset.name)
        if limit and limit.is_exceeded(accounting.read, accounting.rejected):
            reason = (
                f"{accounting.rejected:,} of {accounting.read:,} rows would be rejected, "
                f"more than the limit of {limit} ({VARIABLE})"
            )
            report.failures.setdefault(reason, []).append(dataset.name)
    return report


def _with_places(finding: Finding, dataset: Dataset, checked: Sequence[Dataset], rejected: Rejected) -> Finding:
    """Return the finding, whose reasons say in which worksheet a name must be, or which row of it was rejected."""
    suggestions = {model: Suggestions([*rows]) for model, rows in rejected.items()}

    def with_place(problem: Problem) -> Problem:
        field = dataset.columns.get(problem.column or "")
        if not isinstance(field, Reference) or not problem.reason.startswith("is not in "):
            return problem
        rows = rejected.get(field.model, {})
        if found := rows.get(_key(problem.value)):
            return replace(problem, reason=f"is in {found[1]}, but that row is rejected: correct that one first")
        reason = problem.reason
        for each in checked:
            if each.model is field.model:
                place = f"column {each.filled['name']} of worksheet {each.worksheets}"
                reason = reason.replace(field.model.__tablename__, place, 1)
        # Names of rows that would be loaded are suggested already.
        if "; did you mean " not in reason and rows and (near := suggestions[field.model].near(_key(problem.value))):
            name, place = rows[near[0]]
            reason += f"; did you mean '{name}' in {place}, which is rejected too?"
        return replace(problem, reason=reason)

    return replace(finding, problems=[with_place(problem) for problem in finding.problems])


@lru_cache
def _key(name: str | None) -> str:
    return str(fold(clean(pl.Series([name], dtype=pl.String)))[0])


def main(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ca_biositing.pipeline.check",
        description="Check sheets as a load would, without a database.",
        epilog="Exit codes: 0 every row would be loaded, 1 a row would be rejected, a flow could not run, or a "
        "worksheet has the columns of a flow and a name that no flow reads, 2 wrong arguments.",
    )
    parser.add_argument(
        "sheets",
        help="a folder that holds <sheet>/<worksheet>.csv and <sheet>.xlsx, a workbook, or the address of a Google "
        "Sheet, which the service account of CREDENTIALS_PATH may read",
    )
    parser.add_argument("--format", choices=_FORMATS, default="text", help="text, csv (the rejected cells) or json")
    parser.add_argument(
        "--as-flows",
        action="store_true",
        help="exit with 0 if every flow could run, also with rejected rows, and with 1 where ETL_SOURCE or "
        f"ETL_SOURCE_DIRECTORY make flows read other sheets than these, or {VARIABLE} allows fewer rejected rows",
    )
    parser.add_argument("--at", type=Path, metavar="FOLDER", help="the folder that the sheets will be in, if not there")
    given = parser.parse_args(arguments)
    at = given.at or Path(given.sheets)
    checked = datasets()
    report = Report()
    sheets: Sequence[str] = []
    notes: list[str] = []
    source: Source | None = None
    try:
        limits = {}
        if given.as_flows:
            names = [dataset.name for dataset in checked]
            check_limits(names, environment)
            limits = {name: limit_from_environment(name, environment) for name in names}
        source, sheets, notes = _source(given.sheets, checked, environment)
        with _progress() as on_progress:
            report = check_all(source, checked, limits, on_progress)
        report.unread = list(_unread(source, sheets, checked, report))
    except (ExtractError, SettingsError) as error:
        notes, report.failures = [str(error)], {str(error): []}
    if given.as_flows and (other := _other_source(at, environment)):
        notes.append(other)
        report.failures.setdefault(other, [])
    output = {"text": _as_text, "csv": _as_csv, "json": _as_json}[given.format](report, source, sheets, notes)
    text = "\n".join(output).replace(given.sheets, str(at))
    print(harmless(text) if given.format == "text" else text)
    is_wrong = report.problems or any(each.is_misnamed for each in report.unread)
    return 1 if report.failures or (is_wrong and not given.as_flows) else 0


def _source(
    sheets: str, checked: Sequence[Dataset], environment: Mapping[str, str]
) -> tuple[Source, Sequence[str], list[str]]:
    """Return the source that an argument names, its sheets, and what there is to say of them."""
    wanted = sorted({dataset.sheet for dataset in checked})
    path = Path(sheets)
    if found := _GOOGLE_SHEET.match(sheets):
        from ca_biositing.pipeline.sources.google_sheets import GoogleSheets

        google = source_from_environment({**environment, "ETL_SOURCE": "google"})
        assert isinstance(google, GoogleSheets)  # noqa: S101 - it is one of Google's
        return GoogleSheets(google.credentials_path, google.api_url, sheet_id=found[1]), wanted, []
    try:
        is_other = path.is_file() and path.suffix.lower() not in WORKBOOK_SUFFIXES
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ExtractError(f"There is no file or folder {path}. Correct the path") from None
    except OSError as error:
        raise unreadable(f"{path}", error) from error
    if is_other:
        raise ExtractError(
            f"{path} is neither a folder of sheets nor a workbook of a kind that flows read. "
            "Save it as Excel Workbook (.xlsx), or name the folder"
        )
    if path.suffix.lower() in WORKBOOK_SUFFIXES and not path.is_dir():
        named = [name for name in wanted if name == path.stem]
        titles = "' or '".join(f"{name}{path.suffix.lower()}" for name in wanted)
        note = f"Flows read this workbook only under its sheet's name: rename '{path.name}' to '{titles}'."
        return WorkbookFile(path), named or wanted, [] if named else [note]
    # Flows read only the kind of file that the environment names; of Google there is nothing in a folder.
    kind = environment.get("ETL_SOURCE", "").replace("google", "")
    source = source_from_environment({"ETL_SOURCE": kind, "ETL_SOURCE_DIRECTORY": sheets})
    folder = Folder(path)
    others = ", ".join(folder.others())
    note = f"Not read: {others}. Flows read <sheet>.xlsx, <sheet>.xlsm and <sheet>/<worksheet>.csv."
    return source, folder.sheets(), [note] if others else []


def _unread(source: Source, sheets: Sequence[str], checked: Sequence[Dataset], report: Report) -> Iterator[Unread]:
    """Return the worksheets that no flow would read."""
    read = {(finding.sheet, finding.worksheet) for finding in report.findings}
    for sheet in sheets:
        try:
            names = [name for name in source.worksheets(sheet) if (sheet, name) not in read]
        except ExtractError:  # the list of worksheets says so
            continue
        for name in names:
            if flows := [each.name for each in checked if each.sheet == sheet and each.is_named(name)]:
                yield Unread(sheet, name, f"{', '.join(sorted(flows))} could not run")
            elif found := _alike(source, sheet, name, checked):
                yield Unread(
                    sheet, name, _misnamed(sheet, name, *found, sheets, source.worksheets(sheet)), is_misnamed=True
                )
            else:
                known = sheet in {each.sheet for each in checked}
                yield Unread(sheet, name, f"no flow reads a {'worksheet' if known else 'sheet'} of that name")


def _misnamed(
    sheet: str, worksheet: str, found: Dataset, notes: Sequence[str], sheets: Sequence[str], present: Sequence[str]
) -> str:
    """Return why a worksheet that has the columns of a dataset is not read, and what to do."""
    what = f"it has the columns of {found.name}"
    if of := original(sheet, sheets) if sheet != found.sheet else None:
        reason = f"{what}, but the sheet is a copy of '{of}', by its name; delete the one that does not count"
    elif of := original(worksheet, present):
        reason = f"{what}, but is a copy of '{of}', by its name; delete the one that does not count"
    elif sheet == found.sheet:
        name = found.name_for(worksheet, present)
        do = f"move its rows to '{name}'" if name in present else f"rename it to '{name}'"
        reason = f"{what}, which reads the worksheet {found.such_as}; {do}, or delete it if it is not to be loaded"
    elif found.sheet in sheets:
        reason = (
            f"{what}, which reads sheet '{found.sheet}'; move the worksheet there, or delete it if it is not to be "
            "loaded"
        )
    else:
        reason = f"{what}; rename the sheet to '{found.sheet}', or delete it if it is not to be loaded"
    return f"{reason}; it is hidden" if any(HIDDEN_WORKSHEET in note for note in notes) else reason


def _alike(
    source: Source, sheet: str, worksheet: str, checked: Sequence[Dataset]
) -> tuple[Dataset, Sequence[str]] | None:
    """Return the dataset whose columns a worksheet has, and notes on it.

    One column alone, such as a list of crops has, says nothing.
    """
    try:
        with source.open(sheet, worksheet) as opened:
            several = (each for each in checked if len(each.columns) > 1)
            found = next((each for each in several if not header_problems(opened, [*each.columns])), None)
            return (found, opened.notes()) if found else None
    except ExtractError:
        return None


def _referenced_first(checked: Sequence[Dataset]) -> list[Dataset]:
    ordered: list[Dataset] = []
    waiting = [*checked]
    while waiting:
        tables = {dataset.model for dataset in waiting}
        ready = [each for each in waiting if not tables & (_references(each) - {each.model})]
        # Tables that refer to each other cannot be ordered.
        ordered += ready or waiting
        waiting = [each for each in waiting if each not in ordered]
    return ordered


def _references(dataset: Dataset) -> set[type[NamedRecord]]:
    return {field.model for field in dataset.columns.values() if isinstance(field, Reference)}


def _contradictions(dataset: Dataset, records: pl.DataFrame) -> Iterator[Problem]:
    """Return a problem for each row that has the natural key of another one, but other values; see :mod:`.etl.load`."""
    key = [column.name for column in dataset.natural_key]
    numeric = {column.name for column in dataset.table.columns if isinstance(column.type, Numeric)}
    # Different spellings of one name are not a contradiction.
    facts = [
        column.name
        for column in dataset.loaded_columns
        if column.name in records.columns and column.name not in key and f"{column.name}_key" not in records.columns
    ]

    def comparable(row: Mapping[str, object], columns: Sequence[str]) -> tuple[object, ...]:
        return tuple(
            Decimal(str(row[name])) if name in numeric and row[name] is not None else row[name] for name in columns
        )

    headers = list(dict.fromkeys(dataset.filled[name] for name in key))
    groups: dict[tuple[object, ...], dict[tuple[object, ...], list[dict[str, Any]]]] = {}
    for row in records.filter(records.select(key).is_duplicated()).sort(_WORKSHEET, ROW_NUMBER).iter_rows(named=True):
        groups.setdefault(comparable(row, key), {}).setdefault(comparable(row, facts), []).append(row)
    for versions in groups.values():
        firsts = [members[0] for members in versions.values()]
        for version, members in enumerate(versions.values() if len(versions) > 1 else ()):
            other = firsts[0] if version else firsts[-1]
            differing = [name for name in facts if comparable(other, [name]) != comparable(members[0], [name])]
            reason = (
                f"has the same {', '.join(headers)} as row {other[ROW_NUMBER]} of worksheet {other[_WORKSHEET]}, "
                f"but another {', '.join(dict.fromkeys(dataset.filled[name] for name in differing))}; keep one of them"
            )
            for row in members:
                yield Problem(dataset.name, dataset.sheet, row[_WORKSHEET], row[ROW_NUMBER], None, None, reason)


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show a bar while a terminal waits; it disappears at the end."""
    if not sys.stderr.isatty():
        yield lambda _text, _fraction: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda text, fraction: bar.update(task, description=text, completed=fraction)


def _as_text(report: Report, source: Source | None, sheets: Sequence[str], notes: Sequence[str]) -> Iterator[str]:
    for sheet in sheets:
        if source:
            yield from [sheet, *_worksheets(sheet, source, report), ""]
    if report.accounting:
        yield from _table(report.accounting)
    if rejected := [finding for finding in report.findings if finding.rejected]:
        yield from [*_rejected(rejected), ""]
    yield from notes
    for reason, names in report.failures.items():
        if names:
            yield f"{', '.join(sorted(names))} could not run: {reason}"
    if report.unchecked:
        yield (
            f"References to {', '.join(sorted(report.unchecked))} were not checked, because these flows could not run: "
            "more rows may be rejected than are counted here."
        )
    yield from map(str, report.unread)
    if not report.failures:
        yield (
            "Every flow could run. Names that only the database has count as missing here; a load finds them there."
            if report.problems
            else f"Every row {'of the other worksheets ' if report.unread else ''}would be loaded."
        )


def _table(accounting: Sequence[Accounting]) -> Iterator[str]:
    yield f"{'A load into an empty database:':<32}{'read':>10}{'loaded':>10}{'repeated':>10}{'rejected':>10}"
    for each in accounting:
        yield f"  {each.flow:<30}{each.read:>10,}{each.loaded:>10,}{each.repeated:>10,}{each.rejected:>10,}"
    yield ""


def _as_csv(report: Report, _source: Source | None, _sheets: Sequence[str], _notes: Sequence[str]) -> Iterator[str]:
    """Return the rejected cells; a flow that could not run has a line without a row. The accounting is for JSON.

    It is for spreadsheet programs: with a byte order mark, and an apostrophe before what they would calculate.
    """
    lines: list[str] = []

    class Lines:
        def write(self, line: str) -> None:
            lines.append(line)

    writer = csv.writer(Lines(), lineterminator="")
    writer.writerow(["\ufeffflow", "sheet", "worksheet", "row", "column", "value", "reason"])
    for problem in report.problems:
        cells = [str(each) if each is not None else "" for each in asdict(problem).values()]
        writer.writerow([f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell for cell in cells])
    for reason, names in report.failures.items():
        writer.writerow([", ".join(sorted(names)), "", "", "", "", "", reason])
    for each in report.unread:
        writer.writerow(["", each.sheet, each.worksheet, "", "", "", f"the worksheet is not read: {each.reason}"])
    return iter(lines)


def _as_json(report: Report, _source: Source | None, sheets: Sequence[str], notes: Sequence[str]) -> Iterator[str]:
    content = {
        "sheets": list(sheets),
        "accounting": [asdict(each) for each in report.accounting],
        "rejected": [asdict(each) for each in report.problems],
        "unread": [asdict(each) for each in report.unread],
        "failures": [{"flows": sorted(names), "reason": reason} for reason, names in report.failures.items()],
        "notes": [
            *notes,
            *dict.fromkeys(
                f"worksheet '{each.worksheet}' of sheet '{each.sheet}': {note}"
                for each in report.findings
                for note in each.notes
            ),
        ],
    }
    yield json.dumps(content, ensure_ascii=False, indent=2)


def _worksheets(sheet: str, source: Source, report: Report) -> Iterator[str]:
    """Return a line for each worksheet of a sheet."""
    try:
        names = source.worksheets(sheet)
    except ExtractError as error:
        yield "  cannot be read; see below" if str(error) in report.failures else f"  cannot be read: {error}"
        return
    width = max(map(len, names), default=0)
    for name in names:
        readers = sorted(
            (each for each in report.findings if (each.sheet, each.worksheet) == (sheet, name)), key=attrgetter("flow")
        )
        most = max((each.rows for each in readers), default=0)
        read = f"{most:>9,} rows, for {', '.join(each.flow for each in readers)}" if readers else ""
        yield f"  {name:<{width}} {read or 'is not read; see below'}"
        yield from (f"    {note}" for note in dict.fromkeys(note for each in readers for note in each.notes))
    if not names:
        yield "  has no worksheet"


def _rejected(findings: Sequence[Finding]) -> Iterator[str]:
    """Return the lines on the rows that would be rejected, by flow and worksheet."""
    problems = [each for finding in findings for each in finding.problems]
    rows = {(each.sheet, each.worksheet, each.row) for each in problems}
    own = {(each.sheet, each.worksheet, each.row) for each in problems if not each.reason.endswith(_MENDED_ELSEWHERE)}
    others = f", of which {len(rows - own):,} only refer to rejected ones" if rows - own else ""
    yield f"Rows of the worksheets that would be rejected: {len(rows):,}{others}"
    for flow, members in groupby(findings, attrgetter("flow")):
        for finding in members:
            yield f"  {flow}, {finding.worksheet}: {finding.rejected:,} of {finding.rows:,}"
            numbers = Counter((problem.column, problem.reason) for problem in finding.problems)
            seen: Counter[tuple[str | None, str]] = Counter()
            for problem in sorted(finding.problems, key=attrgetter("row")):
                kind = problem.column, problem.reason
                seen[kind] += 1
                if problem.reason.endswith(_MENDED_ELSEWHERE):
                    # The correction of that row mends them all.
                    if seen[kind] == 1:
                        yield f"    {problem}" + (
                            f" (also for {numbers[kind] - 1:,} more here)" if numbers[kind] > 1 else ""
                        )
                elif seen[kind] <= _SHOWN_CELLS:
                    yield f"    {problem}"
            if any(problem.reason == "is empty" for problem in finding.problems):
                yield "    Remove a row that is empty there because it is a total or a note"
            for (column, reason), number in numbers.items():
                if number > _SHOWN_CELLS and not reason.endswith(_MENDED_ELSEWHERE):
                    more = f"    and {number - _SHOWN_CELLS:,} more, which --format csv lists: "
                    yield f"{more}{column or 'the row'} {reason}"


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
