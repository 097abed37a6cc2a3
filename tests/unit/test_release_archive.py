"""Release archives are unpacked completely or not at all, and only on a compatible host."""

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ID = "0123456789ab"

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(run_module: Callable[..., dict[str, Any]]) -> Run:
    """Return a function that runs the module."""

    def run_with(**options: object) -> dict[str, Any]:
        return run_module("release/library/release_archive.py", **{name: str(value) for name, value in options.items()})

    return run_with


@pytest.fixture
def archive(run: Run, tmp_path: Path) -> Path:
    """Return the archive of a small release."""
    release = tmp_path / "here" / ID
    (release / "env/bin").mkdir(parents=True)
    (release / "env/bin/python").symlink_to("/usr/bin/python3")
    (release / "app").mkdir()
    (release / "app/module.py").write_text("answer = 42\n", encoding="utf-8")
    (release / "work").symlink_to("app")
    manifest = {"id": ID, "requires": {"architecture": platform.machine()}}
    (release / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    packed = run(archive=tmp_path / "release", state="packed", releases=tmp_path / "here", id=ID)
    assert packed["manifest"] == manifest
    return tmp_path / "release"


def test_what_was_packed_arrives(run: Run, archive: Path, tmp_path: Path) -> None:
    """Files, links, and modification times, on which the validity of bytecode depends, are kept."""
    assert run(archive=archive, state="inspected")["manifest"]["id"] == ID

    installed = run(archive=archive, state="installed", releases=tmp_path / "there")

    assert installed["changed"]
    assert not archive.exists()
    before, after = tmp_path / "here" / ID, tmp_path / "there" / ID
    assert (after / "app/module.py").read_bytes() == (before / "app/module.py").read_bytes()
    assert (after / "app/module.py").stat().st_mtime == (before / "app/module.py").stat().st_mtime
    assert (after / "env/bin/python").readlink() == Path("/usr/bin/python3")
    assert (after / "work").readlink() == Path("app")
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == [ID]


def _flip_a_bit(archive: Path) -> str:
    data = bytearray(archive.read_bytes())
    data[data.index(b"\x28\xb5\x2f\xfd") + 30] ^= 1
    archive.write_bytes(data)
    return "is damaged: files.tar.zst in it has the SHA-256"


def _cut_off(archive: Path) -> str:
    archive.write_bytes(archive.read_bytes()[:700])
    return "is no archive of a release, or only a part of one"


def _another_file(archive: Path) -> str:
    archive.write_text("PK", encoding="utf-8")
    return "is no archive of a release, or only a part of one"


def _no_file(archive: Path) -> str:
    archive.unlink()
    return "No such file or directory"


@pytest.mark.parametrize("spoil", [_flip_a_bit, _cut_off, _another_file, _no_file])
@pytest.mark.parametrize("state", ["inspected", "installed"])
def test_a_spoilt_archive_is_refused(
    run: Run, archive: Path, tmp_path: Path, state: str, spoil: Callable[[Path], str]
) -> None:
    """The message has its name and the reason, and nothing is left behind."""
    reason = spoil(archive)
    result = run(archive=archive, state=state, releases=tmp_path / "there")
    assert result["failed"]
    assert reason in result["msg"]
    assert str(archive) in result["msg"]
    assert not list((tmp_path / "there").glob("**/*"))


def test_it_unpacks_nothing_outside(run: Run, archive: Path, tmp_path: Path) -> None:
    """Names in the archive that point outside are refused."""
    files = io.BytesIO()
    with tarfile.open(fileobj=files, mode="w") as payload:
        payload.addfile(tarfile.TarInfo("../../outside"))
    compressed = subprocess.run(["zstd"], input=files.getvalue(), capture_output=True, check=True).stdout
    description = {
        "manifest": {"id": ID, "requires": {"architecture": platform.machine()}},
        "sha256": hashlib.sha256(compressed).hexdigest(),
    }
    with tarfile.open(archive, mode="w") as outer:
        for name, data in (("manifest.json", json.dumps(description).encode()), ("files.tar.zst", compressed)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            outer.addfile(entry, io.BytesIO(data))
    result = run(archive=archive, state="installed", releases=tmp_path / "there")
    assert "outside" in result["msg"]
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize(
    ("requires", "words"),
    [
        ({"architecture": "riscv128"}, "it is built for riscv128, the host is"),
        ({"architecture": platform.machine(), "python": "3.99"}, "Python 3.99, the host has"),
        ({"architecture": platform.machine(), "glibc": "99.1"}, "need glibc 99.1 or newer (__glibc), the host has"),
    ],
)
def test_a_host_that_it_does_not_run_on_is_told_why(
    load_plugin: Callable[[str], ModuleType], requires: dict[str, str], words: str
) -> None:
    (unmet,) = load_plugin("release/library/release_archive.py").unmet_requirements(requires)
    assert words in unmet


def test_a_host_of_the_same_kind_meets_it(load_plugin: Callable[[str], ModuleType]) -> None:
    requires = {"architecture": platform.machine(), "glibc": "2.17"}
    assert load_plugin("release/library/release_archive.py").unmet_requirements(requires) == []
