"""docs/add-a-flow.md works: a test follows the page in a copy of the project, and compares the results."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from sqlalchemy import Engine, text

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/add-a-flow.md").read_text(encoding="utf-8")
SHEETS = (ROOT / "docs/sheets.md").read_text(encoding="utf-8")
COPIED = ("alembic.ini", "data", "docs", "migrations", "pyproject.toml", "run_prefect_flow.py", "src", "tests/policy")

# Prints the origin of the master flow's modules.
ORIGINS = """
import run_prefect_flow, sys
for name, module in sys.modules.items():
    if name == "run_prefect_flow" or name.startswith("ca_biositing.") and module.__file__:
        print(module.__file__)
"""
# A block of code, with the line before it that names its file, or the table after it.
BLOCK = re.compile(
    r"(?:^In `(?P<path>[^`]+)`, (?:a new file|(?P<side>above|below) `(?P<anchor>[^`]+)`):\n\n)?"
    r"^```(?P<language>\w+)\n(?P<code>.*?)^```\n"
    r"(?:\n(?P<table>(?:^\|[^\n]*\n)+))?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of code on the page; ``place`` is where in ``path`` it goes, empty for a new file."""

    language: str
    code: str
    path: str
    place: tuple[str, str]
    table: str


def blocks(section: str) -> Iterator[Block]:
    """Return the blocks of a section, in order."""
    for match in BLOCK.finditer(section):
        part = match.groupdict(default="")
        yield Block(part["language"], part["code"], part["path"], (part["side"], part["anchor"]), part["table"])


def sections() -> dict[str, str]:
    """Return the page's sections by heading."""
    parts = re.split(r"(?m)^## (.*)\n", PAGE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


class Reader:
    """Follows the page's instructions in a copy of the project."""

    def __init__(self, project: Path, engine: Engine) -> None:
        self._project = project
        self._engine = engine
        self._output = ""
        self.edited: set[str] = set()

    def follow(self, block: Block) -> None:
        """Apply or run a block, or compare it with the actual result."""
        if block.path:
            self._edit(block)
        elif block.language == "bash":
            self.run(block.code)
        elif block.language == "text":
            assert block.code.strip() in self._output
        elif block.language == "sql":
            assert self.query(block.code) == rows_of_table(block.table)
        else:
            pytest.fail(f"The page does not say which file this goes into:\n{block.code}")

    def run(self, commands: str) -> str:
        """Run commands in a shell until one fails; return their output."""
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", commands],
            cwd=self._project,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self._output = done.stdout
        assert done.returncode == 0, f"{commands}\n{done.stdout}"
        return done.stdout

    def query(self, statement: str) -> list[list[str]]:
        """Return a query's columns and rows, as psql shows them."""
        with self._engine.connect() as connection:
            result = connection.execute(text(statement))
            return [[*result.keys()], *([("" if cell is None else str(cell)) for cell in row] for row in result)]

    def _edit(self, block: Block) -> None:
        self.edited.add(block.path)
        path = self._project / block.path
        side, anchor = block.place
        if not side:
            assert not path.exists(), f"{block.path} is no new file"
            path.write_text(block.code, encoding="utf-8")
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        assert lines.count(f"{anchor}\n") == 1, f"{block.path} has not one line {anchor!r}"
        at = lines.index(f"{anchor}\n") + (side == "below")
        # Insert blank lines between classes or sections, as a user would.
        blank = {"above": "\n\n" if path.suffix == ".py" else "\n", "below": ""}[side]
        path.write_text("".join([*lines[:at], block.code, blank, *lines[at:]]), encoding="utf-8")


def rows_of_table(table: str) -> list[list[str]]:
    """Return a markdown table's header and rows."""
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    return [header, *rows]


@pytest.fixture
def project(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the project, from which children of this process import, with the environment the page sets."""
    folder = tmp_path / "project"
    for name in COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    # The fixtures provide what these commands create, so only the variables are used.
    exports = dict(re.findall(r"(?m)^export (\w+)=(.*)$", sections()["Before you start"]))
    assert exports.keys() == {"DATABASE_URL", "ETL_SOURCE_DIRECTORY"}
    for name, value in {**exports, "DATABASE_URL": database_url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ETL_SOURCE", raising=False)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    # The installed package would import the checkout.
    monkeypatch.setenv("PYTHONPATH", str(folder / "src"))
    return folder


def master_runs(client: SyncPrefectClient) -> dict[UUID, FlowRun]:
    """Return the server's runs of the master flow."""
    runs = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["Master ETL Flow"])))
    return {run.id: run for run in runs}


def sub_flow_runs(client: SyncPrefectClient, master: FlowRun) -> dict[str, FlowRun]:
    """Return the runs of a master run's flows, by the flow's name."""
    children = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[master.id]))
    )
    return {client.read_flow(child.flow_id).name: child for child in children}


def test_the_next_migration_has_the_number_on_the_page() -> None:
    """If this fails, a migration was added to the project: update the page."""
    newest = max(int(path.name[:4]) for path in (ROOT / "migrations/versions").glob("[0-9]*.py"))
    assert set(re.findall(r"\b0\d{3}(?=\b|_)", PAGE)) == {f"{newest + 1:04}"}, "docs/add-a-flow.md, 3. The migration"


@pytest.mark.thorough
def test_the_page_is_true(prefect: SyncPrefectClient, engine: Engine, project: Path) -> None:
    """Each step works, and the new flow runs inside the master flow."""
    reader = Reader(project, engine)
    before = master_runs(prefect)

    for heading, section in sections().items():
        if re.match(r"\d", heading):
            for block in blocks(section):
                # These commands need a host; tests/policy checks that the targets exist.
                if not re.fullmatch(r"(make .*\n)+", block.code):
                    reader.follow(block)

    (migration,) = set(re.findall(r"`(migrations/versions/\w+\.py)`", PAGE))
    python = " ".join([migration, *(name for name in sorted(reader.edited) if name.endswith(".py"))])
    # As `make lint`, but only for these files.
    reader.run(f"ruff check {python}; ruff format --check {python}; mypy --follow-imports silent {python}")
    origins = reader.run(f"python -c '{ORIGINS}'").splitlines()
    assert str(project / "src/ca_biositing/pipeline/flows/preparation.py") in origins
    assert all(Path(origin).is_relative_to(project) for origin in origins), origins
    assert "No new upgrade operations detected" in reader.run("alembic check")
    (master,) = (run for id_, run in master_runs(prefect).items() if id_ not in before)
    children = sub_flow_runs(prefect, master)
    assert master.state_name == "Completed"
    assert {child.state_name for child in children.values()} == {"Completed"}
    artifacts = prefect.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[children["preparation"].id]))
    )
    named = set(re.findall(r"`((?:accounting|rejected-rows)-[\w-]+)`", PAGE))
    assert {artifact.key for artifact in artifacts} == named
    assert {"accounting-field-sample", "rejected-rows-field-sample"} <= set(re.findall(r"`([\w-]+)`", SHEETS))
    for block in (each for each in blocks(SHEETS) if each.language == "sql"):
        assert len(reader.query(block.code)) > 1, block.code
