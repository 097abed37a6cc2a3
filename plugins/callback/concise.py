"""Callback plugin that shows what runs while it runs, and at the end the answer, or what failed, where, and why."""

from __future__ import annotations

import atexit
import os
import re
import shlex
import sys
import threading
import time
import unicodedata
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ansible import context
from ansible.playbook.block import Block
from ansible.plugins.callback.default import CallbackModule as Default
from ansible.utils.color import stringc
from ansible.utils.display import Display

# Another Ansible than that of requirements/controller.txt may have no rich: it gets plain lines.
try:
    from rich.console import Console
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text
except ImportError:
    HAS_RICH = False
else:
    HAS_RICH = True

if TYPE_CHECKING:
    from ansible.executor.stats import AggregateStats
    from ansible.executor.task_result import CallbackTaskResult
    from ansible.playbook import Playbook
    from ansible.playbook.play import Play
    from ansible.playbook.task import Task

DOCUMENTATION = """
name: concise
type: stdout
short_description: Show what runs, the answer, and what failed
description:
  - While a playbook runs, one line on standard error says which task runs and for how long; without a terminal, a line
    says which play begins, and at intervals which task runs.
  - Messages of M(ansible.builtin.debug) are answers. They are printed to standard output as they are.
  - The output of P(ansible.builtin.default#callback) is written to a file, which is named after a failure.
  - With C(-v), this is Ansible's default output.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
requirements:
  - rich, for the line on a terminal
options:
  log_directory:
    description: Where the output of Ansible's default callback is written, one file for each run.
    type: path
    default: '{{CWD}}/.cache/logs'
    ini:
      - section: callback_concise
        key: log_directory
  logs_kept:
    description: For how many runs these files are kept.
    type: int
    default: 50
    ini:
      - section: callback_concise
        key: logs_kept
"""

# Interval between two lines about a long task, without a terminal.
QUIET_SECONDS = 15
# A task that runs for longer than this shows its own time.
LONG_SECONDS = 5
# So much of a command's output explains its failure; all of it is in the log.
OUTPUT_LINES = 20
# Control characters, marks without a glyph, surrogates, and separators of lines.
UNSHOWN = ("Cc", "Cf", "Cs", "Zl", "Zp")
# The last line of a log, from which the next run learns its length.
END = re.compile(r"^Ended after (\d+) tasks", re.MULTILINE)


def harmless(value: Any) -> Any:  # noqa: ANN401 - what a result may contain
    """Return text, or what contains it, with control characters as escapes.

    What people typed into sheets, flows said, or hosts answered must not move the cursor, hide a line, or reach the
    clipboard of who reads it. Marks that reverse the direction of text would do so, too.
    """
    if isinstance(value, str):
        return "".join(
            char if char in "\n\t" or unicodedata.category(char) not in UNSHOWN else ascii(char)[1:-1] for char in value
        )
    if isinstance(value, dict):
        return {key: harmless(each) for key, each in value.items()}
    return [harmless(each) for each in value] if isinstance(value, list) else value


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def counted(number: int, what: str) -> str:
    """Return a number with its noun."""
    return f"{number} {what}{'' if number == 1 else 's'}"


class Log(Display):  # type: ignore[misc] # ansible has no type hints
    """Takes the place of Ansible's display, and writes to a file."""

    def __init__(self, file: TextIO) -> None:
        super().__init__()
        self.file = file

    def display(
        self,
        msg: str,
        color: str | None = None,
        stderr: bool = False,
        screen_only: bool = False,
        log_only: bool = False,
        newline: bool = True,
        caplevel: int | None = None,
    ) -> None:
        """Write a message. Those for the screen alone are the ones that a log has, too."""
        # The operator's own log, ANSIBLE_LOG_PATH, gets what it would get from Ansible's callback.
        if not screen_only:
            super().display(msg, color, stderr, log_only=True, newline=newline, caplevel=caplevel)
        if not log_only:
            self.file.write(re.sub("\x1b\\[[0-9;]*m", "", msg.removesuffix("\n")) + "\n")


class Activity:
    """The play and the task that run."""

    def __init__(self, expected: int) -> None:
        self.expected, self.tasks = expected, 0
        self.begin = self.task_begin = time.monotonic()
        self.name = ""

    def start(self, name: str) -> None:
        """Note that a task starts."""
        self.name, self.task_begin = name, time.monotonic()
        self.tasks += 1

    @property
    def seconds(self) -> float:
        """Return for how long the playbook has been running."""
        return time.monotonic() - self.begin

    @property
    def task(self) -> str:
        """Return the task, with its time if it takes long."""
        seconds = time.monotonic() - self.task_begin
        return f"{self.name}, for {clock(seconds)}" if seconds > LONG_SECONDS else self.name


class Lines:
    """Prints a line when a play begins, and at intervals about a task."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity
        self._written = activity.begin
        self._pause = False
        threading.Thread(target=self._repeat, daemon=True).start()

    def play(self, name: str) -> None:
        """Print that a play begins."""
        self._write(name)

    def start(self) -> None:
        """Print from now on."""
        self._pause = False

    def stop(self) -> None:
        """Print nothing, because something else is printed or read."""
        self._pause = True

    def _repeat(self) -> None:
        while True:
            # Until the next line is due, which each play's line postpones; a second at least, as one may be due while a
            # question is asked. Nobody waits for this thread: it ends with the process.
            time.sleep(max(1, self._written + QUIET_SECONDS - time.monotonic()))
            if not self._pause and time.monotonic() >= self._written + QUIET_SECONDS:
                self._write(self._activity.task)

    def _write(self, text: str) -> None:
        self._written = time.monotonic()
        print(f"{clock(self._activity.seconds):>5}  {text}", file=sys.stderr, flush=True)


class Drawing:
    """Draws one line on a terminal: the time, a bar if an earlier run tells the length, and the task."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity
        self._spinner = Spinner("dots")
        self._live = Live(
            console=Console(stderr=True),
            get_renderable=self._draw,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def play(self, name: str) -> None:
        """Show nothing more: tasks are shown."""

    def start(self) -> None:
        """Draw."""
        self._live.start()

    def stop(self) -> None:
        """Remove the line, because something else is printed or read."""
        self._live.stop()

    def _draw(self) -> Table:
        activity = self._activity
        line = Table.grid(padding=(0, 1))
        cells: list[Any] = [self._spinner, clock(activity.seconds)]
        if activity.expected:
            # Never whole before the end: this run may take more tasks than the last.
            cells.append(
                ProgressBar(1, min(0.98, activity.tasks / activity.expected), width=20, complete_style="green")
            )
        for _ in cells:
            line.add_column(no_wrap=True)
        line.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        line.add_row(*cells, Text(activity.task))
        return line


class CallbackModule(Default):  # type: ignore[misc] # ansible has no type hints
    """Shows the progress and the result of a playbook."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "concise"

    def __init__(self) -> None:
        super().__init__()
        # Until the log replaces it, this is the display of the terminal.
        self._display: Display
        self._plain = self._display.verbosity > 0
        self._log_path: Path | None = None
        self._progress: Lines | Drawing | None = None
        self._activity = Activity(0)
        # What failed: the explanation, and the hosts with their labels.
        self._failures: dict[str, dict[str, str]] = defaultdict(dict)
        self._answered = False

    # What is shown while it runs.

    def v2_playbook_on_start(self, playbook: Playbook) -> None:
        """Open the log, and show progress from now on."""
        # One command may run several playbooks, which share a log.
        if not self._plain and self._progress is None:
            name = Path(playbook._file_name).stem
            expected, file = self._open_log(name)
            self._display = Log(file)
            self._activity = Activity(expected)
            draws = HAS_RICH and sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and "CI" not in os.environ
            self._progress = Drawing(self._activity) if draws else Lines(self._activity)
            self._progress.start()
            # A playbook that Ansible ends early, as for an error in its text, has no end of its own.
            atexit.register(self._progress.stop)
        super().v2_playbook_on_start(playbook)

    def _open_log(self, name: str) -> tuple[int, TextIO]:
        """Return how many tasks the playbook's last run took, or 0, and a new log; remove the oldest ones."""
        directory = Path(self.get_option("log_directory"))
        path = directory / f"{time.strftime('%Y-%m-%dT%H.%M.%S')}-{name}-{os.getpid()}.log"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # Only those that this callback named.
            earlier = sorted(directory.glob("[0-9]*T[0-9]*-*-[0-9]*.log"))
            expected = length([log for log in earlier if f"-{name}-" in log.name])
            for old in earlier[: max(0, len(earlier) - self.get_option("logs_kept"))]:
                old.unlink(missing_ok=True)
            # What Ansible says can hold what nobody else should read, as results of modules do.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            print(f"What Ansible says is not kept, because {directory} cannot be written: {error}", file=sys.stderr)
            return 0, Path(os.devnull).open("w", encoding="utf-8")
        self._log_path = path
        return expected, os.fdopen(descriptor, "w", buffering=1, encoding="utf-8", errors="replace")

    def v2_playbook_on_play_start(self, play: Play) -> None:
        """Note which play begins."""
        if self._progress:
            self._progress.play(play.get_name())
        super().v2_playbook_on_play_start(play)

    def v2_playbook_on_task_start(self, task: Task, is_conditional: bool) -> None:
        """Note which task begins."""
        self._note(task)
        super().v2_playbook_on_task_start(task, is_conditional)

    def v2_playbook_on_handler_task_start(self, task: Task) -> None:
        """Note which handler begins."""
        self._note(task)
        super().v2_playbook_on_handler_task_start(task)

    def _note(self, task: Task) -> None:
        if self._progress:
            self._activity.start(task.get_name())
            # It asks a person, whose answer the line would overwrite.
            (self._progress.stop if task.action in ("pause", "ansible.builtin.pause") else self._progress.start)()

    # What is printed.

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        """Print an answer; in check mode, also what would be changed."""
        if not self._plain:
            changed = result.result.get("changed", False)
            if result.task.action in ("debug", "ansible.builtin.debug") and "msg" in result.result:
                self._answer(harmless(text_of(result.result["msg"])))
            elif changed and context.CLIARGS["check"]:
                self._answer(f"{result.host.get_name()}: {result.task.get_name()}")
        super().v2_runner_on_ok(result)

    def v2_on_file_diff(self, result: CallbackTaskResult) -> None:
        """Print differences, which --diff asked for."""
        if not self._plain and context.CLIARGS["diff"]:
            results = result.result["results"] if result.task.loop and "results" in result.result else [result.result]
            for each in results:
                if each.get("changed", False) and each.get("diff") and (diff := self._get_diff(harmless(each["diff"]))):
                    self._answer(diff)
        super().v2_on_file_diff(result)

    def v2_runner_on_failed(self, result: CallbackTaskResult, ignore_errors: bool = False) -> None:
        """Note a failure, to explain it at the end."""
        if not ignore_errors and not is_rescued(result.task):
            # Ansible's callback removes from the result what it has written.
            self._fail(result, explained(result.result, result.task))
        super().v2_runner_on_failed(result, ignore_errors)

    def v2_runner_on_unreachable(self, result: CallbackTaskResult) -> None:
        """Note that a host cannot be reached, to explain it at the end."""
        if not result.task.ignore_unreachable:
            self._fail(result, f"It cannot be reached: {result.result.get('msg')}")
        super().v2_runner_on_unreachable(result)

    def _fail(self, result: CallbackTaskResult, text: str) -> None:
        self._failures[harmless(text)][result.host.get_name()] = self.host_label(result)

    def v2_playbook_on_stats(self, stats: AggregateStats) -> None:
        """Print what failed and where, or how much was changed."""
        super().v2_playbook_on_stats(stats)
        if self._progress is None:
            return
        self._progress.stop()
        self._display.display(f"Ended after {self._activity.tasks} tasks and {self._activity.seconds:.0f} s")
        lost = stats.failures.keys() | stats.dark.keys()
        for text, labels in self._failures.items():
            # A host that is not lost was rescued.
            if hosts := [label for host, label in labels.items() if host in lost]:
                print(stringc(f"Failed on {', '.join(hosts)}:", "red"), text, sep="\n", end="\n\n", file=sys.stderr)
        self._failures.clear()
        if lost and self._log_path:
            print(f"What Ansible said, task by task: {os.path.relpath(self._log_path)}", file=sys.stderr)
        elif not lost and ((changes := sum(stats.changed.values())) or not self._answered):
            would = " would be made" if context.CLIARGS["check"] else ""
            where = counted(len(stats.processed.keys() - {"localhost"}) or 1, "host")
            print(f"{counted(changes, 'change')}{would} on {where}, {clock(self._activity.seconds)}.", file=sys.stderr)

    def _answer(self, text: str) -> None:
        self._answered = True
        if self._progress:
            self._progress.stop()
        print(text, flush=True)
        if self._progress:
            self._progress.start()


def length(logs: list[Path]) -> int:
    """Return how many tasks the last whole run took, or 0 if no log tells."""
    for log in reversed(logs):
        # Another command may remove it at this moment.
        with suppress(OSError):
            if ends := END.findall(log.read_text(encoding="utf-8", errors="replace")[-200:]):
                return int(ends[-1])
    return 0


def text_of(message: object) -> str:
    """Return a message as text; Ansible also accepts lists."""
    return "\n".join(map(str, message)) if isinstance(message, list) else str(message)


def explained(result: dict[str, Any], task: Task) -> str:
    """Return what failed: the task, its message, and the end of a command's output."""
    results = result.get("results", []) if task.loop else []
    items = [item for item in results if item.get("failed") or item.get("unreachable")]
    texts = [_message(item) for item in items] or [_message(result)]
    # A task that fails on purpose has a message that says everything.
    told = task.action.rpartition(".")[2] in ("fail", "assert")
    return "\n".join(([] if told else [f"{task.get_name()}:"]) + list(dict.fromkeys(texts)))


def _message(result: dict[str, Any]) -> str:
    # Of a task with secrets, Ansible hides everything but that it is hidden.
    lines = [text_of(result.get("msg") or result.get("censored") or "The module gave no reason.")]
    if lines == ["non-zero return code"]:
        command = result.get("cmd", "")
        lines = [
            f"`{command if isinstance(command, str) else shlex.join(command)}` ended with exit code {result.get('rc')}:"
        ]
    outputs = [str(result.get(name, "")).strip() for name in ("stderr", "module_stderr", "stdout", "module_stdout")]
    for output in filter(None, outputs):
        lines += output.splitlines()[-OUTPUT_LINES:]
        break
    return "\n".join(lines)


def is_rescued(task: Task) -> bool:
    """Return whether a failure of this task starts the `rescue` of a block around it."""
    child, parent = task, task._parent
    while parent:
        if isinstance(parent, Block) and parent.rescue and child._uuid in {each._uuid for each in parent.block}:
            return True
        child, parent = parent, parent._parent
    return False
