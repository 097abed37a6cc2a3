#!/usr/bin/python
"""Ansible module that packs source files into an archive whose digest depends only on their contents."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: source_archive
short_description: Pack source files reproducibly
description:
  - Packs files into a gzipped tar archive named by the SHA-256 digest of its uncompressed contents.
  - The digest ignores times, owners and the order of files on disk; it includes names, contents and the executable bit.
options:
  source: {type: path, required: true, description: Directory with the files.}
  paths: {type: list, elements: str, required: true, description: Files and directories below it.}
  dest: {type: path, required: true, description: Directory for the archive; it is a cache, so check mode fills it too.}
"""
RETURN = r"""
digest: {type: str, returned: always, description: SHA-256 of the contents, in hexadecimal.}
archive: {type: str, returned: always, description: Path of the archive.}
revision: {type: str, returned: always, description: Commit of the source according to git; empty without git.}
"""

# Files that tools create in a source tree, which are not source.
LEFTOVERS = ("__pycache__", ".git", ".mypy_cache", ".pixi", ".pytest_cache", ".ruff_cache", ".venv")


def source_files(source: Path, paths: list[str]) -> list[Path]:
    """Return the regular files at and below the given paths, sorted by their name."""
    files: set[Path] = set()
    for name in paths:
        path = source / name
        files.update(path.rglob("*") if path.is_dir() else [path])
    return sorted(
        path
        for path in files
        if (path.is_file() or not path.exists())
        and not any(part in LEFTOVERS or part.endswith(".egg-info") for part in path.relative_to(source).parts)
    )


def pack(source: Path, files: list[Path]) -> bytes:
    """Return a reproducible tar archive of the files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in files:
            contents = path.read_bytes()
            entry = tarfile.TarInfo(path.relative_to(source).as_posix())
            entry.size = len(contents)
            entry.mode = 0o755 if os.access(path, os.X_OK) else 0o644
            archive.addfile(entry, io.BytesIO(contents))
    return buffer.getvalue()


def revision(source: Path) -> str:
    """Return the name of a checkout's commit, with `-dirty` where files differ from it."""
    git = shutil.which("git")
    command = [str(git), "-C", str(source), "describe", "--always", "--dirty", "--tags"]
    done = subprocess.run(command, capture_output=True, text=True) if git else None  # noqa: S603 - no shell
    return done.stdout.strip() if done else ""


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "paths": {"type": "list", "elements": "str", "required": True},
            "dest": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    source = Path(module.params["source"])
    missing = [name for name in module.params["paths"] if not (source / name).exists()]
    if missing:
        module.fail_json(msg=f"{source} has no {', '.join(missing)}: correct release_source or release_source_paths.")
    contents = pack(source, source_files(source, module.params["paths"]))
    digest = hashlib.sha256(contents).hexdigest()
    archive = Path(module.params["dest"]) / f"{digest}.tar.gz"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        partial = archive.with_suffix(f".{os.getpid()}")
        partial.write_bytes(gzip.compress(contents, mtime=0))
        partial.replace(archive)
    module.exit_json(changed=False, digest=digest, archive=str(archive), revision=revision(source))


if __name__ == "__main__":
    main()
