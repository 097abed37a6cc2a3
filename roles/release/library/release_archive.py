#!/usr/bin/python
"""Ansible module that packs a release with its environment into one file, and installs such a file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import shutil
import stat
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
  - The digest detects damage in transit, not forgery. A signature by one of C(signers) detects both.
  - What is installed belongs to root, which alone can write it, and has no special modes. An archive whose names, links
    or manifest would have an effect beyond its release is refused.
options:
  archive: {type: path, required: true, description: The file.}
  state:
    type: str
    required: true
    choices: [packed, inspected, installed]
    description: The wanted state; C(inspected) only reads and checks the archive, C(installed) removes it afterwards.
  releases: {type: path, description: Directory of releases to pack from or to install to.}
  id: {type: str, description: Id of the release to pack.}
  signers:
    type: path
    description: File of ALLOWED SIGNERS as in ssh-keygen(1), one of whom must have made the signature C(archive).sig.
  digest: {type: str, description: Digest of the archive that was inspected; another one is not installed.}
"""
RETURN = r"""
manifest: {type: dict, returned: always, description: The release's manifest.}
digest: {type: str, returned: when inspected, description: SHA-256 of the manifest and of the digest of the files.}
"""

PAYLOAD = "files.tar.zst"
CHUNK = 1 << 20
# What a signature is for: one of another purpose by the same key, as of a commit, is refused.
NAMESPACE = "biocirv-release"
ID = re.compile("[0-9a-f]{12}")
# It is part of a unit's command line.
FILE_NAME = re.compile("(?!-)[A-Za-z0-9._/-]+")
# Environment files of a release. Root's commands of units get their variables, too: none by which the loader finds code
# or files, and which it ignores in privileged programs.
ENVIRONMENT_FILES = ("current.env", "candidate.env")
VARIABLE = re.compile(
    r"(?!LD_|GCONV_|GETCONF_|GLIBC_|LOCPATH|MALLOC_|NIS_|NLSPATH)[A-Za-z_][A-Za-z0-9_]*=[^\x00-\x1f]*"
)
# Only root can write there: links of an environment lead to the distribution's Python.
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc")


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
    check_manifest(archive, description["manifest"])
    return description, payload


def digest_of(description: dict[str, Any]) -> str:
    """Return the digest of an archive's description, which contains that of its files."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def check_manifest(archive: Path, manifest: dict[str, Any]) -> None:
    """Refuse a manifest that would name another place than a release's, or reach into units or the journal."""
    if not isinstance(manifest, dict) or not isinstance(manifest.get("requires"), dict):
        raise ArchiveError(f"{archive} is none of `make release-archive`: it has no manifest.")
    problems = [
        f"{name} is {manifest.get(name, default)!r}"
        for name, pattern, default in (("id", ID, ""), ("alembic_config", FILE_NAME, "alembic.ini"))
        if not pattern.fullmatch(str(manifest.get(name, default)))
    ]
    texts: list[Any] = [manifest]
    while texts:
        text = texts.pop()
        if isinstance(text, dict | list):
            texts += [*text, *text.values()] if isinstance(text, dict) else text
        elif isinstance(text, str) and not text.isprintable():
            problems.append(f"{text!r} has characters that cannot be shown")
    if problems:
        raise ArchiveError(f"{archive} is none of `make release-archive`. In its manifest, {'; '.join(problems)}.")


def check_signature(archive: Path, signers: Path) -> None:
    """Refuse an archive that none of the signers has signed."""
    signature = archive.with_name(f"{archive.name}.sig")
    for path, what in ((signers, "release_archive_signers"), (signature, "The archive's signature")):
        if not path.is_file():
            raise ArchiveError(f"{what} is not there: {path}. docs/releases.md says how archives are signed.")
    find = ["ssh-keygen", "-Y", "find-principals", "-s", str(signature), "-f", str(signers)]
    found = subprocess.run(find, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
    signer = (found.stdout.splitlines() or [""])[0]
    reason = "none of release_archive_signers has made it"
    if found.returncode == 0:
        verify = ["ssh-keygen", "-Y", "verify", "-n", NAMESPACE, "-I", signer, *find[3:]]
        with archive.open("rb") as file:
            done = subprocess.run(verify, stdin=file, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode == 0:
            return
        reason = (done.stderr or done.stdout).strip()
    raise ArchiveError(f"{archive} is refused, because its signature {signature} is not valid: {reason}.")


def install(archive: Path, outer: tarfile.TarFile, releases: Path, digest: str | None) -> dict[str, Any]:
    """Unpack an archive; the release is installed completely or not at all."""
    description, payload = read(archive, outer)
    manifest: dict[str, Any] = description["manifest"]
    if digest and digest != digest_of(description):
        raise ArchiveError(f"{archive} is not the archive that was inspected: somebody else writes to it.")
    if unmet := unmet_requirements(manifest["requires"]):
        raise ArchiveError(f"Release {manifest['id']} does not run on this host: {'; '.join(unmet)}.")
    releases.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Readable by root alone until its files are checked; tar sets the mode of the directory in it.
    partial = releases / f".{manifest['id']}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    try:
        unpack(archive, outer, payload, partial / "release")
        check_files(partial / "release", releases / manifest["id"])
    except (ArchiveError, OSError):
        shutil.rmtree(partial)
        raise
    # The one that was checked, and not another one among the files.
    (partial / "release/manifest.json").unlink(missing_ok=True)
    (partial / "release/manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    # Flushed to disk before the rename: a power failure must not leave a release that only seems complete.
    os.sync()
    target = releases / manifest["id"]
    shutil.rmtree(target, ignore_errors=True)
    (partial / "release").replace(target)
    partial.rmdir()
    # Removed immediately: a run after an interruption finds the release installed, and would not remove the archive.
    archive.unlink()
    return manifest


def unpack(archive: Path, outer: tarfile.TarFile, payload: tarfile.TarInfo, release: Path) -> None:
    """Unpack the files of a release, without owners, special modes and write permission of others."""
    release.mkdir(mode=0o755)
    # GNU tar refuses to write outside the directory; Python's tarfile only does so in versions newer than Debian 12's.
    command = ["tar", "--extract", "--zstd", "--no-same-permissions", "--no-same-owner", "--directory", str(release)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, umask=0o022) as unpacking:  # noqa: S603
        files = outer.extractfile(payload)
        assert files and unpacking.stdin and unpacking.stderr  # noqa: S101, PT018 - they are pipes
        shutil.copyfileobj(files, unpacking.stdin)
        unpacking.stdin.close()
        said = unpacking.stderr.read().decode(errors="replace")
    if unpacking.returncode != 0:
        raise ArchiveError(f"{archive} cannot be unpacked: {said.strip()}")


def check_files(release: Path, target: Path) -> None:
    """Refuse an unpacked release with something in it that has an effect beyond it.

    target: where it will be; links may name that place.
    """
    places = (os.path.realpath(release), os.path.realpath(target), *SYSTEM)
    for folder, folders, names in os.walk(release):
        for path in (Path(folder, name) for name in folders + names):
            mode, leads = path.lstat().st_mode, os.path.realpath(path)
            if stat.S_ISLNK(mode):
                # What is replaced there by others must not become part of a release.
                if not any(leads == place or leads.startswith(f"{place}/") for place in places):
                    raise ArchiveError(f"{path.relative_to(release)} in the archive leads out of the release: {leads}.")
            elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ArchiveError(f"{path.relative_to(release)} in the archive is neither a file nor a directory.")
    for path in (release / name for name in ENVIRONMENT_FILES if os.path.lexists(release / name)):
        lines = [] if path.is_symlink() else path.read_text(encoding="utf-8", errors="replace").splitlines()
        if path.is_symlink() or not all(map(VARIABLE.fullmatch, lines)):
            raise ArchiveError(f"{path.name} in the archive is a link, or sets what concerns more than the release.")


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


def carry_out(options: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """Bring the archive to its wanted state; return what the module returns.

    Raises:
        ArchiveError: it cannot be brought there.

    """
    archive, state = Path(options["archive"]), options["state"]
    try:
        if state == "packed":
            packed = {} if check_mode else pack(Path(options["releases"]) / options["id"], archive)
            return {"changed": True, "manifest": packed}
        if options["signers"]:
            check_signature(archive, Path(options["signers"]))
        with tarfile.open(archive, mode="r:") as outer:
            if state == "inspected" or check_mode:
                description, _ = read(archive, outer)
                manifest, digest = description["manifest"], digest_of(description)
                return {"changed": state != "inspected", "manifest": manifest, "digest": digest}
            return {"changed": True, "manifest": install(archive, outer, Path(options["releases"]), options["digest"])}
    except (tarfile.TarError, EOFError) as error:
        raise ArchiveError(f"{archive} is no archive of a release, or only a part of one: {error}.") from error
    except OSError as error:
        raise ArchiveError(f"{archive}: {error}") from error


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
            "signers": {"type": "path"},
            "digest": {"type": "str"},
        },
        required_if=[("state", "packed", ["releases", "id"]), ("state", "installed", ["releases"])],
        supports_check_mode=True,
    )
    try:
        module.exit_json(**carry_out(module.params, check_mode=module.check_mode))
    except ArchiveError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
