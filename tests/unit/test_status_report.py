"""The report of `make status`: what counts as a problem, and that a missing answer hides nothing else."""

from copy import deepcopy
from typing import Any

import pytest

from roles.status.filter_plugins.status import status_report

SHOWN = """Id={unit}.service
ActiveState={state}
SubState=running
Result={result}
ActiveEnterTimestamp=@1764268056
StatusText=Polls pool: 0 of 8 flow runs
"""
DISK = "/                      {percent}% 81604378624\n"
DISKS = f"Mounted on            Use%      Avail\n{DISK}{DISK}"
RELEASE = {
    "current": "0123456789ab",
    "previous": "ba9876543210",
    "served": {"ba9876543210": {"until": "2026-11-26T08:00:00+00:00"}},
    "releases": {
        "0123456789ab": {"built": "2026-11-26T07:00:00", "revision": "v1", "application_schema": ["0002"]},
    },
}


def asked() -> dict[str, Any]:
    """Return the answers of two healthy hosts."""
    services = {
        "stdout": "\n".join(SHOWN.format(unit=unit, state="active", result="success") for unit in ("nginx", "w"))
    }
    host = {
        "failure": "",
        "services": services,
        "health": [],
        "disks": {"stdout": DISKS.format(percent=35)},
        "errors": {"stdout_lines": ["now FATAL: it", "   and more"]},
    }
    ends = {"stdout": "notAfter=Jan  9 18:27:33 2027 GMT"}
    return {
        "now": "2026-11-27T18:00:00+00:00",
        "url": "https://one",
        "server": "one",
        "hosts": {name: {**deepcopy(host), "release": deepcopy(RELEASE)} for name in ("one", "two")},
        "certificates": {"the proxy": dict(ends), "PostgreSQL": dict(ends)},
        "revisions": {"application": ["0002"]},
        "pool": {"name": "pool", "is_paused": False},
        "workers": [{"name": "one", "status": "ONLINE"}, {"name": "two", "status": "ONLINE"}],
        "counts": [3, 0],
        "runs": [{"flow": "Master ETL Flow", "state": "Completed"}],
        "rows": [{"name": "experiment", "rows": 24}],
        "failures": [],
    }


def test_what_is_well_is_told_whole() -> None:
    report = status_report(asked())
    assert report["problems"] == []
    assert report["well"] is True
    assert report["release"] == {
        "id": "0123456789ab",
        "built": "2026-11-26T07:00:00",
        "revision": "v1",
        "before": {"id": "ba9876543210", "until": "2026-11-26T08:00:00+00:00"},
    }
    assert report["services"][0] == {
        "host": "one",
        "unit": "nginx",
        "state": "active",
        "sub_state": "running",
        "result": "success",
        "since": "2025-11-27T18:27:36+00:00",
        "status": "Polls pool: 0 of 8 flow runs",
    }
    assert [(unit["host"], unit["unit"]) for unit in report["services"][1:]] == [
        ("one", "w"),
        ("two", "nginx"),
        ("two", "w"),
    ]
    assert report["work_pool"]["workers"] == {"one": "online", "two": "online"}
    assert report["work_pool"]["running"] == 3
    disk = {"path": "/", "used_percent": 35, "available_bytes": 81604378624}
    assert report["disks"] == [{"host": "one", **disk}, {"host": "two", **disk}]
    assert report["certificates"][1] == {"service": "PostgreSQL", "ends": "2027-01-09T18:27:33+00:00"}
    assert report["rows"] == {"experiment": 24}
    assert report["errors"] == [{"host": "one", "line": "now FATAL: it"}, {"host": "two", "line": "now FATAL: it"}]


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("hosts", "two", "disks", "stdout"), DISKS.format(percent=90), "/ on two is 90 % full"),
        (
            ("hosts", "two", "services", "stdout"),
            SHOWN.format(unit="w", state="failed", result="exit-code"),
            "w on two is failed (exit-code): `journalctl -u w` there says why",
        ),
        (("hosts", "two", "release", "current"), "ba9876543210", "two has release ba9876543210: "),
        (("certificates", "the proxy", "stdout"), "", "the proxy shows no certificate"),
        (
            ("certificates", "the proxy", "stdout"),
            "notAfter=Dec 11 17:00:00 2026 GMT",
            "The certificate of the proxy ends 2026-12-11: run site.yml",
        ),
        (("revisions", "application"), ["0001"], "The database is at revision 0001, the release brings 0002"),
        (("revisions", "application"), [], "The database is at revision none, the release brings 0002"),
        (("pool", "is_paused"), True, "The work pool pool is paused"),
        (("workers",), [{"name": "one", "status": "OFFLINE"}], "No worker of the pool pool is online"),
        (("counts",), [0, 2], "2 flow run(s) should have begun and have not"),
        (("runs", 0, "state"), "Failed", "The last run of Master ETL Flow ended Failed"),
        (("hosts", "two", "failure"), "It is no container", "two cannot be asked: It is no container"),
        (("failures",), ["The database does not answer: it is away"], "The database does not answer: it is away"),
    ],
)
def test_what_is_not_well_is_a_problem(path: tuple[str | int, ...], value: object, problem: str) -> None:
    answers = asked()
    place: Any = answers
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    report = status_report(answers)
    (found,) = report["problems"]
    assert found.startswith(problem)
    assert report["well"] is False


def test_what_does_not_answer_hides_nothing_else() -> None:
    """One host is unreachable; on the other neither API nor database answers."""
    answers = (
        asked()
        | {key: {} for key in ("revisions", "pool")}
        | {key: [] for key in ("workers", "counts", "runs", "rows")}
    )
    gone = {"unreachable": True, "msg": "No route\nto host"}
    answers["hosts"]["two"] = {
        "failure": "",
        "services": gone,
        "health": [],
        "disks": gone,
        "errors": gone,
        "release": {},
    }
    answers["failures"] = ["Prefect's API does not answer: refused"]
    report = status_report(answers)
    assert report["problems"] == [
        "Prefect's API does not answer: refused",
        "two cannot be asked: No route to host",
    ]
    assert [unit["unit"] for unit in report["services"]] == ["nginx", "w"]
    assert report["work_pool"] == {}


def test_a_blank_host_is_told_so() -> None:
    answers = asked()
    for host in answers["hosts"].values():
        host["release"] = {"current": "", "releases": {}, "previous": "", "served": {}}
    report = status_report(answers)
    assert report["release"] == {}
    assert report["problems"] == []


@pytest.mark.parametrize(("status", "well"), [(200, True), (204, True), (503, False), (-1, False)])
def test_a_service_that_does_not_answer_with_2xx_is_a_problem(status: int, well: bool) -> None:
    answers = asked()
    service = {"unit": "exporter.service", "health_url": "http://127.0.0.1:9100/"}
    answers["hosts"]["two"]["health"] = [{"item": service, "status": status, "msg": "HTTP Error 503"}]
    report = status_report(answers)
    assert report["well"] is well
    problem = "exporter.service on two does not answer http://127.0.0.1:9100/ with 2xx: HTTP Error 503"
    assert report["problems"] == ([] if well else [problem])
