"""What the master run tells of its flows: the state that it ends in, and its artifacts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect import State
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from ca_biositing.datamodels.database import SettingsError, engine_from_environment
from ca_biositing.datamodels.models import EtlRun
from ca_biositing.pipeline.etl.run import COUNTS, Accounting
from ca_biositing.pipeline.flows import datasets
from ca_biositing.pipeline.flows.load import (
    NO_ROW_WAS_REJECTED,
    ORPHANED,
    artifacts_are_optional,
    literal,
    rejected_rows,
)
from ca_biositing.pipeline.sources import ExtractError, source_from_environment

# For each flow; its own artifact shows more.
_SHOWN_ROWS = 20


@dataclass(frozen=True)
class Outcome:
    """What a flow of a master run came to.

    ``failure`` is None if the flow completed. ``accounting`` is None if the flow loaded nothing, or if its row in
    ``etl_run`` cannot be read. ``rejected`` is markdown that lists the flow's first rejected rows.
    """

    flow: str
    message: str
    failure: str | None
    accounting: Accounting | None
    rejected: Sequence[str]


def end(states: Mapping[str, State[Any]]) -> State[Any]:
    """Create the artifacts of a master run; return the state that it ends in.

    ``states`` holds the state of each flow's run, by the flow's name. The returned state is Failed if any of them
    failed, with a message that names the failed flows by each reason; otherwise it is Completed with each flow's
    accounting. In both, the message gives the number of rows that were read and rejected.
    """
    outcomes = _outcomes(states)
    with artifacts_are_optional():
        _show(outcomes)
    if failed := [each for each in outcomes if each.failure is not None]:
        # A reason that several flows have, such as a missing sheet, is said once.
        flows = {each.failure: [other.flow for other in failed if other.failure == each.failure] for each in failed}
        reasons = " | ".join(f"{', '.join(names)}: {reason}" for reason, names in flows.items())
        return Failed(message=f"{len(failed)} of {len(outcomes)} flows failed. {totals(outcomes)}{reasons}")
    details = "; ".join(f"{each.flow}: {each.accounting or each.message}" for each in outcomes)
    return Completed(message=totals(outcomes) + details, data={each.flow: each.message for each in outcomes})


def totals(outcomes: Sequence[Outcome]) -> str:
    """Return a sentence with the number of rows that flows read and rejected; empty if no flow has an accounting."""
    accountings = {each.flow: each.accounting for each in outcomes if each.accounting}
    if not accountings:
        return ""
    read = f"{sum(each.read for each in accountings.values()):,} rows read"
    rejected = Counter({flow: each.rejected for flow, each in accountings.items() if each.rejected})
    if not rejected:
        return f"{read}, none rejected. "
    by_flow = ", ".join(f"{flow} {number:,}" for flow, number in rejected.most_common())
    return f"{read}, {rejected.total():,} rejected: {by_flow}. "


def _outcomes(states: Mapping[str, State[Any]]) -> list[Outcome]:
    # From the database, not from the states' data, which is missing if the client repeated a request after a lost
    # answer.
    try:
        accountings, rejected = _read(states)
    except (SettingsError, SQLAlchemyError) as error:
        get_run_logger().warning("The flows' accounting cannot be read: %s", error)
        accountings, rejected = {}, {}
    return [
        Outcome(
            flow,
            message=state.message or "",
            failure=None if state.is_completed() else state.message or state.name or "",
            accounting=accountings.get(flow),
            rejected=rejected.get(flow, []),
        )
        for flow, state in states.items()
    ]


def _read(states: Mapping[str, State[Any]]) -> tuple[dict[str, Accounting], dict[str, list[str]]]:
    """Return the accounting of each flow that completed, and the rejected rows of each flow."""
    flows = {state.state_details.flow_run_id: flow for flow, state in states.items()}
    accountings: dict[str, Accounting] = {}
    rejected: dict[str, list[str]] = {}
    try:
        source = source_from_environment()
    except ExtractError:
        source = None
    with engine_from_environment().connect() as connection:
        for run in connection.execute(select(EtlRun).where(EtlRun.flow_run_id.in_([*flows]))).all():
            flow = flows[run.flow_run_id]
            rejected[flow] = rejected_rows(run.id, connection, _SHOWN_ROWS, source)
            if run.status == "completed":
                accountings[flow] = Accounting(run.id, *(getattr(run, name) for name in COUNTS))
    return accountings, rejected


def _show(outcomes: Sequence[Outcome]) -> None:
    failed = [each for each in outcomes if each.failure is not None]
    tables = {each.name: each.table.name for each in datasets()}
    # Prefect's page has the columns of the first row.
    create_table_artifact(
        table=[
            {
                "flow": each.flow,
                "table": tables.get(each.flow),
                **{name: getattr(each.accounting, name, None) for name in COUNTS},
                **({"failure": each.failure} if failed else {}),
            }
            for each in outcomes
        ],
        key="accounting",
        description=f"Accounting of the rows of all flows. {ORPHANED}",
    )
    create_markdown_artifact(
        markdown=_page(outcomes),
        key="rejected-rows",
        description="The rows of all flows that were not loaded, and why",
    )


def _page(outcomes: Sequence[Outcome]) -> str:
    """Return the flows that failed or rejected rows, as markdown."""
    lines: list[str] = []
    for each in outcomes:
        if each.failure is not None:
            heading = f"**Failed:** {literal(each.failure)}"
        elif each.accounting is None:
            heading = f"Completed, but its row in etl\\_run could not be read: {literal(each.message)}"
        elif each.accounting.rejected:
            heading = f"{each.accounting.rejected:,} of {each.accounting.read:,} rows were not loaded."
        else:
            continue
        lines += [f"## {literal(each.flow)}", "", heading, "", *each.rejected, ""]
    if not lines:
        return NO_ROW_WAS_REJECTED
    advice = "Correct the worksheets, and run the flows again: they take in what is new or changed."
    return "\n".join([f"{totals(outcomes)}{advice}", "", *lines])
