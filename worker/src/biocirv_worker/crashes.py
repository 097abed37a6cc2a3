"""Retries crashed flow runs, up to a limit, and sets their child runs to Crashed.

A retry is a new flow run, its successor, so that the crashed one keeps its state and its records. The successor's
idempotency key lets several workers reconcile one pool: only the first of them creates it.
"""

from __future__ import annotations

import logging
import re
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
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

from biocirv_worker import times
from biocirv_worker.asides import Asides

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

logger = logging.getLogger("prefect.worker.biocirv")

# From a crash to the scheduled start of the successor.
DELAY = timedelta(seconds=times.SUCCESSOR)
# Environment variable in a deployment's job variables: how often its crashed flow runs are retried.
RETRIES_VARIABLE = "CRASH_RETRIES"

# Older crashes are not retried: a successor would no longer be expected.
_WINDOW = timedelta(hours=24)
# Crashes that are older are logged at level DEBUG.
_RECENT = timedelta(minutes=2)
# Age of a crash at which its task-run events have been recorded (see outbox.py) and its children are first ended, and
# at which its children are ended for the last time.
_RECORDED_SECONDS = 45
_SETTLED_SECONDS = 120
# How long a flow run may have no process before it is considered crashed: one taken by a worker of this name, and one
# taken by any other worker and still Pending.
_OWN_SECONDS = 30
_TAKEN_SECONDS = 300

_ACTIVE = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_SUCCESSOR = re.compile(r"crash-retry-(\d+)-of-(.+)")


async def report(
    client: PrefectClient, flow_run_id: UUID, reason: str, retries: int, *, known: bool = False, cancelled: bool = False
) -> State[Any] | None:
    """Set a flow run whose process was killed to Crashed, unless it had ended by itself, and retry it.

    ``reason`` becomes the state's message, but with ``known`` not that of one that is Crashed already. One that was
    ``cancelled`` becomes Cancelled, as does one that is being cancelled, and is not retried. ``retries`` is the limit
    for deployments that do not set their own. Returns the new state; None if it had ended by itself.
    """
    flow_run = await client.read_flow_run(flow_run_id)
    crashed = bool(flow_run.state and flow_run.state.is_crashed())
    if flow_run.state and flow_run.state.is_final() and not crashed:
        return None
    if cancelled or not (crashed and known):
        await _end(client, flow_run, reason, cancelled=cancelled)
    flow_run = await client.read_flow_run(flow_run_id)
    await _run_again(client, flow_run, retries)
    return flow_run.state


async def _end(client: PrefectClient, run: FlowRun, reason: str, *, cancelled: bool = False) -> None:
    """Set a flow run without a process to Crashed, or to Cancelled if it was being cancelled."""
    end = Cancelled if cancelled or run.state_type == StateType.CANCELLING else Crashed
    await client.set_flow_run_state(run.id, end(message=reason), force=True)


class _FilterWithEnd(FlowRunFilter):
    """A filter by the end, too, which each server knows, and Prefect's client only from 3.6.25 on."""

    end_time: dict[str, str]  # type: ignore[assignment] # as it is sent


class Crashes:
    """Reconciles the crashed flow runs of a work pool."""

    def __init__(self, worker: str, pool: str, retries: int) -> None:
        self._worker = worker
        self._pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
        self._retries = retries
        # Monotonic time at which each was first seen: the wall clock may jump.
        self._crashed: dict[UUID, float] = {}
        # Those that were handed to _run_again, and those whose children have all been ended.
        self._replaced: set[UUID] = set()
        self._settled: set[UUID] = set()
        self._missing: dict[UUID, float] = {}
        self._asides = Asides()

    async def reconcile(self, client: PrefectClient, own: set[UUID] | None) -> None:
        """Do one pass: find flow runs without a process, retry crashed ones, and end the children of crashed ones.

        ``own`` are the flow runs that this worker has processes of; None while another worker of its name has some.
        What fails for one flow run, such as a successor that the server refuses, is logged once, and holds up no other.

        Raises:
            httpx.HTTPError, TimeoutError: the API has an outage; the next pass repeats what has not been done.

        """
        await self._find_missing(client, own)
        runs = await client.read_flow_runs(
            flow_run_filter=_FilterWithEnd(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED])),
                end_time={"after_": (datetime.now(UTC) - _WINDOW).isoformat()},
                deployment_id=FlowRunFilterDeploymentId(is_null_=False),
                # A sub-flow run is retried as part of its parent.
                parent_task_run_id=FlowRunFilterParentTaskRunId(is_null_=True),
            ),
            work_pool_filter=self._pool,
        )
        # A run is retried from its second pass on: until then, one that the server considers crashed may be alive, and
        # either completes or is killed by its worker.
        known, now = self._crashed, time.monotonic()
        self._crashed = {run.id: known.get(run.id, now) for run in runs}
        self._replaced &= self._crashed.keys()
        self._settled &= self._crashed.keys()
        self._asides.keep(
            set(self._crashed)
            | {("children", run) for run in self._crashed}
            | {("missing", run) for run in self._missing}
        )
        # A step is marked as done only after it succeeded or was put aside, so that the next pass repeats one that an
        # outage interrupted.
        for run in runs:
            if run.id in known and run.id not in self._replaced:
                with self._asides.each(run.id, f"Flow run {run.name} ({run.id}) crashed, and cannot be run again"):
                    await _run_again(client, run, self._retries)
                self._replaced.add(run.id)
        for run in runs:
            age = now - self._crashed[run.id]
            if age >= _RECORDED_SECONDS and run.id not in self._settled:
                with self._asides.each(("children", run.id), f"Runs within flow run {run.name} ({run.id}) remain open"):
                    await _end_children(client, run)
                if age >= _SETTLED_SECONDS:
                    self._settled.add(run.id)

    async def _find_missing(self, client: PrefectClient, own: set[UUID] | None) -> None:
        """Set flow runs to Crashed that a worker has taken and that have had no process for too long."""
        runs = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_ACTIVE))),
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
                    with self._asides.each(("missing", run.id), f"Flow run {run.name} ({run.id}) has no process"):
                        await _end(
                            client, run, f"No process of it was found on {self._worker}, whose worker had taken it"
                        )
        self._missing = missing


async def _run_again(client: PrefectClient, run: FlowRun, retries: int) -> None:
    if run.deployment_id is None or run.parent_task_run_id is not None or run.state is None:
        return
    if any(state.is_cancelling() for state in await client.read_flow_run_states(run.id)):
        # Its cancellation was requested, so it is not retried, however it ended.
        return
    try:
        deployment = await client.read_deployment(run.deployment_id)
    except ObjectNotFound:
        return
    variables = {**_env(deployment.job_variables), **_env(run.job_variables)}
    # The value is written by hand; a bad one must not stop the retries of other deployments.
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
    # A worker that has just started finds all crashes of the last day.
    level = logging.WARNING if run.state.timestamp + _RECENT > datetime.now(UTC) else logging.DEBUG
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


def _env(job_variables: dict[str, Any] | None) -> dict[str, Any]:
    """Return the environment in job variables, which may be anything where the pool has no schema."""
    env = (job_variables or {}).get("env")
    return env if isinstance(env, dict) else {}


async def _end_children(client: PrefectClient, run: FlowRun) -> None:
    """Set the unfinished sub-flow and task runs of a crashed flow run to Crashed: they ran in its process."""
    state: State[None] = Crashed(message=f"The flow run that it belongs to crashed: {run.name}")
    task_runs = await client.read_task_runs(
        task_run_filter=TaskRunFilter(
            flow_run_id=TaskRunFilterFlowRunId(any_=[run.id]),
            # Prefect 3.4 requires the name.
            state=TaskRunFilterState(name=None, type=TaskRunFilterStateType(any_=_ACTIVE)),
        )
    )
    for task_run in task_runs:
        await client.set_task_run_state(task_run.id, state, force=True)
    children = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]))
    )
    for child in children:
        if child.deployment_id is None:
            if child.state_type in _ACTIVE:
                await client.set_flow_run_state(child.id, state, force=True)
            await _end_children(client, child)
