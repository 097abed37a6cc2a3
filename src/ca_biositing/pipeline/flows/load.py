"""Loads a flow's dataset under Prefect: with states, retries and artifacts."""

import re
import time
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
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from sqlalchemy import Engine, select
from sqlalchemy.exc import DBAPIError, OperationalError

from ca_biositing.datamodels.database import SettingsError, engine_from_environment
from ca_biositing.datamodels.models import RejectedRow
from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.run import Accounting, run
from ca_biositing.pipeline.sources import ExtractError, SourceUnavailableError, source_from_environment

_RETRY_DELAYS_SECONDS = [5.0, 20.0, 60.0]
# A shorter load shows no progress bar.
_PROGRESS_AFTER_SECONDS = 5
_PROGRESS_EVERY_SECONDS = 2
_SHOWN_ROWS = 100


def load(dataset: Dataset) -> State[Accounting]:
    """Load a dataset inside a flow run; return the state that the flow run ends in.

    Completed with the accounting as data and message, even if rows were rejected; Failed with the reason as message if
    nothing was loaded.
    """
    state: State[Any] = _load.with_options(name=f"load {dataset.name}")(dataset, return_state=True)
    if not state.is_completed():
        return Failed(message=state.message)
    accounting = state.result()
    return Completed(message=str(accounting), data=accounting)


def _is_transient(_task: object, _task_run: object, state: State[object]) -> bool:
    return isinstance(state.data, SourceUnavailableError | OperationalError)


@task(
    tags=["etl"],
    retries=len(_RETRY_DELAYS_SECONDS),
    retry_delay_seconds=_RETRY_DELAYS_SECONDS,
    retry_condition_fn=_is_transient,
    cache_policy=NO_CACHE,
)
def _load(dataset: Dataset) -> Accounting | State[Accounting]:
    # A state instead of an exception: the message is for the authors of the sheet, whom a traceback does not help.
    try:
        engine = engine_from_environment()
        accounting = run(
            dataset,
            source_from_environment(),
            engine,
            flow_run_id=UUID(flow_run.get_id()),
            on_progress=_Progress(dataset.name),
        )
    except (ExtractError, SettingsError) as error:
        return Failed(message=str(error), data=error)
    except DBAPIError as error:
        return Failed(message=f"The database refused or did not answer: {str(error.orig).strip()}", data=error)
    _show(dataset, accounting, engine)
    return accounting


class _Progress:
    """Creates and updates a progress artifact for a load that takes long."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._due = time.monotonic() + _PROGRESS_AFTER_SECONDS
        self._artifact: UUID | None = None

    def __call__(self, fraction: float, rows: int) -> None:
        if time.monotonic() < self._due:
            return
        percent = round(100 * fraction, 1)
        description = f"{self._name}: {rows:,} rows read; they appear in the table together, at the end"
        if self._artifact is None:
            artifact = create_progress_artifact(percent, key=_key("progress", self._name), description=description)
            assert isinstance(artifact, UUID)  # noqa: S101 - it is a coroutine only in async flows
            self._artifact = artifact
        else:
            update_progress_artifact(self._artifact, progress=percent, description=description)
        self._due = time.monotonic() + _PROGRESS_EVERY_SECONDS


def _show(dataset: Dataset, accounting: Accounting, engine: Engine) -> None:
    rows = f"the rows of '{dataset.sheet}', `{dataset.worksheets}`"
    counts = {name: getattr(accounting, name) for name in ("read", "inserted", "updated", "unchanged", "rejected")}
    create_table_artifact(
        table=[{"table": dataset.table.name, **counts}],
        key=_key("accounting", dataset.name),
        description=f"Accounting of {rows} (etl_run {accounting.run_id})",
    )
    create_markdown_artifact(
        markdown=_rejected_rows(accounting, engine) if accounting.rejected else "No row was rejected.",
        key=_key("rejected-rows", dataset.name),
        description=f"Those of {rows} that were not loaded, and why",
    )


def _rejected_rows(accounting: Accounting, engine: Engine) -> str:
    columns = (RejectedRow.worksheet, RejectedRow.row_number, RejectedRow.value, RejectedRow.reason)
    query = select(*columns).where(RejectedRow.etl_run_id == accounting.run_id).limit(_SHOWN_ROWS)
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(RejectedRow.worksheet, RejectedRow.row_number)).all()
    lines = [
        f"{accounting.rejected} of {accounting.read} rows were not loaded. Correct them in the worksheet, and run the "
        "flow again: it takes in what is new or changed, and leaves the rest as it is."
    ]
    # A list, because Prefect's page truncates the cells of a table, and the reason must be readable in full.
    for worksheet, members in groupby(rows, lambda row: row.worksheet):
        lines += ["", f"### {_literal(worksheet)}", ""]
        for row in members:
            value = f" '{_literal(row.value)}':" if row.value else ""
            lines.append(f"- **Row {row.row_number}**{value} {_literal(row.reason)}")
    shown = f"These are the first {len(rows)}. All of them" if accounting.rejected > len(rows) else "The same"
    query_text = f"SELECT * FROM rejected_row WHERE etl_run_id = {accounting.run_id} ORDER BY worksheet, row_number"  # noqa: S608 - it is shown, not executed
    lines += ["", f"{shown} in the database:", "", f"    {query_text}"]
    return "\n".join(lines)


def _literal(text: str) -> str:
    """Return a text with the special characters of markdown and HTML escaped."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", r"\\\1", " ".join(text.split()))


def _key(kind: str, name: str) -> str:
    return f"{kind}-{name}".replace("_", "-")
