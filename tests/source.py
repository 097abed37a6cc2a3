"""A copy of the application's source, to change and deploy."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]


def copy_source(folder: Path) -> Path:
    """Copy what a release is made of into a new folder; return that."""
    for name in ("data", "migrations", "requirements", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("alembic.ini", "prefect.yaml", "pyproject.toml", "run_prefect_flow.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder
