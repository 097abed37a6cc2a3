"""The filter status_report: combines the answers of hosts, API and database into one report on the platform's state."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

# Limits above which a disk (percent), or below which a certificate, is reported as a problem.
DISK_PERCENT = 90
CERTIFICATE = timedelta(days=14)

Report = dict[str, Any]


def status_report(asked: dict[str, Any]) -> Report:
    """Return the report that ``make status`` shows, as text or JSON.

    ``asked`` holds ``now`` (ISO 8601), ``url``, ``server`` (a host), and ``hosts``: by name what was registered of
    ``services``, ``health``, ``disks``, ``errors`` and ``release``, and a ``failure``. Further what was registered of
    ``certificates``, ``revisions``, ``pool``, ``workers``, ``counts``, ``runs`` and ``rows``, each empty where there
    was no answer, with the reasons in ``failures``.
    """
    now = datetime.fromisoformat(asked["now"])
    releases = {host: found["release"] for host, found in asked["hosts"].items() if found["release"].get("current")}
    report: Report = {
        "checked": now.isoformat(timespec="seconds"),
        "url": asked["url"],
        "release": _release(asked, releases),
        "database": {
            "revision": asked["revisions"]["application"],
            "expected": _manifest(asked, releases).get("application_schema", []),
        }
        if asked["revisions"]
        else {},
        "services": list(_of_hosts(asked, "services", _services)),
        "work_pool": _work_pool(asked),
        "last_run": asked["runs"],
        "rows": {table["name"]: table["rows"] for table in asked["rows"]},
        "disks": list(_of_hosts(asked, "disks", _disks)),
        "certificates": [_certificate(name, result) for name, result in asked["certificates"].items()],
        "errors": [
            {"host": host, "line": line}
            for host, found in asked["hosts"].items()
            for line in found["errors"].get("stdout_lines", [])
            # Continuation lines of a message are indented.
            if not line.startswith(" ")
        ],
    }
    problems = [
        *asked["failures"],
        *_unreachable(asked),
        *_problems(report, now),
        *_unhealthy(asked),
        *_other_releases(report, releases),
    ]
    return {"well": not problems, "problems": [" ".join(problem.split()) for problem in problems], **report}


def _of_hosts(
    asked: dict[str, Any], what: str, read: Callable[[str], Iterator[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    for host, found in asked["hosts"].items():
        for item in read(found[what].get("stdout", "")):
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


def _services(shown: str) -> Iterator[dict[str, str]]:
    for block in filter(str.strip, shown.split("\n\n")):
        unit = dict(line.split("=", 1) for line in block.strip().splitlines())
        since = unit["ActiveEnterTimestamp"].removeprefix("@")
        yield {
            "unit": unit["Id"].removesuffix(".service"),
            "state": unit["ActiveState"],
            "sub_state": unit["SubState"],
            "result": unit["Result"],
            "since": datetime.fromtimestamp(int(since), UTC).isoformat() if since else "",
            "status": unit["StatusText"],
        }


def _work_pool(asked: dict[str, Any]) -> dict[str, Any]:
    if not asked["pool"]:
        return {}
    running, late = asked["counts"]
    return {
        "name": asked["pool"]["name"],
        "paused": asked["pool"]["is_paused"],
        "running": running,
        "late": late,
        "workers": {worker["name"]: worker["status"].lower() for worker in asked["workers"]},
    }


def _disks(shown: str) -> Iterator[dict[str, Any]]:
    seen = set()
    for line in shown.splitlines()[1:]:
        path, percent, available = line.rsplit(maxsplit=2)
        if path not in seen:
            seen.add(path)
            yield {
                "path": path,
                "used_percent": int(percent.rstrip("%")),
                "available_bytes": int(available),
            }


def _certificate(name: str, result: dict[str, Any]) -> dict[str, str]:
    found = re.search(r"notAfter=(.+ GMT)", result.get("stdout", ""))
    ends = datetime.strptime(found[1], "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC).isoformat() if found else ""
    return {"service": name, "ends": ends}


def _unreachable(asked: dict[str, Any]) -> Iterator[str]:
    for host, found in asked["hosts"].items():
        if found["failure"] or found["services"].get("unreachable"):
            yield f"{host} cannot be asked: {found['failure'] or found['services'].get('msg', '')}"


def _unhealthy(asked: dict[str, Any]) -> Iterator[str]:
    """Yield the services whose health URL answers with an error."""
    for host, found in asked["hosts"].items():
        for result in found["health"]:
            if not 200 <= result.get("status", -1) < 300:
                service, why = result["item"], result.get("msg", "no answer")
                yield f"{service['unit']} on {host} does not answer {service['health_url']} with 2xx: {why}"


def _problems(report: Report, now: datetime) -> Iterator[str]:
    for unit in report["services"]:
        if unit["state"] != "active":
            why = "" if unit["result"] == "success" else f" ({unit['result']})"
            advice = f"`journalctl -u {unit['unit']}` there says why"
            yield f"{unit['unit']} on {unit['host']} is {unit['state']}{why}: {advice}"
    database = report["database"]
    if database and report["release"] and sorted(database["revision"]) != sorted(database["expected"]):
        at, wanted = (", ".join(database[key]) or "none" for key in ("revision", "expected"))
        yield f"The database is at revision {at}, the release brings {wanted}: `make rebuild-services` migrates"
    pool = report["work_pool"]
    if pool:
        if pool["paused"]:
            yield f"The work pool {pool['name']} is paused: `prefect work-pool resume {pool['name']}`"
        if "online" not in pool["workers"].values():
            yield f"No worker of the pool {pool['name']} is online"
        if pool["late"]:
            yield f"{pool['late']} flow run(s) should have begun and have not"
    if report["last_run"] and report["last_run"][0]["state"] in ("Failed", "Crashed", "TimedOut"):
        yield f"The last run of {report['last_run'][0]['flow']} ended {report['last_run'][0]['state']}"
    for disk in report["disks"]:
        if disk["used_percent"] >= DISK_PERCENT:
            yield f"{disk['path']} on {disk['host']} is {disk['used_percent']} % full"
    for certificate in report["certificates"]:
        if not certificate["ends"]:
            yield f"{certificate['service']} shows no certificate"
        elif datetime.fromisoformat(certificate["ends"]) - now < CERTIFICATE:
            yield f"The certificate of {certificate['service']} ends {certificate['ends'][:10]}: run site.yml"


def _other_releases(report: Report, releases: dict[str, Any]) -> Iterator[str]:
    for host, found in releases.items():
        if report["release"] and found["current"] != report["release"]["id"]:
            yield f"{host} has release {found['current']}: `make rebuild-services` brings it up to date"


class FilterModule:
    """Filters of this file, as Ansible loads them."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by their names."""
        return {"status_report": status_report}
