"""A stream of commits to a database that will be lost, and a record of them that is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.limits import wait_until

if TYPE_CHECKING:
    from testinfra.host import Host

UNIT = "ledger"
# On the host's own disk, not on that of the database.
RECORD = "/var/tmp/ledger"  # noqa: S108 - on a host of the tests
SCHEMA = """
    DROP TABLE IF EXISTS ledger, ledger_sums;
    CREATE TABLE ledger (entry integer PRIMARY KEY);
    CREATE TABLE ledger_sums (sum integer NOT NULL);
    INSERT INTO ledger_sums VALUES (0);
"""
# The record notes each entry and its time after the commit was confirmed.
WRITE = """
entry=0
while entry=$((entry + 1)); do
    echo "BEGIN; INSERT INTO ledger VALUES ($entry); UPDATE ledger_sums SET sum = sum + $entry; COMMIT;"
    echo "SELECT $entry, extract(epoch FROM clock_timestamp());"
    sleep 0.02
done | psql --no-psqlrc --quiet --tuples-only --no-align --field-separator ' ' --set ON_ERROR_STOP=1 biocirv_db > "$0"
"""
KEPT = "SELECT count(*), coalesce(max(entry), 0), (SELECT sum FROM ledger_sums) FROM ledger"
# All processes of the server end at once, and nothing of what they had is left: directories, dumps, configuration.
LOSE = """
date +%s.%N
kill -9 $(head -1 /var/lib/postgresql/*/main/postmaster.pid)
rm -rf /var/lib/postgresql/*
systemctl stop 'postgresql@*'
rm -rf /var/lib/postgresql/*
"""


@dataclass(frozen=True)
class Loss:
    """What was lost with a database's disk."""

    # Number of entries that were committed, and of those that the restored database holds.
    committed: int
    kept: int
    # Seconds from the commit of the last entry that was kept until the disk was lost.
    seconds: float


class Ledger:
    """Tables in biocirv_db that get an entry about every 20 ms."""

    def __init__(self, database: Host) -> None:
        self._database = database
        self._lost_at = 0.0

    def begin(self) -> None:
        """Make the tables, and begin to write."""
        self.sql(SCHEMA)
        self._database.check_output(
            f"systemd-run --quiet --collect --unit {UNIT} --uid postgres sh -c %s {RECORD}", WRITE
        )
        wait_until(lambda: self._database.run(f"test -s {RECORD}").rc == 0, "the first entry is recorded")

    def stop(self) -> None:
        """Write no more."""
        self._database.run(f"systemctl stop {UNIT}")

    def end(self) -> None:
        """Write no more, and remove tables and record."""
        self.stop()
        self._database.run(f"rm -f {RECORD}")
        self.sql("DROP TABLE IF EXISTS ledger, ledger_sums")

    def sql(self, statement: str) -> str:
        """Run statements in biocirv_db as superuser; return their unaligned output."""
        command = "cd / && runuser --user postgres -- psql --no-psqlrc -qAt -v ON_ERROR_STOP=1 -c %s biocirv_db"
        return str(self._database.check_output(command, statement))

    def lose_disk(self) -> None:
        """Kill PostgreSQL and remove all that its disk holds, while entries are written."""
        self._lost_at = float(self._database.run(LOSE).stdout.split()[0])

    def loss(self) -> Loss:
        """Compare what the restored database holds with the record.

        Raises:
            AssertionError: it does not hold exactly what it held at one moment.

        """
        record = self._database.check_output(f"cat {RECORD}").split()
        times = dict(zip(map(int, record[::2]), map(float, record[1::2]), strict=False))
        count, kept, total = map(int, self.sql(KEPT).split("|"))
        assert (count, total) == (kept, kept * (kept + 1) // 2), f"{count} entries until {kept}, with the sum {total}"
        # The last one may have been committed, and not recorded.
        moment = times.get(kept, self._lost_at)
        return Loss(max(times), kept, self._lost_at - moment)
