"""Lock the requirements of a project, with hashes and without addresses, for a release on any supported host.

The lock of a project without one can be kept in an inventory, which names it by `release_lock`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

# The oldest Python of the supported systems: Debian 12's.
OLDEST_PYTHON = (3, 11)
# Without them there are no migrations and no flows.
NEEDED = ("alembic", "prefect")
# Directories whose packages are not the project's.
OTHERS = ("node_modules", "test", "tests")


def main() -> int:
    """Write the lock; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("packages", nargs="*", help="directories with a pyproject.toml, or requirements files, in it")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--constraint", type=Path)
    parser.add_argument("--upgrade", action="store_true", help="choose the newest versions, not those of the lock")
    options = parser.parse_args()
    try:
        sources = [source(options.project / name) for name in options.packages] or found(options.project)
        lock(sources, options)
    except LockError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"Wrote {options.output}, of {', '.join(map(str, sources))}\n")
    return 0


class LockError(Exception):
    """There is no lock; the message is meant for the operator."""


def found(project: Path) -> list[Path]:
    """Return the pyproject.toml of each package in a project, or else its requirements.txt."""
    places = [path.relative_to(project) for path in sorted(project.rglob("pyproject.toml"))]
    own = [
        project / path
        for path in places
        if not any(part.startswith(".") or part in OTHERS for part in path.parts) and metadata(project / path)
    ]
    if not own and (project / "requirements.txt").is_file():
        own = [project / "requirements.txt"]
    if not own:
        raise LockError(
            f"{project} has no pyproject.toml of a package, and no requirements.txt: name its packages or requirements "
            "files by PACKAGES."
        )
    return own


def source(path: Path) -> Path:
    """Return the file that names the requirements: the path itself, or the pyproject.toml in it."""
    file = path / "pyproject.toml" if path.is_dir() else path
    if not file.is_file():
        raise LockError(f"{file} does not exist: correct PROJECT or PACKAGES.")
    return file


def metadata(file: Path) -> dict[str, Any]:
    """Return the table `project` of a pyproject.toml; empty if it has none, or is another file."""
    if file.name != "pyproject.toml":
        return {}
    table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    return table


def lock(sources: list[Path], options: argparse.Namespace) -> None:
    """Write the lock of what the sources require, without the packages that they are themselves."""
    projects = [metadata(file) for file in sources]
    bounds = [re.search(r">=\s*3\.(\d+)", project.get("requires-python", "")) for project in projects]
    python = max([OLDEST_PYTHON, *((3, int(bound[1])) for bound in bounds if bound)])
    command: list[str | Path] = [
        *(Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", "--universal"),
        *("--python-version", ".".join(map(str, python)), "--generate-hashes", "--no-header", "--no-emit-index-url"),
        *(part for project in projects if "name" in project for part in ("--no-emit-package", project["name"])),
        # From the project's directory, so that the lock's comments name no path of this machine.
        *(("--constraint", os.path.relpath(options.constraint, options.project)) if options.constraint else ()),
        *(("--upgrade",) if options.upgrade else ()),
        *(file.relative_to(options.project) for file in sources),
        *("--output-file", options.output.absolute()),
    ]
    done = subprocess.run(command, cwd=options.project, check=False)
    if done.returncode:
        raise LockError(f"{options.output} was not written: uv could not resolve what {options.project} requires.")
    names = set(re.findall(r"(?m)^([a-z0-9._-]+)==", options.output.read_text(encoding="utf-8")))
    if missing := [name for name in NEEDED if name not in names]:
        raise LockError(
            f"The lock {options.output} has no {' and no '.join(missing)}: add it to what the project requires, or "
            "name further requirements files by PACKAGES."
        )


if __name__ == "__main__":
    sys.exit(main())
