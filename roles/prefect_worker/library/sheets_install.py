#!/usr/bin/python
"""Ansible module that puts packed sheets into a directory, such that no process reads half a file."""

from __future__ import annotations

import fcntl
import filecmp
import grp
import os
import shutil
import subprocess
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENTATION = r"""
module: sheets_install
short_description: Put packed sheets into a directory
description:
  - Replaces the sheets of an archive that C(sheets_folder) packed, file by file, each at once. Other sheets stay.
  - Removes worksheets that such a sheet no longer has, and its workbook if it is csv files now, or the other way round.
options:
  archive: {type: path, required: true, description: The archive.}
  directory: {type: path, required: true, description: The directory, which exists.}
  group: {type: str, required: true, description: Group that may read the sheets; nobody else may.}
  prepare:
    type: bool
    default: false
    description: Only build the directory as it would be, as a hidden one in it, which the next run removes.
"""
RETURN = r"""
prepared: {type: str, returned: always, description: The directory that was prepared, or empty.}
written: {type: list, elements: str, returned: always, description: Files that were written.}
removed: {type: list, elements: str, returned: always, description: Files that were removed.}
"""

STAGING = ".sheets-"
# Left free for the rest of the host.
MARGIN = 256 * 1024 * 1024


class InstallError(Exception):
    """The sheets cannot be put there; the message says why, and what to do."""


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep other runs out of the directory, and remove what an interrupted one left there."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for leftover in directory.glob(f"{STAGING}*"):
            shutil.rmtree(leftover)
        yield
    except BlockingIOError:
        raise InstallError(f"Someone else is copying sheets to {directory}: try again later.") from None
    finally:
        os.close(descriptor)


def names(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """Return the archive's files, all of which are <sheet>/<worksheet>.csv or <sheet>.xlsx."""
    entries = archive.getmembers()
    for entry in entries:
        path = PurePosixPath(entry.name)
        shape = (len(path.parts), path.suffix)
        if not entry.isreg() or shape not in ((1, ".xlsx"), (2, ".csv")) or path.parts[0] in ("/", "..", "."):
            raise InstallError(f"{entry.name} is no file of a sheet.")
    return entries


def unpack(archive: tarfile.TarFile, staging: Path, gid: int) -> list[Path]:
    """Write the archive's files below a directory, each flushed to disk; return their relative paths."""
    paths = []
    for entry in names(archive):
        target = staging / entry.name
        target.parent.mkdir(exist_ok=True)
        source = archive.extractfile(entry)
        assert source  # noqa: S101 - it is a regular file
        with source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1024 * 1024)
            os.fchown(file.fileno(), os.geteuid(), gid)
            os.fchmod(file.fileno(), 0o640)
            file.flush()
            os.fsync(file.fileno())
        paths.append(Path(entry.name))
    return paths


def is_same(one: Path, other: Path) -> bool:
    """Return whether two files have the same content, owner and mode."""
    if other.is_symlink() or not other.is_file():
        return False
    a, b = one.stat(), other.stat()
    owned = (a.st_uid, a.st_gid, a.st_mode, a.st_size) == (b.st_uid, b.st_gid, b.st_mode, b.st_size)
    return owned and filecmp.cmp(one, other, shallow=False)


def superseded(directory: Path, paths: list[Path]) -> list[Path]:
    """Return the files of the same sheets that the archive does not have."""
    wanted = {directory / path for path in paths}
    found: set[Path] = set()
    for sheet in {path.stem if len(path.parts) == 1 else path.parts[0] for path in paths}:
        found.update((directory / sheet).glob("*.csv"), {directory / f"{sheet}.xlsx"})
    return sorted(path for path in found - wanted if os.path.lexists(path))


def install(archive: Path, directory: Path, group: str) -> tuple[list[str], list[str]]:
    """Put the sheets into the directory; return the files that were written, and those that were removed."""
    gid = grp.getgrnam(group).gr_gid
    with alone(directory), tarfile.open(archive, "r:gz") as packed:
        needed, free = sum(entry.size for entry in names(packed)), shutil.disk_usage(directory).free
        if needed + MARGIN > free:
            raise InstallError(
                f"The sheets need {needed >> 20} MB, and {MARGIN >> 20} MB must stay free, but {directory} has "
                f"{free >> 20} MB free: make room there."
            )
        staging = Path(tempfile.mkdtemp(dir=directory, prefix=STAGING))
        try:
            paths = unpack(packed, staging, gid)
            written = [path for path in paths if not is_same(staging / path, directory / path)]
            for path in written:
                place(staging / path, directory, path, gid)
            removed = superseded(directory, paths)
            for each in removed:
                each.unlink()
            for folder in {each.parent for each in removed} - {directory}:
                if not any(folder.iterdir()):
                    folder.rmdir()
        finally:
            shutil.rmtree(staging)
    return [path.as_posix() for path in written], [str(each.relative_to(directory)) for each in removed]


def prepare(archive: Path, directory: Path, group: str) -> Path:
    """Build the directory as it would be with the sheets, with links to files that would stay; return its path."""
    with alone(directory):
        present = sorted(directory.iterdir())
        prepared = Path(tempfile.mkdtemp(dir=directory, prefix=STAGING))
        os.chown(prepared, -1, grp.getgrnam(group).gr_gid)
        prepared.chmod(0o750)
        if present:
            command = ["/usr/bin/cp", "--archive", "--link", "--", *map(str, present), str(prepared)]
            subprocess.run(command, check=True)  # noqa: S603 - names after `--` are no options
        install(archive, prepared, group)
    return prepared


def place(staged: Path, directory: Path, path: Path, gid: int) -> None:
    """Move a file to its place, at once; make its folder where there is none."""
    target = directory / path
    if len(path.parts) > 1:
        target.parent.mkdir(exist_ok=True)
        os.chown(target.parent, os.geteuid(), gid)
        target.parent.chmod(0o750)
    staged.replace(target)


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "archive": {"type": "path", "required": True},
            "directory": {"type": "path", "required": True},
            "group": {"type": "str", "required": True},
            "prepare": {"type": "bool", "default": False},
        }
    )
    directory = Path(module.params["directory"])
    try:
        if not directory.is_dir():
            raise InstallError(f"There is no directory {directory}: a converge, `make start-services`, makes it.")
        arguments = Path(module.params["archive"]), directory, module.params["group"]
        if module.params["prepare"]:
            module.exit_json(changed=False, prepared=str(prepare(*arguments)), written=[], removed=[])
        written, removed = install(*arguments)
    except (InstallError, KeyError, OSError, subprocess.SubprocessError, tarfile.TarError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(written or removed), prepared="", written=written, removed=removed)


if __name__ == "__main__":
    main()
