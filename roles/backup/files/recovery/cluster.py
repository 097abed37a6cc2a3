"""A running PostgreSQL, the living one or one that was restored aside: its tables, restore points, and archiver."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .host import RecoveryError, run, wait_until

PSQL = ("psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1")
# The same text for the same row, wherever it is read. A superuser reads the databases of others: it runs none of their
# functions, such as those with names of PostgreSQL's.
SESSION = (
    "-cTimeZone=UTC -cextra_float_digits=1 -cstatement_timeout=0 -clock_timeout=60s -cDateStyle=ISO "
    "-csearch_path=pg_catalog"
)
# A view in the place of a table would run functions, too. PostgreSQL knows this setting since August 2024.
NO_VIEWS = """
SELECT set_config(name, 'view', false) FROM pg_settings WHERE name = 'restrict_nonsystem_relation_kind' \\g /dev/null
"""
TABLES = """
SELECT coalesce(json_object_agg(relation::regclass::text, rows ORDER BY relation::regclass::text), '{}') FROM (
  SELECT c.oid AS relation,
         (xpath('/row/count/text()',
                query_to_xml(format('SELECT %s AS count FROM ONLY %s AS t', :'what', c.oid::regclass), false, true, ''))
         )[1]::text AS rows
    FROM pg_class AS c
   WHERE c.relkind = 'r' AND c.relpersistence = 'p'
     AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)) AS counted
"""
COUNT = "count(*)"
# Independent of the rows' order: the sum of their digests. Not of t::text: a table's owner can define that cast.
DIGEST = "count(*) || ' ' || coalesce(sum(hashtextextended(format('%s', t), 0)), 0)"
WRITES = """
SELECT coalesce(json_object_agg(relid::regclass::text, json_build_array(n_tup_ins, n_tup_del)), '{}')
  FROM pg_stat_user_tables
"""
REVISION = """
SELECT CASE WHEN to_regclass('public.alembic_version') IS NULL THEN '[]'::json
            ELSE to_json(xpath('//version_num/text()',
       query_to_xml('SELECT version_num FROM public.alembic_version ORDER BY 1', false, false, ''))::text[]) END
"""
# A commit, so that recovery finds one later than any time until now, and then the next segment.
MARK = """
BEGIN; SELECT pg_current_xact_id() \\g /dev/null
COMMIT;
SELECT json_build_object('lsn', lsn::text, 'time', clock_timestamp(), 'segment', pg_walfile_name(lsn))
  FROM pg_create_restore_point(:'name') AS lsn;
BEGIN; SELECT pg_current_xact_id() \\g /dev/null
COMMIT;
SELECT pg_switch_wal() \\g /dev/null
"""
DROP_SLOT = """
SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE slot_name = :'name' AND active;
SELECT pg_drop_replication_slot(:'name');
"""
ARCHIVER = """
SELECT json_build_object(
  'archived', last_archived_wal, 'archived_at', last_archived_time,
  'failed', last_failed_wal, 'failed_at', last_failed_time,
  'failing', coalesce(last_failed_time > last_archived_time, last_failed_time IS NOT NULL),
  'waiting', (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'),
  'waiting_since', (SELECT min(modification) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'),
  'segment_bytes', (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'),
  'on', current_setting('archive_mode') <> 'off',
  'system', (SELECT system_identifier::text FROM pg_control_system()))
  FROM pg_stat_archiver
"""


def short_name(table: str) -> str:
    """Return a table's name as people know it: without the schema that all names are looked up in."""
    return table.removeprefix("public.")


@dataclass(frozen=True)
class Point:
    """A restore point that is archived."""

    name: str
    time: datetime
    # Segment of WAL in which it is, and seconds until this was archived.
    segment: str
    seconds: float


@dataclass(frozen=True)
class Cluster:
    """A PostgreSQL that accepts connections on a Unix socket."""

    port: int
    # Directory of the socket; empty: Debian's.
    socket: str = ""

    def ask(self, query: str, database: str = "postgres", timeout: float | None = None, **variables: str) -> str:
        """Return what a query prints; `variables` are psql's."""
        sets = [word for name, value in variables.items() for word in ("--set", f"{name}={value}")]
        host = ["--host", self.socket] if self.socket else []
        command = (*PSQL, *host, "--port", str(self.port), "--dbname", database, *sets)
        environment = {"PGOPTIONS": SESSION, "PGCONNECT_TIMEOUT": "5"}
        return run(*command, "--file", "-", stdin=NO_VIEWS + query, env=environment, timeout=timeout)

    def answers(self) -> bool:
        """Return whether it accepts connections and changes."""
        try:
            return self.ask("SELECT pg_is_in_recovery()", timeout=10).strip() == "f"
        except RecoveryError:
            return False

    def databases(self) -> list[str]:
        """Return the names of the databases that accept connections."""
        return self.ask("SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1").split()

    def tables(self, database: str, *, digest: bool = False) -> dict[str, str]:
        """Return the number of rows of each table of a database, with a digest of their content if asked."""
        found: dict[str, str] = json.loads(self.ask(TABLES, database, what=DIGEST if digest else COUNT))
        return {short_name(table): rows for table, rows in found.items()}

    def writes(self, database: str) -> dict[str, tuple[int, int]]:
        """Return how many rows each table of a database has got and lost since some time in the past."""
        return {
            short_name(name): (inserted, deleted)
            for name, (inserted, deleted) in json.loads(self.ask(WRITES, database)).items()
        }

    def revision(self, database: str) -> list[str]:
        """Return the revisions of alembic that a database is at."""
        found: list[str] = json.loads(self.ask(REVISION, database))
        return found

    def table_of(self, file: str) -> str:
        """Return the table or index that a file below the data directory belongs to; the file where there is none."""
        match = re.fullmatch(r"base/(\d+)/(\d+)(?:[._].*)?", file)
        if not match:
            return file
        database = self.ask("SELECT datname FROM pg_database WHERE oid = :oid", oid=match[1]).strip()
        table = self.ask("SELECT pg_filenode_relation(0, :node)", database, node=match[2]).strip() if database else ""
        return f"{short_name(table)} of {database}" if table else file

    def archiver(self) -> dict[str, Any]:
        """Return the state of the archiver."""
        found: dict[str, Any] = json.loads(self.ask(ARCHIVER, timeout=10))
        return found

    def timeline(self) -> str:
        """Return the present timeline, as the names of segments begin."""
        return self.ask("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)", timeout=10).strip()

    def slot(self, name: str) -> str:
        """Return whether a replication slot still has all WAL, in PostgreSQL's words; empty: there is no such slot."""
        query = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = :'name'"
        return self.ask(query, timeout=10, name=name).strip()

    def make_slot(self, name: str) -> None:
        """Make a replication slot that holds WAL back from now on."""
        self.ask("SELECT pg_create_physical_replication_slot(:'name', true)", timeout=10, name=name)

    def drop_slot(self, name: str) -> None:
        """Drop a replication slot, which ends the connection of its receiver."""
        self.ask(DROP_SLOT, timeout=30, name=name)

    def mark(self, name: str, patience: float) -> Point:
        """Make a restore point and return it when it is archived.

        patience: seconds to wait for that.

        Raises:
            RecoveryError: it is not archived in time.

        """
        began = time.monotonic()
        # Several lines: psql prints what is not sent elsewhere.
        made = json.loads(self.ask(MARK, name=name))
        segment = made["segment"]
        wait_until(
            lambda: (self.archiver()["archived"] or "")[8:] >= segment[8:],
            patience,
            f"PostgreSQL has not archived {segment} within {patience:.0f} s: `make status` says why.",
        )
        moment = datetime.fromisoformat(made["time"]).astimezone(UTC)
        return Point(name, moment, segment, time.monotonic() - began)
