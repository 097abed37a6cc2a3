"""Whatever breaks, nothing is lost: `make drill NAME=kill-worker`, or all of them. docs/drills.md describes each."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.drills.outcome import Outcome

pytestmark = pytest.mark.disruptive


def nothing(findings: list[str]) -> None:
    """Fail with what was found."""
    if findings:
        pytest.fail("\n".join(findings), pytrace=False)


def test_it_breaks_and_all_is_well_again(outcome: "Outcome") -> None:
    """The fault did hit flow runs; afterwards services, API and worker are there by themselves."""
    nothing([outcome.trouble] if outcome.trouble else [])
    assert outcome.in_flight >= len(outcome.drill.steps)


def test_no_flow_run_is_lost(outcome: "Outcome") -> None:
    """Each completes; or it crashed, and one other completes in its place."""
    assert outcome.started > 0
    nothing(outcome.lost_runs)


def test_only_what_died_runs_again(outcome: "Outcome") -> None:
    nothing(outcome.needless)


def test_states_tell_the_truth(outcome: "Outcome") -> None:
    """What is Completed was done, what has ended does not go on, what crashed says why."""
    nothing(outcome.untrue)


def test_nothing_runs_twice_at_once(outcome: "Outcome") -> None:
    nothing(outcome.overlaps)


def test_every_row_is_there(outcome: "Outcome") -> None:
    """In the tables as without the fault; and what was read is accounted for."""
    nothing(outcome.lost_rows)


def test_every_task_run_is_recorded(outcome: "Outcome") -> None:
    nothing(outcome.lost_records)


def test_no_task_run_is_left_open(outcome: "Outcome") -> None:
    """Of a flow run that has ended."""
    nothing(outcome.open_records)
