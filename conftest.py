"""Hooks of all tests: a record for the suite's report, and the journal of the hosts of a failed test."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import limits, services

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.host.conftest import Inventory

JOURNAL = f"journalctl --no-pager --no-hostname --output short-precise --lines 40 {services.JOURNAL}"


def _record(**entry: object) -> None:
    """Add a line of JSON to the file that the suite reads."""
    if path := os.environ.get("TEST_RECORD"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def pytest_report_header() -> str:
    """Show the factor by which timeouts are multiplied."""
    return f"limits: {limits.slowness():g} times those of an idle machine, see tests/limits.py"


def pytest_runtest_logstart(nodeid: str) -> None:
    """Record that a test begins."""
    _record(begins=nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record how a test ended, or why its fixtures failed."""
    if report.when == "call" or report.outcome != "passed":
        crash = getattr(report.longrepr, "reprcrash", None)
        _record(
            test=report.nodeid,
            when=report.when,
            outcome=report.outcome,
            seconds=report.duration,
            message=(crash.message if crash else report.longreprtext) if report.failed else "",
            journal="".join(text for title, text in report.sections if title.startswith("journal")),
        )


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Record a collection error."""
    if report.failed:
        _record(
            test=report.nodeid, when="collect", outcome="failed", seconds=0, message=report.longreprtext, journal=""
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the journal of its hosts to the report of a failed test."""
    report = yield
    inventory: Inventory | None = getattr(item, "funcargs", {}).get("inventory")
    if report.failed and inventory is not None:
        for name in inventory.all_names():
            try:
                journal = inventory.host_named(name).run(JOURNAL)
                text = f"{journal.stdout}{journal.stderr}"
            # The test may have failed for the same reason, which must not be hidden.
            except RuntimeError as error:
                text = f"it cannot be asked: {error}"
            report.sections.append((f"journal of {name}", f"{name}:\n{text}"))
    return report
