"""Show the history of a table's rows, and the rows that no worksheet names; remove such rows.

``python -m ca_biositing.pipeline.provenance --help`` describes the command line. Loads note in each row which worksheet
it is from; triggers note in ``row_history`` what it was before each change, also before one that was made by hand.
"""

import argparse
import csv
import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import polars as pl
from sqlalchemy import ColumnElement, Connection, FromClause, cast, delete, func, select, text, union
from sqlalchemy import Text as SqlText
from sqlalchemy.exc import DBAPIError, IntegrityError

from ca_biositing.datamodels.database import SettingsError, engine_from_environment
from ca_biositing.datamodels.models import ORPHANED_ROW, EtlRun, EtlWorksheet, Record, RowHistory, UnnamedRow
from ca_biositing.pipeline.check import harmless
from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.extract import ROW_NUMBER, ROW_PROBLEM
from ca_biositing.pipeline.etl.fields import Reference
from ca_biositing.pipeline.etl.validate import Validator
from ca_biositing.pipeline.flows import datasets
from ca_biositing.pipeline.sources import alternatives

ALL = "all"
# How many rows the command line shows of a table, and the histories of how many rows of one key.
_SHOWN_ORPHANS = 100
_SHOWN_HISTORIES = 20
# Longer than a load of a million rows may take to insert them.
_LOCK_TIMEOUT = "5min"

Version = Mapping[str, object]


class ProvenanceError(Exception):
    """What was asked for does not exist, or cannot be done; the message says why, and what to do."""


@dataclass(frozen=True)
class Change:
    """A row's values after a change, by column; None after its removal.

    ``who`` says in words what made the change; ``when`` is None where that is not known.
    """

    when: datetime | None
    who: str
    values: Version | None


def dataset_of(table: str) -> Dataset:
    """Return the dataset that is loaded into a table.

    Raises:
        ProvenanceError: there is none.

    """
    by_table = {each.table.name: each for each in datasets()}
    if table not in by_table:
        raise ProvenanceError(f"No flow loads a table '{table}'. {alternatives('table', table, by_table)}")
    return by_table[table]


def rows_with_key(connection: Connection, dataset: Dataset, cells: Sequence[str]) -> Sequence[int]:
    """Return the ids of the rows that have a natural key, or had it once, in their order.

    ``cells`` are what the worksheet says in the columns of the key, in their order; the last ones may be missing.

    Raises:
        ProvenanceError: there are more cells than columns, or a load would reject such a cell.

    """
    headers = [*dataset.key.columns]
    if not 0 < len(cells) <= len(headers):
        raise ProvenanceError(
            f"The key of {dataset.table} is {', '.join(headers)}. Give at least the first of these, in this order, "
            "with commas between them; put double quotes around a text that contains a comma"
        )
    given = dict(zip(headers, cells, strict=False))
    frame = pl.DataFrame(
        {**given, ROW_NUMBER: 1, ROW_PROBLEM: None}, schema_overrides={ROW_NUMBER: pl.Int32, ROW_PROBLEM: pl.String}
    )
    validated = Validator(dataset.part(given), connection).validate(frame)
    if len(validated.rejected):
        raise ProvenanceError(f"That is no key of {dataset.table}: {validated.rejected['reason'][0]}")
    record = validated.records.row(0, named=True)
    key = {column.name: record[column.name] for column in dataset.natural_key if column.name in record}
    as_json = json.loads(json.dumps(key, default=str))
    present = select(dataset.table.c.id).where(*(dataset.table.c[name] == value for name, value in key.items()))
    past = select(RowHistory.row_id).where(
        RowHistory.table_name == dataset.table.name,
        RowHistory.before.contains(as_json),
    )
    return connection.execute(union(present, past).order_by("id")).scalars().all()


def history(connection: Connection, dataset: Dataset, row_id: int) -> Sequence[Change]:
    """Return the changes of a row of the dataset's table, from the first that is known."""
    table = dataset.table
    # As text, from which numbers are read with all their digits.
    past = connection.execute(
        select(RowHistory.change, RowHistory.changed_at, RowHistory.changed_by, cast(RowHistory.before, SqlText))
        .where(RowHistory.table_name == table.name, RowHistory.row_id == row_id)
        .order_by(RowHistory.id)
    ).all()
    row = select(cast(func.to_jsonb(table.table_valued()), SqlText)).where(table.c.id == row_id)
    texts = [each.before for each in past] + [*connection.execute(row).scalars()]
    versions = [json.loads(each, parse_float=Decimal) for each in texts]
    worksheets = _worksheets(connection, versions)
    changes = []
    for number, version in enumerate(versions):
        made = past[number - 1] if number else None
        when: datetime | None = made.changed_at if made else datetime.fromisoformat(version["updated_at"])
        source = worksheets.get(version["changed_from"], "a run that is no longer in etl_run")
        if made and made.change == "delete":
            # Loads give each row an id of its own. There is no note of insertions by hand.
            when, who = None, "inserted again by hand"
        elif version["changed_from"] is not None:
            who = f"{'changed' if made else 'inserted'} by {source}, row {version['row_number']}"
        elif made:
            who = f"changed by hand, with the login {made.changed_by}"
        else:
            who = "written by hand, or before loads noted where rows are from"
        changes.append(Change(when, who, version))
        if number < len(past) and past[number].change == "delete":
            changes.append(
                Change(past[number].changed_at, f"removed by hand, with the login {past[number].changed_by}", None)
            )
    return changes


@dataclass(frozen=True)
class Orphan:
    """A row that no worksheet names: its key as a worksheet would say it, since when, and what it is from."""

    id: int
    key: Sequence[str]
    since: datetime
    source: str


def orphans(connection: Connection, dataset: Dataset, ids: Collection[int] | None = None) -> Sequence[Orphan]:
    """Return the rows of the dataset's table that no worksheet names, all or those with the ids, in their order."""
    table = dataset.table
    origin: FromClause = table
    cells: list[ColumnElement[str]] = []
    for field in dataset.key.columns.values():
        if isinstance(field, Reference):
            named = field.model.__table__.alias()
            origin = origin.outerjoin(named, named.c.id == table.c[field.column])
            cells.append(named.c.name)
        else:
            cells.append(func.coalesce(cast(table.c[field.column], SqlText), ""))
    origin = origin.join(ORPHANED_ROW, ORPHANED_ROW.c.row_id == table.c.id)
    origin = origin.join(EtlRun, EtlRun.id == ORPHANED_ROW.c.etl_run_id)
    origin = origin.outerjoin(EtlWorksheet, EtlWorksheet.id == table.c.changed_from)
    source = func.coalesce(EtlWorksheet.worksheet + ", row " + cast(table.c.row_number, SqlText), "")
    query = (
        select(table.c.id, EtlRun.started_at, source, *cells)
        .select_from(origin)
        .where(ORPHANED_ROW.c.table_name == table.name)
        .order_by(table.c.id)
    )
    if ids is not None:
        query = query.where(table.c.id.in_(ids))
    return [Orphan(row[0], row[3:], row[1], row[2]) for row in connection.execute(query)]


def remove(connection: Connection, dataset: Dataset, ids: Collection[int] | None) -> Sequence[Orphan]:
    """Remove rows that no worksheet names, all or those with the ids; return them. The caller commits.

    Raises:
        ProvenanceError: an id is not that of such a row, or another row refers to one of these.

    """
    table = dataset.table
    connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
    # As a load does: none can name a row between its note and its removal.
    connection.execute(text(f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE"))
    found = orphans(connection, dataset, ids)
    if others := sorted({*(ids or ())}.difference(each.id for each in found)):
        raise ProvenanceError(
            f"{', '.join(map(str, others))}: no such row of {table.name}, or a worksheet names it. Nothing was "
            "removed. List the rows that no worksheet names again"
        )
    chosen = select(ORPHANED_ROW.c.row_id).where(ORPHANED_ROW.c.table_name == table.name)
    if ids is not None:
        chosen = chosen.where(ORPHANED_ROW.c.row_id.in_(ids))
    try:
        connection.execute(delete(table).where(table.c.id.in_(chosen)))
    except IntegrityError as error:
        raise ProvenanceError(
            f"Nothing was removed, because other rows refer to these: {' '.join(str(error.orig).split())} Remove or "
            "correct those first"
        ) from error
    is_there = select(table.c.id).where(table.c.id == UnnamedRow.row_id).exists()
    connection.execute(delete(UnnamedRow).where(UnnamedRow.table_name == table.name, ~is_there))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ca_biositing.pipeline.provenance",
        description="Show where rows came from, and those that no worksheet names. DATABASE_URL names the database.",
        epilog="Exit codes: 0 done, 1 what was asked for does not exist or cannot be done, 2 wrong arguments.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("history", help="show what a row was, and what changed it")
    command.add_argument("table")
    command.add_argument("key", help="its key as in the worksheet, cells with commas between them, or the first ones")
    command = commands.add_parser("orphans", help="list the rows that no worksheet names")
    command.add_argument("table", nargs="?", default="", help="list all rows of this table")
    command = commands.add_parser("remove", help="remove rows that no worksheet names; without --yes only list them")
    command.add_argument("table")
    command.add_argument("rows", type=_ids, help=f"the ids of rows, with commas between them, or {ALL}")
    command.add_argument("--yes", action="store_true", help="remove them")
    given = parser.parse_args(arguments)
    try:
        with engine_from_environment().connect() as connection:
            if given.command == "history":
                lines = _history(connection, dataset_of(given.table), given.key)
            elif given.command == "orphans":
                lines = _orphans(connection, given.table)
            else:
                lines = _remove(connection, dataset_of(given.table), given.rows)
            print(*map(harmless, lines), sep="\n")
            if given.command == "remove" and given.yes:
                connection.commit()
    except (ProvenanceError, SettingsError) as error:
        print(error, file=sys.stderr)
        return 1
    except DBAPIError as error:
        print(f"The database refused or did not answer: {str(error.orig).strip()}", file=sys.stderr)
        return 1
    return 0


def _ids(given: str) -> Collection[int] | None:
    if given == ALL:
        return None
    try:
        return {int(each) for each in given.split(",")}
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{given}' is neither {ALL} nor ids with commas between them") from None


def _worksheets(connection: Connection, versions: Sequence[Version]) -> Mapping[object, str]:
    """Return what the versions are from, in words, by ``changed_from``."""
    query = (
        select(EtlWorksheet.id, EtlRun.id, EtlRun.flow, EtlWorksheet.sheet, EtlWorksheet.worksheet)
        .join(EtlRun)
        .where(EtlWorksheet.id.in_({version["changed_from"] for version in versions}))
    )
    return {
        id_: f"run {run} of {flow}, from '{sheet}', worksheet {worksheet}"
        for id_, run, flow, sheet, worksheet in connection.execute(query)
    }


def _history(connection: Connection, dataset: Dataset, key: str) -> Iterator[str]:
    single = len(dataset.key.columns) == 1
    cells = [key] if single else next(csv.reader([key], skipinitialspace=True), [])
    ids = rows_with_key(connection, dataset, cells)
    if not ids:
        raise ProvenanceError(f"{dataset.table} has no row with the key {key}, and had none since its history is kept")
    noted = {each.id: each for each in orphans(connection, dataset, ids)}
    for row_id in ids[:_SHOWN_HISTORIES]:
        yield f"{dataset.table} {row_id}"
        before: Version = {}
        for change in history(connection, dataset, row_id):
            yield f"  {f'{change.when:%Y-%m-%d %H:%M:%S %Z}' if change.when else 'later'}  {change.who}"
            after = change.values or {}
            yield from (f"    {line}" for line in _differences(connection, dataset, before, after))
            before = after
        if row_id in noted:
            yield f"  No worksheet names it since {noted[row_id].since:%Y-%m-%d %H:%M:%S %Z}."
    if len(ids) > _SHOWN_HISTORIES:
        yield f"and {len(ids) - _SHOWN_HISTORIES:,} more rows; name more of the key, {', '.join(dataset.key.columns)}"


def _differences(connection: Connection, dataset: Dataset, before: Version, after: Version) -> Iterator[str]:
    """Return a line for each value that a person typed and that differs; none if the row is gone."""
    references = {field.column: field for field in dataset.columns.values() if isinstance(field, Reference)}

    def shown(name: str, value: object) -> str:
        if value is None:
            return "empty"
        if name not in references:
            return str(value)
        named = references[name].model
        found = connection.execute(select(named.name).where(named.id == value)).scalar_one_or_none()
        return found or f"{named.__tablename__} {value}, which is gone"

    for name in [column.name for column in dataset.table.columns if column.name in after]:
        value = after[name]
        is_typed = name not in Record.__annotations__ and not (name.endswith("_key") and name[:-4] in after)
        if is_typed and name not in before:
            yield f"{name}: {shown(name, value)}"
        # As text: 12.5 and 12.50 are equal.
        elif is_typed and str(before[name]) != str(value):
            yield f"{name}: {shown(name, before[name])} -> {shown(name, value)}"


def _orphans(connection: Connection, only: str) -> Iterator[str]:
    tables = {each.table.name: each for each in ([dataset_of(only)] if only else datasets())}
    any_found = False
    for name, dataset in tables.items():
        found = orphans(connection, dataset)
        any_found = any_found or bool(found)
        if not found:
            continue
        yield f"{name}: {len(found):,} rows that no worksheet names"
        shown = found if only else found[:_SHOWN_ORPHANS]
        yield from _table(dataset, shown)
        if len(found) > len(shown):
            yield f"and {len(found) - len(shown):,} more; name the table to see all"
        query = (
            select(EtlRun.rejected)
            .where(EtlRun.table_name == name, EtlRun.status == "completed")
            .order_by(EtlRun.id.desc())
            .limit(1)
        )
        if rejected := connection.execute(query).scalar_one_or_none():
            yield (
                f"The last load rejected {rejected:,} rows. If the key of one of them is mistyped, its row is listed "
                "here: correct the worksheet first."
            )
        yield ""
    if not any_found:
        yield f"Worksheets name every row{f' of {only}' if only else ''}, or its flow has not run yet."


def _remove(connection: Connection, dataset: Dataset, ids: Collection[int] | None) -> Iterator[str]:
    found = remove(connection, dataset, ids)
    shown = found[:_SHOWN_ORPHANS]
    more = f" and {len(found) - len(shown):,} more" if len(found) > len(shown) else ""
    yield f"{len(found):,} rows of {dataset.table}: {', '.join(str(each.id) for each in shown)}{more}"
    yield from _table(dataset, shown)


def _table(dataset: Dataset, rows: Sequence[Orphan]) -> Iterator[str]:
    header = ("id", *dataset.key.columns, "not named since", "from")
    cells = [(str(row.id), *row.key, f"{row.since:%Y-%m-%d %H:%M}", row.source) for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    for line in (header, *cells):
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


if __name__ == "__main__":
    sys.exit(main())
