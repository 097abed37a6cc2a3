#!/usr/bin/python3
"""Tell of deployments with a schedule whose planned runs no longer reach ahead: Prefect's scheduler stands still.

Health and readiness of the server stay well then. Without an option, ends with 1 and a sentence if there are any; a
server that does not answer is systemd's business. With --list, prints their names, one a line, and a server that does
not answer is an error. Reads PREFECT_SERVER_API_PORT and PREFECT_SERVER_API_AUTH_STRING.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import urllib.request
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

TIMEOUT_SECONDS = 10
# Prefect plans at least so many runs of a schedule, and so far, ahead; at most 100 runs and 100 days. It looks once a
# minute for what is to be planned, and plans anew after a deployment was changed.
PLANNED_RUNS, PLANNED_AHEAD = 3, timedelta(hours=1)
PLANNED_MOST, PLANNED_FAR = 100, timedelta(days=30)
PLANNED_GRACE = timedelta(minutes=5)
# The API's most for one answer.
PAGE = 200


def is_frequent(schedule: dict[str, Any]) -> bool:
    """Return whether a schedule of Prefect always has a run within the 100 days for which runs are planned.

    Of others, such as once a year, or a rule that ends or has yet to begin, no planned run may be right.
    """
    if "cron" in schedule:
        # Minute, hour, day of the month, month, day of the week; or a name such as @daily.
        fields = str(schedule["cron"]).split()
        return (len(fields) < 5 and fields != ["@yearly"]) or (len(fields) >= 5 and fields[3] == "*")
    if "rrule" in schedule:
        rule = str(schedule["rrule"])
        return bool(re.search("FREQ=(MINUTELY|HOURLY|DAILY|WEEKLY)", rule)) and not re.search(
            "UNTIL|COUNT|BYMONTH|BYYEARDAY|BYWEEKNO|DTSTART", rule
        )
    return timedelta(seconds=float(schedule["interval"])) <= PLANNED_FAR


class Api:
    """The server's API on the loopback interface."""

    def __init__(self, port: str, login: str) -> None:
        self._url = f"http://127.0.0.1:{port}/api"
        token = base64.b64encode(login.encode()).decode()
        self._headers = {"Content-Type": "application/json", "Authorization": f"Basic {token}"}
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the answer to a query."""
        query = urllib.request.Request(f"{self._url}{path}", json.dumps(body).encode(), self._headers)  # noqa: S310
        with self._opener.open(query, timeout=TIMEOUT_SECONDS) as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found


def deployments(api: Api) -> Iterable[dict[str, Any]]:
    """Yield all deployments."""
    offset = 0
    while page := api.ask("/deployments/filter", {"sort": "NAME_ASC", "limit": PAGE, "offset": offset}):
        yield from page
        offset += PAGE


def lagging(api: Api, now: datetime) -> Iterable[str]:
    """Yield the deployments with an active schedule whose planned runs do not reach ahead as they should."""
    for deployment in deployments(api):
        schedules = [each for each in deployment["schedules"] if each["active"]]
        changed = [datetime.fromisoformat(each["updated"]) for each in (deployment, *schedules) if each["updated"]]
        is_new = max(changed, default=now) > now - PLANNED_GRACE
        if deployment["paused"] or is_new or not any(is_frequent(each["schedule"]) for each in schedules):
            continue
        # In any state: Prefect does not plan a run again that was cancelled.
        planned = api.ask(
            "/flow_runs/filter",
            {
                "sort": "EXPECTED_START_TIME_DESC",
                "limit": PLANNED_MOST,
                "deployments": {"id": {"any_": [deployment["id"]]}},
                "flow_runs": {"expected_start_time": {"after_": (now - PLANNED_GRACE).isoformat()}},
            },
        )
        ahead = datetime.fromisoformat(planned[0]["expected_start_time"]) if planned else now
        reach = ahead - now
        few = len(planned) < PLANNED_RUNS and reach < PLANNED_FAR
        near = len(planned) < PLANNED_MOST and reach < PLANNED_AHEAD - PLANNED_GRACE
        if few or near:
            yield deployment["name"]


def main() -> int:
    """Run the command line; return the exit code."""
    is_list = sys.argv[1:] == ["--list"]
    api = Api(os.environ["PREFECT_SERVER_API_PORT"], os.environ["PREFECT_SERVER_API_AUTH_STRING"])
    try:
        names = sorted(lagging(api, datetime.now(UTC)))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"Prefect's API does not answer: {error}\n")
        return 1 if is_list else 0
    if is_list:
        sys.stdout.writelines(f"{name}\n" for name in names)
        return 0
    if names:
        sys.stderr.write(f"Prefect plans no more runs of {', '.join(names)}, though its API answers.\n")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
