"""No fault loses data: `make drill NAME=kill-worker` runs one drill. docs/drills.md describes each."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.drills.outcome import Outcome

pytestmark = pytest.mark.disruptive


def nothing(findings: list[str]) -> None:
    """Fail with the findings, if there are any."""
    if findings:
        pytest.fail("\n".join(findings), pytrace=False)


def test_it_breaks_and_all_is_well_again(outcome: "Outcome") -> None:
    """The fault affects running flow runs; afterwards services, API and worker recover without intervention."""
    nothing([outcome.trouble] if outcome.trouble else [])
    assert outcome.in_flight >= len(outcome.drill.steps)


def test_no_flow_run_is_lost(outcome: "Outcome") -> None:
    """Each flow run completes, or it is Crashed and exactly one retry completes."""
    assert outcome.started > 0
    nothing(outcome.lost_runs)


def test_only_what_died_runs_again(outcome: "Outcome") -> None:
    nothing(outcome.needless)


def test_states_tell_the_truth(outcome: "Outcome") -> None:
    """A Completed run did its work, an ended run does no more work, and a Crashed run gives the reason."""
    nothing(outcome.untrue)


def test_nothing_runs_twice_at_once(outcome: "Outcome") -> None:
    nothing(outcome.overlaps)


def test_every_row_is_there(outcome: "Outcome") -> None:
    """The tables hold the same rows as without the fault, and every row read is accounted for."""
    nothing(outcome.lost_rows)


def test_every_task_run_is_recorded(outcome: "Outcome") -> None:
    nothing(outcome.lost_records)


def test_no_task_run_is_left_open(outcome: "Outcome") -> None:
    """Every task run of an ended flow run is in a terminal state."""
    nothing(outcome.open_records)
