"""The module that writes files: atomically, only if they differ, and without showing secrets."""

import getpass
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SECRET = {"secret": "open-sesame"}

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(run_module: Callable[..., dict[str, Any]]) -> Run:
    """Return a function that runs the module with files and other arguments."""

    def run_with(files: list[dict[str, str]], *, check: bool = False, **options: object) -> dict[str, Any]:
        return run_module(
            "managed_files/library/managed_files.py",
            files=files,
            _ansible_check_mode=check,
            _ansible_diff=True,
            **options,
        )

    return run_with


def file(path: Path, **options: str) -> dict[str, str]:
    """Return an entry for a file of the user who runs the test."""
    return {"path": str(path), "owner": getpass.getuser(), **options}


def test_a_second_run_changes_nothing(run: Run, tmp_path: Path) -> None:
    files = [file(tmp_path / "new/a", content="ü\n"), {**file(tmp_path / "b", mode="0600"), **SECRET}]
    assert run(files)["changed"]
    assert not run(files)["changed"]
    assert (tmp_path / "new/a").read_text(encoding="utf-8") == "ü\n"
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "new"]


def test_content_and_mode_are_brought_back_and_what_should_not_be_is_removed(run: Run, tmp_path: Path) -> None:
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_file_of_an_account_that_is_gone_is_written_anew(run: Run, tmp_path: Path) -> None:
    wanted = [file(tmp_path / "a", content="a")]
    run(wanted)
    os.chown(tmp_path / "a", 54321, 54321)
    assert run(wanted)["changed"]
    assert not run(wanted)["changed"]
    assert (tmp_path / "a").owner() == getpass.getuser()


def test_a_link_is_made_brought_back_and_removed(run: Run, tmp_path: Path) -> None:
    link, target = tmp_path / "new/link", tmp_path / "not there yet"
    wanted = [file(link, link=str(target))]
    assert run(wanted, check=True)["diff"][0]["after"] == f"link to {target}\n"
    assert not link.is_symlink()
    assert run(wanted)["changed"]
    assert link.readlink() == target
    assert not run(wanted)["changed"]
    link.unlink()
    link.write_text("a file", encoding="utf-8")
    assert run(wanted)["changed"]
    assert link.readlink() == target
    # This works although the target does not exist.
    assert run([file(link)])["changed"]
    assert not link.is_symlink()


def test_check_mode_says_what_would_change_and_changes_nothing(run: Run, tmp_path: Path) -> None:
    said = run([file(tmp_path / "a", content="new\n")], check=True)
    assert said["changed"]
    assert said["diff"][0]["after"] == "new\n"
    assert not (tmp_path / "a").exists()


def test_a_secret_is_not_shown(run: Run, tmp_path: Path) -> None:
    (tmp_path / "b").write_text("old-secret", encoding="utf-8")
    shown = str(run([{**file(tmp_path / "b"), **SECRET}]))
    assert "sesame" not in shown
    assert "old-secret" not in shown
    assert (tmp_path / "b").read_text(encoding="utf-8") == "open-sesame"


def test_an_unknown_owner_fails_with_the_path_and_leaves_the_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old", encoding="utf-8")
    failed = run([{"path": str(tmp_path / "a"), "content": "new", "owner": "nobody-of-this-name"}])
    assert failed["failed"]
    assert str(tmp_path / "a") in failed["msg"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text(encoding="utf-8") == "old"


def test_unmanaged_files_are_removed_from_its_directories(run: Run, tmp_path: Path) -> None:
    """Unmanaged files are removed; their content is not shown, as it may be secret."""
    own = file(tmp_path / "own/a", content="mine\n")
    assert run([own], directories=[str(tmp_path / "own")])["changed"]
    stranger = tmp_path / "own/b"
    stranger.write_text("open-sesame", encoding="utf-8")

    said = run([own], directories=[str(tmp_path / "own")], check=True)
    assert said["written"] == [str(stranger)]
    assert "open-sesame" not in str(said)
    assert stranger.exists()

    assert run([own], directories=[str(tmp_path / "own")])["changed"]
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["a"]
    assert not run([own], directories=[str(tmp_path / "own"), str(tmp_path / "missing")])["changed"]


def test_a_managed_directory_stays_in_another_and_a_foreign_one_goes(run: Run, tmp_path: Path) -> None:
    files = [file(tmp_path / "own/a", content="mine\n"), file(tmp_path / "own/inner/b", content="mine too\n")]
    directories = [str(tmp_path / "own"), str(tmp_path / "own/inner")]
    assert run(files, directories=directories)["changed"]
    assert not run(files, directories=directories)["changed"]
    foreign = tmp_path / "own/foreign/deep"
    foreign.mkdir(parents=True)
    (foreign / "c").write_text("theirs", encoding="utf-8")
    assert run(files, directories=directories)["written"] == [str(foreign.parent)]
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["a", "inner"]


def test_the_probe_runs_after_the_files_are_written_and_tells_what_is_left(run: Run, tmp_path: Path) -> None:
    files = [file(tmp_path / "a", content="wanted\n")]
    probe = f"cat {tmp_path / 'a'}; cat {tmp_path / 'b'} 2>/dev/null || true"
    done = run(files, probe=probe, expected="wanted")
    assert (done["probed"], done["unexpected"]) == (["wanted"], False)

    (tmp_path / "b").write_text("left\n", encoding="utf-8")
    done = run(files, probe=probe, expected="wanted")
    # What the later tasks change is theirs.
    assert (done["probed"], done["unexpected"], done["changed"]) == (["wanted", "left"], True, False)
    assert (run(files)["probed"], run(files)["unexpected"]) == ([], False)


def test_in_check_mode_what_the_probe_finds_is_a_change_that_the_diff_shows(run: Run, tmp_path: Path) -> None:
    files = [file(tmp_path / "a", content="a")]
    run(files)
    assert not run(files, check=True, probe="true")["changed"]
    foreseen = run(files, check=True, probe="echo stopped", expected="started")
    assert foreseen["changed"]
    assert (foreseen["diff"][0]["before"], foreseen["diff"][0]["after"]) == ("stopped\n", "started\n")


def test_a_probe_that_fails_is_an_error_but_in_check_mode_a_change(run: Run, tmp_path: Path) -> None:
    files = [file(tmp_path / "a", content="a")]
    failed = run(files, probe="echo 'No such disk' >&2; exit 3")
    assert failed["failed"]
    assert failed["msg"] == "No such disk"
    foreseen = run(files, check=True, probe=str(tmp_path / "no-such-program"))
    assert foreseen["changed"]
    assert foreseen["unexpected"]
