"""The command `recovery`: base backups, what there is, restore points, a copy restored aside, and the drill.

Prints JSON, except where a unit's journal is meant to be read. Runs as postgres.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from .aside import ROOM, check_room, restore_options, restored
from .cluster import Cluster
from .drill import PATIENCE, drill, read_result
from .host import WANTED, RecoveryError, Settings, alone, mount_point, run, settings, shown
from .receiver import SLOT, UNIT, receive, restore_option
from .repository import NAME, UNPREPARED, Backup, Repositories, Repository, Segment, gaps, line_to, number_of
from .target import Route, Target, check_name, find_route, read_target

POINTS = "points.json"
# Why the last base backup has failed, by the place of the repository.
FAILED = "failed.json"
# In the message of a repository whose files cannot be decrypted.
WRONG_KEY = re.compile("CryptoError|FormatError|cipher", re.IGNORECASE)
# Where the file system of each repository was mounted when it was prepared, by directory.
MOUNTS = "mounts.json"


def main() -> None:
    """Run a subcommand."""
    parser = argparse.ArgumentParser(prog="recovery", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare", help="create the stanza in each repository that lacks it")
    commands.add_parser("lacks", help="print what a converge has to do")
    commands.add_parser("backup", help="make a base backup in each repository: a full one when it is time")
    commands.add_parser("state", help="print backups, archive, archiver and drill")
    commands.add_parser("receive", help="receive WAL as it is written, until PostgreSQL ends")
    commands.add_parser("drill", help="restore aside, check and compare")
    point = commands.add_parser("point", help="make a restore point")
    point.add_argument("name")
    find = commands.add_parser("find", help="print what a target means, and which backup leads there")
    aside = commands.add_parser("aside", help="restore a database aside, compare it, and dump it")
    for each in (find, aside):
        each.add_argument("to", help="latest, a restore point, or a time with its zone")
    find.add_argument("--in-place", action="store_true", help="look at the room for a second cluster, too")
    aside.add_argument("database")
    aside.add_argument("--dump", help="file for the dump; without, the copy is only compared")
    arguments = parser.parse_args()
    # What is restored and dumped is postgres's alone.
    os.umask(0o077)
    try:
        sys.exit(run_command(arguments, settings()))
    except RecoveryError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def run_command(arguments: argparse.Namespace, own: Settings) -> int:
    """Run a subcommand and return its exit code."""
    if arguments.command == "prepare":
        prepare(own)
        return 0
    if arguments.command == "lacks":
        print("\n".join(lacks(own)))
        return 0
    if arguments.command == "backup":
        return backup(own)
    if arguments.command == "receive":
        receive(own)
    if arguments.command == "drill":
        result = drill(own)
        rows = sum(table["rows"] for table in result["tables"])
        print(f"Compared {len(result['tables'])} tables with {rows} rows in {result['seconds']} s.")
        print("\n".join(result["problems"]))
        return 0 if result["succeeded"] else 1
    answer = {"state": state, "point": point, "find": find, "aside": aside}[arguments.command](own, arguments)
    print(json.dumps(answer))
    return 0


def prepare(own: Settings) -> None:
    """Create the stanza in each repository that lacks it, and drop the slot of a receiver that is not wanted."""
    # Where a repository has that of a lost cluster, the new and empty one may not replace it.
    if "stanza" in lacks(own):
        # With a lock of its own: while an archiver fails, it holds the common one most of the time.
        print(Repositories(own).pgbackrest("stanza-create", f"--lock-path={own.state}/stanza"), end="")
    if not own.wal_directory and _has_slot(own):
        Cluster(own.port).drop_slot(SLOT)
    _write(own, MOUNTS, {path: mount_point(path) for path in own.directories})


def lacks(own: Settings) -> list[str]:
    """Return what is missing on this host.

    `unmounted` with what is said of a disk, which has to be mounted first; `directory` with a path; `timers`, `stanza`,
    `backup`, and `receiver` where one is left that is not wanted.
    """
    if unmounted := [f"unmounted {why}" for why in map(partial(not_mounted, own), own.directories) if why]:
        return unmounted
    missing = [f"directory {path}" for path in (own.state, *own.directories) if not os.access(path, os.W_OK)]
    if not _are_scheduled(own.timers):
        missing.append("timers")
    if not own.wal_directory and (UNIT.exists() or _has_slot(own)):
        missing.append("receiver")
    try:
        states, backups = Repositories(own).info()
    except RecoveryError:
        # No repository knows the stanza, or the configuration is refused: creating the stanza says why.
        return [*missing, "stanza"]
    if any(each.code in UNPREPARED for each in states):
        missing.append("stanza")
    usable = {each.number for each in states if each.usable}
    return [*missing, *(["backup"] if any(_lacks_backup(own, number, backups) for number in usable) else [])]


def _has_slot(own: Settings) -> bool:
    """Return whether PostgreSQL holds WAL back for a receiver."""
    living = Cluster(own.port)
    return living.answers() and living.slot(SLOT) != ""


def _lacks_backup(own: Settings, number: int, backups: list[Backup]) -> bool:
    """Return whether a repository has no backup, or none since its archive has lacked WAL."""
    mine = [backup for backup in backups if backup.repository == number]
    living = Cluster(own.port)
    archived = living.archiver()["archived"] if living.answers() else ""
    return not mine or any(not gap["end"] for gap in _archive(Repositories(own), number, mine, archived)["gaps"])


def not_mounted(own: Settings, directory: str) -> str:
    """Return what is said of a repository's directory whose disk is not mounted; empty: it is."""
    wanted = _read(own, MOUNTS).get(directory) or mount_point(directory, WANTED)
    if not wanted or mount_point(wanted) == wanted:
        return ""
    return (
        f"The disk of {directory}, for backups, is not mounted at {wanted}: mount it. If it is to be a "
        f"directory of another disk from now on, remove {own.state}/{MOUNTS} before the next converge."
    )


def _are_scheduled(timers: list[str]) -> bool:
    """Return whether timers run, also after a boot, and systemd knows the present units of them and their services."""
    services = [timer.replace(".timer", ".service") for timer in timers]
    said = run("systemctl", "show", "--property=ActiveState,UnitFileState,NeedDaemonReload", *timers, *services)
    wanted = {"ActiveState=active": len(timers), "UnitFileState=enabled": len(timers)}
    wanted["NeedDaemonReload=no"] = len(timers) + len(services)
    # A service may run now, too.
    return all(said.split().count(line) >= number for line, number in wanted.items())


def backup(own: Settings) -> int:
    """Make a base backup in each repository, whatever the others do; return 1 if one of them failed."""
    repositories = Repositories(own)
    failed: dict[str, str] = {}
    with alone(own.state):
        _write(own, FAILED, {})
        states, backups = repositories.info()
        for each in states:
            place = own.repositories[each.number - 1]["place"]
            fulls = [one.started for one in backups if one.repository == each.number and one.kind == "full"]
            due = not fulls or datetime.now(UTC) - fulls[-1] > timedelta(days=own.full_days) - timedelta(hours=1)
            # What a drill could not restore may be damaged in the full backup, which the others are based on.
            due = due or has_failed_since(read_result(own), fulls[-1])
            options = (f"--repo={each.number}", f"--type={'full' if due else 'incr'}", "--log-level-console=info")
            try:
                print(repositories.pgbackrest("backup", *options), end="", flush=True)
                repositories.note_points(read_points(own, backups), repositories.info(each.number)[1])
            except RecoveryError as error:
                print(f"The base backup in {place} failed: {error}", file=sys.stderr, flush=True)
                failed[place] = str(error)
        _write(own, FAILED, failed)
    return 1 if failed else 0


def has_failed_since(drilled: dict[str, Any], moment: datetime) -> bool:
    """Return whether the last drill has failed, after a time."""
    return bool(drilled) and not drilled["succeeded"] and datetime.fromisoformat(drilled["finished"]) > moment


def read_points(own: Settings, backups: list[Backup]) -> dict[str, datetime]:
    """Return the times of restore points by their names, oldest first: those that a backup leads to.

    The repositories note them, so that they outlive this host; the newest may be noted here only.
    """
    points = {name: moment for backup in backups for name, moment in backup.points.items()}
    points |= {name: datetime.fromisoformat(moment) for name, moment in _read(own, POINTS).items()}
    oldest = min((backup.finished for backup in backups), default=datetime.now(UTC))
    return {name: points[name] for name in sorted(points, key=points.__getitem__) if points[name] >= oldest}


def _read(own: Settings, name: str) -> dict[str, str]:
    """Return what a file of the state holds; empty where there is none."""
    path = Path(own.state) / name
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _write(own: Settings, name: str, content: dict[str, str]) -> None:
    path = Path(own.state) / name
    path.with_suffix(".partial").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".partial").replace(path)


def point(own: Settings, arguments: argparse.Namespace) -> dict[str, Any]:
    """Make a restore point, wait until it is archived, and return it."""
    repositories = Repositories(own)
    _, backups = repositories.info()
    points = read_points(own, backups)
    check_name(arguments.name, points)
    made = Cluster(own.port).mark(arguments.name, PATIENCE)
    points[made.name] = made.time
    _write(own, POINTS, {name: moment.isoformat() for name, moment in points.items()})
    # The next backup notes it where one is running, or a repository is away.
    with suppress(RecoveryError), alone(own.state, wait=False):
        repositories.note_points(points, backups)
    return {"name": made.name, "time": made.time.isoformat(timespec="milliseconds"), "seconds": round(made.seconds, 1)}


def find_way(own: Settings, to: str) -> tuple[Target, Route]:
    """Return what a target means, and the way there; where the cluster runs, after all until now is archived."""
    now = datetime.now(UTC)
    living, repositories = Cluster(own.port), Repositories(own)
    states, backups = repositories.info()
    target = read_target(to, read_points(own, backups))
    # A cluster that was made anew after a loss cannot be archived there. Where that fails, what is archived may do.
    archiver = living.archiver() if living.answers() else {"failing": True}
    is_archived = not archiver["failing"] and archiver["system"] in {each.system for each in states}
    if is_archived and not (target.time and target.time > now):
        living.mark(f"restore-{now:%Y%m%dT%H%M%SZ}", PATIENCE)
    having = [each.number for each in states if any(one.repository == each.number for one in backups)]
    if not having:
        said = "; ".join(each.message for each in states if not each.usable)
        raise RecoveryError(said or "There is no backup yet: `make base-backup` makes one.")
    refused = []
    for number in having:
        try:
            own_backups = [each for each in backups if each.repository == number]
            segments = repositories.segments(number)
            histories = repositories.histories(number, segments)
            return target, find_route(target, own_backups, segments, histories, datetime.now(UTC))
        except RecoveryError as error:
            refused.append(str(error))
    raise RecoveryError("\n".join(dict.fromkeys(refused)))


def find(own: Settings, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what a target means, which backup leads there, and what a restoration in place needs."""
    target, route = find_way(own, arguments.to)
    received = restore_option(own) if target.time is None else []
    if arguments.in_place:
        check_room(Path(own.data).parent, route.backup.size * ROOM, "A restoration beside the present cluster")
    return {
        **_described(target, route),
        **({"means": "the last commit that was received"} if received else {}),
        "options": restore_options(target, route) + received,
        "data": own.data,
        "now": f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}",
    }


def _described(target: Target, route: Route) -> dict[str, Any]:
    return {
        "means": str(target),
        "backup": route.backup.label,
        "backup_finished": shown(route.backup.finished),
        "bytes": route.backup.size,
    }


def aside(own: Settings, arguments: argparse.Namespace) -> dict[str, Any]:
    """Restore a database aside, compare it with the living one, dump it if asked, and return what was found."""
    with alone(own.state, wait=False):
        target, route = find_way(own, arguments.to)
        living = Cluster(own.port)
        with restored(own, target, route) as copy:
            if arguments.database not in copy.cluster.databases():
                raise RecoveryError(f"There was no database {arguments.database} at {target}.")
            then = copy.cluster.tables(arguments.database, digest=True)
            exists = living.answers() and arguments.database in living.databases()
            now = living.tables(arguments.database, digest=True) if exists else {}
            if arguments.dump:
                check_room(Path(arguments.dump).parent, route.backup.size / 2, "The dump of what was restored")
                host = ("--host", copy.cluster.socket, "--port", str(copy.cluster.port))
                run("pg_dump", *host, "--format=custom", f"--file={arguments.dump}", arguments.database)
    return {**_described(target, route), "seconds": round(copy.seconds, 1), "tables": list(differences(then, now))}


def differences(then: dict[str, str], now: dict[str, str]) -> list[dict[str, Any]]:
    """Return each table with its rows then and now (None: no such table), and whether their content is the same.

    then, now: rows and digest, separated by a space, by table.
    """
    tables = []
    for name in sorted({*then, *now}):
        rows = [int(found[name].split()[0]) if name in found else None for found in (then, now)]
        tables.append({"table": name, "then": rows[0], "now": rows[1], "same": then.get(name) == now.get(name)})
    return tables


def state(own: Settings, _: argparse.Namespace) -> dict[str, Any]:
    """Return backups, archive, archiver and drill; parts that cannot be asked have a `problem` instead."""
    repositories = Repositories(own)
    found: dict[str, Any] = {"repositories": [], "backups": [], "drill": read_result(own), "restore_points": []}
    found["archive_seconds"] = own.archive_seconds
    # Backups come first in the list of timers.
    unit = own.timers[0].replace(".timer", ".service")
    states_of_unit = run("systemctl", "show", "--property=ActiveState,Result", unit).split()
    found["backup_runs"] = "ActiveState=activating" in states_of_unit
    found["backup_failed"] = "Result=success" not in states_of_unit
    found["backup_errors"] = _read(own, FAILED)
    try:
        found["archiver"] = Cluster(own.port).archiver()
    except RecoveryError as error:
        found["archiver"] = {"problem": str(error)}
    try:
        states, backups = repositories.info()
    except RecoveryError as error:
        return {**found, "problem": str(error)}
    found["backups"] = [_backup(each) for each in backups]
    found["restore_points"] = [
        {"name": name, "time": moment.isoformat(timespec="seconds")}
        for name, moment in read_points(own, backups).items()
    ]
    for each in states:
        place = own.repositories[each.number - 1]
        unmounted = not_mounted(own, place["directory"]) if place["directory"] else ""
        mine = [backup for backup in backups if backup.repository == each.number]
        found["repositories"].append(
            {
                "number": each.number,
                "place": place["place"],
                "same_disk": _same_disk(place["directory"], own.data),
                "usable": each.usable and not unmounted,
                "is_of_other_cluster": found["archiver"].get("system", each.system) != each.system != "",
                # Of a storage's answer, pgBackRest shows all headers.
                "message": unmounted or each.message.split(" *** ")[0],
                "advice": "" if unmounted or each.usable else advice(each),
                **_archive(repositories, each.number, mine, found["archiver"].get("archived")),
            }
        )
    return found


def advice(repository: Repository) -> str:
    """Return what to do about a repository that cannot be used."""
    if repository.code in UNPREPARED:
        return "If it is new, `make start-services` prepares it"
    if "certificate" in repository.message:
        return "No authority that the host trusts for it, storage-ca-file, has issued its certificate"
    if WRONG_KEY.search(repository.message):
        return "It was made with another backup_passphrase: put that one back, or begin anew in another path"
    return "See that it is there, and that the host reaches it"


def _backup(found: Backup) -> dict[str, Any]:
    return {
        "label": found.label,
        "repository": found.repository,
        "type": found.kind,
        "finished": found.finished.isoformat(),
        "bytes": found.size,
        "stored_bytes": found.stored,
        "faulty": found.faulty,
    }


def _archive(
    repositories: Repositories, number: int, backups: list[Backup], archived: str | None = None
) -> dict[str, Any]:
    """Return since when and until when the archive of a repository leads, and its gaps.

    archived: what PostgreSQL has archived last, and no longer has: a repository that lacks it was not there.
    """
    if not backups:
        return {"since": "", "until": "", "gaps": []}
    try:
        segments = repositories.segments(number)
        histories = repositories.histories(number, segments)
    except RecoveryError as error:
        return {"since": "", "until": "", "gaps": [], "problem": str(error)}
    end = max(segments, key=lambda each: (each.archived, each.number), default=None)
    line = line_to(end, segments, histories) if end else []
    last = number_of(archived) if archived and NAME.fullmatch(archived) else (0, 0)
    if end and last > (end.number, end.timeline):
        line.append(Segment(last[0] + 1, last[1], datetime.now(UTC)))
    return {
        "since": backups[0].earliest.isoformat(),
        "until": end.archived.isoformat() if end else "",
        "gaps": [_gap(gap, backups) for gap in gaps(line, backups[0].first)],
    }


def _gap(gap: tuple[Segment, Segment], backups: list[Backup]) -> dict[str, Any]:
    """Return a gap, and from when on a later backup makes all that follows restorable; empty: there is none yet."""
    one, two = gap
    end = next((backup.earliest.isoformat() for backup in backups if backup.first >= two.number), "")
    return {"after": one.name, "from": one.archived.isoformat(), "until": two.archived.isoformat(), "end": end}


def _same_disk(directory: str, data: str) -> bool:
    try:
        return bool(directory) and os.stat(directory).st_dev == os.stat(data).st_dev  # noqa: PTH116 - both may be missing
    except OSError:
        return False


if __name__ == "__main__":
    main()
