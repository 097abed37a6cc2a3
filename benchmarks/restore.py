"""Measure what each loss costs: how much of what was committed (RPO), and how long until the platform is well (RTO).

Converges a container, and breaks it with a database as `make up` makes it, and with one of GIGABYTES (2). DEBIAN=12
measures the other release of Debian. Prints a table; it does not pass or fail.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from testinfra.host import Host

from benchmarks.converge import ONE, containers, play, write_inventory
from tests.host.conftest import Inventory
from tests.ledger import Ledger
from tests.limits import wait_until

GIGABYTES = float(os.environ.get("GIGABYTES", "2"))
RECOVERY = "/opt/biocirv/bin/recovery"
WAL = "/srv/wal"
# Seconds of commits in the segment that is not archived yet: nearly the most that it is open.
OPEN_SECONDS = 55
# The number of entries, and the time as TO= takes it.
NOW = """
SELECT count(*), to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') FROM ledger
"""
SIZE = "SELECT pg_database_size('biocirv_db')"
# Rows of a third of a kilobyte that do not compress well; 10 MB or so at a time.
FILL = """
CREATE TABLE IF NOT EXISTS ballast (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, content text NOT NULL);
INSERT INTO ballast (content)
SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 300000) AS n GROUP BY n / 10
"""


class Losses:
    """The losses of a platform with one database's size, and what each has cost."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._database: Host = inventory.host("database")
        self._ledger = Ledger(self._database)
        self.rows: list[tuple[str, str, str, str]] = []

    def measure(self) -> None:
        """Measure each loss."""
        size = f"{int(self._ledger.sql(SIZE)) / 1e9:.2f} GB"
        self._play("playbooks/base_backup.yml")
        self._play("playbooks/restore_drill.yml")
        drill = json.loads(self._database.check_output(f"{RECOVERY} state"))["drill"]
        self._add(size, "drill: the copy answers", drill["rpo_seconds"], drill["rto_seconds"])
        self._mistake(size)
        self._disk(size, "the disk is lost", "")
        self._disk(size, "the disk is lost, WAL is received", WAL)

    def fill(self, size: float) -> None:
        """Add rows until the database has so many bytes."""
        while int(self._ledger.sql(SIZE)) < size:
            self._ledger.sql(FILL)

    def _mistake(self, size: str) -> None:
        """Drop a table, and bring the database back to the second before."""
        self._ledger.begin()
        self._let_commit(lambda: self._ledger.sql("SELECT count(*) > 100 FROM ledger") == "t")
        self._ledger.stop()
        kept, moment = self._ledger.sql(NOW).split("|")
        self._ledger.sql("DROP TABLE ledger")
        seconds = self._play("playbooks/restore.yml", restore_to=moment, restore_confirmed=True)
        if self._ledger.sql(NOW).split("|")[0] != kept:
            raise SystemExit("The restored table is another one than that which was dropped")
        self._ledger.end()
        self._add(size, "a table is dropped", 0, seconds)

    def _disk(self, size: str, what: str, directory: str) -> None:
        """Remove all that the database's disk holds, and restore the cluster."""
        self._play("site.yml", backup_wal_directory=directory)
        self._ledger.begin()
        segment = self._ledger.sql("SELECT pg_walfile_name(pg_switch_wal())")
        self._let_commit(lambda: self._archived() >= segment)
        opened = time.monotonic()
        self._let_commit(lambda: time.monotonic() > opened + OPEN_SECONDS)
        began = time.monotonic()
        self._ledger.lose_disk()
        self._play(
            "playbooks/restore_all.yml", restore_to="latest", restore_confirmed=True, backup_wal_directory=directory
        )
        seconds = time.monotonic() - began
        self._add(size, what, self._ledger.loss().seconds, seconds)
        self._ledger.end()

    def _archived(self) -> str:
        return str(json.loads(self._database.check_output(f"{RECOVERY} state"))["archiver"]["archived"] or "")

    @staticmethod
    def _let_commit(condition: Callable[[], bool]) -> None:
        wait_until(condition, "entries are committed", 2 * OPEN_SECONDS, poll=0.2)

    def _play(self, playbook: str, **variables: object) -> float:
        """Run a playbook; return how long that took in seconds."""
        began = time.monotonic()
        done = self._inventory.playbook(playbook, "--extra-vars", json.dumps(variables))
        if done.returncode:
            raise SystemExit(f"{playbook} failed:\n{done.stdout}\n{done.stderr}")
        return time.monotonic() - began

    def _add(self, size: str, what: str, rpo: float, rto: float) -> None:
        self.rows.append((size, what, f"{rpo:.3f}", f"{rto:.1f}"))
        print(*self.rows[-1], file=sys.stderr, flush=True)


def main() -> None:
    """Measure, and print the results."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = write_inventory(Path(temporary) / "inventory", ONE, {})
        with containers(directory):
            play(directory, "site.yml")
            play(directory, "playbooks/run_etl.yml")
            losses = Losses(Inventory(str(directory)))
            losses.measure()
            losses.fill(GIGABYTES * 1e9)
            losses.measure()
    print(f"{'database':10}{'loss':36}{'RPO s':>10}{'RTO s':>10}")
    for size, what, rpo, rto in losses.rows:
        print(f"{size:10}{what:36}{rpo:>10}{rto:>10}")


if __name__ == "__main__":
    main()
