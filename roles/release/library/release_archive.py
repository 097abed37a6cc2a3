#!/usr/bin/python
"""Ansible module that packs a release with its environment into one file, and installs such a file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: release_archive
short_description: Pack, inspect and install a release with its environment
description:
  - The archive is a tar file with two members, the release's manifest and a tar file of its directory, compressed
    by zstd. The manifest contains the SHA-256 digest of the latter, which is checked whenever the archive is read.
  - The digest detects damage in transit, not forgery.
options:
  archive: {type: path, required: true, description: The file.}
  state:
    type: str
    required: true
    choices: [packed, inspected, installed]
    description: The wanted state; C(inspected) only reads and checks the archive, C(installed) removes it afterwards.
  releases: {type: path, description: Directory of releases to pack from or to install to.}
  id: {type: str, description: Id of the release to pack.}
"""
RETURN = r"""
manifest: {type: dict, returned: always, description: The release's manifest.}
"""

PAYLOAD = "files.tar.zst"
CHUNK = 1 << 20


class ArchiveError(Exception):
    """The archive cannot be used; the message is meant for the operator."""


def pack(release: Path, archive: Path) -> dict[str, Any]:
    """Write a release's archive; return its manifest."""
    manifest: dict[str, Any] = json.loads((release / "manifest.json").read_text(encoding="utf-8"))
    archive.parent.mkdir(parents=True, exist_ok=True)
    payload = archive.with_name(f".{archive.name}.files")
    command = ["tar", "--create", "--format=posix", f"--file={payload}", f"--directory={release}"]
    # Takes a fifth of gzip's time; stronger compression takes longer than it saves in transfer.
    command += ["--use-compress-program=zstd -1 --threads=0"]
    # Keeps fractions of seconds in times; all files of a release are owned by root.
    command += ["--pax-option=delete=atime,delete=ctime", "--owner=root:0", "--group=root:0", "."]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no input
    if done.returncode != 0:
        raise ArchiveError(f"{release} cannot be packed: {done.stderr.strip()}")
    with payload.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    description = json.dumps({"manifest": manifest, "sha256": digest}).encode()
    partial = archive.with_name(f".{archive.name}.partial")
    with tarfile.open(partial, mode="w") as outer:
        entry = tarfile.TarInfo("manifest.json")
        entry.size = len(description)
        outer.addfile(entry, io.BytesIO(description))
        outer.add(payload, arcname=PAYLOAD, filter=_root_owned)
    payload.unlink()
    # An unprivileged user fetches the archive; the release itself is readable by everyone too.
    partial.chmod(0o644)
    partial.replace(archive)
    return manifest


def _root_owned(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def read(archive: Path, outer: tarfile.TarFile) -> tuple[dict[str, Any], tarfile.TarInfo]:
    """Verify the digest of an open archive; return its manifest and payload."""
    try:
        members = {member.name: member for member in outer}
        description = json.load(outer.extractfile(members["manifest.json"]) or io.BytesIO())
        payload = members[PAYLOAD]
        file = outer.extractfile(payload)
    except (KeyError, ValueError, tarfile.TarError) as error:
        raise ArchiveError(f"{archive} is no archive of a release, or only a part of one: {error!r}.") from error
    digest = hashlib.sha256()
    while file and (data := file.read(CHUNK)):
        digest.update(data)
    if digest.hexdigest() != description["sha256"]:
        raise ArchiveError(
            f"{archive} is damaged: {PAYLOAD} in it has the SHA-256 {digest.hexdigest()}, its manifest names "
            f"{description['sha256']}. Copy it again, or make it anew with `make release-archive`."
        )
    return description["manifest"], payload


def install(archive: Path, outer: tarfile.TarFile, releases: Path) -> dict[str, Any]:
    """Unpack an archive; the release is installed completely or not at all."""
    manifest, payload = read(archive, outer)
    if unmet := unmet_requirements(manifest["requires"]):
        raise ArchiveError(f"Release {manifest['id']} does not run on this host: {'; '.join(unmet)}.")
    releases.mkdir(mode=0o755, parents=True, exist_ok=True)
    partial = releases / f".{manifest['id']}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o755)
    # GNU tar refuses to write outside the directory; Python's tarfile only does so in versions newer than Debian 12's.
    command = ["tar", "--extract", "--zstd", "--same-permissions", "--directory", str(partial)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as unpacking:  # noqa: S603 - no input
        files = outer.extractfile(payload)
        assert files and unpacking.stdin and unpacking.stderr  # noqa: S101, PT018 - they are pipes
        shutil.copyfileobj(files, unpacking.stdin)
        unpacking.stdin.close()
        said = unpacking.stderr.read().decode(errors="replace")
    if unpacking.returncode != 0:
        raise ArchiveError(f"{archive} cannot be unpacked: {said.strip()}")
    # Flushed to disk before the rename: a power failure must not leave a release that only seems complete.
    os.sync()
    target = releases / manifest["id"]
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
    # Removed immediately: a run after an interruption finds the release installed, and would not remove the archive.
    archive.unlink()
    return manifest


def unmet_requirements(requires: dict[str, str]) -> list[str]:
    """Return the requirements of a release that this host does not meet, as text."""
    unmet = []
    if platform.machine() != requires["architecture"]:
        unmet.append(f"it is built for {requires['architecture']}, the host is {platform.machine()}")
    if "python" in requires:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        try:
            command = ["/usr/bin/python3", "-c", code]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - no input
        except OSError:
            found = "none"
        if found.strip() != requires["python"]:
            unmet.append(
                f"its environment uses the distribution's Python {requires['python']}, the host has {found.strip()}"
            )
    if "glibc" in requires:
        found = platform.libc_ver()[1] or "none"
        if _numbers(found) < _numbers(requires["glibc"]):
            unmet.append(f"its conda packages need glibc {requires['glibc']} or newer (__glibc), the host has {found}")
    return unmet


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def main() -> None:
    """Run as an Ansible module."""
    # Of whoever Ansible logs in as: services read releases.
    os.umask(0o022)
    module = AnsibleModule(
        argument_spec={
            "archive": {"type": "path", "required": True},
            "state": {"type": "str", "required": True, "choices": ["packed", "inspected", "installed"]},
            "releases": {"type": "path"},
            "id": {"type": "str"},
        },
        required_if=[("state", "packed", ["releases", "id"]), ("state", "installed", ["releases"])],
        supports_check_mode=True,
    )
    archive, state = Path(module.params["archive"]), module.params["state"]
    try:
        if state == "packed":
            if module.check_mode:
                module.exit_json(changed=True, manifest={})
            manifest = pack(Path(module.params["releases"]) / module.params["id"], archive)
        else:
            with tarfile.open(archive, mode="r:") as outer:
                if state == "inspected" or module.check_mode:
                    manifest, _ = read(archive, outer)
                else:
                    manifest = install(archive, outer, Path(module.params["releases"]))
    except ArchiveError as error:
        module.fail_json(msg=str(error))
    except (tarfile.TarError, EOFError) as error:
        module.fail_json(msg=f"{archive} is no archive of a release, or only a part of one: {error}.")
    except OSError as error:
        module.fail_json(msg=f"{archive}: {error}")
    module.exit_json(changed=state != "inspected", manifest=manifest)


if __name__ == "__main__":
    main()
