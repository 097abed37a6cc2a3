"""Loads a flow's dataset under Prefect: with states, retries and artifacts."""

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any
from uuid import UUID

from prefect import State, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.context import TagsContext
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import DBAPIError, OperationalError

from ca_biositing.datamodels.database import SettingsError, engine_from_environment
from ca_biositing.datamodels.models import RejectedRow
from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.rejection_limits import limit_from_environment
from ca_biositing.pipeline.etl.run import COUNTS, Accounting, FlowIsLockedError, TooManyRejectedError, run
from ca_biositing.pipeline.sources import ExtractError, Source, SourceUnavailableError, source_from_environment

_RETRY_DELAYS_SECONDS = [5.0, 20.0, 60.0]
# A shorter load shows no progress bar.
_PROGRESS_AFTER_SECONDS = 5
_PROGRESS_EVERY_SECONDS = 2
_SHOWN_ROWS = 100

NO_ROW_WAS_REJECTED = "No row was rejected."
ORPHANED = "Orphaned rows are in the table, and no worksheet names them; operators list them with make orphaned-rows."


def load(dataset: Dataset) -> State[Accounting]:
    """Load a dataset inside a flow run; return the state that the flow run ends in.

    Completed with the accounting as data and message, even if rows were rejected, which the message then begins with;
    Failed with the reason as message if nothing was loaded.
    """
    # Tags are for flow runs: before a task with tags, Prefect asks the API for a slot of each one's concurrency limit.
    with TagsContext():
        state: State[Any] = _load.with_options(name=f"load {dataset.name}")(dataset, return_state=True)
    if not state.is_completed():
        return Failed(message=state.message)
    accounting = state.result()
    rejected = f"{accounting.rejected:,} of {accounting.read:,} rows rejected: " if accounting.rejected else ""
    return Completed(message=f"{rejected}{accounting}", data=accounting)


def _is_transient(_task: object, _task_run: object, state: State[object]) -> bool:
    return isinstance(state.data, SourceUnavailableError | OperationalError)


@task(
    retries=len(_RETRY_DELAYS_SECONDS),
    retry_delay_seconds=_RETRY_DELAYS_SECONDS,
    retry_condition_fn=_is_transient,
    cache_policy=NO_CACHE,
)
def _load(dataset: Dataset) -> Accounting | State[Accounting]:
    # A state instead of an exception: the message is for the authors of the sheet, whom a traceback does not help.
    try:
        engine = engine_from_environment()
        source = source_from_environment()
        accounting = run(
            dataset,
            source,
            engine,
            flow_run_id=UUID(flow_run.get_id()),
            limit=limit_from_environment(dataset.name),
            on_progress=_Progress(dataset.name),
        )
    except (ExtractError, SettingsError, FlowIsLockedError) as error:
        return Failed(message=str(error), data=error)
    except DBAPIError as error:
        return Failed(message=f"The database refused or did not answer: {str(error.orig).strip()}", data=error)
    except TooManyRejectedError as error:
        with artifacts_are_optional():
            _show_rejected(dataset, error.run_id, engine, literal(str(error)), source)
        return Failed(message=str(error), data=error)
    with artifacts_are_optional():
        _show(dataset, accounting, engine, source)
    return accounting


@contextmanager
def artifacts_are_optional() -> Iterator[None]:
    """Log an error instead of raising it: a run whose rows are loaded must not fail because of its artifacts."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever Prefect's client or the database raises
        get_run_logger().warning("An artifact is missing, which does not affect the rows: %s", error)


class _Progress:
    """Creates and updates a progress artifact for a load that takes long."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._due = time.monotonic() + _PROGRESS_AFTER_SECONDS
        self._artifact: UUID | None = None

    def __call__(self, fraction: float, rows: int) -> None:
        if time.monotonic() < self._due:
            return
        # If this fails, the load goes on without a progress bar.
        self._due = math.inf
        with artifacts_are_optional():
            self._show(fraction, rows)
            self._due = time.monotonic() + _PROGRESS_EVERY_SECONDS

    def _show(self, fraction: float, rows: int) -> None:
        percent = round(100 * fraction, 1)
        description = f"{self._name}: {rows:,} rows read; they appear in the table together, at the end"
        if self._artifact is None:
            artifact = create_progress_artifact(percent, key=_key("progress", self._name), description=description)
            assert isinstance(artifact, UUID)  # noqa: S101 - it is a coroutine only in async flows
            self._artifact = artifact
        else:
            update_progress_artifact(self._artifact, progress=percent, description=description)


def _show(dataset: Dataset, accounting: Accounting, engine: Engine, source: Source) -> None:
    create_table_artifact(
        table=[{"table": dataset.table.name, **{name: getattr(accounting, name) for name in COUNTS}}],
        key=_key("accounting", dataset.name),
        description="\n\n".join(
            [
                f"Accounting of {_rows(dataset)} (etl_run {accounting.run_id}). {ORPHANED}",
                *(literal(note) for note in accounting.notes),
            ]
        ),
    )
    advice = (
        f"{accounting.rejected} of {accounting.read} rows were not loaded. Correct them in the worksheet, and run the "
        "flow again: it takes in what is new or changed, and leaves the rest as it is."
    )
    _show_rejected(dataset, accounting.run_id, engine, advice, source)


def _show_rejected(dataset: Dataset, run_id: int, engine: Engine, advice: str, source: Source) -> None:
    with engine.connect() as connection:
        lines = rejected_rows(run_id, connection, source=source)
    create_markdown_artifact(
        markdown="\n".join([advice, "", *lines]) if lines else NO_ROW_WAS_REJECTED,
        key=_key("rejected-rows", dataset.name),
        description=f"Those of {_rows(dataset)} that were not loaded, and why",
    )


def _rows(dataset: Dataset) -> str:
    return f"the rows of '{dataset.sheet}', `{dataset.worksheets}`"


def rejected_rows(
    run_id: int, connection: Connection, shown: int = _SHOWN_ROWS, source: Source | None = None
) -> list[str]:
    """Return the lines of markdown that list the first rejected rows of a run in ``etl_run``; none if it has none.

    Where the source tells the address of a worksheet, each row links to itself there.
    """
    columns = (RejectedRow.sheet, RejectedRow.worksheet, RejectedRow.row_number, RejectedRow.value, RejectedRow.reason)
    # One more than are shown tells whether there are others.
    query = select(*columns).where(RejectedRow.etl_run_id == run_id).limit(shown + 1)
    rows = connection.execute(query.order_by(RejectedRow.worksheet, RejectedRow.row_number)).all()
    if not rows:
        return []
    lines = []
    # A list, because Prefect's page truncates the cells of a table, and the reason must be readable in full.
    for worksheet, members in groupby(rows[:shown], lambda row: row.worksheet):
        lines += [f"### {literal(worksheet)}", ""]
        link = ""
        for place, row in enumerate(members):
            link = link if place else _link(source, row.sheet, worksheet)
            number = f"[Row {row.row_number}]({link}&range=A{row.row_number})" if link else f"Row {row.row_number}"
            value = f" '{literal(row.value)}':" if row.value else ""
            lines.append(f"- **{number}**{value} {literal(row.reason)}")
        lines.append("")
    first = f"These are the first {shown}. All of them" if len(rows) > shown else "The same"
    query_text = f"SELECT * FROM rejected_row WHERE etl_run_id = {run_id} ORDER BY worksheet, row_number"  # noqa: S608 - it is shown, not executed
    return [*lines, f"{first} in the database:", "", f"    {query_text}"]


def _link(source: Source | None, sheet: str, worksheet: str) -> str:
    """Return the address of a worksheet; empty if it has none, or the source does not answer."""
    try:
        return source.link(sheet, worksheet) if source else ""
    except ExtractError:
        return ""


def literal(text: str) -> str:
    """Return a text with the special characters of markdown and HTML escaped."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", r"\\\1", " ".join(text.split()))


def _key(kind: str, name: str) -> str:
    return f"{kind}-{name}".replace("_", "-")
