#!/usr/bin/python
"""Ansible module that writes and removes several files, and asks what they lead to, with one remote command."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: managed_files
short_description: Write and remove several files, and ask what is still to be done
description:
  - Writes files that differ in content, owner or mode, each atomically; removes files without content.
  - Creates missing directories. A copy task would take two to five remote commands for each file.
  - Then runs a probe, for which a task of its own would take one more remote command.
options:
  files:
    type: list
    elements: dict
    required: true
    description: The files, and symbolic links.
    suboptions:
      path: {type: path, required: true, description: Path on the host.}
      content: {type: str, description: Content of the file.}
      secret: {type: str, description: Content of the file, not shown in output or diff.}
      link: {type: path, description: Target of the symbolic link.}
      owner: {type: str, default: root, description: Owner; the group has the same name.}
      mode: {type: str, default: "0644", description: Mode, in octal.}
  directories:
    type: list
    elements: path
    default: []
    description: Directories that may hold only these files; all other files in them are removed.
  probe:
    type: str
    default: ""
    description:
      - Shell command that prints the state of the host after the files are written, and changes nothing.
      - It runs in check mode too. Output other than C(expected) then counts as a change, which later tasks would make,
        and a failure is none, because a program of the files may not be there yet.
  expected: {type: str, default: "", description: Output of the probe when nothing is left to be done.}
"""
RETURN = r"""
written: {type: list, elements: str, returned: always, description: Paths that were written or removed.}
probed: {type: list, elements: str, returned: always, description: Lines that the probe printed.}
unexpected: {type: bool, returned: always, description: Whether the probe printed something else, or failed.}
"""

FILE_OPTIONS = {
    "path": {"type": "path", "required": True},
    "content": {"type": "str"},
    "secret": {"type": "str", "no_log": True},
    "link": {"type": "path"},
    "owner": {"type": "str", "default": "root"},
    "mode": {"type": "str", "default": "0644"},
}


# Content, owner, group and mode of a file; the target of a symbolic link; or None if neither exists.
State = tuple[bytes, str, str, str] | Path | None


def present(path: Path) -> State:
    """Return the present state of a path."""
    try:
        if path.is_symlink():
            return path.readlink()
        status = path.lstat()
        content = b"" if stat.S_ISDIR(status.st_mode) else path.read_bytes()
        return content, *owners(status), f"{stat.S_IMODE(status.st_mode):04o}"
    except FileNotFoundError:
        return None


def owners(status: os.stat_result) -> tuple[str, str]:
    """Return the names of a file's owner and group; empty for an account that no longer exists."""
    try:
        return pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        return "", ""


def wanted(file: dict[str, Any]) -> State:
    """Return the wanted state of a path."""
    if file["link"] is not None:
        return Path(file["link"])
    content = file["content"] if file["secret"] is None else file["secret"]
    return None if content is None else (content.encode(), file["owner"], file["owner"], file["mode"])


def change(path: Path, state: State) -> None:
    """Change a path to a state atomically."""
    if state is None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        return
    # Whatever the umask of the account that Ansible logs in with: services read what is in these directories.
    for directory in [parent for parent in reversed(path.parents) if not parent.exists()]:
        directory.mkdir()
        directory.chmod(0o755)
    if isinstance(state, Path):
        partial = path.with_name(f".{path.name}.partial")
        partial.unlink(missing_ok=True)
        partial.symlink_to(state)
        partial.replace(path)
    else:
        content, owner, _, mode = state
        write(path, content, owner, mode)


def write(path: Path, content: bytes, owner: str, mode: str) -> None:
    """Write a file atomically: no process can read half of it, or read it before its mode is set."""
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


def difference(file: dict[str, Any], before: State, after: State) -> dict[str, str]:
    """Return what --diff shows for a file."""

    def shown(state: State) -> str:
        if state is None or file["secret"] is not None or "stranger" in file:
            return ""
        return f"link to {state}\n" if isinstance(state, Path) else state[0].decode(errors="replace")

    return {
        "before_header": file["path"],
        "after_header": file["path"],
        "before": shown(before),
        "after": shown(after),
    }


def ask(module: AnsibleModule, written: list[str]) -> dict[str, Any]:
    """Run the probe, and return what it says."""
    if module.params["probe"] == "":
        return {"probed": [], "unexpected": False}
    status, output, error = module.run_command(["/bin/sh", "-c", module.params["probe"]])
    if status != 0 and not module.check_mode:
        module.fail_json(msg=error.strip() or f"The probe failed: {output}", written=written)
    unexpected = status != 0 or output.strip() != module.params["expected"].strip()
    return {"probed": output.strip().splitlines(), "unexpected": unexpected}


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "list", "elements": "dict", "required": True, "options": FILE_OPTIONS},
            "directories": {"type": "list", "elements": "path", "default": []},
            "probe": {"type": "str", "default": ""},
            "expected": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    written, differences = [], []
    known = {file["path"] for file in module.params["files"]} | set(module.params["directories"])
    strangers = [
        # The content may be a secret.
        {"path": str(path), "content": None, "secret": None, "link": None, "stranger": True}
        for directory in module.params["directories"]
        for path in sorted(Path(directory).glob("*"))
        if str(path) not in known
    ]
    for file in module.params["files"] + strangers:
        path = Path(file["path"])
        before, after = present(path), wanted(file)
        if before == after:
            continue
        written.append(str(path))
        differences.append(difference(file, before, after))
        if module.check_mode:
            continue
        try:
            change(path, after)
        except (OSError, KeyError) as error:
            module.fail_json(msg=f"{path} cannot be written: {error}", written=written)
    answer = ask(module, written)
    if answer["unexpected"]:
        after = module.params["expected"].strip()
        headers = dict.fromkeys(("before_header", "after_header"), "what the probe prints")
        differences.append({**headers, "before": "\n".join(answer["probed"]) + "\n", "after": after and after + "\n"})
    changed = bool(written) or (module.check_mode and answer["unexpected"])
    module.exit_json(changed=changed, written=written, diff=differences, **answer)


if __name__ == "__main__":
    main()
