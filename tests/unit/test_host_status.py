"""The module that asks a host for its state: which schedules it judges, and that a part that fails hides no other."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

NOW = datetime(2026, 11, 30, 3, tzinfo=UTC)


@pytest.fixture(scope="module")
def host_status(load_plugin: Callable[[str], ModuleType]) -> ModuleType:
    """Return the module as a Python module."""
    return load_plugin("status/library/host_status.py")


@pytest.mark.parametrize(
    ("schedule", "frequent"),
    [
        ({"cron": "0 2 * * *"}, True),
        ({"cron": "0 2 31 * *"}, True),
        ({"cron": "@daily"}, True),
        ({"cron": "0 2 1 1 *"}, False),
        ({"cron": "@yearly"}, False),
        ({"interval": 3600.0}, True),
        ({"interval": 40 * 86400.0}, False),
        ({"rrule": "FREQ=DAILY;BYHOUR=2"}, True),
        ({"rrule": "FREQ=YEARLY"}, False),
        ({"rrule": "FREQ=DAILY;UNTIL=20270101T000000Z"}, False),
        ({"rrule": "DTSTART:20300101T000000\nRRULE:FREQ=DAILY"}, False),
    ],
)
def test_only_schedules_that_always_have_planned_runs_are_judged(
    host_status: ModuleType, schedule: dict[str, object], frequent: bool
) -> None:
    assert host_status.is_frequent(schedule) is frequent


def lagging(host_status: ModuleType, ahead: list[timedelta], **deployment: object) -> list[str]:
    """Return the deployments that lag if the one that there is has runs planned so far ahead."""
    old = (NOW - timedelta(days=1)).isoformat()
    found = {
        "id": "1",
        "name": "nightly",
        "paused": False,
        "updated": old,
        "schedules": [{"active": True, "updated": old, "schedule": {"cron": "0 2 * * *"}}],
        **deployment,
    }

    class Answers(host_status.Prefect):  # type: ignore[misc, name-defined]
        def ask(self, path: str, body: dict[str, Any] | None = None) -> object:
            if path == "/deployments/filter":
                return [found]
            assert body
            after = datetime.fromisoformat(body["flow_runs"]["expected_start_time"]["after_"])
            times = sorted((NOW + each for each in ahead if NOW + each > after), reverse=True)
            return [{"expected_start_time": time.isoformat()} for time in times[: body["limit"]]]

    prefect = Answers({"url": "", "user": "", "pool": "", "deployment": ""}, "", "")
    prefect._now = NOW
    return list(prefect.lagging())


DAYS = [timedelta(days=number) for number in (1, 2, 3)]


def test_a_scheduler_that_stands_still_is_noticed(host_status: ModuleType) -> None:
    assert lagging(host_status, DAYS) == []
    assert lagging(host_status, DAYS[:2]) == ["nightly"]
    assert lagging(host_status, []) == ["nightly"]
    # Each minute: the planner has had no minute yet to add the last ones, or it stands still.
    minutes = [timedelta(minutes=number) for number in range(59)]
    assert lagging(host_status, minutes) == []
    assert lagging(host_status, minutes[:50]) == ["nightly"]


def test_what_has_reasons_to_have_few_planned_runs_is_left_alone(host_status: ModuleType) -> None:
    monthly = [timedelta(days=31), timedelta(days=62)]
    assert lagging(host_status, monthly) == []
    seconds = [timedelta(seconds=20 * number) for number in range(1, 101)]
    assert lagging(host_status, seconds) == []
    assert lagging(host_status, [], paused=True) == []
    assert lagging(host_status, [], schedules=[]) == []
    assert lagging(host_status, [], updated=(NOW - timedelta(minutes=1)).isoformat()) == []


def test_a_part_that_fails_hides_no_other(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Neither systemd nor the journal answer here; the schema's program prints what is no JSON."""
    environment = tmp_path / "unit.env"
    environment.write_text("PGDATABASE=it\n")
    done = run_module(
        "status/library/host_status.py",
        units=["nosuch.service"],
        errors="FATAL",
        disks=[str(tmp_path), str(tmp_path), "/nowhere"],
        environment_file=str(environment),
        schema_program="/bin/pwd",
        schema_record=str(environment),
    )
    (disk,) = done["answers"]["disks"]
    assert 0 <= disk["used_percent"] <= 100
    assert "JSONDecodeError" in done["failures"]["schema"]


def test_tables_that_are_gone_are_told_at_the_same_revision(host_status: ModuleType, tmp_path: Path) -> None:
    record, environment, program = tmp_path / "record", tmp_path / "unit.env", tmp_path / "program"
    environment.write_text("PGDATABASE=it\n")
    record.write_text(json.dumps({"revisions": ["2"], "tables": ["one", "two"]}))
    program.write_text("""#!/bin/sh\necho '{"revisions": ["2"], "tables": ["two", "more"]}'\n""")
    program.chmod(0o755)

    def missing() -> list[str]:
        found: dict[str, list[str]] = host_status.schema(str(environment), str(program), str(record))
        assert found["revisions"] == ["2"]
        return found["missing_tables"]

    assert missing() == ["one"]
    record.write_text(json.dumps({"revisions": ["1"], "tables": ["one", "two"]}))
    assert missing() == []
    record.unlink()
    assert missing() == []
