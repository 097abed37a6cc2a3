"""The drill: restores, checks and compares what a disaster would leave, and notes what came of it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .aside import restored
from .cluster import Cluster
from .host import RecoveryError, Settings, alone, run
from .repository import Repositories
from .target import Target, find_route

RESULT = "drill.json"
# Seconds to wait until the restore point is archived.
PATIENCE = 120


def read_result(settings: Settings) -> dict[str, Any]:
    """Return what the last drill left; empty where there was none."""
    path = Path(settings.state) / RESULT
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def drill(settings: Settings) -> dict[str, Any]:
    """Do a drill, and return its result, which is also left in the file RESULT.

    The result has `succeeded` and `problems`; `finished` and `proven`, the end of the last one that succeeded, in ISO
    8601; `backup`; `seconds` of all; `rpo_seconds`, what a loss of the disk would cost at most; `rto_seconds`, from its
    beginning until the copy answered; `bytes` of the cluster; `tables`, each with its rows.
    """
    began = time.monotonic()
    before = read_result(settings)
    result: dict[str, Any] = {"succeeded": False, "problems": [], "tables": []}
    with alone(settings.state):
        try:
            _exercise(settings, result)
        except RecoveryError as error:
            result["problems"].append(str(error))
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    result["succeeded"] = not result["problems"]
    result |= {
        "finished": finished,
        "proven": finished if result["succeeded"] else before.get("proven", ""),
        "seconds": round(time.monotonic() - began, 1),
    }
    partial = Path(settings.state) / f"{RESULT}.partial"
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(Path(settings.state) / RESULT)
    return result


def _exercise(settings: Settings, result: dict[str, Any]) -> None:
    living, repositories = Cluster(settings.port), Repositories(settings)
    states, backups = repositories.info()
    result["problems"] += [f"Repository {each.number}: {each.message}." for each in states if not each.usable]
    first = next((each.number for each in states if each.code == 0), None)
    if first is None:
        raise RecoveryError("No repository has a backup: `make base-backup` makes one.")
    earlier = _counted(living, settings)
    point = living.mark(f"drill-{datetime.now(UTC):%Y%m%dT%H%M%SZ}", PATIENCE)
    later = _counted(living, settings)
    target = Target(point.time, point.name)
    own = [backup for backup in backups if backup.repository == first]
    if own[-1].faulty:
        damaged = ", ".join(living.table_of(file) for file in repositories.damaged_files(own[-1]))
        result["problems"].append(
            f"The disk of the living database has damaged pages, which the last backup found, in {damaged}: what they "
            "held can be restored from an earlier backup, as `make restore TO=` does."
        )
    segments = repositories.segments(first)
    route = find_route(target, own, segments, repositories.histories(first, segments), datetime.now(UTC))
    result |= {
        "backup": route.backup.label,
        "bytes": route.backup.size,
        "rpo_seconds": round(settings.archive_seconds + point.seconds, 1),
    }
    with restored(settings, target, route) as copy:
        result["rto_seconds"] = round(copy.seconds, 1)
        result["problems"] += check_indexes(settings, copy.cluster)
        for database in copy.cluster.databases():
            result["problems"] += _read(copy.cluster, database)
        found = _counted(copy.cluster, settings)
    result["tables"], problems = compare(earlier, found, later)
    result["problems"] += problems
    for each in states:
        verified = repositories.pgbackrest("verify", f"--repo={each.number}", "--output=text")
        expire = f"pgbackrest --stanza={settings.stanza} --repo={each.number} expire --set="
        result["problems"] += read_verification(verified, expire)


# Of each database: revision, number of rows by table, rows inserted and deleted so far by table.
Counted = dict[str, tuple[list[str], dict[str, str], dict[str, tuple[int, int]]]]


def _counted(cluster: Cluster, settings: Settings) -> Counted:
    return {
        name: (cluster.revision(name), cluster.tables(name), cluster.writes(name))
        for name in settings.databases
        if name in cluster.databases()
    }


def compare(earlier: Counted, found: Counted, later: Counted) -> tuple[list[dict[str, Any]], list[str]]:
    """Compare what was restored with the living databases just before and after the restore point.

    Returns the tables, each with `database`, `table`, `rows` restored and `alike`, and the problems.
    """
    tables: list[dict[str, Any]] = []
    problems = []
    for database, (revision, rows, writes) in earlier.items():
        if database not in found:
            problems.append(f"The database {database} was not restored.")
            continue
        if found[database][0] not in (revision, later[database][0]):
            problems.append(f"{database} was restored at revision {found[database][0]} instead of {revision}.")
        # A table that was made or dropped meanwhile can be on either side.
        for table in sorted(set(rows) & set(later[database][1])):
            one, two = int(rows[table]), int(later[database][1][table])
            inserted, deleted = (
                after - before
                for before, after in zip(writes.get(table, (0, 0)), later[database][2].get(table, (0, 0)), strict=True)
            )
            least, most = min(one, two, one - deleted), max(one, two, one + inserted)
            restored_rows = found[database][1].get(table)
            alike = restored_rows is not None and least <= int(restored_rows) <= most
            tables.append({"database": database, "table": table, "rows": int(restored_rows or 0), "alike": alike})
            if not alike:
                has = "is missing" if restored_rows is None else f"was restored with {restored_rows} rows"
                expected = f"{one}" if least == most else f"{least} to {most}"
                problems.append(f"The table {table} of {database} {has} instead of {expected}.")
    return tables, problems


def check_indexes(settings: Settings, cluster: Cluster) -> list[str]:
    """Return what amcheck finds in tables and indexes of all databases of a copy."""
    command = [f"{settings.programs}/pg_amcheck", "--host", cluster.socket, "--port", str(cluster.port), "--all"]
    done = subprocess.run(
        [*command, "--install-missing", "--heapallindexed", "--jobs=1"], check=False, capture_output=True, text=True
    )
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return [f"amcheck: {' '.join(said[:4])}"] if done.returncode else []


def _read(cluster: Cluster, database: str) -> list[str]:
    """Return why a database of a copy cannot be read to its end."""
    host = ("--host", cluster.socket, "--port", str(cluster.port))
    try:
        run("pg_dump", *host, "--format=plain", "--file=/dev/null", database)
    except RecoveryError as error:
        return [f"{database} cannot be read: {' '.join(str(error).split())}"]
    return []


def read_verification(text: str, expire: str) -> list[str]:
    """Return what `pgbackrest verify --output=text` found, whose exit code says nothing.

    expire: the command that removes a backup, whose label follows it.
    """
    lines = [line.strip() for line in text.splitlines()]
    found, label = [], ""
    for line in lines:
        if match := PART.match(line):
            label = match["backup"] or ""
        if any(f"{kind}: " in line and f"{kind}: 0" not in line for kind in FAULTS):
            advice = f" After the next full one, `{expire}{label}` as postgres removes it, with those based on it."
            found.append(
                f"The backup {label} is damaged: {line}.{advice}" if label else f"The archive is damaged: {line}."
            )
    failed = any(line.startswith("status: error") for line in lines)
    return found or (["pgBackRest's verification failed."] if failed else [])


# What a paragraph of a verification is about: the archive of a cluster, or a backup.
PART = re.compile(r"archiveId: |backup: (?P<backup>[\w-]+)")
FAULTS = ("missing", "checksum invalid", "size invalid", "other")
