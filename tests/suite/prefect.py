"""Environments with the packages of the lock, but another Prefect, for the worker's tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEWEST = "newest"


def environment(prefect: str) -> Path:
    """Make an environment with a version of Prefect, or the `newest`; return the directory of its programs."""
    place = ROOT / ".cache/prefect" / prefect
    wanted = "prefect<4" if prefect == NEWEST else f"prefect=={prefect}"
    install = ["pip", "install", "--quiet", "--python", str(place)]
    for arguments in (
        ["venv", "--quiet", "--clear", "--python", sys.executable, str(place)],
        [*install, "--require-hashes", "--requirement", str(ROOT / "requirements/dev.txt")],
        [*install, "--upgrade-package", "prefect", wanted, *_of_its_time(prefect)],
    ):
        subprocess.run(["uv", *arguments], check=True)
    return place / "bin"


def _of_its_time(prefect: str) -> list[str]:
    """Return what an old Prefect needs without requiring it: an old FastAPI and Starlette, and importlib-metadata."""
    is_old = prefect != NEWEST and tuple(map(int, prefect.split(".")[:2])) < (3, 8)
    return ["fastapi<0.130", "starlette<1", "importlib-metadata"] if is_old else []
