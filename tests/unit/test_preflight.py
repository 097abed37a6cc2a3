"""What preflight finds wrong with an inventory and a host."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

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


def test_a_misspelt_group_is_told_with_the_right_one(preflight: ModuleType) -> None:
    (problem,) = preflight.group_problems({**WELL, "prefect_workers": ["w3"]}, [])
    assert "'prefect_workers'" in problem
    assert "'prefect_worker'" in problem


def test_empty_groups_and_a_second_primary_are_told(preflight: ModuleType) -> None:
    problems = preflight.group_problems({"database": ["a", "b"], "prefect_server": []}, [])
    assert [
        name for name in ("prefect_server", "prefect_worker") if any(f"'{name}' has no host" in p for p in problems)
    ] == [
        "prefect_server",
        "prefect_worker",
    ]
    assert any("one primary" in problem for problem in problems)


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
