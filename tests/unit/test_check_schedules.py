"""The program that notices that Prefect's scheduler stands still: which schedules it judges, and by what."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest

NOW = datetime(2026, 11, 30, 3, tzinfo=UTC)


@pytest.fixture(scope="module")
def check_schedules(load_plugin: Callable[[str], ModuleType]) -> ModuleType:
    """Return the program as a module."""
    return load_plugin("prefect_server/files/check_schedules.py")


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
    check_schedules: ModuleType, schedule: dict[str, object], frequent: bool
) -> None:
    assert check_schedules.is_frequent(schedule) is frequent


def lagging(check_schedules: ModuleType, ahead: list[timedelta], **deployment: object) -> list[str]:
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

    class Answers:
        def ask(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
            if path == "/deployments/filter":
                return [] if body["offset"] else [found]
            after = datetime.fromisoformat(body["flow_runs"]["expected_start_time"]["after_"])
            times = sorted((NOW + each for each in ahead if NOW + each > after), reverse=True)
            return [{"expected_start_time": time.isoformat()} for time in times[: body["limit"]]]

    return list(check_schedules.lagging(Answers(), NOW))


DAYS = [timedelta(days=number) for number in (1, 2, 3)]


def test_a_scheduler_that_stands_still_is_noticed(check_schedules: ModuleType) -> None:
    assert lagging(check_schedules, DAYS) == []
    assert lagging(check_schedules, DAYS[:2]) == ["nightly"]
    assert lagging(check_schedules, []) == ["nightly"]
    # Each minute: the planner has had no minute yet to add the last ones, or it stands still.
    minutes = [timedelta(minutes=number) for number in range(59)]
    assert lagging(check_schedules, minutes) == []
    assert lagging(check_schedules, minutes[:50]) == ["nightly"]


def test_what_has_reasons_to_have_few_planned_runs_is_left_alone(check_schedules: ModuleType) -> None:
    monthly = [timedelta(days=31), timedelta(days=62)]
    assert lagging(check_schedules, monthly) == []
    seconds = [timedelta(seconds=20 * number) for number in range(1, 101)]
    assert lagging(check_schedules, seconds) == []
    assert lagging(check_schedules, [], paused=True) == []
    assert lagging(check_schedules, [], schedules=[]) == []
    assert lagging(check_schedules, [], updated=(NOW - timedelta(minutes=1)).isoformat()) == []
