"""Fixtures that run the selected drills on demand, and the summary table."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.drills.exercise import Exercise
from tests.drills.faults import DRILLS
from tests.drills.hosts import Platform
from tests.host.conftest import Inventory, inventory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.drills.outcome import Outcome

__all__ = ["inventory"]

EXERCISE = pytest.StashKey[Exercise]()
# Lines for the end of the output.
FIGURES = pytest.StashKey[list[str]]()
COLUMNS = (
    "drill",
    "result",
    "flow runs",
    "in flight",
    "lost",
    "rerun",
    "known after",
    "records lost",
    "rows lost",
    "well after",
)


@pytest.fixture(scope="session")
def exercise(request: pytest.FixtureRequest, inventory: Inventory) -> Iterator[Exercise]:
    """Return the drills of this session: those for which a test is selected."""
    parameters = (item.callspec.params for item in request.session.items if hasattr(item, "callspec"))
    wanted = {chosen["outcome"] for chosen in parameters if "outcome" in chosen}
    platform = Platform(inventory)
    if not platform.container and os.environ.get("DRILL_CONFIRMED") != "1":
        pytest.exit(
            f"Drills kill services, and the hosts of {inventory.path} are real: confirm with `make drill CONFIRM=1`"
        )
    exercise = Exercise(platform, wanted)
    request.config.stash[EXERCISE] = exercise
    try:
        exercise.begin()
        yield exercise
    finally:
        exercise.end()


@pytest.fixture(scope="session", params=list(DRILLS))
def outcome(request: pytest.FixtureRequest, exercise: Exercise) -> Outcome:
    """Return the outcome of a drill."""
    outcome = exercise.outcome(request.param)
    if outcome.skipped:
        pytest.skip(f"{request.param} {outcome.skipped}")
    return outcome


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what a lost disk has cost, and a line for each drill."""
    if figures := config.stash.get(FIGURES, None):
        terminalreporter.section("the disk of the database was lost")
        terminalreporter.write_line("\n".join(figures))
    exercise = config.stash.get(EXERCISE, None)
    if exercise is None:
        return
    lines = [COLUMNS, *(row(outcome) for outcome in exercise.outcomes.values())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    terminalreporter.section("drills: what was broken, and what was lost")
    for line in lines:
        terminalreporter.write_line("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))
    terminalreporter.write_line("")
    for batch, seconds in exercise.seconds.items():
        names = [name for name, outcome in exercise.outcomes.items() if outcome.drill.batch == batch]
        terminalreporter.write_line(f"{seconds:4.0f} s  {', '.join(names)}")


def row(outcome: Outcome) -> tuple[str, ...]:
    """Return a drill's row of the table."""
    if outcome.skipped:
        return (outcome.drill.name, outcome.skipped, *("-",) * (len(COLUMNS) - 2))
    seconds = outcome.seconds_until_well
    figures = (outcome.started, outcome.in_flight, len(outcome.lost_runs), outcome.rerun)
    known = "-" if outcome.crashed_after is None else f"{outcome.crashed_after:.0f} s"
    losses = (len(outcome.lost_records), outcome.rows_lost or 0)
    well = "never" if seconds is None else f"{seconds:.0f} s"
    return (outcome.drill.name, outcome.verdict, *map(str, figures), known, *map(str, losses), well)
