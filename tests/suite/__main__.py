"""Called by `make test` and its variants: ``python -m tests.suite quick | all | PART ... [OPTIONS]``."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tests import limits
from tests.suite.parts import PARTS, quick
from tests.suite.prefect import environment
from tests.suite.results import JOURNAL_LINES, MESSAGE_LINES, Result, shortened, spread
from tests.suite.run import DIRECTORY, ROOT, Suite
from tests.suite.screen import clock, console, counts, screen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from tests.suite.parts import Part

# Listed again at the end, so that it stays visible.
LISTED = 16


def main() -> int:
    """Run the parts on the command line; return 0 if none failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.suite", description=__doc__)
    parser.add_argument("parts", nargs="+", choices=["quick", "all", *PARTS], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="leave out what `make test` leaves out")
    parser.add_argument("--times", type=int, default=1, help="how often each part is run")
    parser.add_argument("--load", action="store_true", help="keep both cores busy beside it")
    parser.add_argument("--prefect", help="run them with another Prefect than the locked one: a version, or `newest`")
    parser.add_argument("--programs", action="store_true", help="print the programs that the parts need, and end")
    options = parser.parse_args()
    is_quick = options.quick or options.parts == ["quick"]
    parts = _chosen(options.parts)
    if options.programs:
        print(" ".join(sorted({program for part in parts for program in part.programs})))
        return 0
    # A job of a CI system is ended by SIGTERM, and one in a shell's background ignores SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    output = console()
    if options.prefect:
        os.environ["PATH"] = f"{environment(options.prefect)}:{os.environ['PATH']}"
    with _load(present=options.load):
        slowness = limits.slowness()
        output.print(
            f"This machine takes {slowness:g} times as long as an idle one of two cores; limits are multiplied by that."
        )
        if options.times > 1:
            return _soak(output, parts, options.times, is_quick=is_quick)
        results, seconds = _run(output, parts, is_quick=is_quick)
    _report(output, results, seconds)
    return int(any(result.failed for result in results))


def _chosen(names: list[str]) -> list[Part]:
    """Return the parts of these names, and those that must run before them."""
    if "all" in names:
        return list(PARTS.values())
    if "quick" in names:
        return quick()
    wanted = {need: None for name in names for need in (*PARTS[name].after, name)}
    return [PARTS[name] for name in wanted]


def _run(output: Console, parts: list[Part], *, is_quick: bool) -> tuple[list[Result], float]:
    begin = time.monotonic()
    with screen(output, parts) as progress:
        suite = Suite(parts, progress, quick=is_quick)
        suite.run()
    return [suite.results[part.name] for part in parts], time.monotonic() - begin


@contextmanager
def _load(*, present: bool) -> Iterator[None]:
    """Keep both cores busy."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 if present else 0)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _soak(output: Console, parts: list[Part], times: int, *, is_quick: bool) -> int:
    """Run parts repeatedly, and report how often each passed."""
    held: dict[str, list[Result]] = {part.name: [] for part in parts}
    for number in range(1, times + 1):
        results, seconds = _run(output, parts, is_quick=is_quick)
        for result in results:
            held[result.part].append(result)
        _report(output, results, seconds)
        output.print(f"Run {number} of {times} took {clock(seconds)}.\n")
    table = _table("part", "held", "seconds", "failed")
    for name, runs in held.items():
        failed = sorted({failure.name for run in runs for failure in run.failures})
        good = sum(not run.failed for run in runs)
        table.add_row(
            name, f"{good} of {times}", " ".join(f"{run.seconds:.0f}" for run in runs), "\n".join(map(escape, failed))
        )
    output.print(table)
    return int(any(run.failed for runs in held.values() for run in runs))


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in ("part", "failed") else "right", no_wrap=column == "part")
    return table


def _report(output: Console, results: list[Result], seconds: float) -> None:
    """Print a table, then each failure with its reason, and finally the names of the failures."""
    table = _table("part", "passed", "failed ", "skipped", "seconds")
    for result in results:
        style = "red" if result.failed else ""
        figures = (result.passed, result.failed, result.skipped, round(result.seconds))
        table.add_row(result.part, *map(str, figures), style=style)
    output.print()
    output.print(table)
    failures = [(result.part, failure) for result in results for failure in result.failures]
    for part, failure in failures:
        output.print(Text(f"\n{part}: {failure.name}", "bold red"))
        for line in shortened(failure.message, 2 * MESSAGE_LINES):
            output.print(Text(f"    {line}"))
        if failure.journal:
            output.print(Text("  journal:", "bold"))
            for line in shortened(failure.journal, JOURNAL_LINES):
                output.print(Text(f"    {line}", "dim"))
        output.print(Text(f"  all of it: {(DIRECTORY / part).relative_to(ROOT)}/"))
    if failures:
        output.print("\nFailed:")
        for part, failure in spread(failures)[:LISTED]:
            first = (failure.message.strip().splitlines() or [""])[0]
            output.print(Text(f"  {part}: {failure.name}: {first[:150]}", "red"))
        if len(failures) > LISTED:
            output.print(f"  and {len(failures) - LISTED} more")
    total = Result("", sum(r.passed for r in results), sum(r.skipped for r in results), seconds)
    total.failures = [failure for _, failure in failures]
    output.print(f"\nIn {clock(seconds)}:")
    output.print(counts(total))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
