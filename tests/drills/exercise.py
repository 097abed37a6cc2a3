"""Runs drills: those of a batch inject their faults in turn, then wait together until all flow runs have ended."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tests import limits
from tests.drills.faults import DRILLS
from tests.drills.hosts import NotYetError
from tests.drills.load import Field, Load
from tests.drills.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tests.drills.hosts import Platform


class Exercise:
    """The drills of one session of tests."""

    def __init__(self, platform: Platform, wanted: Collection[str]) -> None:
        self._field = Field(platform)
        self._platform = platform
        self._held: set[str] = set()
        self.outcomes = {name: Outcome(drill) for name, drill in DRILLS.items() if name in wanted}
        self.seconds: dict[str, float] = {}
        for outcome in self.outcomes.values():
            outcome.skipped = outcome.drill.unavailable(platform)

    def begin(self) -> None:
        """Create what loads need."""
        self._platform.seconds_until_well()
        self._field.prepare()

    def end(self) -> None:
        """Remove what loads needed."""
        self._field.clear()

    def outcome(self, name: str) -> Outcome:
        """Return a drill's outcome; run its batch first if that has not been done."""
        batch = self.outcomes[name].drill.batch
        if batch not in self._held:
            self._held.add(batch)
            start = time.monotonic()
            self._hold([each for each in self.outcomes.values() if each.drill.batch == batch and not each.skipped])
            self.seconds[batch] = time.monotonic() - start
        return self.outcomes[name]

    def _hold(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            with self._noted(outcome):
                outcome.drill.prepare(self._platform)
        before: Outcome | None = None
        for outcome in outcomes:
            if not outcome.trouble:
                with self._noted(outcome):
                    self._strike(outcome, before)
                if outcome.trouble:
                    self._platform.mend()
                before = outcome
        struck = [outcome for outcome in outcomes if outcome.load]
        self._settle(struck)
        for outcome in struck:
            with self._noted(outcome):
                outcome.judge(self._field)
        with self._noted(*struck):
            self._field.put_an_end_to([outcome.load for outcome in struck if outcome.load])
        for outcome in reversed(outcomes):
            with self._noted(outcome):
                outcome.drill.restore(self._platform)

    def _has_loaded(self, outcome: Outcome) -> bool:
        """Return whether a drill's ETL has completed; wait for it if the fault did not end it."""
        if outcome.load is None or outcome.trouble or outcome.drill.crashing:
            return False
        load = outcome.load
        try:
            self._platform.wait_until(lambda: self._field.has_loaded(load), "the ETL completes", limits.ANSWER)
        except NotYetError:
            return False
        outcome.count_rows(self._field)
        return True

    def _strike(self, outcome: Outcome, before: Outcome | None) -> None:
        drill = outcome.drill
        is_fresh = before is None or self._has_loaded(before)
        earlier = [each.load for each in self.outcomes.values() if each.load]
        outcome.load = Load(self._field, drill.name)
        self._field.start(outcome.load, drill.kind, drill.steps)
        self._platform.wait_until(lambda: self._field.is_quiet(earlier), "all retries have ended", limits.CRASH)
        self._field.start_master(outcome.load, is_fresh=is_fresh)
        if not drill.outlasts:
            self._field.let_count(outcome.load)
        outcome.broken_at = self._platform.now()
        outcome.broken_at = drill.strike(outcome.load) or outcome.broken_at
        if drill.outlasts:
            self._field.let_count(outcome.load)
        outcome.seconds_until_well = self._platform.seconds_until_well()
        outcome.well_at = self._platform.now()

    def _settle(self, outcomes: list[Outcome]) -> None:
        """Wait until all flow runs have ended; record a timeout in the outcome of the drill concerned."""
        seconds = limits.CRASH if any(outcome.drill.crashing for outcome in outcomes) else limits.START
        for outcome in outcomes:
            with self._noted(outcome):
                self._wait_for_end(outcome, seconds + max(outcome.drill.steps))

    def _wait_for_end(self, outcome: Outcome, seconds: float) -> None:
        wait, load = self._platform.wait_until, outcome.load
        assert load is not None
        wait(lambda: self._field.is_settled(load), "all flow runs end", seconds)
        heard = self._platform.heard_of_workers
        wait(lambda: any(moment > outcome.well_at for moment in heard()), "a worker sends a heartbeat", limits.ANSWER)
        # A lost record is not an error here: Outcome.judge reports it.
        with suppress(NotYetError):
            wait(lambda: outcome.is_recorded(self._field), "all task runs are recorded", limits.ANSWER)

    @contextmanager
    def _noted(self, *outcomes: Outcome) -> Iterator[None]:
        """Keep an error, with the journal, for the tests of these drills; the other drills run nevertheless."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - any error is reported by the test
            text = f"{type(error).__name__}: {error}\n\n" + "\n".join(self._platform.journal())
            for outcome in outcomes:
                outcome.trouble = outcome.trouble or text
