"""Runs playbooks without hosts: on this machine, with programs that stand in for those of a host."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
Done = subprocess.CompletedProcess[str]


def ansible(play: Path, inventory: Path, variables: dict[str, object], *options: str, **environment: str) -> Done:
    """Run a play of this project; nobody answers its questions."""
    return subprocess.run(
        ["ansible-playbook", "--inventory", str(inventory), str(play), "--extra-vars", json.dumps(variables), *options],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.json", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def results(done: Done) -> list[tuple[str, dict[str, Any]]]:
    """Return each task's name with the result of its first host."""
    tasks = [task for play in json.loads(done.stdout)["plays"] for task in play["tasks"]]
    return [(task["task"]["name"], next(iter(task["hosts"].values()))) for task in tasks if task["hosts"]]


def messages(done: Done) -> list[str]:
    """Return what was shown, and the message of a failure."""
    return [str(result["msg"]) for _, result in results(done) if "msg" in result]


def stand_ins(directory: Path, **programs: str) -> str:
    """Write shell scripts in place of programs, named with `_` for `-`; return a PATH that begins with them."""
    for name, script in programs.items():
        program = directory / "bin" / name.replace("_", "-")
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}", encoding="utf-8")
        program.chmod(0o755)
    return f"{directory / 'bin'}:{os.environ['PATH']}"


def this_machine(directory: Path, group: str) -> Path:
    """Write an inventory in which this machine is the only host of a group; return its path."""
    host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    path = directory / "hosts.yml"
    path.write_text(json.dumps({group: {"hosts": {"one": host}}}), encoding="utf-8")
    return path
