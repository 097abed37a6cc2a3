"""The commands and links in README and docs exist."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.docs import PAGES, ROOT
from tests.docs import commands as shell_blocks
from tests.suite.parts import PARTS

ADD_A_FLOW = "tests/integration/test_add_a_flow.py::test_the_page_is_true"
PROJECT = "tests/scenarios/project/test_bring_your_project.py"
UNIT = "tests/unit/test_commands_of_the_docs.py"
HOST = "tests/host/test_commands_of_the_docs.py"
BACKUPS = "tests/host/test_base_backups.py"
INSTALLED = f"{HOST}::test_a_host_gets_the_platform_and_its_sheets"
DEPLOYED = f"{HOST}::test_releases_are_deployed_rolled_back_and_installed_from_an_archive"
UPGRADE = "upgrades a host from Debian 12 to 13, for which no scenario has an archive"
# What runs each block of commands of a page as it stands, by the block's first words: a test, or a reason why none can.
RUN_BY = {
    "README.md": {"make up": INSTALLED, "make test": "runs these tests"},
    "docs/add-a-flow.md": {
        "make .venv/dev": "makes a database and an environment, as the fixtures of the page's test do",
        "alembic upgrade head\nalembic revision": ADD_A_FLOW,
        "alembic upgrade head\nalembic check": ADD_A_FLOW,
        "python -c": ADD_A_FLOW,
        "sed --in-place": ADD_A_FLOW,
        "pytest": ADD_A_FLOW,
        "make rebuild-services": DEPLOYED,
    },
    "docs/bring-your-project.md": {
        "cp -r": f"{PROJECT}::mine",
        "install -D": f"{PROJECT}::mine",
        "make lock": f"{PROJECT}::mine",
        "make start-services": f"{PROJECT}::mine",
        "docker compose": f"{PROJECT}::moved",
        "make restore": f"{PROJECT}::moved",
        "make rebuild-services": f"{PROJECT}::test_a_release_of_it_is_deployed_and_rolled_back",
    },
    "docs/install.md": {
        "export INVENTORY": f"{UNIT}::test_inventory_and_options_are_named_once_in_a_shell",
        "make start-services": INSTALLED,
        "VAGRANT_BOX": "boots a virtual machine, for which `make test-vagrant PROVIDER=libvirt` takes half an hour",
    },
    "docs/operate.md": {
        "psql": f"{HOST}::test_an_analyst_reaches_the_database",
        "make orphaned-rows": f"{HOST}::test_orphaned_rows_are_listed_and_removed",
        "apt-get install": UPGRADE,
        "runuser": UPGRADE,
        ".venv/bin/python scripts/on_host.py": f"{BACKUPS}::test_a_dropped_table_is_back_as_it_was_the_second_before",
    },
    "docs/releases.md": {
        "make rollback": DEPLOYED,
        "make release-archive FILE=biocirv.release\n": DEPLOYED,
        "make release-archive FILE=biocirv.release OPTIONS": f"{HOST}::test_an_archive_is_signed",
    },
    "docs/security.md": {"ssh -N": f"{HOST}::test_a_tunnel_leads_to_the_database"},
    "docs/sheets.md": {
        "make .venv/dev": f"{UNIT}::test_sheets_are_checked_without_a_platform",
        "make history": f"{HOST}::test_the_history_of_a_row_is_shown",
    },
}
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


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_each_block_of_commands_is_run_by_a_test(page: str) -> None:
    """If this fails, a block was added or changed: let a test run it as it stands, and name that test in RUN_BY."""
    known = dict(RUN_BY.get(page, {}))
    for block in shell_blocks(page):
        begins = [start for start in known if block.text.startswith(start)]
        assert len(begins) == 1, f"{page}, {block.section}: which test runs this?\n{block.text}"
        path, _, function = known.pop(begins[0]).partition("::")
        if function:
            assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no {function}"
    assert known == {}, f"{page} has no such block"


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
