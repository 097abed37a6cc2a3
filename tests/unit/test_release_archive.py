"""Release archives are unpacked completely or not at all, and only on a compatible host."""

import hashlib
import io
import json
import os
import platform
import re
import stat
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
def run(load_plugin: Callable[[str], ModuleType]) -> Run:
    """Return a function that does what the module does, and returns its result."""
    plugin = load_plugin("release/library/release_archive.py")

    def run_with(**options: object) -> dict[str, Any]:
        unset = dict.fromkeys(("releases", "id", "signers", "digest"))
        given = {name: str(value) for name, value in options.items()}
        try:
            result: dict[str, Any] = plugin.carry_out({**unset, **given}, check_mode=False)
        except plugin.ArchiveError as error:
            return {"failed": True, "msg": str(error)}
        return result

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


Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"", **properties: object) -> Member:
    """Return a member of an archive."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    for key, value in properties.items():
        setattr(entry, key, value)
    return entry, data


def packed(*members: Member) -> bytes:
    """Return a tar file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for entry, data in members:
            file.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def forge(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes an archive with any members and any manifest, as somebody else could."""

    def write(*members: Member, **manifest: object) -> Path:
        files = subprocess.run(["zstd"], input=packed(*members), capture_output=True, check=True).stdout
        description = {
            "manifest": {"id": ID, "requires": {"architecture": platform.machine()}, **manifest},
            "sha256": hashlib.sha256(files).hexdigest(),
        }
        archive = tmp_path / "forged"
        archive.write_bytes(
            packed(member("manifest.json", json.dumps(description).encode()), member("files.tar.zst", files))
        )
        return archive

    return write


LINK = {"type": tarfile.SYMTYPE}
ATTACKS: dict[str, tuple[list[Member], str]] = {
    "a name": ([member("../../outside")], "outside"),
    "an absolute link": (
        [member("env", **LINK, linkname="/var/lib/prefect-worker")],
        "env in the archive leads out of",
    ),
    "a relative link": ([member("a/b", **LINK, linkname="../../../../outside")], "a/b in the archive leads out of"),
    "a link to a link": (
        [member("a", **LINK, linkname="b"), member("b", **LINK, linkname="/var/lib/biocirv")],
        "in the archive leads out of",
    ),
    "a file through a link": (
        [member("a", **LINK, linkname="../.."), member("a/outside", b"x")],
        "cannot be unpacked|leads out of",
    ),
    "a hard link": ([member("a", type=tarfile.LNKTYPE, linkname="/etc/shadow")], "cannot be unpacked"),
    "a pipe": ([member("env/pipe", type=tarfile.FIFOTYPE)], "env/pipe in the archive is neither a file nor"),
    "a device": (
        [member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
        "null in the archive is neither a file nor|cannot be unpacked",
    ),
    "a library for root": (
        [member("current.env", b'PATH="/x"\nLD_PRELOAD="/var/lib/x.so"\n')],
        "current.env in the archive",
    ),
    "an indented variable": ([member("candidate.env", b" LD_AUDIT=/x\n")], "candidate.env in the archive"),
    "a linked environment": ([member("current.env", **LINK, linkname="/etc/hostname")], "current.env in the archive"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_files_with_an_effect_beyond_the_release_are_refused(
    run: Run, forge: Callable[..., Path], tmp_path: Path, attack: str
) -> None:
    """Nothing is left behind, neither there nor elsewhere."""
    members, reason = ATTACKS[attack]
    result = run(archive=forge(*members), state="installed", releases=tmp_path / "there")
    assert result["failed"]
    assert re.search(reason, result["msg"])
    assert not list((tmp_path / "there").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"there", "forged"}


@pytest.mark.parametrize(
    "manifest",
    [
        {"id": "/secvictim"},
        {"id": "../victim"},
        {"id": "victim"},
        {"id": f"{ID}\n"},
        {"id": ""},
        {"alembic_config": "alembic.ini\nExecStartPre=+/bin/sh -c id"},
        {"alembic_config": "-x"},
        {"alembic_config": "%h/it"},
        {"revision": "v1\nBIOCIRV_OPERATOR=another"},
        {"application_schema": ["\x1b]0;title\x07"]},
        {"requires": {"architecture": platform.machine(), "\x9b2J": ""}},
        {"requires": None},
    ],
)
@pytest.mark.parametrize("state", ["inspected", "installed"])
def test_a_manifest_with_an_effect_beyond_the_release_is_refused(
    run: Run, forge: Callable[..., Path], tmp_path: Path, state: str, manifest: dict[str, object]
) -> None:
    """An id that is a path would replace any directory; other values get into units, journal and terminal."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").touch()
    result = run(archive=forge(member("x"), **manifest), state=state, releases=tmp_path / "there")
    assert result["failed"]
    assert "is none of `make release-archive`" in result["msg"]
    assert result["msg"].isprintable()
    assert (victim / "kept").exists()
    assert not (tmp_path / "there").exists()


def test_files_have_no_special_modes_and_belong_to_who_installs(
    run: Run, forge: Callable[..., Path], tmp_path: Path
) -> None:
    """The manifest that was checked counts, not another one among the files."""
    members = [
        member(".", type=tarfile.DIRTYPE, mode=0o777, uid=33, gid=33),
        member("bin", type=tarfile.DIRTYPE, mode=0o1777, uid=33, gid=33),
        member("bin/sh", b"x", mode=0o6777, uid=33, gid=33),
        member("manifest.json", b'{"id": "/elsewhere", "alembic_config": "-x"}'),
    ]
    assert run(archive=forge(*members), state="installed", releases=tmp_path / "there")["changed"]
    release = tmp_path / "there" / ID
    found = {path.name: path.stat() for path in (release, release / "bin", release / "bin/sh")}
    assert {name: stat.S_IMODE(each.st_mode) for name, each in found.items()} == {ID: 0o755, "bin": 0o755, "sh": 0o755}
    assert {each.st_uid for each in found.values()} == {os.getuid()}
    assert json.loads((release / "manifest.json").read_text())["id"] == ID


def test_another_archive_than_the_one_inspected_is_refused(
    run: Run, forge: Callable[..., Path], archive: Path, tmp_path: Path
) -> None:
    digest = run(archive=archive, state="inspected")["digest"]
    result = run(archive=forge(member("x")), state="installed", releases=tmp_path / "there", digest=digest)
    assert "is not the archive that was inspected" in result["msg"]
    assert run(archive=archive, state="installed", releases=tmp_path / "there", digest=digest)["changed"]


def keygen(*arguments: object) -> None:
    """Run ssh-keygen."""
    subprocess.run(["ssh-keygen", *map(str, arguments)], check=True, capture_output=True)


def test_a_signature_can_be_demanded(run: Run, archive: Path, tmp_path: Path) -> None:
    """None, one by another key, for another purpose, or of another file is refused."""
    for name in ("key", "other"):
        keygen("-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name)
    signers = tmp_path / "signers"
    inspect = {"archive": archive, "state": "inspected", "signers": signers}
    assert f"release_archive_signers is not there: {signers}" in run(**inspect)["msg"]
    signers.write_text(f"it@example.org {(tmp_path / 'key.pub').read_text()}", encoding="utf-8")
    assert f"signature is not there: {archive}.sig" in run(**inspect)["msg"]
    for key, purpose in (("other", "biocirv-release"), ("key", "git")):
        keygen("-Y", "sign", "-n", purpose, "-f", tmp_path / key, archive)
        assert "its signature" in run(**inspect)["msg"]
        archive.with_name("release.sig").unlink()
    keygen("-Y", "sign", "-n", "biocirv-release", "-f", tmp_path / "key", archive)
    assert run(**inspect)["manifest"]["id"] == ID
    with archive.open("ab") as file:
        file.write(b"more")
    assert "is not valid" in run(**inspect)["msg"]


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
