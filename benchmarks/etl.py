"""Measure the ETL's load of observations, and compare it with other ways to write the same rows into the same table.

Uses one PostgreSQL server in a container. Each load is a new process; the ways take turns, and the best time of each
counts. Prints times, ratios, memory and the bars (the target values); it does not pass or fail.

With --archiving, first loads take turns on two servers instead, one of which archives its WAL as the platform does.
"""

from __future__ import annotations

import argparse
import csv
import io
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from alembic.command import upgrade
from alembic.config import Config
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from ca_biositing.datamodels.database import engine_from_environment
from ca_biositing.datamodels.models import Experiment, FieldSample, Observation
from ca_biositing.pipeline.etl.run import run
from ca_biositing.pipeline.flows.observation import OBSERVATIONS
from ca_biositing.pipeline.sources.csv_folder import CsvFolder
from tests.integration.postgresql import throw_away_postgresql
from tests.limits import wait_until

ROOT = Path(__file__).parents[1]
WORKSHEET = "03.1-Proximate"
SAMPLES = 2_000
RESIDUES = ("AH", "AS", "CS", "GP", "RS", "WS")
EXPERIMENTS = 200
REPLICATES = 3
PARAMETERS = {
    "Moisture": "% wet basis",
    "Ash": "% dry basis",
    "Volatile solids": "% dry basis",
    "Fixed carbon": "% dry basis",
    "Carbon": "% dry basis",
    "Hydrogen": "% dry basis",
    "Nitrogen": "% dry basis",
    "Sulfur": "% dry basis",
    "Higher heating value": "MJ/kg",
    "pH": "",
}
# Number of loads, by the number of observations.
ROUNDS = {10_000: 3, 100_000: 3, 1_000_000: 2}
SMALL, MIDDLE, LARGE = ROUNDS
ROW_BY_ROW_ROWS = 2_000
# Settings that are needed to compare the figures with those of another server.
SETTINGS = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "shared_buffers",
    "work_mem",
    "max_wal_size",
    "autovacuum",
    "jit",
)

# How the platform archives (roles/backup), with a repository beside the data.
PGBACKREST = (
    "PGBACKREST_STANZA=bench PGBACKREST_PG1_PATH=$PWD PGBACKREST_PG1_SOCKET_PATH=/var/run/postgresql "
    "PGBACKREST_REPO1_PATH=/tmp/archive PGBACKREST_REPO1_CIPHER_TYPE=aes-256-cbc PGBACKREST_REPO1_CIPHER_PASS=bench "
    "PGBACKREST_COMPRESS_TYPE=zst PGBACKREST_COMPRESS_LEVEL=3 PGBACKREST_LOCK_PATH=/tmp/lock "
    "PGBACKREST_LOG_LEVEL_FILE=off pgbackrest "
)
ARCHIVING = {"archive_mode": "on", "archive_timeout": "60", "archive_command": f"{PGBACKREST} archive-push %p"}
WAITING = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"

FIRST_LOAD = "ETL, first load"
ARCHIVED = "the same, archived"
RE_LOAD = "ETL, unchanged re-load"
RAW_COPY = "raw COPY"
ADD_ALL = "ORM, add_all"
ROW_BY_ROW = "ORM, row by row"


@dataclass(frozen=True)
class Measured:
    """One load's duration in seconds, and its process's resident memory in bytes, before the load and at the peak."""

    seconds: float
    before: int
    peak: int


class Figures:
    """All measurements, by way and number of rows."""

    def __init__(self) -> None:
        self._measured: dict[tuple[str, int], list[Measured]] = {}

    def add(self, way: str, rows: int, measured: Measured) -> None:
        """Record a measurement, and print it to stderr as progress."""
        self._measured.setdefault((way, rows), []).append(measured)
        print(f"{way}, {rows:,} rows: {measured.seconds:.2f} s", file=sys.stderr, flush=True)

    def rate(self, way: str, rows: int) -> float:
        """Return the rows per second of the fastest load."""
        return rows / min(each.seconds for each in self._measured[way, rows])

    def peak(self, way: str, rows: int) -> int:
        """Return the highest peak memory of the processes, in bytes."""
        return max(each.peak for each in self._measured[way, rows])

    def table(self) -> Iterator[str]:
        """Return the lines of a table of all measurements."""
        yield f"{'':24}{'rows':>10}{'best s':>9}{'rows/s':>10}{'us/row':>8}   {'memory before, peak':22}all s"
        for (way, rows), measured in sorted(self._measured.items(), key=lambda item: item[0][1]):
            rate = self.rate(way, rows)
            most = max(measured, key=lambda each: each.peak)
            memory = f"{_mb(most.before)}, {_mb(most.peak)}" if way in (FIRST_LOAD, RE_LOAD) else ""
            times = " ".join(f"{each.seconds:.2f}" for each in measured)
            yield f"{way:24}{rows:10,}{rows / rate:9.2f}{rate:10,.0f}{1e6 / rate:8.1f}   {memory:22}{times}"


def first_or_re_load(directory: Path) -> Measured:
    """Load with the ETL, from the file to the commit."""
    # pandera imports hypothesis if it is installed, which takes a third of a second; a release does not have it.
    sys.modules["hypothesis"] = None  # type: ignore[assignment]
    engine = engine_from_environment()
    return _measure(lambda: run(OBSERVATIONS, CsvFolder(directory), engine))


def raw_copy(directory: Path) -> Measured:
    """COPY rows from memory, in the format that is fastest to read, and commit."""
    with closing(engine_from_environment().raw_connection()) as connection, closing(connection.cursor()) as cursor:
        rows = io.BytesIO(_copy_text(directory))
        columns = ", ".join(column.name for column in OBSERVATIONS.loaded_columns)

        def copy() -> None:
            cursor.copy_expert(f"COPY observation ({columns}) FROM STDIN", rows)
            connection.commit()

        return _measure(copy)


def add_all(directory: Path) -> Measured:
    """Create objects from rows in memory, add them to one session, and commit."""
    with Session(engine_from_environment()) as session:
        rows = [*_rows(directory, session)]

        def add() -> None:
            session.add_all(Observation(**row) for row in rows)
            session.commit()

        return _measure(add)


def row_by_row(directory: Path) -> Measured:
    """Query each row's sample, experiment and observation, add the row and flush; commit at the end."""
    with Session(engine_from_environment()) as session:
        rows = [*_cells(directory)]

        def load() -> None:
            for sample, experiment, parameter, unit, value, replicate in rows:
                of_sample = session.scalars(select(FieldSample).filter_by(name_key=sample.casefold())).one()
                of_experiment = session.scalars(select(Experiment).filter_by(name_key=experiment.casefold())).one()
                key = {
                    "field_sample_id": of_sample.id,
                    "experiment_id": of_experiment.id,
                    "parameter_key": parameter.casefold(),
                    "unit": unit or None,
                    "replicate": int(replicate),
                }
                if session.scalars(select(Observation).filter_by(**key)).one_or_none() is None:
                    session.add(Observation(**key, parameter=parameter, value=Decimal(value)))
                    session.flush()
            session.commit()

        return _measure(load)


def _measure(load: Callable[[], object]) -> Measured:
    before = _memory("VmRSS")
    begin = time.perf_counter()
    load()
    return Measured(time.perf_counter() - begin, before, _memory("VmHWM"))


def _memory(figure: str) -> int:
    # Not getrusage(): a process inherits the ru_maxrss of the process that started it.
    kilobytes = re.search(rf"{figure}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert kilobytes  # noqa: S101 - Linux always reports it
    return int(kilobytes[1]) * 1024


def _cells(directory: Path) -> Iterator[list[str]]:
    with (directory / OBSERVATIONS.sheet / f"{WORKSHEET}.csv").open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        yield from rows


def _rows(directory: Path, session: Session) -> Iterator[dict[str, object]]:
    """Return the rows as values of the table's columns, with resolved ids."""
    samples = dict(session.execute(select(FieldSample.name, FieldSample.id)).tuples().all())
    experiments = dict(session.execute(select(Experiment.name, Experiment.id)).tuples().all())
    for sample, experiment, parameter, unit, value, replicate in _cells(directory):
        yield {
            "field_sample_id": samples[sample],
            "experiment_id": experiments[experiment],
            "parameter": parameter,
            "parameter_key": parameter.casefold(),
            "unit": unit or None,
            "value": Decimal(value),
            "replicate": int(replicate),
        }


def _copy_text(directory: Path) -> bytes:
    with Session(engine_from_environment()) as session:
        rows = (
            "\t".join(r"\N" if value is None else str(value) for value in row.values())
            for row in _rows(directory, session)
        )
        return "".join(f"{row}\n" for row in rows).encode()


def in_new_process(way: Callable[[Path], Measured], directory: Path) -> Measured:
    """Measure a way in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(way, directory).result()


def write_worksheet(directory: Path, count: int) -> None:
    """Write a number of observations in the laboratory's order: by experiment, then by sample.

    The samples of each experiment and the values are pseudo-random with a fixed seed.
    """
    generator = random.Random(count)  # noqa: S311 - not used for security
    of_each_sample = len(PARAMETERS) * REPLICATES
    analyzed = sorted(generator.sample(range(EXPERIMENTS * SAMPLES), -(-count // of_each_sample)))
    sheet = directory / OBSERVATIONS.sheet
    sheet.mkdir(parents=True)
    with (sheet / f"{WORKSHEET}.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(OBSERVATIONS.columns)
        for number in range(count):
            experiment, sample = divmod(analyzed[number // of_each_sample], SAMPLES)
            parameter, replicate = divmod(number % of_each_sample, REPLICATES)
            name, unit = list(PARAMETERS.items())[parameter]
            value = f"{generator.uniform(0, 100):.2f}"
            rows.writerow([_sample(sample), _experiment(experiment), name, unit, value, replicate + 1])


def _sample(number: int) -> str:
    return f"BIO-{RESIDUES[number % len(RESIDUES)]}-{number:04}"


def _experiment(number: int) -> str:
    return f"EXP-{number:03}"


def prepare(engine: Engine) -> None:
    """Create the schema, and fill the tables that observations refer to."""
    # Without alembic.ini, whose logging would mix with the output.
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    upgrade(config, "head")
    with Session(engine) as session, session.begin():
        for name in map(_sample, range(SAMPLES)):
            residue = {"residue": "Almond hulls", "residue_key": "almond hulls", "provider_code": "PRV-01"}
            session.add(FieldSample(name=name, name_key=name.casefold(), **residue))
        for name in map(_experiment, range(EXPERIMENTS)):
            session.add(Experiment(name=name, name_key=name.casefold()))
    _as_superuser(engine, "VACUUM (ANALYZE)")


def _as_superuser(engine: Engine, *statements: str) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements:
            connection.execute(text(statement))


def measure_all(engine: Engine, directory: Path) -> Figures:
    """Measure the ways in turns, each first load with an empty table."""
    figures = Figures()

    def measure(name: str, way: Callable[[Path], Measured], count: int) -> None:
        figures.add(name, count, measured_in_whole(engine, way, directory / str(count), count))

    for count, rounds in {ROW_BY_ROW_ROWS: ROUNDS[SMALL], **ROUNDS}.items():
        write_worksheet(directory / str(count), count)
        ways = {RAW_COPY: raw_copy, FIRST_LOAD: first_or_re_load}
        if count == ROW_BY_ROW_ROWS:
            ways = {ROW_BY_ROW: row_by_row}
        elif count <= MIDDLE:
            ways[ADD_ALL] = add_all
        for _ in range(rounds):
            for name, way in ways.items():
                _as_superuser(engine, "TRUNCATE observation", "CHECKPOINT")
                measure(name, way, count)
                if name == FIRST_LOAD:
                    # As autovacuum does within minutes after a load.
                    _as_superuser(engine, "VACUUM (ANALYZE) observation", "CHECKPOINT")
                    measure(RE_LOAD, way, count)
    return figures


def measured_in_whole(engine: Engine, way: Callable[[Path], Measured], directory: Path, count: int) -> Measured:
    """Measure a way in a new process, and fail unless the table then has so many rows."""
    measured = in_new_process(way, directory)
    with Session(engine) as session:
        there = session.scalar(select(func.count()).select_from(Observation))
    if there != count:
        raise SystemExit(f"{way.__name__} of {count} rows left {there} in the table")
    return measured


def measure_archiving(directory: Path) -> tuple[Figures, list[str]]:
    """Measure first loads in turns, without and with archiving; also return the lines that describe the server."""
    figures = Figures()
    with throw_away_postgresql() as without, throw_away_postgresql(**ARCHIVING) as archiving:
        urls = {FIRST_LOAD: without, ARCHIVED: archiving}
        engines = {}
        for name, url in urls.items():
            os.environ["DATABASE_URL"] = url
            engines[name] = engine_from_environment()
            prepare(engines[name])
        # The server runs it in its data directory, as it does with archive_command.
        _as_superuser(engines[ARCHIVED], f"COPY (SELECT 1) TO PROGRAM '{PGBACKREST} stanza-create >&2'")
        for count, rounds in ROUNDS.items():
            write_worksheet(directory / str(count), count)
            for name in [*urls] * rounds:
                os.environ["DATABASE_URL"] = urls[name]
                _as_superuser(engines[name], "TRUNCATE observation", "CHECKPOINT")
                _wait_until_archived(engines[ARCHIVED])
                figures.add(
                    name, count, measured_in_whole(engines[name], first_or_re_load, directory / str(count), count)
                )
        return figures, [*server(engines[ARCHIVED])]


def _wait_until_archived(engine: Engine) -> None:
    """Wait until nothing waits to be archived, which would slow down the next load."""
    with engine.connect() as connection:
        wait_until(lambda: connection.scalar(text(WAITING)) == 0, "all WAL is archived", 600)


def bars(figures: Figures) -> Iterator[str]:
    """Return the lines that compare the figures with their bars."""

    def line(what: str, measured: str, bar: str = "") -> str:
        return f"{what:46}{measured:>9}   {bar}".rstrip()

    def ratio(one: str, other: str, rows: int) -> float:
        return figures.rate(one, rows) / figures.rate(other, rows)

    yield line("", "measured", "bar")
    for rows in ROUNDS:
        yield line(f"first load / raw COPY, {rows:,} rows", f"{ratio(FIRST_LOAD, RAW_COPY, rows):.2f}", "at least 0.6")
    yield line(f"first load / add_all, {MIDDLE:,} rows", f"{ratio(FIRST_LOAD, ADD_ALL, MIDDLE):.1f}", "at least 40")
    yield line(
        f"  raw COPY / add_all, {MIDDLE:,} rows",
        f"{ratio(RAW_COPY, ADD_ALL, MIDDLE):.1f}",
        "what is possible: nothing that checks this table's keys is faster than COPY",
    )
    by_row = figures.rate(FIRST_LOAD, MIDDLE) / figures.rate(ROW_BY_ROW, ROW_BY_ROW_ROWS)
    yield line(f"first load, {MIDDLE:,} rows / row by row", f"{by_row:.0f}")
    per_row = figures.rate(FIRST_LOAD, MIDDLE) / figures.rate(FIRST_LOAD, LARGE)
    yield line(f"cost per row, {LARGE:,} / {MIDDLE:,} rows", f"{per_row:.2f}", "at most 1.2")
    peak = figures.peak(FIRST_LOAD, LARGE)
    yield line(f"peak memory of a first load, {LARGE:,} rows", _mb(peak), "at most 1,000 MB")
    yield line(f"  more than with {MIDDLE:,} rows", _mb(peak - figures.peak(FIRST_LOAD, MIDDLE)))
    for rows in ROUNDS:
        yield line(f"unchanged re-load, {rows:,} rows", f"{figures.rate(RE_LOAD, rows):,.0f}", "rows/s")


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def server(engine: Engine) -> Iterator[str]:
    """Return the lines that describe the server on which the figures were measured."""
    with engine.connect() as connection:
        version, collation = connection.execute(
            text("SELECT version(), datcollate FROM pg_database WHERE datname = current_database()")
        ).one()
        settings = {name: connection.scalar(text(f"SHOW {name}")) for name in SETTINGS}
    yield f"{version}"
    yield ", ".join(f"{name}={value}" for name, value in settings.items())
    yield f"collation {collation}; server and clients share {os.cpu_count()} CPUs"


def main() -> None:
    """Measure on a temporary server, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archiving", action="store_true", help="compare first loads without and with archiving")
    if parser.parse_args().archiving:
        with tempfile.TemporaryDirectory() as directory:
            figures, described = measure_archiving(Path(directory))
        print(*described, "", *figures.table(), "", sep="\n")
        for rows in ROUNDS:
            ratio = figures.rate(ARCHIVED, rows) / figures.rate(FIRST_LOAD, rows)
            print(f"first load with archiving / without, {rows:>9,} rows {ratio:6.2f}   at least 0.9")
        return
    with tempfile.TemporaryDirectory() as directory, throw_away_postgresql() as url:
        os.environ["DATABASE_URL"] = url
        engine = engine_from_environment()
        prepare(engine)
        figures = measure_all(engine, Path(directory))
        print(*server(engine), "", *figures.table(), "", sep="\n")
    print(
        "ETL: from the csv file to the commit, with its checks, its accounting and its upsert. Memory: resident, its "
        "peak is VmHWM.\n"
        "raw COPY: the same rows in the same order, ids resolved, as text in memory, without upsert; with its commit.\n"
        f"add_all: ids resolved; makes the objects, one session, one commit. Not at {LARGE:,} rows, which takes "
        "minutes.\n"
        f"row by row: three queries and a flush each, one commit. Only {ROW_BY_ROW_ROWS:,} rows.\n"
    )
    print(*bars(figures), sep="\n")


if __name__ == "__main__":
    main()
