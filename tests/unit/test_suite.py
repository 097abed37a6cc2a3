"""The suite's report: its counts, and the details of a failure."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import limits
from tests.suite import run, screen
from tests.suite.parts import Part, Step
from tests.suite.results import Failure, Result, reason, shortened, spread

CONVERGE = """\
INFO     default ➜ create: Executing
INFO     default ➜ create: Executed: Successful
INFO     default ➜ converge: Executing
PLAY [Run PostgreSQL] ****
TASK [postgresql : Install the packages] ****
fatal: [host]: FAILED! =>
    ansible_facts:
        - root
    msg: |-
        No package matching 'postgresql-99'

PLAY RECAP ****
\x1b[31mERROR\x1b[0m    default ➜ converge: Executed: Failed
INFO     default ➜ destroy: Executing
INFO     default ➜ destroy: Executed: Successful
  default ➜ converge: Executed: Failed
"""


def test_a_failed_converge_is_one_failure_with_its_task_and_message(tmp_path: Path) -> None:
    log = tmp_path / "default.log"
    log.write_text(CONVERGE, encoding="utf-8")
    result = Result("host")

    result.add_actions(log, "the journal")

    assert (result.passed, result.failed) == (2, 1)
    (failure,) = result.failures
    assert (failure.name, failure.journal) == ("converge", "the journal")
    assert failure.message.splitlines() == [
        "TASK [postgresql : Install the packages]",
        "fatal: [host]: FAILED! =>",
        "    msg: |-",
        "        No package matching 'postgresql-99'",
    ]


def test_the_last_lines_say_why_where_no_task_failed() -> None:
    assert reason("one\n\ntwo: error\n") == "one\ntwo: error"


def test_a_test_whose_fixture_fails_at_its_end_failed(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    entries = [
        {"begins": "a"},
        {"test": "a", "when": "call", "outcome": "passed", "message": "", "journal": ""},
        {"test": "a", "when": "teardown", "outcome": "failed", "message": "it left a process", "journal": ""},
        {"test": "b", "when": "setup", "outcome": "skipped", "message": "", "journal": ""},
        {"test": "c", "when": "call", "outcome": "passed", "message": "", "journal": ""},
    ]
    record.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    result = Result("unit")

    assert result.add_record(record) == 3
    assert (result.passed, result.failed, result.skipped) == (1, 1, 1)
    assert result.failures[0].name == "a (teardown)"


def test_a_part_whose_program_is_not_there_fails_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "DIRECTORY", tmp_path)
    parts = [
        Part("broken", "nothing", (Step("step", ("no-such-program",)),), 2),
        Part("sound", "nothing", (Step("step", ("true",)),), 1),
        Part("later", "nothing", (Step("step", ("true",)),), 1, after=("broken",)),
    ]
    with screen.screen(screen.console(), parts) as progress:
        suite = run.Suite(parts, progress, quick=False)
        suite.run()

    assert {name: (result.passed, result.failed) for name, result in suite.results.items()} == {
        "broken": (0, 1),
        "sound": (1, 0),
        "later": (0, 1),
    }
    assert "no-such-program" in suite.results["broken"].failures[0].message
    assert "it needs broken" in suite.results["later"].failures[0].message


STOPPED = """\
import sys
from pathlib import Path
from tests.suite import __main__, run
from tests.suite.parts import PARTS, Part, Step
run.DIRECTORY = Path(sys.argv.pop(1))
PARTS["long"] = Part("long", "", (Step("long", ("sh", "-c", "echo $$; exec sleep 600")),), 60)
sys.exit(__main__.main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_suite_that_is_stopped_ends_its_parts(number: signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "long/long.log"
    # In the background of a shell, SIGINT is ignored.
    suite = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", STOPPED, str(tmp_path), "long"],
        stdout=subprocess.DEVNULL,
    )
    number_of_part = limits.wait_until(lambda: log.exists() and log.read_text().strip(), "the part runs", limits.ANSWER)
    part = Path("/proc", str(number_of_part))
    assert part.exists()

    suite.send_signal(number)

    assert suite.wait(limits.limit(limits.ANSWER)) != 0
    assert not part.exists()


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    lines = shortened("\n".join(map(str, range(100))), 10)
    assert lines == ["0", "1", "2", "3", "4", "... 91 lines more", "96", "97", "98", "99"]


def test_one_fault_does_not_hide_another_from_the_last_lines() -> None:
    """The first failure of each file comes first; a file's own failures stay in their order."""
    names = ["a.py::one[1]", "a.py::one[2]", "a.py::two", "b.py::three", "b.py::four"]
    failures = [("unit", Failure(name, "")) for name in names] + [("host", Failure("a.py::five", ""))]
    found = [failure.name for _, failure in spread(failures)]
    assert found == ["a.py::one[1]", "b.py::three", "a.py::five", "a.py::one[2]", "b.py::four", "a.py::two"]
