#!/usr/bin/python
"""Ansible module that lists, activates and prunes the releases of a host."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: release_state
short_description: List, activate and prune the releases of a host
description:
  - Each link is replaced atomically, and the steps are ordered so that a power failure between any two of them leaves
    one complete release active; the next run completes the remaining steps.
options:
  root: {type: path, required: true, description: Directory with releases and links.}
  candidate: {type: str, description: Id of the release to point C(candidate) to.}
  serve: {type: str, description: Id of the release to activate by pointing C(current) to it.}
  failed:
    type: bool
    default: false
    description: The active release failed to start; do not record it as a predecessor to roll back to.
  keep: {type: int, description: Number of releases to keep; the active one and its predecessor are never removed.}
"""
RETURN = r"""
releases: {type: dict, returned: always, description: Manifests of the finished releases by their ids.}
candidate: {type: str, returned: always, description: Id of the release that was prepared last, or empty.}
current: {type: str, returned: always, description: Id of the active release, or empty.}
previous: {type: str, returned: always, description: Id of the release that was active before, or empty.}
served: {type: dict, returned: always, description: When releases ceased to be active, and their configuration.}
configuration: {type: str, returned: always, description: Digest of the present configuration of services.}
pruned: {type: list, elements: str, returned: always, description: Ids of the releases that were removed.}
"""

# Configuration that services read besides the release. A rollback does not restore it, so its digest is recorded.
CONFIGURATION = ("/etc/biocirv/prefect-server.env", "/etc/biocirv/prefect-worker.env")


class Releases:
    """The releases below a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._served = root / "served"

    def manifests(self) -> dict[str, dict[str, Any]]:
        """Return the manifests of all finished releases; one that is not finished has none."""
        files = sorted((self._root / "releases").glob("*/manifest.json"))
        manifests = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in files}
        # Releases built by an earlier version of this role have another layout, and do not work with the present units.
        return {name: manifest for name, manifest in manifests.items() if "environment" in manifest}

    def linked(self, link: str) -> str:
        """Return the id that a link points to, or an empty string."""
        path = self._root / link
        return path.readlink().name if path.is_symlink() else ""

    def served(self) -> dict[str, dict[str, str]]:
        """Return the record of each release, written when another release was activated."""
        return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in self._served.glob("*.json")}

    def previous(self) -> str:
        """Return the id of the release that was active before the present one, or an empty string."""
        finished, current = self.manifests(), self.linked("current")
        ended = {note["until"]: name for name, note in self.served().items() if name in finished and name != current}
        return ended[max(ended)] if ended else ""

    def serve(self, release: str, environment: str, *, failed: bool) -> None:
        """Point `current` to a release; record the one before, unless it failed."""
        before = self.linked("current")
        if before not in ("", release) and not failed:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._write(self._served / f"{before}.json", json.dumps({"configuration": configuration(), "until": now}))
        self.link("current", release)
        # Services compare the age of this file with their own: those with Python in memory restart when it changes.
        if self.environment() != environment:
            self._write(self._root / "environment", environment)

    def environment(self) -> str:
        """Return the digest of the environment of the last activated release."""
        path = self._root / "environment"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def link(self, name: str, release: str) -> None:
        """Point a link to a release, atomically."""
        if self.linked(name) == release:
            return
        partial = self._root / f".{name}.partial"
        partial.unlink(missing_ok=True)
        partial.symlink_to(f"releases/{release}")
        partial.replace(self._root / name)
        _sync(self._root)

    def superfluous(self, keep: int) -> list[str]:
        """Return the ids of releases that are not linked, not in use, and not among the newest by build or use."""
        linked = [self.linked("current"), self.linked("candidate"), self.previous(), *self.in_use()]
        served = self.served()
        ages = {
            name: max(manifest["built"], served.get(name, {}).get("until", ""))
            for name, manifest in self.manifests().items()
        }
        newest = sorted(ages, key=lambda name: (name in linked, ages[name]), reverse=True)
        return [name for name in newest[keep:] if name not in linked]

    def in_use(self) -> set[str]:
        """Return the ids of releases with running processes, such as a worker whose flow runs have not ended."""
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            # The process may have ended meanwhile.
            with suppress(FileNotFoundError, ProcessLookupError):
                program = Path((process / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace"))
                if program.is_relative_to(self._root / "releases"):
                    found.add(program.relative_to(self._root / "releases").parts[0])
        return found

    def remove(self, release: str) -> None:
        """Remove a release; its manifest is removed first, so that a partial release does not count as finished."""
        path = self._root / "releases" / release
        (path / "manifest.json").unlink()
        shutil.rmtree(path)
        (self._served / f"{release}.json").unlink(missing_ok=True)

    def _write(self, path: Path, content: str) -> None:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("w", encoding="utf-8") as file:
            file.write(content)
            os.fsync(file.fileno())
        partial.replace(path)
        _sync(path.parent)


def configuration() -> str:
    """Return a digest of the configuration that services read in addition to the release."""
    digest = hashlib.sha256()
    for path in map(Path, CONFIGURATION):
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()[:12]


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def main() -> None:
    """Run as an Ansible module."""
    # Of whoever Ansible logs in as: services read releases.
    os.umask(0o022)
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "candidate": {"type": "str"},
            "serve": {"type": "str"},
            "failed": {"type": "bool", "default": False},
            "keep": {"type": "int"},
        },
        supports_check_mode=True,
    )
    releases = Releases(Path(module.params["root"]))
    candidate, serve, keep = module.params["candidate"], module.params["serve"], module.params["keep"]
    manifests = releases.manifests()
    # In check mode, the release to activate may not exist.
    if not module.check_mode and (missing := {candidate, serve} - {None, *manifests}):
        module.fail_json(msg=f"There is no finished release {missing.pop()} below {module.params['root']}/releases.")
    environment = manifests.get(serve, {}).get("environment", "")
    changed = candidate not in (None, releases.linked("candidate"))
    if serve is not None:
        changed |= serve != releases.linked("current") or environment != releases.environment()
    if not module.check_mode:
        if candidate is not None:
            releases.link("candidate", candidate)
        if serve is not None:
            releases.serve(serve, environment, failed=module.params["failed"])
    pruned = [] if keep is None else releases.superfluous(keep)
    if not module.check_mode:
        for release in pruned:
            releases.remove(release)
    module.exit_json(
        changed=changed or bool(pruned),
        releases=releases.manifests(),
        candidate=releases.linked("candidate"),
        current=releases.linked("current"),
        previous=releases.previous(),
        served=releases.served(),
        configuration=configuration(),
        pruned=pruned,
    )


if __name__ == "__main__":
    main()
