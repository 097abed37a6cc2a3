"""What preflight finds wrong with an inventory and a host."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption

from tests.unit.test_tls import Issued, issue, key_pem, write

WELL = {"database": ["db"], "prefect_server": ["app"], "prefect_worker": ["app", "w2"], "all": ["db", "app", "w2"]}
FACTS = {"distribution": "Debian", "distribution_major_version": "13", "service_mgr": "systemd"}
PROBE = {"memory": 2048, "/opt": 9000, "/var": 9000}
LIMITS = {"memory": 1024, "disk": 3072}


@pytest.fixture(scope="module")
def preflight(load_plugin: Callable[[str], ModuleType]) -> ModuleType:
    """Return the action plugin as a module."""
    return load_plugin("base/action_plugins/preflight.py")


def test_nothing_is_wrong_with_what_is_right(preflight: ModuleType) -> None:
    assert preflight.group_problems({**WELL, "california": ["db"]}, ["california"]) == []
    assert preflight.host_problems(FACTS, PROBE, LIMITS) == []


def test_what_a_host_has_is_read(preflight: ModuleType) -> None:
    lines = ["", "memory 2048", "package zstd", "package acl", "account biocirv:/var/lib/biocirv:/bin/s h", "/opt 9000"]
    numbers, lists = preflight.read_probe(lines)
    assert numbers == {"memory": 2048, "/opt": 9000}
    assert lists == {
        "installed_packages": ["zstd", "acl"],
        "accounts": ["biocirv:/var/lib/biocirv:/bin/s h"],
        "postgresql_clusters": [],
        "timezones": [],
    }


def test_a_misspelt_group_is_told_with_the_right_one(preflight: ModuleType) -> None:
    (problem,) = preflight.group_problems({**WELL, "prefect_workers": ["w3"]}, [])
    assert "'prefect_workers'" in problem
    assert "'prefect_worker'" in problem


@pytest.mark.parametrize(
    ("url", "key", "words"),
    [
        ("http://prefect.example/api", "k" * 32, "prefect_api_url is http://prefect.example/api"),
        ("https://prefect.example", "k" * 32, "it must be https://<name>/api"),
        ("https://prefect.example:8443/api", "short", "prefect_encryption_key must be of 32"),
    ],
)
def test_a_value_that_nothing_can_be_made_of_is_told(preflight: ModuleType, url: str, key: str, words: str) -> None:
    (problem,) = preflight.value_problems(url, key)
    assert words in problem
    assert "short" not in problem
    assert preflight.value_problems("https://prefect.example:8443/api", "k" * 32) == []
    assert preflight.value_problems(None, None) == []


def test_a_variable_that_no_role_has_is_told_with_the_right_one(preflight: ModuleType) -> None:
    known = {"prefect_worker_limit", "release_keep"}
    names = ["prefect_worker_limits", "release_xyzzy_plugh", "prefect_worker_limit", "__release_keep", "worker_limits"]
    first, second = preflight.name_problems(names, known, ["prefect_worker", "release"])
    assert "prefect_worker_limits is no variable of any role: did you mean prefect_worker_limit?" in first
    assert "release_xyzzy_plugh is no variable of any role: docs/variables.md lists" in second


def test_empty_groups_and_a_second_primary_are_told(preflight: ModuleType) -> None:
    problems = preflight.group_problems({"database": ["a", "b"], "prefect_server": []}, [])
    assert [
        name for name in ("prefect_server", "prefect_worker") if any(f"'{name}' has no host" in p for p in problems)
    ] == [
        "prefect_server",
        "prefect_worker",
    ]
    assert any("one primary" in problem for problem in problems)


def test_two_servers_are_refused(preflight: ModuleType) -> None:
    """Each would run Prefect's scheduler and automations on the one database: everything would be scheduled twice."""
    assert preflight.group_problems(WELL, []) == []
    (problem,) = preflight.group_problems({**WELL, "prefect_server": ["s1", "s2"]}, [])
    assert "'prefect_server' has 2 hosts (s1, s2)" in problem
    assert "leave one" in problem


@pytest.mark.parametrize(
    ("facts", "probe", "words"),
    [
        ({"distribution_major_version": "11"}, {}, "Debian 11 is not supported"),
        ({"distribution": "Fedora", "distribution_major_version": "40"}, {}, "Fedora 40 is not supported"),
        ({"service_mgr": "sysvinit"}, {}, "need systemd"),
        ({}, {"memory": 512}, "512 MB of memory"),
        ({}, {"/opt": 100}, "100 MB free on the file system of /opt"),
        ({}, {"/var": 100}, "100 MB free on the file system of /var"),
    ],
)
def test_each_shortcoming_of_a_host_is_one_problem(
    preflight: ModuleType, facts: dict[str, str], probe: dict[str, int], words: str
) -> None:
    (problem,) = preflight.host_problems({**FACTS, **facts}, {**PROBE, **probe}, LIMITS)
    assert words in problem


def test_a_missing_credential_file_is_told(preflight: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text("{}", encoding="utf-8")
    files = {"HERE of credential_files": str(tmp_path / "key.json"), "THERE of credential_files": "/nowhere/key.json"}
    (problem,) = preflight.file_problems(files)
    assert problem.startswith("THERE of credential_files: /nowhere/key.json is not there")


NOW = datetime(2030, 1, 1, tzinfo=UTC)
NAMES = ["db", "db.example.org", "192.0.2.7", "2001:db8::7"]
ROOT = issue("root", authority=True, now=NOW)
SOUND = issue("db", ROOT, names=NAMES, now=NOW)


@pytest.fixture
def provided(tmp_path: Path) -> Path:
    """Return a directory with the sound files of an operator."""
    write(tmp_path, "ca", ROOT)
    (tmp_path / "ca.key").unlink()
    write(tmp_path, "db", SOUND)
    return tmp_path


def judge(preflight: ModuleType, directory: Path, mode: str = "provided", names: list[str] | None = NAMES) -> list[str]:
    """Return the problems of the host db."""
    problems: list[str] = preflight.certificate_problems(directory, "db", names, mode, NOW)
    return problems


def test_sound_provided_certificates_are_no_problem(preflight: ModuleType, provided: Path) -> None:
    assert judge(preflight, provided) == []


@pytest.mark.parametrize("file", ["ca.crt", "db.crt", "db.key"])
def test_a_provided_file_that_is_missing_or_not_pem_is_told(preflight: ModuleType, provided: Path, file: str) -> None:
    (provided / file).write_bytes(b"\x30\x82")
    (problem,) = judge(preflight, provided)
    assert problem.startswith(f"{provided / file} is not a ")
    (provided / file).unlink()
    (problem,) = judge(preflight, provided)
    assert problem.startswith(f"{provided / file} cannot be read (No such file or directory)")


def test_all_that_is_missing_is_told_at_once(preflight: ModuleType, tmp_path: Path) -> None:
    assert len(judge(preflight, tmp_path)) == 3


def test_a_key_with_a_passphrase_is_told(preflight: ModuleType, provided: Path) -> None:
    (provided / "db.key").write_bytes(key_pem(SOUND.key, BestAvailableEncryption(b"secret")))
    (problem,) = judge(preflight, provided)
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
    preflight: ModuleType, provided: Path, wrong: Issued, words: str
) -> None:
    write(provided, "db", wrong)
    (problem,) = judge(preflight, provided)
    assert words in problem
    assert str(provided / "db.crt") in problem


def test_an_authority_that_ends_is_told(preflight: ModuleType, provided: Path) -> None:
    write(provided, "ca", issue("root", authority=True, key=ROOT.key, now=NOW, end=3))
    (problem,) = judge(preflight, provided)
    assert problem.startswith(f"{provided / 'ca.crt'} (CN=root) ends on 2030-01-04")


def test_intermediates_may_follow_the_certificate_in_any_order(preflight: ModuleType, provided: Path) -> None:
    first = issue("first", ROOT, authority=True, now=NOW)
    second = issue("second", first, authority=True, now=NOW)
    leaf = issue("db", second, names=NAMES, now=NOW)
    write(provided, "db", leaf, first, second)
    assert judge(preflight, provided) == []
    write(provided, "db", leaf, second)
    (problem,) = judge(preflight, provided)
    assert "does not verify" in problem


def test_only_an_authority_may_issue(preflight: ModuleType, provided: Path) -> None:
    write(provided, "db", issue("db", SOUND, names=NAMES, now=NOW), SOUND)
    (problem,) = judge(preflight, provided)
    assert "does not verify" in problem


def test_a_wildcard_holds_one_label(preflight: ModuleType, provided: Path) -> None:
    write(provided, "db", issue("db", ROOT, names=["*.example.org"], now=NOW))
    assert judge(preflight, provided, names=["db.Example.org"]) == []
    (problem,) = judge(preflight, provided, names=["db.example.org", "a.db.example.org", "example.org"])
    assert "does not hold a.db.example.org, example.org:" in problem
    assert judge(preflight, provided, names=None) == []


@pytest.mark.parametrize("mode", ["internal", "acme"])
def test_an_own_authority_without_its_key_is_told(preflight: ModuleType, provided: Path, mode: str) -> None:
    (problem,) = judge(preflight, provided, mode)
    assert problem.startswith(f"{provided / 'ca.crt'} is there without {provided / 'ca.key'}: restore the key")
    write(provided, "ca", ROOT)
    assert judge(preflight, provided, mode) == []
    shutil.rmtree(provided)
    assert judge(preflight, provided, mode) == []


@pytest.mark.parametrize("host", ["ca", "acme-account"])
def test_a_host_named_like_another_key_is_told(preflight: ModuleType, tmp_path: Path, host: str) -> None:
    (problem,) = preflight.certificate_problems(tmp_path, host, None, "internal", NOW)
    assert "Rename the host" in problem


def test_an_operator_s_variable_is_told_and_not_those_made_of_it(preflight: ModuleType) -> None:
    specs = preflight.read_specs(Path(__file__).parents[2] / "roles")
    assert next(iter(specs)) == preflight.INVENTORY
    own = trust_as_template("{{ nowhere }}")
    wired = trust_as_template("{{ database_port }}")
    variables = {"database_port": own, "backup_port": wired, "postgresql_port": wired}
    action = preflight.ActionModule.__new__(preflight.ActionModule)
    action._templar = Templar(loader=DataLoader(), variables=variables)
    problems = [problem for problem in action.variable_problems(specs, variables) if "nowhere" in problem]
    (problem,) = problems
    assert problem.startswith("database_port (role base (inventory)): ")
