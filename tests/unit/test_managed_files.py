"""The module that writes files: as a whole, only where they differ, and without showing what is secret."""

import getpass
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SECRET = {"secret": "open-sesame"}
MODULE = Path(__file__).parents[2] / "roles/managed_files/library/managed_files.py"


def run(files: list[dict[str, str]], *, check: bool = False) -> dict[str, Any]:
    """Run the module as Ansible does; return its result."""
    arguments = {"files": files, "_ansible_check_mode": check, "_ansible_diff": True}
    done = subprocess.run(
        [sys.executable, str(MODULE)],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        capture_output=True,
        text=True,
        check=False,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def file(path: Path, **options: str) -> dict[str, str]:
    """Return an entry for a file of whoever runs the test."""
    return {"path": str(path), "owner": getpass.getuser(), **options}


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    files = [file(tmp_path / "new/a", content="ü\n"), {**file(tmp_path / "b", mode="0600"), **SECRET}]
    assert run(files)["changed"]
    assert not run(files)["changed"]
    assert (tmp_path / "new/a").read_text(encoding="utf-8") == "ü\n"
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "new"]


def test_content_and_mode_are_brought_back_and_what_should_not_be_is_removed(tmp_path: Path) -> None:
    wanted = [file(tmp_path / "a", content="a"), file(tmp_path / "b", content="b")]
    run(wanted)
    (tmp_path / "a").write_text("changed", encoding="utf-8")
    (tmp_path / "b").chmod(0o600)
    assert run(wanted)["written"] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert (tmp_path / "a").read_text(encoding="utf-8") == "a"
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o644
    assert run([file(tmp_path / "a")])["changed"]
    assert not (tmp_path / "a").exists()
    assert not run([file(tmp_path / "a")])["changed"]


def test_check_mode_says_what_would_change_and_changes_nothing(tmp_path: Path) -> None:
    said = run([file(tmp_path / "a", content="new\n")], check=True)
    assert said["changed"]
    assert said["diff"][0]["after"] == "new\n"
    assert not (tmp_path / "a").exists()


def test_a_secret_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("old-secret", encoding="utf-8")
    shown = json.dumps(run([{**file(tmp_path / "b"), **SECRET}]))
    assert "sesame" not in shown
    assert "old-secret" not in shown
    assert (tmp_path / "b").read_text(encoding="utf-8") == "open-sesame"


def test_an_unknown_owner_fails_with_the_path_and_leaves_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old", encoding="utf-8")
    failed = run([{"path": str(tmp_path / "a"), "content": "new", "owner": "nobody-of-this-name"}])
    assert failed["failed"]
    assert str(tmp_path / "a") in failed["msg"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text(encoding="utf-8") == "old"
