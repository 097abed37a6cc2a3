"""The results of a part, read from pytest's record and molecule's output."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# `INFO  default ➜ converge: Executed: Successful`
ACTION = re.compile(r"➜ ([\w-]+): (Executing|Executed: (?:Successful|Failed))")
TASK = re.compile(r"^(?:TASK|PLAY|RUNNING HANDLER) \[(.*)\]")
# The headings of a failed task in Ansible's output, and of what follows it.
FATAL = re.compile(r"^(?:fatal: |\[ERROR\]: |failed: )")
ENDS = re.compile(r"^(?:TASK|PLAY|RUNNING HANDLER|NO MORE HOSTS)\b")
MESSAGE = re.compile(r"^\s+msg:")
# Lines of each that are shown at the end; the rest is in the part's files.
MESSAGE_LINES = 12
JOURNAL_LINES = 15


@dataclass(frozen=True)
class Failure:
    """A test or check that failed: the reason, and the journal of the units involved."""

    name: str
    message: str
    journal: str = ""


@dataclass
class Result:
    """The counts of a part, and its failures."""

    part: str
    passed: int = 0
    skipped: int = 0
    seconds: float = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Return the number of failed tests and checks."""
        return len(self.failures)

    def add_record(self, record: Path) -> int:
        """Count the tests of a record; return their number."""
        tests: dict[str, str] = {}
        for line in record.read_text(encoding="utf-8").splitlines() if record.exists() else []:
            entry = json.loads(line)
            if "test" not in entry:
                continue
            # A test whose fixture fails at teardown has failed.
            tests[entry["test"]] = entry["outcome"]
            if entry["outcome"] == "failed":
                where = "" if entry["when"] == "call" else f" ({entry['when']})"
                self.failures.append(Failure(f"{entry['test']}{where}", entry["message"], entry["journal"]))
        outcomes = list(tests.values())
        self.passed += outcomes.count("passed")
        self.skipped += outcomes.count("skipped")
        return len(outcomes)

    def add_actions(self, log: Path, journal: str) -> None:
        """Count molecule's actions as checks; an action that runs tests is counted by its tests."""
        output = plain(log.read_text(encoding="utf-8", errors="replace"))
        begin = 0
        for found in ACTION.finditer(output):
            action, outcome = found.groups()
            if outcome == "Executing":
                begin = found.end()
            # molecule lists them again at the end.
            elif not begin:
                continue
            elif outcome.endswith("Successful"):
                self.passed += action != "verify"
            elif action != "verify" or not self.failures:
                self.failures.append(Failure(action, reason(output[begin : found.start()]), journal))
            if outcome != "Executing":
                begin = 0


def plain(text: str) -> str:
    """Return a text without colour codes."""
    return COLOURS.sub("", text)


def reason(output: str) -> str:
    """Return the reason of a failed command: Ansible's last failed task, or else the last lines."""
    lines = [line for line in output.splitlines() if line.strip()]
    heads = [number for number, line in enumerate(lines) if FATAL.match(line)]
    if not heads:
        return "\n".join(lines[-MESSAGE_LINES:])
    last = heads[-1]
    task = next((line for line in reversed(lines[:last]) if TASK.match(line)), "")
    end = next((number for number, line in enumerate(lines) if number > last and ENDS.match(line)), len(lines))
    # Omit facts that a result may contain beside its message.
    begin = next((number for number in range(last, end) if MESSAGE.match(lines[number])), last)
    return "\n".join([task.rstrip(" *"), lines[last], *lines[begin:end]][: 2 * MESSAGE_LINES])


def spread(failures: list[tuple[str, Failure]]) -> list[tuple[str, Failure]]:
    """Return failures with their parts, the first one of each file first: one fault may fail hundreds of cases."""
    before: Counter[tuple[str, str]] = Counter()

    def rank(failed: tuple[str, Failure]) -> int:
        file = (failed[0], failed[1].name.partition("::")[0])
        before[file] += 1
        return before[file]

    return sorted(failures, key=rank)


def shortened(text: str, most: int) -> list[str]:
    """Return the lines of a text, or only the first and the last if there are too many."""
    lines = text.strip().splitlines()
    if len(lines) <= most:
        return lines
    head = most // 2
    return [*lines[:head], f"... {len(lines) - most + 1} lines more", *lines[len(lines) - (most - head - 1) :]]
