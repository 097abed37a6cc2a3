"""The second application without a host: its error messages, its revisions and its lock."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

APPLICATION = Path(__file__).parents[1] / "application"
SOURCES = os.pathsep.join(str(path) for path in sorted(APPLICATION.glob("libraries/*/src")))
URL = "postgresql://user:password@127.0.0.1:1/soil"
# Calls the flow's function without Prefect's engine, which would need a server.
SURVEY = "import flows; state = flows.survey.fn(); print(state.type.value, state.message)"


def run(folder: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder of the application, with only the given variables of its own."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("SOIL_")}
    return subprocess.run(
        [sys.executable, "-B", *arguments],
        cwd=APPLICATION / folder,
        env={**others, "PYTHONPATH": SOURCES, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_revisions_go_up_and_down() -> None:
    up = run("database", "-m", "alembic", "upgrade", "head", "--sql", SOIL_DATABASE_URL=URL)
    down = run("database", "-m", "alembic", "downgrade", "head:base", "--sql", SOIL_DATABASE_URL=URL)

    assert "location geometry(Point,4326) NOT NULL" in up.stdout
    assert "EXTENSION" not in up.stdout
    made = re.findall(r"CREATE TABLE (\w+)", up.stdout)
    assert made == ["alembic_version", "site", "horizon"]
    assert "CREATE MATERIALIZED VIEW report.deepest" in up.stdout
    assert re.findall(r"DROP (?:TABLE|SCHEMA) (\w+)", down.stdout) == ["report", "horizon", "site"]


@pytest.mark.parametrize("url", ["", "mysql://user:password@127.0.0.1/soil", "password"])
def test_alembic_says_in_one_line_that_the_url_will_not_do(url: str) -> None:
    upgrade = run("database", "-m", "alembic", "upgrade", "head", SOIL_DATABASE_URL=url)

    assert upgrade.returncode == 1
    assert upgrade.stderr.startswith("SOIL_DATABASE_URL is not ")
    assert upgrade.stderr.count("\n") == 1
    assert "password" not in upgrade.stderr


@pytest.mark.parametrize(
    ("credentials", "reason"),
    [
        (None, "SOIL_CREDENTIALS is not set"),
        ("", "is not a JSON object"),
        ('{"token": "secret"}', "is not a JSON object"),
        ('{"account": "a", "token": "secret"}', "sites.csv cannot be read: No such file"),
    ],
)
def test_survey_fails_with_what_is_missing(tmp_path: Path, credentials: str | None, reason: str) -> None:
    variables = {"SOIL_DATABASE_URL": URL, "PREFECT_HOME": str(tmp_path)}
    if credentials is not None:
        (tmp_path / "credentials.json").write_text(credentials)
        variables["SOIL_CREDENTIALS"] = str(tmp_path / "credentials.json")

    survey = run("orchestration", "-c", SURVEY, **variables)

    assert survey.stdout.startswith("FAILED "), survey.stderr
    assert reason in survey.stdout
    assert "secret" not in survey.stdout


def test_one_command_locks_a_project_elsewhere(tmp_path: Path) -> None:
    """The lock has what all of its packages require, with hashes, and neither these nor any address or path."""
    lock = tmp_path / "inventory/requirements.txt"
    lock.parent.mkdir()
    copy = shutil.copytree(APPLICATION, tmp_path / "soil")

    done = subprocess.run(
        ["make", "lock", f"PROJECT={copy}", f"INVENTORY={lock.parent}"],
        cwd=APPLICATION.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert f"Wrote {lock}" in done.stdout
    text = lock.read_text(encoding="utf-8")
    assert {"alembic", "prefect", "psycopg2-binary"} <= set(
        re.findall(r"(?m)^([a-z0-9._-]+)==\S+ ?.*\\\n +--hash", text)
    )
    assert not re.search(r"(?m)^soil-|://|--index-url|" + re.escape(str(tmp_path)), text)


def test_lock_is_in_step_with_the_main_application() -> None:
    """Both then share a cache of wheels, and exclude the versions that do not work with Prefect."""
    pin = re.compile(r"(?m)^([a-z0-9._-]+==[^\s;]+)")
    main = (APPLICATION.parents[1] / "requirements/application.txt").read_text(encoding="utf-8")
    own = set(pin.findall((APPLICATION / "requirements.txt").read_text(encoding="utf-8")))

    assert "prefect==3.9.1" in own
    assert own <= set(pin.findall(main))
