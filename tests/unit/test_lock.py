"""`make lock PROJECT=`: what of a project is locked, and what is said where nothing can be."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = '[project]\nname = "{name}"\nversion = "1"\ndependencies = []\n'


def lock(project: Path, output: Path, *packages: str) -> subprocess.CompletedProcess[str]:
    """Lock a project."""
    command = [sys.executable, "scripts/lock.py", "--output", str(output), str(project), *packages]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("packages", [(), ("libraries/maps",)])
def test_a_lock_without_prefect_is_refused(tmp_path: Path, packages: tuple[str, ...]) -> None:
    for name in ("libraries/maps", "tests/example", ".venv/maps"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "pyproject.toml").write_text(PACKAGE.format(name=Path(name).name), encoding="utf-8")
    # A workspace, and no package.
    (tmp_path / "pyproject.toml").write_text("[tool.uv.workspace]\n", encoding="utf-8")

    done = lock(tmp_path, tmp_path / "lock.txt", *packages)

    assert done.returncode == 1
    assert "has no alembic and no prefect: add it to what the project requires" in done.stderr


@pytest.mark.parametrize(
    ("packages", "reason"),
    [
        ((), "has no pyproject.toml of a package, and no requirements.txt: name its packages"),
        (("absent",), "absent does not exist: correct PROJECT or PACKAGES"),
    ],
)
def test_what_cannot_be_locked_is_said(tmp_path: Path, packages: tuple[str, ...], reason: str) -> None:
    done = lock(tmp_path, tmp_path / "lock.txt", *packages)

    assert done.returncode == 1
    assert reason in done.stderr
