"""The report of `make status`: what counts as a problem, and that a missing answer hides nothing else."""

from copy import deepcopy
from typing import Any

import pytest

from roles.status.filter_plugins.secrets import without_secrets
from roles.status.filter_plugins.status import status_report

UNIT = {
    "state": "active",
    "sub_state": "running",
    "result": "success",
    "since": "2026-11-27T18:27:36+00:00",
    "status": "Polls pool: 0 of 8 flow runs",
    "restarts": 0,
}
DISK = {"path": "/", "used_percent": 35, "available_bytes": 81604378624}
RELEASE = {
    "current": "0123456789ab",
    "previous": "ba9876543210",
    "served": {"ba9876543210": {"until": "2026-11-26T08:00:00+00:00"}},
    "releases": {
        "0123456789ab": {"built": "2026-11-26T07:00:00", "revision": "v1", "application_schema": ["0002"]},
    },
}
RUN = {
    "flow": "Master ETL Flow",
    "state": "Completed",
    "message": "",
    "start": "2026-11-27T17:00:00Z",
    "end": "2026-11-27T17:00:03Z",
    "seconds": 3.0,
}


def asked() -> dict[str, Any]:
    """Return the answers of two healthy hosts; the first one has the server and the database."""
    host = {
        "services": [{"unit": unit, **UNIT} for unit in ("nginx", "w")],
        "health": [],
        "disks": [DISK],
        "errors": ["now FATAL: it"],
    }
    leader = {
        "certificate of the proxy": "2027-01-09T18:27:33+00:00",
        "certificate of PostgreSQL": "2027-01-09T18:27:33+00:00",
        "schema": {"revisions": ["0002"], "missing_tables": []},
        "rows": {"experiment": 24},
        "prefect": {
            "pool": {"name": "pool", "paused": False},
            "workers": [
                {"name": "one", "status": "online", "seen": "2026-11-27T17:59:00Z"},
                {"name": "two", "status": "online", "seen": "2026-11-27T17:58:00Z"},
            ],
            "running": 3,
            "late": 0,
            "late_since": "",
            "lagging": [],
            "last_run": [RUN],
        },
    }
    answers = {"one": {**host, **leader}, "two": host}
    return {
        "now": "2026-11-27T18:00:00+00:00",
        "url": "https://one",
        "server": "one",
        "database": "one",
        "arguments": " INVENTORY=inventory/mine",
        "hosts": {
            name: deepcopy({"state": {"answers": found, "failures": {}}, "release": RELEASE})
            for name, found in answers.items()
        },
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
    assert report["services"][0] == {"host": "one", "unit": "nginx", **UNIT}
    assert [(unit["host"], unit["unit"]) for unit in report["services"][1:]] == [
        ("one", "w"),
        ("two", "nginx"),
        ("two", "w"),
    ]
    assert report["work_pool"]["workers"] == {"one": "online", "two": "online"}
    assert report["work_pool"]["running"] == 3
    assert report["disks"] == [{"host": "one", **DISK}, {"host": "two", **DISK}]
    assert report["certificates"][1] == {"service": "PostgreSQL", "ends": "2027-01-09T18:27:33+00:00"}
    assert report["rows"] == {"experiment": 24}
    assert report["errors"] == [{"host": "one", "line": "now FATAL: it"}, {"host": "two", "line": "now FATAL: it"}]


ONE, TWO = ("hosts", "one", "state", "answers"), ("hosts", "two", "state", "answers")
MAKE = "INVENTORY=inventory/mine`"


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ((*TWO, "disks", 0, "used_percent"), 90, "/ on two is 90 % full, 81.6 GB are free: `du -xh"),
        (
            (*TWO, "services", 1),
            {"unit": "w", **UNIT, "state": "failed", "result": "exit-code"},
            f"w on two is failed (exit-code) since 2026-11-27 18:27 UTC: `make logs UNIT=w HOST=two {MAKE} shows why",
        ),
        (
            (*TWO, "services", 1, "restarts"),
            3,
            "w on two failed and was started again 3 times within an hour: `make logs UNIT=w HOST=two INVENTORY=",
        ),
        (
            ("hosts", "two", "release", "current"),
            "ba9876543210",
            "two has release ba9876543210: `make rebuild-services ",
        ),
        (("hosts", "two", "release"), {"failed": True, "msg": "no manifest"}, "two, releases: no manifest"),
        (
            (*ONE, "certificate of the proxy"),
            "2026-12-11T17:00:00+00:00",
            f"The certificate of the proxy ends 2026-12-11: `make start-services {MAKE} renews it, or",
        ),
        (
            (*ONE, "schema", "revisions"),
            ["0001"],
            f"The database is at revision 0001, the release brings 0002: `make rebuild-services {MAKE}",
        ),
        (
            (*ONE, "schema", "revisions"),
            [],
            "The database is at revision none, the release brings 0002",
        ),
        (
            (*ONE, "schema", "missing_tables"),
            ["experiment", "observation"],
            f"The database lacks tables of its revision: experiment, observation. `make restore FILE=dump {MAKE}",
        ),
        ((*ONE, "prefect", "pool", "paused"), True, "The work pool pool is paused"),
        (
            (*ONE, "prefect", "workers"),
            [{"name": "one", "status": "offline", "seen": "2026-11-27T17:00:00Z"}],
            "No worker of the pool pool is online; one was heard of last at 2026-11-27 17:00 UTC: `make logs",
        ),
        (
            (*ONE, "prefect", "workers"),
            [],
            f"No worker of the pool pool is online: `make logs UNIT=prefect-worker {MAKE}",
        ),
        (
            (*ONE, "prefect"),
            {**asked()["hosts"]["one"]["state"]["answers"]["prefect"], "late": 2, "late_since": "2026-11-27T17:30:00Z"},
            "2 flow runs have not begun in time, the oldest since 2026-11-27 17:30 UTC: `make logs",
        ),
        (
            (*ONE, "prefect", "lagging"),
            ["master-etl-deployment"],
            "Too few runs of the deployment master-etl-deployment are planned: Prefect's scheduler stands still. `",
        ),
        (
            (*ONE, "prefect", "last_run", 0, "state"),
            "Failed",
            "The last run of Master ETL Flow ended Failed, 2026-11-27 17:00 UTC: below is why; `make run-etl",
        ),
        (
            (*TWO, "health"),
            [{"unit": "exporter", "health_url": "http://127.0.0.1:9100/", "problem": "HTTP Error 503"}],
            "exporter on two does not answer http://127.0.0.1:9100/ with 2xx: HTTP Error 503",
        ),
        (("hosts", "two", "state"), {"msg": "It is no container"}, "two cannot be asked: It is no container"),
        (("hosts", "two", "state", "failures"), {"disks": "it is away"}, "two, disks: it is away"),
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
    answers = asked()
    state = answers["hosts"]["one"]["state"]
    for part in ("prefect", "schema", "rows"):
        del state["answers"][part]
    state["failures"] = {
        "prefect": "Prefect's API does not answer: refused",
        "rows": "it is\naway",
        "disks": "it is\nfar",
    }
    answers["hosts"]["two"] = {"state": {"unreachable": True, "msg": "No route\nto host"}, "release": {}}
    report = status_report(answers)
    assert report["problems"] == [
        "one, prefect: Prefect's API does not answer: refused",
        "one, disks: it is far",
        "two cannot be asked: No route to host",
    ]
    assert [unit["unit"] for unit in report["services"]] == ["nginx", "w"]
    assert (report["work_pool"], report["database"], report["rows"]) == ({}, {}, {})


def test_a_blank_host_is_told_so() -> None:
    answers = asked()
    for host in answers["hosts"].values():
        host["release"] = {"current": "", "releases": {}, "previous": "", "served": {}}
    report = status_report(answers)
    assert report["release"] == {}
    assert report["problems"] == []


def test_a_report_for_others_holds_no_secret_in_any_form() -> None:
    text = "PGPASSWORD=s3cr/t&1 url postgresql://u:s3cr%2Ft%261@h and s3cr/t%261, Basic czNjci90JjE=, key: line1-of-key"
    text += ' {"a": "say \\"it\\" now"} via pass%77ord and password'
    key = "-----BEGIN KEY-----\nline1-of-key\n-----END KEY-----"
    cleaned = without_secrets(text, ["s3cr/t&1", key, "a", "", 'say "it" now', "http://me:pass%77ord@proxy:3128"])
    assert cleaned == (
        "PGPASSWORD=******** url postgresql://u:********@h and ********, Basic ********, key: ********"
        ' {"a": "********"} via ******** and ********'
    )
