"""Runs parts as processes, two at a time, the longest first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests import limits
from tests.suite.parts import QUICK
from tests.suite.results import ACTION, TASK, Failure, Result, plain, reason
from tests.suite.screen import Running

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.suite.parts import Part, Step
    from tests.suite.screen import Screen

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / ".cache/tests"
# For two cores: one part works while the other waits.
LANES = 2
LOOK_SECONDS = 1.0


class Suite:
    """Parts that run together; ``results`` is in the order in which they ended."""

    def __init__(self, parts: Iterable[Part], screen: Screen, *, quick: bool) -> None:
        self._waiting = sorted(parts, key=lambda part: -self._expected(part, quick=quick))
        self._names = {part.name for part in self._waiting}
        self._screen = screen
        self._quick = quick
        self._changed = threading.Condition()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._interrupted = False
        self.results: dict[str, Result] = {}

    @staticmethod
    def _expected(part: Part, *, quick: bool) -> float:
        return part.quick_seconds if quick else part.seconds

    def run(self) -> None:
        """Run all parts; on an interrupt, stop the running ones."""
        lanes = [threading.Thread(target=self._work, daemon=True) for _ in range(LANES)]
        for lane in lanes:
            lane.start()
        try:
            for lane in lanes:
                while lane.is_alive():
                    lane.join(LOOK_SECONDS)
        except KeyboardInterrupt:
            self._interrupted = True
            for process in list(self._processes):
                _end(process)
            for lane in lanes:
                lane.join()
            raise

    def _work(self) -> None:
        while part := self._take():
            result = self._run(part)
            with self._changed:
                self.results[part.name] = result
                self._changed.notify_all()

    def _take(self) -> Part | None:
        """Return the longest part that may start; wait while all depend on a running one."""
        with self._changed:
            while self._waiting and not self._interrupted:
                for part in self._waiting:
                    # A dependency that is not in this run is assumed to exist from an earlier run.
                    if all(name in self.results or name not in self._names for name in part.after):
                        self._waiting.remove(part)
                        return part
                self._changed.wait()
            return None

    def _run(self, part: Part) -> Result:
        running = Running(part, self._expected(part, quick=self._quick) * limits.slowness())
        result = Result(part.name)
        self._screen.begin(running)
        broken = [name for name in part.after if name in self.results and self.results[name].failed]
        if broken:
            result.failures.append(Failure("not run", f"it needs {' and '.join(broken)}, which failed"))
        else:
            directory = DIRECTORY / part.name
            directory.mkdir(parents=True, exist_ok=True)
            for old in directory.iterdir():
                old.unlink()
            for step in part.steps:
                try:
                    self._step(part, step, running, directory, result)
                # The program is missing. If this thread ended here, the other one would wait for this part forever.
                except OSError as error:
                    result.failures.append(Failure(step.name, str(error)))
        result.seconds = running.seconds
        self._screen.end(running, result)
        return result

    def _step(self, part: Part, step: Step, running: Running, directory: Path, result: Result) -> None:
        log, record = directory / f"{step.name.replace(' ', '-')}.log", directory / "record.jsonl"
        environment = {
            **os.environ,
            **step.environment,
            limits.VARIABLE: str(limits.slowness()),
            "ANSIBLE_NOCOLOR": "1",
            "PYTHONUNBUFFERED": "1",
            "TEST_JOURNALS": str(directory),
            "TEST_RECORD": str(record),
        }
        if self._quick:
            environment["PYTEST_ADDOPTS"] = f"{os.environ.get('PYTEST_ADDOPTS', '')} {QUICK[0]} '{QUICK[1]}'"
        running.doing = step.name
        seconds = limits.limit(10 * part.seconds)
        with log.open("wb") as output:
            process = subprocess.Popen(
                step.command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.add(process)
        followers = (_Follower(log, running), _Follower(record, running))
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            for follower in followers:
                follower.look()
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_SECONDS)
        late = process.poll() is None
        if late:
            _end(process)
        self._processes.discard(process)
        _judge(step, process.returncode, log, record, result)
        if late:
            result.failures.append(Failure(step.name, f"it did not end within {seconds:.0f} seconds"))


def _judge(step: Step, code: int, log: Path, record: Path, result: Result) -> None:
    """Add the result of a step."""
    before = result.failed
    tests = result.add_record(record) if step.command[0] in ("pytest", "molecule") else 0
    if step.command[0] == "molecule":
        journals = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(log.parent.glob("journal-*"))]
        result.add_actions(log, "\n".join(journals))
    elif step.command[0] != "pytest" and code == 0:
        result.passed += 1
    if code != 0 and result.failed == before:
        text = plain(log.read_text(encoding="utf-8", errors="replace"))
        result.failures.append(Failure(step.name, f"exit code {code}\n{reason(text)}"))
    if code == 0 and not tests and step.command[0] in ("pytest", "molecule"):
        result.failures.append(Failure(step.name, "it ran no test"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a step's process and its children: by a signal that allows cleanup, then by SIGKILL."""
    for number, patience in ((signal.SIGINT, limits.limit(limits.ANSWER)), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return


class _Follower:
    """Reads a growing file, and keeps the current activity that it reports."""

    def __init__(self, path: Path, running: Running) -> None:
        self._path, self._running = path, running
        self._position = 0
        self._action = ""

    def look(self) -> None:
        """Read new lines."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            text = file.read()
        # An incomplete line is read next time.
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in plain(whole.decode(errors="replace")).splitlines():
            self._note(line)

    def _note(self, line: str) -> None:
        if self._path.suffix == ".jsonl":
            entry = json.loads(line)
            self._running.tests += "test" in entry
            if "begins" in entry:
                self._running.doing = entry["begins"].rpartition("::")[2]
        elif found := ACTION.search(line):
            self._action = self._running.doing = found[1]
        elif found := TASK.match(line):
            self._running.doing = f"{self._action}: {found[1]}" if self._action else found[1]
