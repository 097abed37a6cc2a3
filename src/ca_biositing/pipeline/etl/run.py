"""One run: load a dataset's worksheets into its table and account for every row."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from uuid import UUID

import polars as pl
from sqlalchemy import Connection, Engine, delete, func, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, OperationalError

from ca_biositing.datamodels.locks import holders, timed_out
from ca_biositing.datamodels.models import EtlRun, RejectedRow
from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.extract import ROW_NUMBER, frames, worksheets
from ca_biositing.pipeline.etl.load import Load
from ca_biositing.pipeline.etl.rejection_limits import VARIABLE, Limit
from ca_biositing.pipeline.etl.validate import Validator
from ca_biositing.pipeline.sources import Source

Progress = Callable[[float, int], None]
# How long a load waits for another one of its flow, and for the locks of rows.
_LOCK_TIMEOUT = "10min"
# The columns of etl_run, and of an accounting, that count rows: of the worksheets, and then of the table.
COUNTS = ("read", "inserted", "updated", "unchanged", "rejected", "orphaned")


@dataclass(frozen=True)
class Accounting:
    """The counts of the rows that a run read: ``read == inserted + updated + unchanged + rejected``.

    ``unchanged`` rows equal the table's row, or another row of the run. ``orphaned`` rows are in the table, and no
    worksheet names them. ``run_id`` is the run's id in ``etl_run``, to which the rejected rows in ``rejected_row``
    refer. ``notes`` are those of worksheets, such as what of them is hidden.
    """

    run_id: int
    read: int
    inserted: int
    updated: int
    unchanged: int
    rejected: int
    orphaned: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the counts as one line of text."""
        return (
            f"read {self.read} = inserted {self.inserted} + updated {self.updated} "
            f"+ unchanged {self.unchanged} + rejected {self.rejected}"
            + (f"; {self.orphaned} rows of the table are orphaned" if self.orphaned else "")
        )


class TooManyRejectedError(Exception):
    """More rows were rejected than the limit allows: nothing was loaded, and the rejected rows are in ``rejected_row``.

    ``run_id`` is the run's id in ``etl_run``.
    """

    def __init__(self, run_id: int, read: int, rejected: int, limit: Limit) -> None:
        super().__init__(
            f"{rejected:,} of {read:,} rows were rejected, more than the limit of {limit} ({VARIABLE}): nothing was "
            "loaded. Correct these rows in the worksheet and run the flow again, or raise the limit"
        )
        self.run_id = run_id


class FlowIsLockedError(Exception):
    """Another session has held the lock of the flow for longer than a load waits for it; the message names it."""


def run(
    dataset: Dataset,
    source: Source,
    engine: Engine,
    *,
    flow_run_id: UUID | None = None,
    limit: Limit | None = None,
    on_progress: Progress = lambda _fraction, _rows: None,
) -> Accounting:
    """Load a dataset: afterwards every row of its worksheets is in its table or in ``rejected_row``.

    The rows and the accounting in ``etl_run`` are written in one transaction. A run that fails or is killed leaves only
    its row in ``etl_run``, with status ``failed``; if it could not write that status itself, the next run does. A run
    that exceeds ``limit`` also leaves its rejected rows, so that people can correct them.
    ``on_progress`` is called with the fraction read, 0 to 1, and the number of rows read. An advisory lock serializes
    concurrent runs of one dataset.

    Raises:
        ExtractError: a worksheet or a column is missing, or cannot be read.
        TooManyRejectedError: more rows were rejected than ``limit`` allows.
        FlowIsLockedError: another session holds the lock, such as a run of the flow that takes longer than 10 minutes.
        sqlalchemy.exc.SQLAlchemyError: the database cannot be reached, or returns an error.

    """
    with engine.connect() as connection:
        # Close it at the end instead of returning it to a pool: the lock and the settings below belong to its session.
        connection.detach()
        run_id = _begin(connection, dataset.name, dataset.table.name, flow_run_id)
        with _failed_unless_completed(engine, run_id), connection.begin() as transaction:
            try:
                accounting = _load(connection, dataset, source, run_id, limit, on_progress)
            except TooManyRejectedError as error:
                # No row of the dataset's table has changed yet: this commits only the rejected rows.
                _finish(connection, run_id, status="failed", message=str(error))
                transaction.commit()
                raise
            _finish(
                connection,
                run_id,
                status="completed",
                message=" | ".join(accounting.notes) or None,
                **{name: getattr(accounting, name) for name in COUNTS},
            )
    return accounting


def _begin(connection: Connection, flow: str, table: str, flow_run_id: UUID | None) -> int:
    with connection.begin():
        # The server then detects a killed client during a statement, not only at its end.
        connection.execute(text("SET client_connection_check_interval = '1s'"))
        connection.execute(text(f"SET lock_timeout = '{_LOCK_TIMEOUT}'"))
        _lock(connection, flow)
        dead = EtlRun.flow == flow, EtlRun.status == "running"
        connection.execute(
            update(EtlRun)
            .where(*dead)
            .values(status="failed", finished_at=func.now(), message="The run's process ended before the run did")
        )
        counts = {"table_name": table, **dict.fromkeys(COUNTS, 0)}
        started = {"status": "running", "started_at": func.now(), "finished_at": None, "message": None, **counts}
        # A flow run that is retried, even after it completed, reuses its row and resets it.
        statement = (
            insert(EtlRun)
            .values(flow=flow, flow_run_id=flow_run_id, **started)
            .on_conflict_do_update(index_elements=["flow_run_id"], set_=started)
            .returning(EtlRun.id)
        )
        run_id = connection.execute(statement).scalar_one()
        connection.execute(delete(RejectedRow).where(RejectedRow.etl_run_id == run_id))
        return run_id


def _lock(connection: Connection, flow: str) -> None:
    key = f"etl {flow}"
    try:
        # Held until the connection closes: while this run holds it, no other run of this flow is alive.
        connection.execute(text("SELECT pg_advisory_lock(hashtextextended(:key, 0))"), {"key": key})
    except DBAPIError as error:
        if not timed_out(error):
            raise
        # Anyone who can connect can hold it, so the message has to say who does.
        held = holders(
            connection.engine,
            "locktype = 'advisory' AND objsubid = 1"
            " AND (classid::bigint << 32 | objid::bigint) = hashtextextended(:key, 0)",
            key=key,
        )
        raise FlowIsLockedError(
            f"Nothing was loaded: another session has the lock of the flow {flow}, for which this run waited "
            f"{_LOCK_TIMEOUT}. {held}"
        ) from error


@contextmanager
def _failed_unless_completed(engine: Engine, run_id: int) -> Iterator[None]:
    try:
        yield
    # BaseException, to include a cancellation.
    except BaseException as error:
        # A new connection, because the other one may be broken. If this fails too, the next run sets the status.
        with suppress(OperationalError), engine.begin() as connection:
            _finish(connection, run_id, status="failed", message=str(error) or type(error).__name__)
        raise


def _finish(connection: Connection, run_id: int, **values: object) -> None:
    connection.execute(update(EtlRun).where(EtlRun.id == run_id).values(finished_at=func.clock_timestamp(), **values))


def _load(
    connection: Connection,
    dataset: Dataset,
    source: Source,
    run_id: int,
    limit: Limit | None,
    on_progress: Progress,
) -> Accounting:
    with worksheets(dataset, source) as opened:
        validator = Validator(dataset, connection)
        key_validator: Validator | None = None
        load = Load(connection, dataset, run_id)
        read = rejected = 0
        notes: list[str] = []
        for done, worksheet in enumerate(opened):
            for frame in frames(worksheet, [*dataset.columns]):
                validated = validator.validate(frame)
                load.stage(worksheet.name, validated.records)
                load.reject(worksheet.name, validated.rejected)
                if len(validated.rejected):
                    # Most sheets need none: it reads the names that cells can refer to once more.
                    key_validator = key_validator or Validator(dataset.key, connection)
                    of_rejected = pl.col(ROW_NUMBER).is_in(validated.rejected[ROW_NUMBER].implode())
                    load.name(key_validator.validate(frame.filter(of_rejected)).records)
                read += len(frame)
                rejected += len(validated.rejected)
                on_progress((done + worksheet.progress()) / len(opened), read)
            notes += [f"{worksheet.name}: {note}" for note in worksheet.notes()]
    rejected += load.reject_contradictions()
    if limit and limit.is_exceeded(read, rejected):
        raise TooManyRejectedError(run_id, read, rejected, limit)
    load.compare()
    orphaned = load.note_orphans()
    inserted, updated = load.upsert()
    return Accounting(
        run_id=run_id,
        read=read,
        inserted=inserted,
        updated=updated,
        unchanged=read - inserted - updated - rejected,
        rejected=rejected,
        orphaned=orphaned,
        notes=tuple(notes),
    )
