"""What becomes of flow runs that crashed: their children end with them, and they are run again, up to a limit.

A successor is a flow run of its own, so that the crashed one keeps its state and its records. Its idempotency key lets
several workers see to one pool: whoever comes second finds it made.
"""

from __future__ import annotations

import logging
import re
import time
from datetime import UTC, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterEndTime,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterParentTaskRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
    TaskRunFilterState,
    TaskRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed, Scheduled
from prefect.types import DateTime

from biocirv_worker import times

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

logger = logging.getLogger("prefect.worker.biocirv")

# From a crash to its successor.
DELAY = timedelta(seconds=times.SUCCESSOR)
# The variable of a deployment's job that says how often its flow runs are run again.
RETRIES_VARIABLE = "CRASH_RETRIES"

# Crashes that are older are left alone: nobody expects their successors any more.
_WINDOW = timedelta(hours=24)
_NEWS = timedelta(minutes=2)
# When the records of a crashed flow run have come in, see outbox.py, and when what is left is looked for the last time.
_RECORDED_SECONDS = 45
_SETTLED_SECONDS = 120
# How long a flow run may have no process before it is held for crashed: one that a worker of this name has taken, and
# one that somebody has taken and not begun.
_OWN_SECONDS = 30
_TAKEN_SECONDS = 300

_UNDER_WAY = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_SUCCESSOR = re.compile(r"crash-retry-(\d+)-of-(.+)")


async def report(client: PrefectClient, flow_run_id: UUID, reason: str, retries: int) -> None:
    """Let a flow run whose process was ended be Crashed, unless it had ended by itself, and be run again.

    Its state says ``reason``; ``retries`` is how often it is run again, where its deployment does not say.
    """
    flow_run = await client.read_flow_run(flow_run_id)
    if flow_run.state and flow_run.state.is_final() and not flow_run.state.is_crashed():
        return
    await _end(client, flow_run, reason)
    await _run_again(client, await client.read_flow_run(flow_run_id), retries)


async def _end(client: PrefectClient, run: FlowRun, reason: str) -> None:
    """Let a flow run without a process be Crashed; or Cancelled, where somebody was about to cancel it."""
    end = Cancelled if run.state_type == StateType.CANCELLING else Crashed
    await client.set_flow_run_state(run.id, end(message=reason), force=True)


class Crashes:
    """Sees to the crashed flow runs of a work pool."""

    def __init__(self, worker: str, pool: str, retries: int) -> None:
        self._worker = worker
        self._pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
        self._retries = retries
        # When each was first seen; not by a wall clock, which may jump.
        self._crashed: dict[UUID, float] = {}
        # Those that were run again, and those of which nothing is left to be looked for.
        self._replaced: set[UUID] = set()
        self._settled: set[UUID] = set()
        self._missing: dict[UUID, float] = {}

    async def see_to(self, client: PrefectClient, own: set[UUID] | None) -> None:
        """Look once, and do what there is to do.

        ``own`` are the flow runs that this worker has processes of; None while another one of its name has some, too.
        """
        await self._find_missing(client, own)
        runs = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED])),
                end_time=FlowRunFilterEndTime(after_=DateTime.now(UTC) - _WINDOW),
                deployment_id=FlowRunFilterDeploymentId(is_null_=False),
                # A sub-flow run is its parent's business.
                parent_task_run_id=FlowRunFilterParentTaskRunId(is_null_=True),
            ),
            work_pool_filter=self._pool,
        )
        # What the server holds for crashed may live: it completes, or its worker ends it before the next look.
        known, now = self._crashed, time.monotonic()
        self._crashed = {run.id: known.get(run.id, now) for run in runs}
        self._replaced &= self._crashed.keys()
        self._settled &= self._crashed.keys()
        # What is done is noted when it is done: what fails on the way is tried again the next time.
        for run in runs:
            if run.id in known and run.id not in self._replaced:
                await _run_again(client, run, self._retries)
                self._replaced.add(run.id)
        for run in runs:
            age = now - self._crashed[run.id]
            if age >= _RECORDED_SECONDS and run.id not in self._settled:
                await _end_children(client, run)
                if age >= _SETTLED_SECONDS:
                    self._settled.add(run.id)

    async def _find_missing(self, client: PrefectClient, own: set[UUID] | None) -> None:
        """Hold flow runs for crashed that were taken, and have no process."""
        runs = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNDER_WAY))),
            work_pool_filter=self._pool,
        )
        now, missing = time.monotonic(), {}
        for run in runs:
            if own is not None and run.labels.get("prefect.worker.name") == self._worker:
                limit = None if run.id in own else _OWN_SECONDS
            else:
                limit = _TAKEN_SECONDS if run.state_type == StateType.PENDING else None
            if limit is not None:
                missing[run.id] = self._missing.get(run.id, now)
                if now - missing[run.id] > limit:
                    await _end(client, run, f"No process of it was found on {self._worker}, whose worker had taken it")
        self._missing = missing


async def _run_again(client: PrefectClient, run: FlowRun, retries: int) -> None:
    if run.deployment_id is None or run.parent_task_run_id is not None or run.state is None:
        return
    if any(state.is_cancelling() for state in await client.read_flow_run_states(run.id)):
        # Nobody wants it any more, however it ended.
        return
    try:
        deployment = await client.read_deployment(run.deployment_id)
    except ObjectNotFound:
        return
    variables = {**(deployment.job_variables.get("env") or {}), **((run.job_variables or {}).get("env") or {})}
    # Somebody wrote it by hand, and the worker sees to everybody's flow runs.
    try:
        limit = int(variables.get(RETRIES_VARIABLE, retries))
    except (TypeError, ValueError):
        wrong = variables[RETRIES_VARIABLE]
        logger.error(
            "%s of %s is %r: make it a number; it is %d now", RETRIES_VARIABLE, deployment.name, wrong, retries
        )
        limit = retries
    before = _SUCCESSOR.fullmatch(run.idempotency_key or "")
    attempt, first = (int(before[1]), before[2]) if before else (0, str(run.id))
    # A worker that has just started sees those of a day.
    level = logging.WARNING if run.state.timestamp + _NEWS > DateTime.now(UTC) else logging.DEBUG
    if attempt >= limit:
        logger.log(level, "Flow run %s (%s) crashed, and is not run again: limit %d", run.name, run.id, limit)
        return
    successor = await client.create_flow_run_from_deployment(
        run.deployment_id,
        parameters=run.parameters,
        context=run.context,
        state=Scheduled(
            scheduled_time=run.state.timestamp + DELAY, message=f"Run again: {run.name} ({run.id}) crashed"
        ),
        name=f"{run.name}-retry",
        tags=run.tags,
        idempotency_key=f"crash-retry-{attempt + 1}-of-{first}",
        work_queue_name=run.work_queue_name,
        job_variables=run.job_variables,
    )
    logger.log(level, "Flow run %s (%s) crashed, and is run again as %s", run.name, run.id, successor.id)


async def _end_children(client: PrefectClient, run: FlowRun) -> None:
    """Let sub-flow and task runs of a crashed flow run be Crashed, too: nothing of them runs any more."""
    state: State[None] = Crashed(message=f"The flow run that it belongs to crashed: {run.name}")
    task_runs = await client.read_task_runs(
        task_run_filter=TaskRunFilter(
            flow_run_id=TaskRunFilterFlowRunId(any_=[run.id]),
            state=TaskRunFilterState(type=TaskRunFilterStateType(any_=_UNDER_WAY)),
        )
    )
    for task_run in task_runs:
        await client.set_task_run_state(task_run.id, state, force=True)
    children = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]))
    )
    for child in children:
        if child.deployment_id is None:
            if child.state_type in _UNDER_WAY:
                await client.set_flow_run_state(child.id, state, force=True)
            await _end_children(client, child)
