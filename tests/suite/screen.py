"""Shows the progress of parts: a table on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.suite.parts import Part
    from tests.suite.results import Result

# Interval between two lines about a part without a terminal.
QUIET_SECONDS = 60


def console() -> Console:
    """Return the console: with colours on a terminal, with plain lines of any length elsewhere."""
    terminal = sys.stdout.isatty() and "CI" not in os.environ
    if terminal:
        return Console(highlight=False)
    return Console(no_color=True, force_terminal=False, width=200, highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


@dataclass
class Running:
    """A running part, and its current activity."""

    part: Part
    expected: float
    begin: float = field(default_factory=time.monotonic)
    doing: str = ""
    tests: int = 0

    @property
    def seconds(self) -> float:
        """Return for how long it has been running."""
        return time.monotonic() - self.begin


class Lines:
    """Prints a line when a part starts and ends, and its activity every minute."""

    def __init__(self, output: Console, parts: Iterable[Part]) -> None:
        self._output = output
        self._width = max(len(part.name) for part in parts)
        self._running: list[Running] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Lines:
        """Start printing."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop printing."""
        self._over.set()
        self._thread.join()

    def begin(self, running: Running) -> None:
        """Print that a part starts, and what it covers."""
        self._running.append(running)
        self._print(running, f"begins: {running.part.covers}")

    def end(self, running: Running, result: Result) -> None:
        """Print its result."""
        self._running.remove(running)
        self._print(running, f"{'FAILED' if result.failed else 'done'}: {counts(result)}")

    def _tell(self) -> None:
        while not self._over.wait(QUIET_SECONDS):
            for running in list(self._running):
                self._print(running, f"{running.tests} tests so far; {running.doing}")

    def _print(self, running: Running, text: str) -> None:
        self._output.print(Text(f"{running.part.name:<{self._width}}  {clock(running.seconds):>5}  {text}"))


class Drawing:
    """Shows one line per part, redrawn twice a second."""

    def __init__(self, output: Console, parts: Iterable[Part]) -> None:
        self._parts = list(parts)
        self._running: dict[str, Running] = {}
        self._results: dict[str, tuple[float, Result]] = {}
        self._begin = time.monotonic()
        self._live = Live(console=output, get_renderable=self._draw, refresh_per_second=2, transient=True)

    def __enter__(self) -> Drawing:
        """Start drawing."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Clear the table, as the report follows."""
        self._live.stop()

    def begin(self, running: Running) -> None:
        """Show that a part is running."""
        self._running[running.part.name] = running

    def end(self, running: Running, result: Result) -> None:
        """Show its result."""
        self._running.pop(running.part.name)
        self._results[running.part.name] = (running.seconds, result)

    def _draw(self) -> Group:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for part in self._parts:
            table.add_row(part.name, *self._row(part))
        return Group(table, Text(f"{clock(time.monotonic() - self._begin)} in all; ctrl-c ends it", style="dim"))

    def _row(self, part: Part) -> tuple[Text | ProgressBar, str, Text]:
        if part.name in self._results:
            seconds, result = self._results[part.name]
            mark = Text("failed", "bold red") if result.failed else Text("done", "green")
            return mark, clock(seconds), Text(counts(result))
        if running := self._running.get(part.name):
            # Never show 100 % before it has ended.
            share = min(0.98, running.seconds / running.expected)
            return ProgressBar(100, 100 * share, width=12), clock(running.seconds), Text(running.doing, "dim")
        return Text("waits", "dim"), "", Text(part.covers, "dim")


Screen = Lines | Drawing


def screen(output: Console, parts: Iterable[Part]) -> Screen:
    """Return the display for this output."""
    return Drawing(output, parts) if output.is_terminal else Lines(output, parts)


def counts(result: Result) -> str:
    """Return the counts of a result as text."""
    skipped = f", {result.skipped} skipped" if result.skipped else ""
    return f"{result.passed} passed, {result.failed} failed{skipped}"
