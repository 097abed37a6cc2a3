"""A load that is killed leaves nothing behind, and the next one loads everything."""

import csv
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from ca_biositing.pipeline.etl.run import run
from ca_biositing.pipeline.flows.observation import OBSERVATIONS
from ca_biositing.pipeline.sources.csv_folder import CsvFolder
from tests import limits

ROWS = 1_000_000
BAD_ROWS = 1_000
SAMPLES = 1_000

FLOW = "from ca_biositing.pipeline.flows.observation import observation_flow; observation_flow()"
# The phase of the load, as seen from another session.
STAGING = "query LIKE 'COPY staging%'"
INSERTING = "query LIKE '%INSERT INTO observation%'"
CONTENT = (
    "SELECT count(*), md5(string_agg(md5(format('%s %s %s %s %s %s', name, parameter, unit, value, replicate, key)), ''"
    " ORDER BY name, parameter, unit, value, replicate, key)) FROM (SELECT field_sample.name, parameter, unit, value,"
    " replicate, experiment.name AS key FROM observation JOIN field_sample ON field_sample.id = field_sample_id"
    " JOIN experiment ON experiment.id = experiment_id) AS observed"
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder with a worksheet of 1,000,000 measurements, of which 1,000 are invalid."""
    folder = tmp_path / OBSERVATIONS.sheet
    folder.mkdir()
    chance = random.Random(1)  # noqa: S311 - no secret
    with (folder / "03.1-Large.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(OBSERVATIONS.columns)
        for number in range(ROWS):
            value = "n.d." if number % (ROWS // BAD_ROWS) == 0 else f"{chance.random():.3f}"
            writer.writerow([f"S{number % SAMPLES}", "E1", f"P{number // SAMPLES}", "%", value, ""])
    return tmp_path


@pytest.fixture
def samples(migrated_database: Engine) -> Engine:
    """Return a database with the samples and the experiment that the measurements refer to."""
    with migrated_database.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO field_sample (name, name_key, residue, residue_key, provider_code)"
                " SELECT 'S' || number, 's' || number, 'Ash', 'ash', 'P' FROM generate_series(0, :last) AS number"
            ),
            {"last": SAMPLES - 1},
        )
        connection.execute(text("INSERT INTO experiment (name, name_key) VALUES ('E1', 'e1')"))
    return migrated_database


def wait_until(connection: Connection, process: subprocess.Popen[bytes], phase: str) -> None:
    """Wait until the load is in a phase."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND state = 'active' AND "
    query = text(others + phase)

    def is_there() -> bool:
        connection.rollback()
        assert process.poll() is None, "the load ended before it could be killed"
        return bool(connection.execute(query.execution_options(no_parameters=True)).scalar_one())

    limits.wait_until(is_there, f"a load where {phase}", poll=0.01)


def test_a_run_that_is_tried_again_after_it_was_done(migrated_database: Engine) -> None:
    """Prefect's retry button keeps it one run, whose counts are those of the second attempt."""
    samples = CsvFolder(Path(__file__).parents[2] / "data" / "sample")
    flow_run_id = uuid4()

    first, second = (run(OBSERVATIONS, samples, migrated_database, flow_run_id=flow_run_id) for _ in range(2))

    assert first == second
    assert first.rejected > 0
    with migrated_database.connect() as connection:
        counts = "SELECT (SELECT count(*) FROM etl_run), (SELECT count(*) FROM rejected_row)"
        assert tuple(connection.execute(text(counts)).one()) == (1, first.rejected)


def test_a_lost_connection_is_the_database_s_error(migrated_database: Engine) -> None:
    """A connection lost between two COPYs, which SQLAlchemy does not notice, fails the run; the next run succeeds."""
    samples = CsvFolder(Path(__file__).parents[2] / "data" / "sample")

    def cut(_fraction: float, _rows: int) -> None:
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        with migrated_database.begin() as connection:
            connection.execute(text("SELECT pg_terminate_backend(pid, 10000) " + others))

    with pytest.raises(OperationalError):
        run(OBSERVATIONS, samples, migrated_database, on_progress=cut)

    assert run(OBSERVATIONS, samples, migrated_database).rejected > 0
    with migrated_database.connect() as connection:
        runs = connection.execute(text("SELECT status, read FROM etl_run ORDER BY id")).all()
        assert [tuple(row) for row in runs] == [("failed", 0), ("completed", 410)]


@pytest.mark.thorough
@pytest.mark.usefixtures("prefect")
def test_the_next_run_does_it_all(source: Path, samples: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The load is killed while it reads and while it writes; no run is left with the status running."""
    monkeypatch.setenv("ETL_SOURCE_DIRECTORY", str(source))
    undisturbed = run(OBSERVATIONS, CsvFolder(source), samples)
    with samples.begin() as connection:
        expected = connection.execute(text(CONTENT)).one()
        connection.execute(text("TRUNCATE observation, etl_run CASCADE"))

    with samples.connect() as connection:
        for phase in (STAGING, INSERTING):
            process = subprocess.Popen([sys.executable, "-c", FLOW], env=os.environ, start_new_session=True)
            try:
                wait_until(connection, process, phase)
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            assert connection.execute(text("SELECT count(*) FROM observation")).scalar_one() == 0
            assert connection.execute(text("SELECT count(*) FROM rejected_row")).scalar_one() == 0
            connection.rollback()

        after = run(OBSERVATIONS, CsvFolder(source), samples)

        assert connection.execute(text(CONTENT)).one() == expected
        assert expected[0] == ROWS - BAD_ROWS == undisturbed.inserted == after.inserted
        assert after.rejected == BAD_ROWS == undisturbed.rejected
        runs = connection.execute(text("SELECT status, message, read FROM etl_run ORDER BY id")).all()
        died = ("failed", "The run's process ended before the run did", 0)
        assert [tuple(row) for row in runs] == [died, died, ("completed", None, ROWS)]
