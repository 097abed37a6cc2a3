"""The callback `concise`: what a person sees of a playbook, on a terminal, in a file, and after a failure."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAYBOOK = """
- name: Prepare the hosts
  hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - name: Wait a moment
      ansible.builtin.command: sleep 1
      changed_when: true
    - name: Do what may fail
      block:
        - name: List what is not there
          ansible.builtin.command: ls /nosuch
      rescue:
        - name: Do without
          ansible.builtin.command: "true"
          changed_when: false
    - name: Say the answer
      ansible.builtin.debug:
        msg: |-
          The answer is 42.
            next: make status
    - name: Fail on purpose
      ansible.builtin.fail:
        msg: "The disk is full: remove dumps."
      when: how | default('') == 'told'
    - name: Run each
      ansible.builtin.command: "{{ item }}"
      loop: ["true", "ls /nosuch", "ls /other"]
      when: how | default('') == 'loop'
    - name: Fail with a secret
      ansible.builtin.fail:
        msg: The password is hunter2.
      no_log: true
      when: how | default('') == 'secret'
    - name: Write a file
      ansible.builtin.copy:
        content: "new line\\n"
        dest: "{{ file }}"
        mode: "0600"
      when: file is defined
"""
TASKS = 7


@pytest.fixture
def playbook(tmp_path: Path) -> Path:
    """Return a playbook that does a bit of everything."""
    path = tmp_path / "prepare.yml"
    path.write_text(PLAYBOOK)
    (tmp_path / "hosts").write_text(f"localhost ansible_python_interpreter={sys.executable}\n")
    return path


def environment(directory: Path) -> dict[str, str]:
    """Return the environment of a person at the project's root, with logs of their own."""
    configuration = directory / "ansible.cfg"
    text = (ROOT / "ansible.cfg").read_text().replace("plugins/callback", str(ROOT / "plugins/callback"))
    configuration.write_text(f"{text}\n[callback_concise]\nlog_directory = logs\nlogs_kept = 2\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_") and name != "CI"}
    return {**kept, "ANSIBLE_CONFIG": str(configuration), "TERM": "xterm"}


def run(playbook: Path, *options: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run the playbook without a terminal; Python looks for modules in `path` first."""
    program = Path(sys.executable).with_name("ansible-playbook")
    command = [str(program), "--inventory", "hosts", str(playbook), *options]
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=playbook.parent,
        env={**environment(playbook.parent), "PYTHONPATH": path},
    )


def test_an_answer_is_printed_as_it_is_and_all_else_elsewhere(playbook: Path) -> None:
    done = run(playbook)
    assert done.returncode == 0
    assert done.stdout == "The answer is 42.\n  next: make status\n"
    assert re.fullmatch(r" *0:00  Prepare the hosts\n1 change on 1 host, 0:\d\d\.\n", done.stderr), done.stderr
    (log,) = (playbook.parent / "logs").iterdir()
    assert "TASK [List what is not there]" in log.read_text()
    assert "PLAY RECAP" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("module", ["debug", "fail"])
def test_what_controls_a_terminal_is_shown_as_an_escape(playbook: Path, module: str) -> None:
    """What people typed or flows said neither clears the screen nor sets the title, in answers and in failures."""
    typed = "a\x1b[2Jb\x1b]0;title\x07\rc\x9b31md\u202ee\u2028f\tg\u00fc\u00a0\nnext"
    said = json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [{module: {"msg": typed}}]}])
    playbook.write_text(said)
    done = run(playbook)
    shown = done.stdout if module == "debug" else done.stderr
    assert "a\\x1b[2Jb\\x1b]0;title\\x07\\rc\\x9b31md\\u202ee\\u2028f\tg\u00fc\u00a0\nnext\n" in shown
    assert "\x1b" not in shown


def test_a_failure_says_what_and_where_and_the_log(playbook: Path) -> None:
    done = run(playbook, "--extra-vars", "how=told")
    assert done.returncode == 2
    log = re.search(r"logs/\S+-prepare-\d+\.log", done.stderr)
    assert log
    expected = "Failed on localhost:\nThe disk is full: remove dumps.\n\nWhat Ansible said, task by task: "
    assert expected in done.stderr
    assert "nosuch" not in done.stderr, "a failure that the playbook rescued is not told"
    assert "FAILED!" in (playbook.parent / log[0]).read_text()


def test_a_failed_command_is_told_with_its_output(playbook: Path) -> None:
    done = run(playbook, "--extra-vars", "how=loop")
    assert "Failed on localhost:\nRun each:\n`ls /nosuch` ended with exit code 2:\nls: cannot access" in done.stderr
    assert "`ls /other` ended with exit code 2:" in done.stderr


def test_a_failure_with_a_secret_says_that_it_is_hidden(playbook: Path) -> None:
    done = run(playbook, "--extra-vars", "how=secret")
    assert done.returncode == 2
    assert "hunter2" not in done.stdout + done.stderr
    assert "no_log: true" in done.stderr


def test_a_failure_is_told_where_old_logs_go_and_none_can_be_written(playbook: Path) -> None:
    """The only log that tells this playbook's length is the oldest, and is removed; then the directory is a file."""
    logs = playbook.parent / "logs"
    run(playbook)
    for second in range(3):
        (logs / f"9999-01-01T00.00.0{second}-other-1.log").write_text("cut off")
    (logs / "of-somebody-else.log").write_text("kept")
    done = run(playbook, "--extra-vars", "how=told")
    assert "Failed on localhost:\nThe disk is full" in done.stderr
    assert (logs / "of-somebody-else.log").exists()
    for path in logs.iterdir():
        path.unlink()
    logs.rmdir()
    logs.write_text("")
    done = run(playbook, "--extra-vars", "how=told")
    assert "What Ansible says is not kept, because" in done.stderr
    assert "Failed on localhost:\nThe disk is full" in done.stderr
    assert done.stdout == "The answer is 42.\n  next: make status\n"


def test_an_ansible_without_rich_prints_lines(playbook: Path) -> None:
    hidden = playbook.parent / "hidden"
    hidden.mkdir()
    (hidden / "rich.py").write_text("raise ImportError('hidden')")
    done = run(playbook, path=str(hidden))
    assert (done.returncode, done.stdout) == (0, "The answer is 42.\n  next: make status\n")


def test_check_mode_lists_what_would_be_changed_and_diff_how(playbook: Path) -> None:
    file = playbook.parent / "file"
    file.write_text("old line\n")
    done = run(playbook, "--check", "--diff", "--extra-vars", f"file={file}")
    assert "localhost: Write a file\n" in done.stdout
    assert "-old line\n+new line\n" in done.stdout
    assert "1 change would be made on 1 host" in done.stderr
    assert file.read_text() == "old line\n"


def test_verbose_is_ansible_s_own_output(playbook: Path) -> None:
    done = run(playbook, "-v")
    assert "TASK [Wait a moment]" in done.stdout
    assert "PLAY RECAP" in done.stdout
    assert not (playbook.parent / "logs").exists()


@pytest.mark.thorough
def test_only_the_newest_logs_are_kept(playbook: Path) -> None:
    for _ in range(4):
        run(playbook)
    # Those that were kept, and that of the last run.
    assert len(list((playbook.parent / "logs").iterdir())) == 3


def test_a_terminal_shows_one_line_with_time_task_and_bar(playbook: Path) -> None:
    run(playbook)
    main, secondary = pty.openpty()
    program = Path(sys.executable).with_name("ansible-playbook")
    process = subprocess.Popen(
        [program, "--inventory", "hosts", playbook],
        stdin=subprocess.DEVNULL,
        stdout=secondary,
        stderr=secondary,
        cwd=playbook.parent,
        env=environment(playbook.parent),
    )
    os.close(secondary)
    shown = b""
    # Linux ends a terminal whose other side was closed with an error.
    try:
        while part := os.read(main, 4096):
            shown += part
    except OSError:
        pass
    os.close(main)
    assert process.wait() == 0
    text = shown.decode()
    drawn = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", text)
    assert re.search(r"0:0\d ━+ ?\S* +Wait a moment|0:0\d \S+ Wait a moment", drawn), drawn
    assert "The answer is 42." in drawn
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is shown again"
