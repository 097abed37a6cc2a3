"""The flows that drills run, on a worker's host: each notes in the drills' own tables what it did."""

import os
import signal
import time
from contextlib import closing
from uuid import uuid4

import psycopg2
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run, task_run

# The drills' own notes outlast what they break.
_NOTE_SECONDS = 300
_BLOCK = 16 * 2**20


class Attempt:
    """One process's try at a flow run, as it notes it itself."""

    def __init__(self, drill: str, key: str) -> None:
        self.id = str(uuid4())
        self._drill = drill
        # The same id again where the answer was lost: one try is one row.
        _note(
            "INSERT INTO drill.attempt (id, flow_run_id, key, pid) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
            *(self.id, flow_run.get_id(), key, os.getpid()),
        )
        before = _note("SELECT count(*) FROM drill.attempt WHERE key = %s AND id <> %s", key, self.id)
        self.is_first = before == (0,)

    def work(self, steps: int) -> None:
        """Run tasks of a second each until the load is to count them, and then so many; note the end."""
        while _note("SELECT 1 FROM drill.counting WHERE drill = %s", self._drill) is None:
            step(self.id)
        for _ in range(steps):
            step(self.id)
        _note("UPDATE drill.attempt SET finished = clock_timestamp() WHERE id = %s", self.id)


@task(cache_policy=NO_CACHE)
def step(attempt: str) -> None:
    """Take a second, and note it."""
    time.sleep(1)
    _note(
        "INSERT INTO drill.step (attempt_id, task_run_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        *(attempt, task_run.get_id()),
    )


@flow(name="Drill: steady")
def steady(drill: str, key: str, steps: int, steps_again: int) -> None:
    """Take ``steps`` seconds; ``steps_again`` where the key was tried before."""
    attempt = Attempt(drill, key)
    attempt.work(steps if attempt.is_first else steps_again)


@flow(name="Drill: stubborn")
def stubborn(drill: str, key: str, steps: int, steps_again: int) -> None:
    """Ignore SIGTERM, the first time."""
    attempt = Attempt(drill, key)
    if attempt.is_first:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    attempt.work(steps if attempt.is_first else steps_again)


@flow(name="Drill: hungry")
def hungry(drill: str, key: str, steps: int, steps_again: int, megabytes: int) -> None:
    """Take memory until somebody ends it, the first time; fail where nobody does."""
    attempt = Attempt(drill, key)
    if not attempt.is_first:
        attempt.work(steps_again)
        return
    for _ in range(steps):
        step(attempt.id)
    eaten = [b"\1" * _BLOCK for _ in range(megabytes * 2**20 // _BLOCK)]
    raise RuntimeError(f"Nobody ended this run, which took {len(eaten) * _BLOCK:,} bytes")


def _note(statement: str, *values: object) -> tuple[object, ...] | None:
    """Run a statement, and wait for the database where that is away."""
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
