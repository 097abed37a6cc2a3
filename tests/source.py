"""A copy of the application's source that tests change and deploy."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]


def copy_source(folder: Path) -> Path:
    """Copy the sources of a release into a new folder, and return it."""
    for name in ("data", "migrations", "requirements", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("alembic.ini", "prefect.yaml", "pyproject.toml", "run_prefect_flow.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder
