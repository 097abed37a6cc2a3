"""The flows that drills run on a worker's host: each records its work in the drills' own tables."""

import os
import signal
import time
from contextlib import closing
from uuid import uuid4

import psycopg2
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run, task_run

# The drills' own records must survive the faults.
_NOTE_SECONDS = 300
_BLOCK = 16 * 2**20


class Attempt:
    """One process's attempt at a flow run, recorded by the process itself."""

    def __init__(self, drill: str, key: str) -> None:
        self.id = str(uuid4())
        self._drill = drill
        # The id is reused if the reply was lost: one attempt is one row.
        _note(
            "INSERT INTO drill.attempt (id, flow_run_id, key, pid) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
            *(self.id, flow_run.get_id(), key, os.getpid()),
        )
        before = _note("SELECT count(*) FROM drill.attempt WHERE key = %s AND id <> %s", key, self.id)
        self.is_first = before == (0,)

    def work(self, steps: int) -> None:
        """Run tasks of one second each until counting starts, then ``steps`` more; record the end."""
        while _note("SELECT 1 FROM drill.counting WHERE drill = %s", self._drill) is None:
            step(self.id)
        for _ in range(steps):
            step(self.id)
        _note("UPDATE drill.attempt SET finished = clock_timestamp() WHERE id = %s", self.id)


@task(cache_policy=NO_CACHE)
def step(attempt: str) -> None:
    """Take a second, and record it."""
    time.sleep(1)
    _note(
        "INSERT INTO drill.step (attempt_id, task_run_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        *(attempt, task_run.get_id()),
    )


@flow(name="Drill: steady")
def steady(drill: str, key: str, steps: int, steps_again: int) -> None:
    """Take ``steps`` seconds, or ``steps_again`` if the key was attempted before."""
    attempt = Attempt(drill, key)
    attempt.work(steps if attempt.is_first else steps_again)


@flow(name="Drill: stubborn")
def stubborn(drill: str, key: str, steps: int, steps_again: int) -> None:
    """Ignore SIGTERM in the first attempt."""
    attempt = Attempt(drill, key)
    if attempt.is_first:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    attempt.work(steps if attempt.is_first else steps_again)


@flow(name="Drill: limited")
def limited(drill: str, key: str, steps: int, steps_again: int) -> None:
    """Do the same within a global concurrency limit; end if its slot is lost."""
    attempt = Attempt(drill, key)
    with concurrency("drill", strict=True):
        attempt.work(steps if attempt.is_first else steps_again)


@flow(name="Drill: hungry")
def hungry(drill: str, key: str, steps: int, steps_again: int, megabytes: int) -> None:
    """Allocate memory in the first attempt until the process is killed; fail if it is not."""
    attempt = Attempt(drill, key)
    if not attempt.is_first:
        attempt.work(steps_again)
        return
    for _ in range(steps):
        step(attempt.id)
    eaten = [b"\1" * _BLOCK for _ in range(megabytes * 2**20 // _BLOCK)]
    raise RuntimeError(f"This run was not killed, although it allocated {len(eaten) * _BLOCK:,} bytes")


def _note(statement: str, *values: object) -> tuple[object, ...] | None:
    """Run a statement; wait if the database is unreachable."""
    url = os.environ["DATABASE_URL"].replace("postgresql+psycopg2://", "postgresql://")
    deadline = time.monotonic() + _NOTE_SECONDS
    while True:
        try:
            with (
                closing(psycopg2.connect(url, connect_timeout=5)) as connection,
                connection,
                connection.cursor() as cursor,
            ):
                cursor.execute(statement, values)
                return cursor.fetchone() if cursor.description else None
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
