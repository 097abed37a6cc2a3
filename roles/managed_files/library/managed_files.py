#!/usr/bin/python
"""Ansible module that brings several files to what they should be, in one remote command."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: managed_files
short_description: Bring several files to what they should be
description:
  - Writes those that differ in content, owner or mode, each as a whole or not at all; removes those without content.
  - Creates their directories. A copy task for each file would do the same in two to five remote commands.
options:
  files:
    type: list
    elements: dict
    required: true
    description: The files.
    suboptions:
      path: {type: path, required: true, description: Path on the host.}
      content: {type: str, description: What the file holds.}
      secret: {type: str, description: What the file holds; neither output nor diff shows it.}
      owner: {type: str, default: root, description: Its owner; the group is the one of the same name.}
      mode: {type: str, default: "0644", description: Its mode, in octal.}
  directories:
    type: list
    elements: path
    default: []
    description: Directories that hold nothing but these files; others in them are removed.
"""
RETURN = r"""
written: {type: list, elements: str, returned: always, description: Paths that were written or removed.}
"""

FILE_OPTIONS = {
    "path": {"type": "path", "required": True},
    "content": {"type": "str"},
    "secret": {"type": "str", "no_log": True},
    "owner": {"type": "str", "default": "root"},
    "mode": {"type": "str", "default": "0644"},
}


def present(path: Path) -> tuple[bytes, str, str, str] | None:
    """Return content, owner, group and mode of a file, or None where it is not there."""
    try:
        status = path.lstat()
        owner, group = pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid).gr_name
        return path.read_bytes(), owner, group, f"{stat.S_IMODE(status.st_mode):04o}"
    except FileNotFoundError:
        return None


def write(path: Path, content: bytes, owner: str, mode: str) -> None:
    """Put a file in place in one step, so that nobody ever reads half of it, or reads it before it is protected."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchown(file.fileno(), pwd.getpwnam(owner).pw_uid, grp.getgrnam(owner).gr_gid)
            os.fchmod(file.fileno(), int(mode, 8))
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def difference(file: dict[str, Any], before: bytes, after: bytes) -> dict[str, str]:
    """Return what --diff shows of a file."""
    if file["secret"] is not None or "stranger" in file:
        before = after = b""
    return {
        "before_header": file["path"],
        "after_header": file["path"],
        "before": before.decode(errors="replace"),
        "after": after.decode(errors="replace"),
    }


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "list", "elements": "dict", "required": True, "options": FILE_OPTIONS},
            "directories": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    written, differences = [], []
    known = {file["path"] for file in module.params["files"]}
    strangers = [
        # What it holds may be a secret.
        {"path": str(path), "content": None, "secret": None, "owner": "root", "mode": "0600", "stranger": True}
        for directory in module.params["directories"]
        for path in sorted(Path(directory).glob("*"))
        if str(path) not in known
    ]
    for file in module.params["files"] + strangers:
        path = Path(file["path"])
        before = present(path)
        content = file["content"] if file["secret"] is None else file["secret"]
        wanted = None if content is None else (content.encode(), file["owner"], file["owner"], file["mode"])
        if before == wanted:
            continue
        written.append(str(path))
        differences.append(difference(file, before[0] if before else b"", wanted[0] if wanted else b""))
        if module.check_mode:
            continue
        try:
            if wanted is None:
                path.unlink()
            else:
                write(path, wanted[0], file["owner"], file["mode"])
        except (OSError, KeyError) as error:
            module.fail_json(msg=f"{path} cannot be written: {error}", written=written)
    module.exit_json(changed=bool(written), written=written, diff=differences)


if __name__ == "__main__":
    main()
