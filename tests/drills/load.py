"""Load: flow runs that are running when a fault occurs, and two independent records of their outcome.

Prefect's record comes from its API; the work actually done comes from the tables ``drill.attempt`` and ``drill.step``,
which the drills' flows write themselves, and from ``etl_run``, which the ETL writes.
"""

# ruff: noqa: S608 - the names and ids in the statements are the drills' own

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tests import limits
from tests.drills.hosts import literals, moment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.drills.hosts import Platform

DIRECTORY = "/opt/biocirv-drills"
FLOWS = {kind: f"Drill: {kind}" for kind in ("steady", "stubborn", "limited", "hungry")}
# The name of a global concurrency limit, and a kind that runs within it and within a limit of its deployment.
LIMIT, LIMITED = "drill", "limited"
MASTER = "Master%20ETL%20Flow/master-etl-deployment"
SUB_FLOWS = 5
TABLES = ("primary_product", "analysis_types", "field_sample", "experiment", "observation")
SAMPLE_DATA = "/opt/biocirv/current/work/data/sample"
# Suffix that a retry adds to the name of the crashed run.
RETRY = "-retry"
ENDED = frozenset(("COMPLETED", "FAILED", "CRASHED", "CANCELLED"))
# The master run starts and the fault occurs within this time, even on a busy machine. A retry starts a minute after the
# crash is detected, so that a crash that is not detected yet cannot cause a retry within it.
MOMENT_SECONDS = 40
SCHEMA = """
    DROP SCHEMA IF EXISTS drill CASCADE;
    CREATE SCHEMA drill;
    CREATE TABLE drill.attempt (
        id uuid PRIMARY KEY, flow_run_id uuid NOT NULL, key text NOT NULL, pid integer NOT NULL,
        started timestamptz NOT NULL DEFAULT clock_timestamp(), finished timestamptz);
    CREATE TABLE drill.step (
        attempt_id uuid NOT NULL REFERENCES drill.attempt, task_run_id uuid NOT NULL,
        done timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (attempt_id, task_run_id));
    CREATE TABLE drill.counting (drill text PRIMARY KEY);
    GRANT USAGE ON SCHEMA drill TO biocirv_write;
    GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA drill TO biocirv_write;
"""
# Steps of a retry, which can be short.
STEPS_AGAIN = 3


@dataclass(frozen=True)
class Run:
    """A flow run, as the API returns it."""

    id: str
    name: str
    state: str
    message: str
    started: float | None
    ended: float | None
    due: float

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Run:
        """Parse the API's response."""
        state = answer["state"] or {"type": "PENDING", "message": None}
        started, ended = (moment(answer[name]) if answer[name] else None for name in ("start_time", "end_time"))
        due = moment(answer["expected_start_time"] or answer["created"])
        return cls(answer["id"], answer["name"], state["type"], state["message"] or "", started, ended, due)

    @property
    def has_ended(self) -> bool:
        """Return whether it is in a terminal state."""
        return self.state in ENDED

    @property
    def has_crashed(self) -> bool:
        """Return whether it is Crashed."""
        return self.state == "CRASHED"

    def __str__(self) -> str:
        """Return name and state, for messages."""
        return f"{self.name} {self.state.capitalize()}{f' ({self.message[:200]})' if self.message else ''}"


@dataclass(frozen=True)
class Attempt:
    """One process's attempt at a flow run, as it recorded it; times in seconds of the database's clock."""

    id: str
    flow_run: str
    key: str
    started: float
    last_sign: float
    is_finished: bool
    steps: frozenset[str]


@dataclass(frozen=True)
class EtlRun:
    """The ETL's record of a sub-flow run."""

    flow: str
    flow_run: str
    status: str
    read: int
    accounted: int
    rejected: int
    rejected_rows: int

    @property
    def does_not_add_up(self) -> bool:
        """Return whether it is not a failure and does not account for every row."""
        adds_up = self.read == self.accounted > 0 and self.rejected == self.rejected_rows
        return self.status == "running" or (self.status == "completed" and not adds_up)


@dataclass
class Load:
    """Flow runs that a drill started, by name, with their sub-flow runs and retries."""

    field: Field
    drill: str
    names: list[str] = dataclasses.field(default_factory=list)
    masters: list[str] = dataclasses.field(default_factory=list)

    @property
    def platform(self) -> Platform:
        """Return the platform on which it runs."""
        return self.field.platform

    @property
    def session(self) -> str:
        """Return the string that marks the names of this session's runs."""
        return self.field.session

    def runs(self) -> list[Run]:
        """Return the runs, including retries."""
        return self.field.runs([self])

    def add(self, kind: str, name: str, steps: int, **parameters: object) -> None:
        """Start one more run."""
        full = f"{self.drill}-{name}-{self.session}"
        self.names.append(full)
        given = {"drill": self.drill, "key": full, "steps": steps, "steps_again": STEPS_AGAIN, **parameters}
        self.field.create(kind, full, given)

    def add_master(self, deployment: str) -> None:
        """Start a run of the master flow."""
        self.masters.append(f"{self.drill}-etl-{self.session}")
        self.field.create(deployment, self.masters[-1], {})


class Field:
    """Where loads run: the drills' deployments and tables, for one session of tests."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.session = uuid4().hex[:6]
        self.rows: dict[str, int] = {}
        self._deployments: dict[str, str] = {}
        self._first_etl_run = 0
        source = platform.inventory.value("flow_environment").get("ETL_SOURCE_DIRECTORY", "")
        # Data of a real host is never removed. A lost row shows there only if it was new.
        self._may_truncate = platform.container is not None and source == SAMPLE_DATA

    def prepare(self) -> None:
        """Create tables and deployments; count the expected rows by a master run without a fault."""
        ask = self.platform.ask
        self.platform.sql(SCHEMA)
        self.platform.put((Path(__file__).parent / "flows.py").read_text(encoding="utf-8"), f"{DIRECTORY}/flows.py")
        master = ask(f"/deployments/name/{MASTER}")
        self._deployments["master"] = master["id"]
        # The same flow without a concurrency limit: a dead run that is not detected yet occupies a slot of the other.
        self._deploy("etl", master["flow_id"], master["entrypoint"], master["pull_steps"])
        pull = [{"prefect.deployments.steps.set_working_directory": {"directory": DIRECTORY}}]
        for name, flow in FLOWS.items():
            self._deploy(name, ask("/flows/", {"name": flow})["id"], f"flows.py:{name}", pull)
        self._forget_limit()
        self.platform.ask("/v2/concurrency_limits/", {"name": LIMIT, "limit": 1})
        self._first_etl_run = int(self.platform.sql("SELECT coalesce(max(id), 0) FROM etl_run")[0][0])
        load = Load(self, "undisturbed")
        load.add_master("master")
        self.platform.wait_until(lambda: self.is_settled(load), "a master run without a fault ends")
        (run,) = self.runs([load])
        assert run.state == "COMPLETED", f"without a fault: {run}"
        self.rows = self.count()

    def _deploy(self, name: str, flow: str, entrypoint: str, pull: object) -> None:
        deployment = {
            "name": f"drill-{name}",
            "flow_id": flow,
            "entrypoint": entrypoint,
            "pull_steps": pull,
            "work_pool_name": self.platform.pool,
            "enforce_parameter_schema": False,
            "concurrency_limit": 1 if name == LIMITED else None,
        }
        self._deployments[name] = self.platform.ask("/deployments/", deployment)["id"]

    def clear(self) -> None:
        """Remove tables, deployments and files; keep the flow runs for inspection."""
        for name, deployment in self._deployments.items():
            if name != "master":
                self.platform.delete(f"/deployments/{deployment}")
        self._forget_limit()
        self.platform.sql("DROP SCHEMA IF EXISTS drill CASCADE")
        for host in self.platform.hosts:
            host.check_output(f"rm -rf {DIRECTORY}")

    def _forget_limit(self) -> None:
        # An earlier session may have left it.
        if LIMIT in self.taken_slots():
            self.platform.delete(f"/v2/concurrency_limits/{LIMIT}")

    def taken_slots(self) -> dict[str, int]:
        """Return how many slots are taken of the drills' concurrency limit and of their deployments' ones, by name."""
        own = {LIMIT, *(f"deployment:{deployment}" for deployment in self._deployments.values())}
        found = self.platform.all_of("v2/concurrency_limits")
        return {limit["name"]: limit["active_slots"] for limit in found if limit["name"] in own}

    def start(self, load: Load, kind: str, steps: Iterable[int]) -> None:
        """Start a run for each number of steps; return when all are running.

        They count their steps from ``let_count`` on, however long the start takes.
        """
        for number, count in enumerate(steps, 1):
            load.add(kind, f"{kind}-{number}", count)
        self.platform.wait_until(
            lambda: {attempt.key for attempt in self.attempts([load]) if attempt.steps} == set(load.names),
            f"the flow runs of {load.drill} are running",
        )

    def start_master(self, load: Load, *, is_fresh: bool) -> None:
        """Start a master run; return when it is running.

        ``is_fresh`` means that no other load's master run is running, or dead but not yet detected.
        """
        if self._may_truncate and is_fresh:
            # A row that exists already could not be lost.
            self.platform.sql(f"TRUNCATE {', '.join(TABLES)}")
        load.add_master("master" if is_fresh else "etl")
        self.platform.wait_until(
            lambda: any(run.name in load.masters and run.state == "RUNNING" for run in self.runs([load])),
            f"the master run of {load.drill} is running",
        )

    def let_count(self, load: Load) -> None:
        """Make the flow runs of a load start counting their steps."""
        self.platform.sql(f"INSERT INTO drill.counting VALUES ('{load.drill}')")

    def create(self, deployment: str, name: str, parameters: dict[str, object]) -> None:
        """Create a flow run; idempotent, as the client retries if the reply is lost."""
        body = {"name": name, "parameters": parameters, "idempotency_key": name}
        self.platform.ask(f"/deployments/{self._deployments[deployment]}/create_flow_run", body)

    def runs(self, loads: Iterable[Load]) -> list[Run]:
        """Return the runs of loads, including retries."""
        names = {name for load in loads for name in [*load.names, *load.masters]}
        found = self._find({"name": {"like_": self.session}})
        return [run for run in found if run.name.removesuffix(RETRY) in names]

    def sub_runs(self, runs: Iterable[Run]) -> list[Run]:
        """Return the sub-flow runs of runs."""
        return self._find({"parent_flow_run_id": {"any_": [run.id for run in runs]}})

    def _find(self, flow_runs: dict[str, Any]) -> list[Run]:
        return [Run.of(answer) for answer in self.platform.all_of("flow_runs", flow_runs=flow_runs, sort="ID_DESC")]

    def task_runs(self, runs: Iterable[Run]) -> list[dict[str, Any]]:
        """Return the records of the task runs of flow runs."""
        flow_runs = {"id": {"any_": [run.id for run in runs]}}
        return self.platform.all_of("task_runs", flow_runs=flow_runs, sort="ID_DESC")

    def attempts(self, loads: Iterable[Load]) -> list[Attempt]:
        """Return the attempts that the drills' flows recorded, oldest first."""
        keys = literals(name for load in loads for name in load.names)
        rows = self.platform.sql(
            f"""
            SELECT attempt.id, flow_run_id, key, extract(epoch FROM started),
                   extract(epoch FROM greatest(started, max(done), finished)), finished IS NOT NULL,
                   coalesce(string_agg(task_run_id::text, ' '), '')
              FROM drill.attempt LEFT JOIN drill.step ON attempt_id = attempt.id
             WHERE key IN ({keys}) GROUP BY attempt.id ORDER BY started
            """
        )
        return [
            Attempt(id_, run, key, float(started), float(last), finished == "t", frozenset(steps.split()))
            for id_, run, key, started, last, finished, steps in rows
        ]

    def etl_runs(self) -> list[EtlRun]:
        """Return the rows of ``etl_run`` of this session."""
        rows = self.platform.sql(
            f"""
            SELECT flow, flow_run_id, status, read, inserted + updated + unchanged + rejected, rejected,
                   (SELECT count(*) FROM rejected_row WHERE etl_run_id = etl_run.id)
              FROM etl_run WHERE id > {self._first_etl_run} ORDER BY id
            """
        )
        return [EtlRun(flow, run, status, *map(int, counts)) for flow, run, status, *counts in rows]

    def count(self) -> dict[str, int]:
        """Return how many rows each table has."""
        return {table: int(self.platform.sql(f"SELECT count(*) FROM {table}")[0][0]) for table in TABLES}

    def is_settled(self, load: Load) -> bool:
        """Return whether all runs have ended, and every crashed run has a retry."""
        runs = self.runs([load])
        names = {run.name for run in runs}
        replaced = all(run.name.endswith(RETRY) or f"{run.name}{RETRY}" in names for run in runs if run.has_crashed)
        ended = all(run.has_ended for run in runs) and all(run.has_ended for run in self.sub_runs(runs))
        # The next ETL run marks a dead one as such.
        return replaced and ended and all(run.status != "running" for run in self.etl_runs())

    def is_quiet(self, loads: Iterable[Load]) -> bool:
        """Return whether no retry is running or due soon: a fault would hit it a second time."""
        soon = self.platform.now() + limits.limit(MOMENT_SECONDS)
        return all(
            run.has_ended or (run.state == "SCHEDULED" and run.due > soon)
            for run in self.runs(loads)
            if run.name.endswith(RETRY)
        )

    def has_loaded(self, load: Load) -> bool:
        """Return whether the ETL of a load has completed, including its sub-flow runs."""
        return all(run.state == "COMPLETED" for run in self.runs([load]) if run.name in load.masters)

    def put_an_end_to(self, loads: list[Load]) -> None:
        """Cancel the runs that a failed drill has left, so that the next drill starts with none."""
        runs = self.runs(loads)
        for run in [*runs, *self.sub_runs(runs)]:
            if not run.has_ended:
                state = {"type": "CANCELLED", "message": "The drill that it was part of is over"}
                self.platform.ask(f"/flow_runs/{run.id}/set_state", {"state": state, "force": True})
