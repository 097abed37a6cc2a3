#!/usr/bin/python
"""Ansible module that packs source files into an archive whose digest depends only on their contents."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: source_archive
short_description: Pack source files reproducibly
description:
  - Packs files into a gzipped tar archive named by the SHA-256 digest of its uncompressed contents.
  - The digest ignores times, owners and the order of files on disk; it includes names, contents and the executable bit.
  - Of a git repository, the files that git ignores are not packed, unless a path names them.
  - Links that lead out of the source are refused. Secrets (C(.secrets), C(.env), private keys) are not packed.
options:
  source: {type: path, required: true, description: Directory with the files.}
  paths: {type: list, elements: str, required: true, description: Files and directories below it.}
  dest: {type: path, required: true, description: Directory for the archive; it is a cache, so check mode fills it too.}
"""
RETURN = r"""
digest: {type: str, returned: always, description: SHA-256 of the contents, in hexadecimal.}
archive: {type: str, returned: always, description: Path of the archive.}
secrets: {type: list, elements: str, returned: always, description: Files that were not packed, as they hold secrets.}
revision: {type: str, returned: always, description: Commit of the source according to git; empty without git.}
"""

# Files that tools create in a source tree, which are not source.
LEFTOVERS = ("__pycache__", ".git", ".mypy_cache", ".pixi", ".pytest_cache", ".ruff_cache", ".venv")
# A release is readable by every account of its hosts, and its archive is copied about.
SECRET_NAMES = re.compile(
    r"\.secrets|\.env(?:\.(?!example$|sample$|template$|dist$).+)?|\.netrc|\.pgpass|\.ssh|.+\.(?:key|p12|pfx|jks)"
)
# In PEM, and within the JSON of a service account. Text that only names the marker, as this file does, is no key.
PRIVATE_KEY = re.compile(
    rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----(?:\s|\\[nr])+(?:[\w-]+: .*\s+)*[A-Za-z0-9+/=]{32}", re.ASCII
)


class SourceError(Exception):
    """The source cannot be packed; the message is meant for the operator."""


def source_files(source: Path, paths: list[str]) -> list[Path]:
    """Return the regular files at and below the given paths, sorted by their name.

    Of a git repository, without what it ignores, unless a path names it.

    Raises:
        SourceError: a path or a link leads out of the source or to nothing, or git refuses to list the files.

    """
    for name in paths:
        check_inside(source, source / name)
    files = sorted(
        path
        for path in found(source, paths)
        if not any(part in LEFTOVERS or part.endswith(".egg-info") for part in path.relative_to(source).parts)
    )
    for path in files:
        check_inside(source, path)
    return [path for path in files if path.is_file()]


def found(source: Path, paths: list[str]) -> set[Path]:
    """Return what is at and below the given paths, as far as git does not ignore it."""
    git = shutil.which("git")
    if not git or not any((place / ".git").exists() for place in (source, *source.parents)):
        return {path for name in paths for path in walk(source / name)}
    named = names(git, source, "check-ignore", "-z", "--stdin", stdin="\0".join(paths))
    listing = ("--literal-pathspecs", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    known = names(git, source, *listing, "--", *paths)
    files = {source / name for name in known}
    for tree in {path for path in files if is_tree(path)}:
        # A repository of its own, such as a submodule.
        files |= found(tree, ["."])
    files.update(path for name in named for path in walk(source / name))
    # git also lists files that were removed and not committed.
    return {path for path in files if path.is_symlink() or path.exists()}


def names(git: str, source: Path, *arguments: str, stdin: str = "") -> list[str]:
    """Return the names that git prints."""
    command = [git, "-C", str(source), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)  # noqa: S603 - no shell
    # 1: nothing is ignored.
    if done.returncode not in (0, 1):
        raise SourceError(f"git does not list the files of {source}: {done.stderr.strip()}")
    return [name for name in done.stdout.split("\0") if name]


def walk(path: Path) -> list[Path]:
    """Return what is below a directory, or the path itself."""
    return list(path.rglob("*")) if is_tree(path) else [path]


def is_tree(path: Path) -> bool:
    """Return whether a path is a directory, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def check_inside(source: Path, path: Path) -> None:
    """Refuse what is not in the source, and links that lead out of it: they would pack files of this machine."""
    place = Path(os.path.realpath(path))
    if not place.is_relative_to(os.path.realpath(source)):
        raise SourceError(
            f"{path} leads out of the source, to {place}: what a release needs must be in its source. "
            "Put a copy there, or correct release_source_paths."
        )
    if not place.exists():
        raise SourceError(f"{path} is a link to {path.readlink()}, which does not exist: remove or correct it.")


def is_secret(source: Path, path: Path) -> bool:
    """Return whether a file has the name of a secret, or holds a private key."""
    # Also what a link with another name leads to.
    places = (path.relative_to(source), Path(os.path.realpath(path)).relative_to(os.path.realpath(source)))
    named = any(SECRET_NAMES.fullmatch(part) for place in places for part in place.parts)
    return named or bool(PRIVATE_KEY.search(path.read_bytes()))


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


def write(source: Path, paths: list[str], dest: Path) -> dict[str, Any]:
    """Write the archive unless it exists; return what the module returns.

    Raises:
        SourceError: the source cannot be packed.

    """
    if missing := [name for name in paths if not os.path.lexists(source / name)]:
        raise SourceError(f"{source} has no {', '.join(missing)}: correct release_source or release_source_paths.")
    files = source_files(source, paths)
    secrets = [path for path in files if is_secret(source, path)]
    contents = pack(source, [path for path in files if path not in secrets])
    digest = hashlib.sha256(contents).hexdigest()
    archive = dest / f"{digest}.tar.gz"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        partial = archive.with_suffix(f".{os.getpid()}")
        partial.write_bytes(gzip.compress(contents, mtime=0))
        partial.replace(archive)
    named = [path.relative_to(source).as_posix() for path in secrets]
    return {"digest": digest, "archive": str(archive), "secrets": named, "revision": revision(source)}


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
    options = module.params
    try:
        module.exit_json(changed=False, **write(Path(options["source"]), options["paths"], Path(options["dest"])))
    except SourceError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
