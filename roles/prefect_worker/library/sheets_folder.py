#!/usr/bin/python
"""Ansible module that finds the sheets of a folder, and packs them into an archive."""

from __future__ import annotations

import os
import platform
import shlex
import stat
import tarfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: sheets_folder
short_description: Find the sheets of a folder, and pack them
description:
  - Finds the sheets of a folder: folders of csv files, C(<sheet>/<worksheet>.csv), and workbooks, C(<sheet>.xlsx) or
    C(<sheet>.xlsm).
  - Fails where there is no sheet, one is there as both kinds, or one cannot be read, and says what is there instead.
  - Links are refused, because they lead out of the folder.
options:
  folder: {type: path, required: true, description: Absolute path of the folder.}
  archive: {type: path, description: File to write the sheets to, as a gzipped tar archive.}
  readable: {type: bool, default: false, description: Fail where other accounts of this machine cannot read them.}
"""
RETURN = r"""
sheets: {type: list, elements: str, returned: always, description: Names of the sheets.}
files: {type: list, elements: str, returned: always, description: Their files, relative to the folder.}
ignored: {type: list, elements: str, returned: always, description: What else is in the folder.}
size: {type: int, returned: always, description: Size of the files, in bytes.}
"""

WORKBOOKS = (".xlsx", ".xlsm")
WHAT = "A sheet is a folder of csv files, <sheet>/<worksheet>.csv, or a workbook, <sheet>.xlsx."


class SheetsError(Exception):
    """The sheets of the folder cannot be used; the message says why, and what to do."""


class Found:
    """What is in a folder: the files of each sheet, what is no sheet, and why something cannot be used.

    Paths are relative to the folder. ``sheets`` has each sheet's kinds, csv or xlsx, with the files of each.
    """

    def __init__(self) -> None:
        self.sheets: dict[str, dict[str, list[Path]]] = {}
        self.ignored: list[str] = []
        self.problems: list[str] = []

    def files(self) -> list[Path]:
        """Return the files of all sheets."""
        return [path for kinds in self.sheets.values() for files in kinds.values() for path in files]


def is_passed_over(path: Path) -> bool:
    """Return whether a file is hidden, or Excel's lock of a workbook that is open."""
    return path.name.startswith((".", "~$"))


def find(folder: Path) -> Found:
    """Return what is in a folder. A folder in it that cannot be read is ignored, with the reason.

    Raises OSError if the folder itself cannot be read.
    """
    found = Found()
    for entry in sorted(folder.iterdir()):
        if is_passed_over(entry) or not (entry.is_dir() or entry.suffix.lower() in WORKBOOKS):
            found.ignored.append(entry.name + "/" * entry.is_dir())
        elif entry.is_dir():
            find_worksheets(folder, entry, found)
        else:
            add(folder, entry, entry.stem, "xlsx", found)
    return found


def find_worksheets(folder: Path, sheet: Path, found: Found) -> None:
    """Add the csv files of a folder's folder, or ignore it as a whole if it has none."""
    try:
        entries = sorted(sheet.iterdir())
    except OSError as error:
        found.ignored.append(f"{sheet.name}/ ({error.strerror})")
        return
    worksheets = [entry for entry in entries if entry.suffix.lower() == ".csv" and not is_passed_over(entry)]
    if not worksheets:
        found.ignored.append(f"{sheet.name}/")
        return
    if sheet.is_symlink():
        found.problems.append(f"{sheet} is a link: put what it leads to there itself.")
        return
    found.ignored += [f"{sheet.name}/{entry.name}" for entry in entries if entry not in worksheets]
    for entry in worksheets:
        add(folder, entry, sheet.name, "csv", found)


def add(folder: Path, path: Path, sheet: str, kind: str, found: Found) -> None:
    """Add a file of a sheet, unless it is none or its name cannot be shown."""
    if path.is_symlink():
        found.problems.append(f"{path} is a link: put what it leads to there itself.")
    elif not path.is_file():
        found.problems.append(f"{path} is no file.")
    elif not str(path.relative_to(folder)).isprintable():
        found.problems.append(f"{str(path)!r} has a name with characters that cannot be shown: rename it.")
    else:
        found.sheets.setdefault(sheet, {}).setdefault(kind, []).append(path.relative_to(folder))


def problems(folder: Path, found: Found) -> list[str]:
    """Return why the sheets of a folder cannot be used."""
    twice = [
        f"The sheet '{name}' is there twice, as csv files in {folder / name} and as {folder / kinds['xlsx'][0]}: "
        "remove one."
        for name, kinds in found.sheets.items()
        if len(kinds) > 1
    ]
    files = [path.with_suffix("") for path in found.files()]
    twice += [
        f"{folder / path} is there twice, with suffixes that mean the same: remove one."
        for path in sorted({path for path in files if files.count(path) > 1})
    ]
    if found.sheets or found.problems:
        return [*found.problems, *twice]
    if any(name.endswith(".csv") for name in found.ignored):
        return [f"{folder} holds csv files itself. {WHAT} If it is a sheet, name the folder above it, {folder.parent}."]
    instead = f"It holds {', '.join(found.ignored)}." if found.ignored else "It is empty."
    return [f"{folder} holds no sheet. {instead} {WHAT}"]


def closed_to_others(folder: Path, found: Found) -> str:
    """Return the command that lets other accounts read the sheets; empty if they can."""

    def is_closed(path: Path, needed: int) -> bool:
        return stat.S_IMODE(path.stat().st_mode) & needed != needed

    commands = [f"chmod o+rx {shlex.quote(str(folder))}"] if is_closed(folder, 0o5) else []
    for name, kinds in found.sheets.items():
        for kind, files in kinds.items():
            path = folder / (name if kind == "csv" else files[0])
            closed = [each for each in files if is_closed(folder / each, 0o4)]
            if closed or (kind == "csv" and is_closed(path, 0o5)):
                commands.append(f"chmod -R o+rX {shlex.quote(str(path))}")
    return " && ".join(commands)


def look(folder: Path) -> Found:
    """Return what is in a folder that has sheets, all of which can be used.

    Raises SheetsError otherwise.
    """
    try:
        found = find(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "is not there" if isinstance(error, FileNotFoundError) else "is no folder"
        raise SheetsError(f"{folder} {what}. Name the folder that holds the sheets. {WHAT}") from None
    except OSError as error:
        raise SheetsError(f"{error.filename} cannot be read: {error.strerror}.") from error
    if why := problems(folder, found):
        raise SheetsError("\n".join(why))
    return found


def pack(folder: Path, files: list[Path], archive: Path) -> None:
    """Write the files to an archive, without holding one in memory.

    Raises SheetsError if a file changes meanwhile: half of what its author is writing must not be loaded.
    """
    # The weakest compression: it is as fast as a fast network, and csv files shrink to a fifth.
    with tarfile.open(archive, "w:gz", compresslevel=1, format=tarfile.PAX_FORMAT) as packed:
        for path in files:
            # Without following a link that was put there meanwhile, nor waiting for a pipe.
            with open(os.open(folder / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
                before = os.fstat(file.fileno())
                entry = tarfile.TarInfo(path.as_posix())
                entry.size = before.st_size
                try:
                    packed.addfile(entry, file)
                    after = os.fstat(file.fileno())
                    changed = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
                except OSError as error:
                    # It has become shorter.
                    changed = error.errno is None
                    if not changed:
                        raise
                if changed:
                    raise SheetsError(f"{folder / path} was changed while it was read: try again.")


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "required": True},
            "archive": {"type": "path"},
            "readable": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    folder = Path(module.params["folder"])
    try:
        found = look(folder)
        # Elsewhere, as with Docker Desktop, containers see files as their own.
        command = closed_to_others(folder, found) if platform.system() == "Linux" else ""
        if module.params["readable"] and command:
            raise SheetsError(f"Flows in the container have an account of their own, which cannot read them: {command}")
        size = sum((folder / path).stat().st_size for path in found.files())
        if module.params["archive"]:
            pack(folder, found.files(), Path(module.params["archive"]))
    except (OSError, SheetsError) as error:
        module.fail_json(msg=f"{error}\nNothing was changed.")
    module.exit_json(
        changed=False,
        sheets=sorted(found.sheets),
        files=[path.as_posix() for path in found.files()],
        ignored=[name if name.isprintable() else ascii(name) for name in found.ignored],
        size=size,
    )


if __name__ == "__main__":
    main()
