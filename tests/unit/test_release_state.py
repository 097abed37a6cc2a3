"""The releases of a host: which exist, which one is active, and which may be pruned."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(run_module: Callable[..., dict[str, Any]]) -> Run:
    """Return a function that runs the module on a directory."""

    def run_on(root: Path, *, check: bool = False, **options: object) -> dict[str, Any]:
        return run_module("release/library/release_state.py", root=str(root), _ansible_check_mode=check, **options)

    return run_on


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a directory with releases a to e, built in that order, and an incomplete one."""
    for number, name in enumerate("abcde"):
        release = tmp_path / "releases" / name
        release.mkdir(parents=True)
        manifest = {"id": name, "built": f"2026-01-0{number + 1}T00:00:00+00:00", "environment": "one"}
        (release / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (tmp_path / "releases/half").mkdir()
    return tmp_path


def test_nothing_is_there_at_first(run: Run, tmp_path: Path) -> None:
    state = run(tmp_path / "missing")
    assert (state["changed"], state["releases"], state["current"], state["previous"]) == (False, {}, "", "")


def test_a_switch_is_remembered_and_done_once(run: Run, root: Path) -> None:
    assert run(root, serve="a")["changed"]
    again = run(root, serve="a")
    assert (again["changed"], again["current"], again["previous"]) == (False, "a", "")

    switched = run(root, serve="b")

    assert (switched["changed"], switched["current"], switched["previous"]) == (True, "b", "a")
    assert (root / "current").resolve() == root / "releases/b"
    back = run(root, serve="a")
    assert (back["current"], back["previous"]) == ("a", "b")


def test_a_failed_release_is_not_a_rollback_target(run: Run, root: Path) -> None:
    for name in ("a", "b", "c"):
        run(root, serve=name)
    back = run(root, serve="b", failed=True)
    assert (back["current"], back["previous"]) == ("b", "a")


def test_services_are_told_of_another_environment_alone(run: Run, root: Path) -> None:
    run(root, serve="a")
    told = (root / "environment").stat().st_mtime_ns
    run(root, serve="b")
    assert (root / "environment").stat().st_mtime_ns == told
    manifest = root / "releases/c/manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"one"', '"two"'), encoding="utf-8")
    run(root, serve="c")
    assert (root / "environment").read_text(encoding="utf-8") == "two"


def test_check_mode_says_and_does_nothing(run: Run, root: Path) -> None:
    run(root, serve="a")
    said = run(root, check=True, serve="new", candidate="new", keep=1)
    assert said["changed"]
    assert (said["current"], run(root)["current"]) == ("a", "a")
    assert len(run(root)["releases"]) == 5


def test_a_release_of_an_older_layout_is_none(run: Run, root: Path) -> None:
    (root / "releases/half/manifest.json").write_text('{"id": "half"}', encoding="utf-8")
    (root / "current").symlink_to("releases/half")
    state = run(root, serve="a", keep=1)
    assert list(state["releases"]) == ["a"]
    assert (state["current"], state["previous"]) == ("a", "")


def test_half_a_release_does_not_serve(run: Run, root: Path) -> None:
    refused = run(root, serve="half")
    assert "There is no finished release half" in refused["msg"]
    assert not (root / "current").is_symlink()


@pytest.mark.parametrize(("keep", "kept"), [(9, "abcde"), (3, "abe"), (1, "ab"), (0, "ab")])
def test_the_oldest_go_but_not_what_serves_or_served(run: Run, root: Path, keep: int, kept: str) -> None:
    run(root, serve="b")
    run(root, serve="a")
    state = run(root, keep=keep)
    assert "".join(sorted(state["releases"])) == kept
    assert sorted(state["pruned"]) == sorted(set("abcde") - set(kept))
    assert run(root, keep=keep)["changed"] is False
    assert (root / "releases/half").is_dir()


def test_what_still_runs_stays(run: Run, root: Path) -> None:
    """A worker uses the Python of its release until its flow runs have ended."""
    python = root / "releases/c/env/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/bin/sleep")
    run(root, serve="b")
    run(root, serve="a")
    with subprocess.Popen([python, "600"]) as process:
        try:
            assert sorted(run(root, keep=0)["releases"]) == ["a", "b", "c"]
        finally:
            process.kill()
    assert run(root, keep=0)["pruned"] == ["c"]
