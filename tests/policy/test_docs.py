"""The commands and links in README and docs exist."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.suite.parts import PARTS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Commands that users know from the compose stack.
SEED_COMMANDS = (
    "access-db",
    "access-prefect-db",
    "check-db-health",
    "deploy",
    "exec-db",
    "exec-prefect-worker",
    "rebuild-services",
    "restart-prefect-worker",
    "restart-services",
    "run-etl",
    "service-logs",
    "service-status",
    "start-services",
    "teardown-services",
    "teardown-services-volumes",
)


def make_targets() -> set[str]:
    """Return the targets that `make help` lists."""
    listing = subprocess.run(["make", "help"], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return set(re.findall(r"(?m)^  ([a-z-]+) ", listing)) | {f"test-{part}" for part in PARTS}


def commands(page: Path) -> list[str]:
    """Return the commands in a page's shell blocks and inline code."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    targets = make_targets()
    for command in commands(page):
        if match := re.match(r"(?:sudo )?make ([a-z-]+)", command):
            assert match[1] in targets, f"{page.name}: no target for `{command}`"
        for playbook in re.findall(r"\b(?:playbooks/\w+|site)\.yml", command):
            assert (ROOT / playbook).exists(), f"{page.name}: no {playbook} for `{command}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_names_the_command_that_ci_runs(tmp_path: Path) -> None:
    """The command works from any directory, and returns the exit code."""
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "make $* in $PWD"\nexit 3\n', encoding="utf-8")
    make.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    ran = subprocess.run([ROOT / ".ci/run"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert (ran.stdout, ran.returncode) == (f"make test in {ROOT}\n", 3)
    assert {"make up", "make test"} <= set(commands(PAGES[0]))


@pytest.mark.parametrize("command", SEED_COMMANDS)
def test_seed_command_is_a_make_target_that_pixi_calls(command: str) -> None:
    assert command in make_targets()
    task = tomllib.loads((ROOT / "pixi.toml").read_text(encoding="utf-8"))["tasks"][command]
    line = task if isinstance(task, str) else task["cmd"]
    assert line.split()[:2] == ["make", command]
