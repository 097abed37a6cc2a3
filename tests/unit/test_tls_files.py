"""The problems that the role tls finds in the TLS files on the controller."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption

from tests.unit.test_tls import Issued, issue, key_pem, write

NOW = datetime(2030, 1, 1, tzinfo=UTC)
NAMES = ["db", "db.example.org", "192.0.2.7", "2001:db8::7"]
ROOT = issue("root", authority=True, now=NOW)
SOUND = issue("db", ROOT, names=NAMES, now=NOW)


@pytest.fixture(scope="module")
def files(load_plugin: Callable[[str], ModuleType]) -> ModuleType:
    """Return the action plugin as a module."""
    return load_plugin("tls/action_plugins/tls_certificates.py")


@pytest.fixture
def provided(tmp_path: Path) -> Path:
    """Return a directory with an operator's valid files."""
    write(tmp_path, "ca", ROOT)
    (tmp_path / "ca.key").unlink()
    write(tmp_path, "db", SOUND)
    return tmp_path


def problems_of(
    files: ModuleType, directory: Path, mode: str = "provided", names: list[str] | None = NAMES
) -> list[str]:
    """Return the problems of the host db."""
    problems: list[str] = files.certificate_problems(directory, "db", names, mode, NOW)
    return problems


def test_sound_provided_certificates_are_no_problem(files: ModuleType, provided: Path) -> None:
    assert problems_of(files, provided) == []


@pytest.mark.parametrize("file", ["ca.crt", "db.crt", "db.key"])
def test_a_provided_file_that_is_missing_or_not_pem_is_told(files: ModuleType, provided: Path, file: str) -> None:
    (provided / file).write_bytes(b"\x30\x82")
    (problem,) = problems_of(files, provided)
    assert problem.startswith(f"{provided / file} is not a ")
    (provided / file).unlink()
    (problem,) = problems_of(files, provided)
    assert problem.startswith(f"{provided / file} cannot be read (No such file or directory)")


def test_all_that_is_missing_is_told_at_once(files: ModuleType, tmp_path: Path) -> None:
    assert len(problems_of(files, tmp_path)) == 3


def test_a_key_with_a_passphrase_is_told(files: ModuleType, provided: Path) -> None:
    (provided / "db.key").write_bytes(key_pem(SOUND.key, BestAvailableEncryption(b"secret")))
    (problem,) = problems_of(files, provided)
    assert "db.key has a passphrase" in problem


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (replace(SOUND, key=ec.generate_private_key(ec.SECP256R1())), "db.key is not the key of"),
        (issue("db", ROOT, names=NAMES, now=NOW, begin=-90, end=-1), "expired on 2029-12-31"),
        (issue("db", ROOT, names=NAMES, now=NOW, end=13), "ends on 2030-01-14, in less than 14 days"),
        (issue("db", ROOT, names=NAMES, now=NOW, begin=2), "is not valid before 2030-01-03 00:00 UTC"),
        (issue("db", ROOT, names=NAMES[1:3], now=NOW), "does not hold 2001:db8::7, db:"),
        (issue("db", ROOT, now=NOW), "does not hold 192.0.2.7, 2001:db8::7, db, db.example.org:"),
        (issue("db", issue("root", authority=True, now=NOW), names=NAMES, now=NOW), "does not verify against"),
        (issue("db", names=NAMES, now=NOW), "does not verify against"),
    ],
    ids=[
        "key",
        "expired",
        "ends soon",
        "not yet valid",
        "names",
        "no names",
        "another root of that name",
        "self-signed",
    ],
)
def test_each_shortcoming_of_a_certificate_is_one_problem(
    files: ModuleType, provided: Path, wrong: Issued, words: str
) -> None:
    write(provided, "db", wrong)
    (problem,) = problems_of(files, provided)
    assert words in problem
    assert str(provided / "db.crt") in problem


def test_an_authority_that_ends_is_told(files: ModuleType, provided: Path) -> None:
    write(provided, "ca", issue("root", authority=True, key=ROOT.key, now=NOW, end=3))
    (problem,) = problems_of(files, provided)
    assert problem.startswith(f"{provided / 'ca.crt'} (CN=root) ends on 2030-01-04")


def test_intermediates_may_follow_the_certificate_in_any_order(files: ModuleType, provided: Path) -> None:
    first = issue("first", ROOT, authority=True, now=NOW)
    second = issue("second", first, authority=True, now=NOW)
    leaf = issue("db", second, names=NAMES, now=NOW)
    write(provided, "db", leaf, first, second)
    assert problems_of(files, provided) == []
    write(provided, "db", leaf, second)
    (problem,) = problems_of(files, provided)
    assert "does not verify" in problem


def test_only_an_authority_may_issue(files: ModuleType, provided: Path) -> None:
    write(provided, "db", issue("db", SOUND, names=NAMES, now=NOW), SOUND)
    (problem,) = problems_of(files, provided)
    assert "does not verify" in problem


def test_a_wildcard_holds_one_label(files: ModuleType, provided: Path) -> None:
    write(provided, "db", issue("db", ROOT, names=["*.example.org"], now=NOW))
    assert problems_of(files, provided, names=["db.Example.org"]) == []
    (problem,) = problems_of(files, provided, names=["db.example.org", "a.db.example.org", "example.org"])
    assert "does not hold a.db.example.org, example.org:" in problem
    assert problems_of(files, provided, names=None) == []


@pytest.mark.parametrize("mode", ["internal", "acme"])
def test_an_own_authority_without_its_key_is_told(files: ModuleType, provided: Path, mode: str) -> None:
    (problem,) = problems_of(files, provided, mode)
    assert problem.startswith(f"{provided / 'ca.crt'} is there without {provided / 'ca.key'}: restore the key")
    write(provided, "ca", ROOT)
    assert problems_of(files, provided, mode) == []
    shutil.rmtree(provided)
    assert problems_of(files, provided, mode) == []


@pytest.mark.parametrize("host", ["ca", "acme-account"])
def test_a_host_named_like_another_key_is_told(files: ModuleType, tmp_path: Path, host: str) -> None:
    (problem,) = files.certificate_problems(tmp_path, host, None, "internal", NOW)
    assert "Rename the host" in problem


@pytest.mark.parametrize(
    ("lifetimes", "words"),
    [
        ((365, 365, 3650), "tls_renewal_days"),
        ((365, 90, 455), "tls_authority"),
        ((0, -1, 0), "tls_days, tls_renewal"),
        ((10**10, 1, 10**11), "tls_days"),
    ],
)
def test_lifetimes_that_contradict_each_other_are_told(
    files: ModuleType, lifetimes: tuple[int, int, int], words: str
) -> None:
    (problem,) = files.lifetime_problems(files.Lifetimes(*lifetimes))
    assert problem.startswith(words)


def test_an_authority_s_key_that_is_another_s_is_told(files: ModuleType, provided: Path) -> None:
    (provided / "ca.key").write_bytes(key_pem(SOUND.key))
    (problem,) = problems_of(files, provided, "internal")
    assert problem.startswith(f"{provided / 'ca.key'} is not the key of {provided / 'ca.crt'}: restore the key")
