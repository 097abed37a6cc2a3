"""The parts of the suite: what each covers, its commands, and their approximate duration."""

from __future__ import annotations

from dataclasses import dataclass, field

# Excludes tests with this marker from `make test`.
QUICK = ("-m", "not thorough")
# Shell scripts are found by their first line.
SHELLCHECK = r"set -o pipefail; git grep --name-only -E '^#!.*\b(ba|da)?sh$' | xargs shellcheck"

# Tests that begin after minutes, and what they read when they are imported.
SCENARIOS = ("tests/drills", "tests/host", "tests/scenarios", "tests/vagrant")
MOLECULE = {"MOLECULE_EPHEMERAL_DIRECTORY": "", "MOLECULE_INVENTORY_FILE": ""}


@dataclass(frozen=True)
class Step:
    """A command of a part: a single check, or a run of pytest or molecule, which report their own counts."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A part of the suite that can run alone.

    ``seconds`` is its duration on two idle cores beside another part: the longest part starts first, and its timeout is
    ten times as long. ``quick_seconds`` is the same for its share of `make test`, 0 if it has none.
    """

    name: str
    covers: str
    steps: tuple[Step, ...]
    seconds: int
    quick_seconds: int = 0
    after: tuple[str, ...] = ()
    # Debian packages that the Makefile installs before any part runs.
    programs: tuple[str, ...] = ()


def _pytest(*arguments: str) -> tuple[Step, ...]:
    return (Step("pytest", ("pytest", *arguments)),)


def _molecule(scenario: str, debian: int) -> tuple[Step, ...]:
    command = ("molecule", "test", "--scenario-name", scenario)
    return (Step(scenario, command, {"DEBIAN": str(debian), "MOLECULE_COMMAND_BORDERS": "false"}),)


PARTS = {
    part.name: part
    for part in (
        Part(
            "images",
            "a Docker engine, and the images that play hosts with Debian 13",
            (Step("images", ("ansible-playbook", "containers/image.yml")),),
            90,
            90,
        ),
        Part(
            "lint",
            "style and types: ruff, mypy, yamllint, ansible-lint, shellcheck",
            (
                Step("ruff check", ("ruff", "check", ".")),
                Step("ruff format", ("ruff", "format", "--check", ".")),
                Step("mypy", ("mypy",)),
                Step("yamllint", ("yamllint", "--strict", ".")),
                Step("ansible-lint", ("ansible-lint", "--offline")),
                Step("shellcheck", ("bash", "-c", SHELLCHECK)),
                # A test that pytest refuses would end its scenario after minutes.
                Step(
                    "collect",
                    ("python", "-m", "pytest", "--collect-only", "--quiet", *SCENARIOS),
                    MOLECULE,
                ),
            ),
            100,
            100,
        ),
        Part(
            "unit",
            "unit and policy tests, which need no service",
            _pytest("tests/unit", "tests/policy"),
            320,
            320,
            programs=("zstd",),
        ),
        Part(
            "integration",
            "the ETL, deploy.py and migrations against a real PostgreSQL and Prefect; conda prefixes",
            _pytest("tests/integration", "--ignore", "tests/integration/test_worker.py"),
            510,
            300,
            after=("images",),
            programs=("package-lists",),
        ),
        Part(
            "worker",
            "the worker: its unit tests, and its program against a real Prefect",
            _pytest("worker/tests", "tests/integration/test_worker.py"),
            380,
            120,
            after=("images",),
        ),
        Part(
            "host",
            "the life of one host on Debian 13: check mode, converge, idempotence, its tests, uninstalling",
            _molecule("default", 13),
            2400,
            450,
            after=("images",),
        ),
        Part(
            "release",
            "releases and backups on two hosts with Debian 12",
            _molecule("release", 12),
            1300,
            after=("images",),
        ),
        Part(
            "drills",
            "faults under load",
            _molecule("drills", 13),
            1900,
            after=("images",),
        ),
        Part(
            "secure",
            "attacks from another host, rotation of secrets, and the UI in a browser, on Debian 12",
            _molecule("secure", 12),
            450,
            after=("images",),
            programs=("chromium",),
        ),
        Part(
            "cluster",
            "four hosts over ssh",
            _molecule("cluster", 13),
            520,
            after=("images",),
        ),
        Part(
            "conda",
            "another application, on conda packages",
            _molecule("conda", 13),
            550,
            after=("images",),
        ),
        Part(
            "project",
            "docs/bring-your-project.md, on Debian 12 with PostGIS",
            _molecule("project", 12),
            400,
            after=("images",),
        ),
        Part(
            "vagrant",
            "`vagrant up` to `vagrant destroy`",
            _pytest("--capture=no", "tests/vagrant"),
            230,
            after=("images",),
            programs=("vagrant",),
        ),
    )
}


def quick() -> list[Part]:
    """Return the parts of `make test`."""
    return [part for part in PARTS.values() if part.quick_seconds]
