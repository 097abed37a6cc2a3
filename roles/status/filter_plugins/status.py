"""The filter status_report: combines the answers of hosts into one report on the platform's state."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

# Limits from which a disk (percent) and restarts within an hour, or below which a certificate, are problems.
DISK_PERCENT = 90
RESTARTS = 3
CERTIFICATE = timedelta(days=14)
# Ages from which WAL that waits to be archived, a base backup, and a restoration that succeeded are problems.
WAITING, BACKUP, PROVEN = timedelta(minutes=5), timedelta(days=8), timedelta(days=14)
# Parts that can take too long on a host where all is well: a large table to count, a long journal to search.
UNIMPORTANT = ("rows", "errors")

Report = dict[str, Any]


def status_report(asked: dict[str, Any]) -> Report:
    """Return the report that ``make status`` shows, as text or JSON.

    ``asked`` holds ``now`` (ISO 8601), ``url``, ``server`` and ``database`` (hosts), ``arguments`` (what commands of
    `make` need to name the inventory), and ``hosts``: by name what was registered of the modules ``host_status``
    (``state``) and ``release_state`` (``release``).
    """
    now = datetime.fromisoformat(asked["now"])
    answers = {host: found["state"].get("answers", {}) for host, found in asked["hosts"].items()}
    releases = {host: found["release"] for host, found in asked["hosts"].items() if found["release"].get("current")}
    server = answers[asked["server"]]
    report: Report = {
        "checked": now.isoformat(timespec="seconds"),
        "url": asked["url"],
        "release": _release(asked, releases),
        "database": {
            "revision": server["schema"]["revisions"],
            "expected": _manifest(asked, releases).get("application_schema", []),
            "missing_tables": server["schema"]["missing_tables"],
        }
        if "schema" in server
        else {},
        "services": list(_of_hosts(answers, "services")),
        "work_pool": _work_pool(server.get("prefect")),
        "last_run": server.get("prefect", {}).get("last_run", []),
        "rows": answers[asked["database"]].get("rows", {}),
        "backups": _backups(answers[asked["database"]].get("backups"), now),
        "disks": list(_of_hosts(answers, "disks")),
        "certificates": [
            {"service": name.removeprefix("certificate of "), "ends": end}
            for name, end in server.items()
            if name.startswith("certificate of ")
        ],
        "errors": [{"host": host, "line": line} for host, found in answers.items() for line in found.get("errors", [])],
    }
    problems = [
        *_silent(asked),
        *_problems(report, now, asked["arguments"]),
        *_backup_problems(report["backups"], now, asked),
        *_unhealthy(answers),
        *_other_releases(report, releases, asked["arguments"]),
    ]
    return {"well": not problems, "problems": [" ".join(problem.split()) for problem in problems], **report}


def _of_hosts(answers: dict[str, Any], part: str) -> Iterator[dict[str, Any]]:
    for host, found in answers.items():
        for item in found.get(part, []):
            yield {"host": host, **item}


def _manifest(asked: dict[str, Any], releases: dict[str, Any]) -> dict[str, Any]:
    found = releases.get(asked["server"])
    manifest: dict[str, Any] = found["releases"].get(found["current"], {}) if found else {}
    return manifest


def _release(asked: dict[str, Any], releases: dict[str, Any]) -> dict[str, Any]:
    found = releases.get(asked["server"])
    if not found:
        return {}
    manifest = _manifest(asked, releases)
    before = found["previous"]
    return {
        "id": found["current"],
        "built": manifest.get("built", ""),
        "revision": manifest.get("revision", ""),
        "before": {"id": before, "until": found["served"][before]["until"]} if before else {},
    }


def _work_pool(found: dict[str, Any] | None) -> dict[str, Any]:
    if not found:
        return {}
    names = ("running", "late", "late_since", "missing_deployments", "lagging")
    return {
        **found["pool"],
        **{name: found[name] for name in names},
        "workers": {worker["name"]: worker["status"] for worker in found["workers"]},
        "seen": max((worker["seen"] or "" for worker in found["workers"]), default=""),
    }


def _backups(found: dict[str, Any] | None, now: datetime) -> dict[str, Any]:
    """Return the state of backups, with `rpo_seconds`, what a loss of the database's disk would cost at most."""
    if not found:
        return {}
    waiting = found["archiver"].get("waiting_since")
    late = (now - datetime.fromisoformat(waiting)).total_seconds() if waiting else 0
    return {**found, "rpo_seconds": round(found["archive_seconds"] + max(late, 0))}


def _backup_problems(backups: dict[str, Any], now: datetime, asked: dict[str, Any]) -> Iterator[str]:
    if not backups:
        return
    host, arguments = asked["database"], asked["arguments"]
    base, show = f"`make base-backup{arguments}`", f"`make backups{arguments}`"
    journal = f"`make logs UNIT=biocirv-base-backup HOST={host}{arguments}` shows why"
    if backups.get("problem"):
        yield f"The backups on {host} cannot be asked: {backups['problem']}"
        return
    for repository in backups["repositories"]:
        name = f"The backup repository {repository['place']}"
        if repository["is_of_other_cluster"]:
            yield (
                f"{name} holds the backups of another cluster than the one that runs, of which nothing is archived: if "
                f"its disk was lost, `make restore TO=latest DATABASE=all{arguments}` brings it back; otherwise name "
                "the new one by backup_stanza"
            )
        elif not repository["usable"] or repository.get("problem"):
            said = (repository.get("problem") or repository["message"], repository.get("advice"))
            why = ". ".join(text.rstrip(".") for text in said if text)
            yield f"{name} cannot be used: {why}. PostgreSQL keeps its WAL on its own disk until it is archived"
        own = [each for each in backups["backups"] if each["repository"] == repository["number"]]
        if not own and repository["usable"] and not backups["backup_runs"]:
            yield f"{name} has no base backup, so that nothing can be restored: {base} makes one"
        if own and now - datetime.fromisoformat(own[-1]["finished"]) > BACKUP:
            yield f"The last base backup in {repository['place']} is of {_time(own[-1]['finished'])}: {journal}"
        if own and own[-1]["faulty"]:
            yield f"The last base backup in {repository['place']} holds damaged pages of the database: {journal}"
        for gap in repository["gaps"]:
            if not gap["end"]:
                yield (
                    f"{name} lacks WAL after {_time(gap['from'])}: what was committed since cannot be restored, until "
                    f"{base} begins anew"
                )
    if backups["backup_failed"]:
        places = ", ".join(backups["backup_errors"])
        yield f"The last base backup{f' in {places}' if places else ''} failed: {journal}"
    yield from _archiver_problems(backups, now, asked)
    drill = backups["drill"]
    if drill and not drill["succeeded"]:
        yield (
            f"The last drill, {_time(drill['finished'])}, failed to restore what it should: {drill['problems'][0]} "
            f"{show} shows all; {base} begins anew with a full one, and `make restore-drill{arguments}` restores that"
        )
    proven = (drill or {}).get("proven") or min((each["finished"] for each in backups["backups"]), default="")
    if proven and now - datetime.fromisoformat(proven) > PROVEN:
        yield f"No restoration was proven since {_time(proven)}: `make restore-drill{arguments}` does it"


def _archiver_problems(backups: dict[str, Any], now: datetime, asked: dict[str, Any]) -> Iterator[str]:
    archiver = backups["archiver"]
    # The server does not run, which its unit says.
    if "problem" in archiver:
        return
    since = archiver["waiting_since"]
    if since and now - datetime.fromisoformat(since) > WAITING:
        wait = f"{archiver['waiting']} segments, {archiver['waiting'] * archiver['segment_bytes'] / 1e9:.1f} GB, wait"
        yield (
            f"PostgreSQL's WAL has not been archived since {_time(since)}: {wait} on its disk, which they fill in the "
            f"end, and what was committed since is lost with it. `make logs UNIT=postgresql@* "
            f"HOST={asked['database']}{asked['arguments']}` shows why"
        )
    if not archiver["on"]:
        yield f"PostgreSQL does not archive its WAL: `make start-services{asked['arguments']}` turns it on"


def _silent(asked: dict[str, Any]) -> Iterator[str]:
    """Yield the hosts that cannot be asked, and the parts of hosts that gave no answer."""
    for host, found in asked["hosts"].items():
        state = found["state"]
        if "answers" not in state:
            yield f"{host} cannot be asked: {state.get('msg', 'it gave no reason')}"
        for part, why in state.get("failures", {}).items():
            if part not in UNIMPORTANT:
                yield f"{host}, {part}: {why}"
        # Its own failure says why.
        if "answers" in state and found["release"].get("failed"):
            yield f"{host}, releases: {found['release'].get('msg', 'it gave no reason')}"


def _unhealthy(answers: dict[str, Any]) -> Iterator[str]:
    for service in _of_hosts(answers, "health"):
        if service["problem"]:
            name = f"{service['unit']} on {service['host']}"
            yield f"{name} does not answer {service['health_url']} with 2xx: {service['problem']}"


def _time(text: str) -> str:
    """Return a time as people read it."""
    return f"{text[:16].replace('T', ' ')} UTC"


def _problems(report: Report, now: datetime, arguments: str) -> Iterator[str]:
    for unit in report["services"]:
        name = f"{unit['unit']} on {unit['host']}"
        journal = f"`make logs UNIT={unit['unit']} HOST={unit['host']}{arguments}` shows why"
        if unit["state"] != "active":
            why = "" if unit["result"] == "success" else f" ({unit['result']})"
            since = f" since {_time(unit['since'])}" if unit["since"] else ""
            yield f"{name} is {unit['state']}{why}{since}: {journal}"
        if unit["restarts"] >= RESTARTS:
            yield f"{name} failed and was started again {unit['restarts']} times within an hour: {journal}"
    yield from _database_problems(report, arguments)
    yield from _prefect_problems(report["work_pool"], arguments)
    if report["last_run"] and report["last_run"][0]["state"] in ("Failed", "Crashed", "TimedOut"):
        run = report["last_run"][0]
        ended = f"The last run of {run['flow']} ended {run['state']}, {_time(run['end'])}"
        yield f"{ended}: below is why; `make run-etl{arguments}` runs it again"
    for disk in report["disks"]:
        if disk["used_percent"] >= DISK_PERCENT:
            full = f"{disk['path']} on {disk['host']} is {disk['used_percent']} % full"
            free = f"{disk['available_bytes'] / 1e9:.1f} GB are free"
            yield f"{full}, {free}: `du -xh --max-depth=3 {disk['path']}` there shows what fills it"
    for certificate in report["certificates"]:
        if datetime.fromisoformat(certificate["ends"]) - now < CERTIFICATE:
            ends = f"The certificate of {certificate['service']} ends {certificate['ends'][:10]}"
            yield f"{ends}: `make start-services{arguments}` renews it, or installs the one that you provide"


def _database_problems(report: Report, arguments: str) -> Iterator[str]:
    database = report["database"]
    if not database or not report["release"]:
        return
    if sorted(database["revision"]) != sorted(database["expected"]):
        at, wanted = (", ".join(database[key]) or "none" for key in ("revision", "expected"))
        differ = f"The database is at revision {at}, the release brings {wanted}"
        yield f"{differ}: `make rebuild-services{arguments}` migrates"
    if database["missing_tables"]:
        names = ", ".join(database["missing_tables"])
        whence = "TO=moment" if report["backups"].get("backups") else "FILE=dump"
        yield (
            f"The database lacks tables of its revision: {names}. `make audit{arguments}` shows when they were removed "
            f"and who did; `make restore {whence}{arguments}` brings them back (docs/operate.md, Recovery)"
        )


def _prefect_problems(pool: dict[str, Any], arguments: str) -> Iterator[str]:
    if not pool:
        return
    journal = f"`make logs UNIT=prefect-worker{arguments}` shows why"
    if pool["paused"]:
        resume = f'`make exec-prefect-worker CMD="prefect work-pool resume {pool["name"]}"{arguments}`'
        yield f"The work pool {pool['name']} is paused: {resume} resumes it"
    if "online" not in pool["workers"].values():
        seen = f"; one was heard of last at {_time(pool['seen'])}" if pool["seen"] else ""
        yield f"No worker of the pool {pool['name']} is online{seen}: {journal}"
    if pool["late"]:
        runs = f"{pool['late']} flow run{'s have' if pool['late'] > 1 else ' has'} not begun in time"
        yield f"{runs}, the oldest since {_time(pool['late_since'])}: {journal}"
    for deployment in pool["missing_deployments"]:
        yield f"Prefect does not have the deployment {deployment}: `make start-services{arguments}` registers it"
    for deployment in pool["lagging"]:
        yield (
            f"Too few runs of the deployment {deployment} are planned: Prefect's scheduler stands still. "
            f"`make restart-services{arguments}` starts it again"
        )


def _other_releases(report: Report, releases: dict[str, Any], arguments: str) -> Iterator[str]:
    for host, found in releases.items():
        if report["release"] and found["current"] != report["release"]["id"]:
            yield f"{host} has release {found['current']}: `make rebuild-services{arguments}` brings it up to date"


class FilterModule:
    """Filters of this file, as Ansible loads them."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by their names."""
        return {"status_report": status_report}
