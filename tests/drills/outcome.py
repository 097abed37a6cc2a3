"""The outcome of a drill: what was lost, which records contradict each other, and how long the recovery took."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests import limits
from tests.drills.load import ENDED, RETRY, SUB_FLOWS

if TYPE_CHECKING:
    from tests import limits
    from tests.drills.faults import Drill
from tests.drills.load import Attempt, Field, Load, Run

# A crashed run is retried after this delay, not earlier.
RETRY_SECONDS = 60
# A run is marked as crashed within this time after its process died, on an idle machine.
CRASH_SECONDS = 120
# Allows for differences between the hosts' clocks, and for the delay between an end and its report.
TOLERANCE_SECONDS = limits.limit(2)


@dataclass
class Outcome:
    """A drill's result; each list holds messages, and is empty if nothing is wrong."""

    drill: Drill
    skipped: str = ""
    # The error if the drill itself failed, with the services' journal.
    trouble: str = ""
    load: Load | None = None
    broken_at: float = 0
    seconds_until_well: float | None = None
    well_at: float = 0
    in_flight: int = 0
    started: int = 0
    rerun: int = 0
    # Seconds from the fault until the last crash was detected.
    crashed_after: float | None = None
    lost_runs: list[str] = field(default_factory=list)
    needless: list[str] = field(default_factory=list)
    untrue: list[str] = field(default_factory=list)
    overlaps: list[str] = field(default_factory=list)
    lost_rows: list[str] = field(default_factory=list)
    lost_records: list[str] = field(default_factory=list)
    open_records: list[str] = field(default_factory=list)
    rows_lost: int | None = None

    def judge(self, place: Field) -> None:
        """Compare Prefect's record of the load with the work that was done."""
        if self.load is None:
            return
        runs = place.runs([self.load])
        sub_runs = place.sub_runs(runs)
        attempts = place.attempts([self.load])
        self._judge_runs(runs)
        self._judge_attempts(runs, attempts)
        self._judge_etl(place, runs, sub_runs)
        taken = {name: slots for name, slots in place.taken_slots().items() if slots and self.drill.takes_slots}
        self.untrue += [f"{slots} of the concurrency limit {name} stay taken" for name, slots in taken.items()]
        self.is_recorded(place)

    def _judge_runs(self, runs: list[Run]) -> None:
        assert self.load is not None
        by_name = defaultdict(list)
        for run in runs:
            by_name[run.name].append(run)
        for name in [*self.load.names, *self.load.masters]:
            if len(by_name[name]) != 1:
                self.lost_runs.append(f"{name}: there are {len(by_name[name])} flow runs of it")
                continue
            (run,) = by_name[name]
            self.started += 1
            self.in_flight += (
                run.started is not None
                and run.started < self.broken_at
                and (run.ended is None or run.ended > self.broken_at)
            )
            if run.has_crashed:
                self._judge_crash(run)
            again = by_name[f"{name}{RETRY}"]
            if run.has_crashed and len(again) == 1 and again[0].state == "COMPLETED":
                self.rerun += 1
                if not self.drill.may_crash(name):
                    self.needless.append(f"{run}: the fault should not have ended its process")
                waited = (again[0].started or 0) - (run.ended or 0)
                if waited < RETRY_SECONDS - 1:
                    self.overlaps.append(f"{again[0].name} began {waited:.0f} s after the crash")
            elif run.state != "COMPLETED" or again:
                replaced = f", retried by: {', '.join(map(str, again)) or 'none'}"
                self.lost_runs.append(f"{run}{replaced if run.has_crashed or again else ''}")
        if self.rerun > self.drill.most_crashes:
            self.needless.append(f"{self.rerun} flow runs crashed, but the fault ended {self.drill.most_crashes}")

    def _judge_crash(self, run: Run) -> None:
        after = (run.ended or 0) - self.broken_at - self.drill.clock_ahead
        self.crashed_after = max(after, self.crashed_after or 0)
        if after > limits.limit(CRASH_SECONDS) + TOLERANCE_SECONDS:
            self.untrue.append(f"{run}: the crash was detected only {after:.0f} s after the fault")
        if not self.drill.says_why(run.message):
            self.untrue.append(f"{run}: the state message does not give the reason")

    def _judge_attempts(self, runs: list[Run], attempts: list[Attempt]) -> None:
        assert self.load is not None
        of_run = defaultdict(list)
        of_key = defaultdict(list)
        for attempt in attempts:
            of_run[attempt.flow_run].append(attempt)
            of_key[attempt.key].append(attempt)
        for run in runs:
            tries = of_run[run.id]
            if run.name.removesuffix(RETRY) in self.load.names:
                if run.state == "COMPLETED" and [attempt.is_finished for attempt in tries] != [True]:
                    self.untrue.append(f"{run}: {len(tries)} attempts instead of one that finished")
                if run.ended and any(attempt.last_sign > run.ended + TOLERANCE_SECONDS for attempt in tries):
                    self.untrue.append(f"{run}: it worked {tries[-1].last_sign - run.ended:.0f} s longer")
        for key, tries in of_key.items():
            for place, one in enumerate(tries):
                self.overlaps += [
                    f"{key}: two attempts overlap by {one.last_sign - other.started:.1f} s"
                    for other in tries[place + 1 :]
                    if other.started < one.last_sign
                ]

    def _judge_etl(self, place: Field, runs: list[Run], sub_runs: list[Run]) -> None:
        assert self.load is not None
        self.lost_runs += [f"sub-flow run {run}" for run in sub_runs if not run.has_ended]
        masters = {run.name.removesuffix(RETRY) for run in runs if run.state == "COMPLETED"} & set(self.load.masters)
        completed = [run for run in sub_runs if run.state == "COMPLETED"]
        if len(completed) < SUB_FLOWS * len(masters):
            self.lost_runs.append(f"of {SUB_FLOWS * len(masters)} sub-flow runs {len(completed)} are Completed")
        etl_runs = {run.flow_run: run for run in place.etl_runs()}
        for run in sub_runs:
            etl_run = etl_runs.get(run.id)
            if run.state == "COMPLETED" and (etl_run is None or etl_run.status != "completed"):
                self.untrue.append(f"sub-flow run {run}, and etl_run says {etl_run.status if etl_run else 'nothing'}")
            if etl_run and etl_run.does_not_add_up:
                self.lost_rows.append(f"{etl_run} does not add up")
        self.count_rows(place)

    def count_rows(self, place: Field) -> None:
        """Compare the tables with their content without a fault; only once, as the next drill's load empties them."""
        if self.rows_lost is not None:
            return
        self.rows_lost = 0
        for table, count in place.count().items():
            if count != place.rows[table]:
                self.rows_lost += abs(place.rows[table] - count)
                self.lost_rows.append(f"{table} has {count} rows instead of {place.rows[table]}")

    def is_recorded(self, place: Field) -> bool:
        """Return whether every completed task has a record and no record is left open; keep what is missing."""
        assert self.load is not None
        runs = place.runs([self.load])
        sub_runs = place.sub_runs(runs)
        done = {step: attempt for attempt in place.attempts([self.load]) for step in attempt.steps}
        records = place.task_runs([*runs, *sub_runs])
        states = {record["id"]: record["state_type"] for record in records}
        names = {run.id: str(run) for run in runs}
        self.lost_records = [
            f"{names.get(attempt.flow_run)}: task run {step} is {states.get(step, 'not there')}"
            for step, attempt in done.items()
            if states.get(step) not in ENDED
        ]
        # ETL: each sub-flow run is a task run of the master, and has one task run of its own, which loads.
        expected = {run.id: 1 for run in sub_runs if run.state == "COMPLETED"}
        names |= {run.id: f"sub-flow run {run}" for run in sub_runs}
        expected |= {
            run.id: SUB_FLOWS
            for run in runs
            if run.state == "COMPLETED" and run.name.removesuffix(RETRY) in self.load.masters
        }
        ended = [record["flow_run_id"] for record in records if record["state_type"] in ENDED]
        for run_id, wanted in expected.items():
            self.lost_records += [f"{names[run_id]}: it has {ended.count(run_id)} of {wanted} task runs"] * max(
                0, wanted - ended.count(run_id)
            )
        over = {run.id for run in [*runs, *sub_runs] if run.has_ended}
        self.open_records = [
            f"{names[record['flow_run_id']]}: task run {record['name']} is {record['state_type']}"
            for record in records
            if record["state_type"] not in ENDED and record["flow_run_id"] in over and record["id"] not in done
        ]
        return not self.lost_records and not self.open_records

    @property
    def verdict(self) -> str:
        """Return the result as one word."""
        if self.skipped:
            return "skipped"
        found = (self.lost_runs, self.needless, self.untrue, self.overlaps, self.lost_rows, self.lost_records)
        return "FAILED" if self.trouble or any(found) or self.open_records else "held"
