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


BACKUPS: dict[str, Any] = {
    "archive_seconds": 60,
    "archiver": {
        "archived": "000000010000000000000010",
        "waiting": 0,
        "waiting_since": None,
        "segment_bytes": 16777216,
        "on": True,
        "system": "7713825342188855850",
    },
    "backup_runs": False,
    "backup_failed": False,
    "backup_errors": {},
    "repositories": [
        {
            "number": 1,
            "place": "/var/lib/pgbackrest",
            "same_disk": True,
            "usable": True,
            "is_of_other_cluster": False,
            "message": "ok",
            "since": "2026-11-20T01:30:00+00:00",
            "until": "2026-11-27T17:59:10+00:00",
            "gaps": [],
        }
    ],
    "backups": [
        {"label": "F", "repository": 1, "type": "full", "finished": "2026-11-27T01:30:00+00:00", "faulty": False}
    ],
    "restore_points": [],
    "drill": {"succeeded": True, "problems": [], "finished": "2026-11-22T03:30:00Z", "proven": "2026-11-22T03:30:00Z"},
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
        "backups": BACKUPS,
        "prefect": {
            "pool": {"name": "pool", "paused": False},
            "workers": [
                {"name": "one", "status": "online", "seen": "2026-11-27T17:59:00Z"},
                {"name": "two", "status": "online", "seen": "2026-11-27T17:58:00Z"},
            ],
            "running": 3,
            "late": 0,
            "late_since": "",
            "missing_deployments": [],
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


@pytest.mark.parametrize(("backups", "whence"), [(BACKUPS, "TO=moment"), (None, "FILE=dump")])
def test_tables_that_are_gone_come_back_from_base_backups_or_else_from_a_dump(backups: object, whence: str) -> None:
    answers = asked()
    found = answers["hosts"]["one"]["state"]["answers"]
    found.update(schema={"revisions": ["0002"], "missing_tables": ["observation"]}, backups=backups)
    (problem,) = status_report(answers)["problems"]
    assert f"`make restore {whence} {MAKE} brings them back" in problem


ONE, TWO = ("hosts", "one", "state", "answers"), ("hosts", "two", "state", "answers")
MAKE = "INVENTORY=inventory/mine`"


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (
            (*ONE, "backups", "archiver"),
            {**BACKUPS["archiver"], "waiting": 300, "waiting_since": "2026-11-27T17:50:00+00:00"},
            "PostgreSQL's WAL has not been archived since 2026-11-27 17:50 UTC: 300 segments, 5.0 GB, wait on its disk",
        ),
        (
            (*ONE, "backups", "archiver", "on"),
            False,
            f"PostgreSQL does not archive its WAL: `make start-services {MAKE} turns it on",
        ),
        (
            (*ONE, "backups", "backups"),
            [],
            "The backup repository /var/lib/pgbackrest has no base backup, so that nothing can be restored: `make",
        ),
        (
            (*ONE, "backups", "backups", 0, "finished"),
            "2026-11-19T01:30:00+00:00",
            "The last base backup in /var/lib/pgbackrest is of 2026-11-19 01:30 UTC: `make logs UNIT=",
        ),
        ((*ONE, "backups", "backups", 0, "faulty"), True, "The last base backup in /var/lib/pgbackrest holds damaged"),
        ((*ONE, "backups", "backup_failed"), True, "The last base backup failed: `make logs UNIT=biocirv-base-backup"),
        (
            (*ONE, "backups"),
            {**BACKUPS, "backup_failed": True, "backup_errors": {"s3 backups /biocirv": "it is away"}},
            "The last base backup in s3 backups /biocirv failed: `make logs UNIT=biocirv-base-backup",
        ),
        ((*ONE, "backups", "problem"), "no configuration", "The backups on one cannot be asked: no configuration"),
        (
            (*ONE, "backups", "repositories", 0),
            {**BACKUPS["repositories"][0], "usable": False, "message": "key is wrong", "advice": "Put it back"},
            "The backup repository /var/lib/pgbackrest cannot be used: key is wrong. Put it back. PostgreSQL keeps its",
        ),
        (
            (*ONE, "backups", "repositories", 0, "is_of_other_cluster"),
            True,
            "The backup repository /var/lib/pgbackrest holds the backups of another cluster than the one that runs",
        ),
        (
            (*ONE, "backups", "repositories", 0, "gaps"),
            [{"after": "1", "from": "2026-11-27T12:00:00+00:00", "until": "2026-11-27T12:02:00+00:00", "end": ""}],
            "The backup repository /var/lib/pgbackrest lacks WAL after 2026-11-27 12:00 UTC: what was committed since",
        ),
        (
            (*ONE, "backups", "drill"),
            {**BACKUPS["drill"], "succeeded": False, "problems": ["The table t of db is missing instead of 5."]},
            "The last drill, 2026-11-22 03:30 UTC, failed to restore what it should: The table t of db is missing",
        ),
        (
            (*ONE, "backups", "drill", "proven"),
            "2026-11-12T03:30:00Z",
            f"No restoration was proven since 2026-11-12 03:30 UTC: `make restore-drill {MAKE} does it",
        ),
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
            f"The database lacks tables of its revision: experiment, observation. `make audit {MAKE} shows when",
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
            (*ONE, "prefect", "missing_deployments"),
            ["report"],
            f"Prefect does not have the deployment report: `make start-services {MAKE}",
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


def test_a_first_backup_that_is_being_made_is_no_problem() -> None:
    found = asked()
    found["hosts"]["one"]["state"]["answers"]["backups"] |= {"backups": [], "backup_runs": True, "drill": {}}
    assert status_report(found)["problems"] == []


@pytest.mark.parametrize(
    ("waiting_since", "seconds"), [(None, 60), ("2026-11-27T17:58:00+00:00", 180), ("2026-11-27T18:00:01+00:00", 60)]
)
def test_what_a_broken_disk_costs_grows_while_wal_waits(waiting_since: str | None, seconds: int) -> None:
    found = asked()
    found["hosts"]["one"]["state"]["answers"]["backups"]["archiver"]["waiting_since"] = waiting_since
    assert status_report(found)["backups"]["rpo_seconds"] == seconds
