"""The modules that find the sheets of a folder, pack them, and put them into a directory."""

import grp
import os
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

GROUP = grp.getgrgid(os.getegid()).gr_name

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def look(run_module: Run, tmp_path: Path) -> Run:
    """Return a function that looks into the folder ``sheets``."""
    return lambda **options: run_module(
        "prefect_worker/library/sheets_folder.py", **{"folder": str(tmp_path / "sheets"), **options}
    )


@pytest.fixture
def copy(look: Run, run_module: Run, tmp_path: Path) -> Callable[[], dict[str, Any]]:
    """Return a function that packs the folder ``sheets`` and puts it into the directory ``host``."""
    (tmp_path / "host").mkdir()

    def run() -> dict[str, Any]:
        packed = look(archive=str(tmp_path / "sheets.tar.gz"))
        assert "failed" not in packed, packed
        archive, directory = str(tmp_path / "sheets.tar.gz"), str(tmp_path / "host")
        return run_module("prefect_worker/library/sheets_install.py", archive=archive, directory=directory, group=GROUP)

    return run


def fill(folder: Path, *paths: str) -> Path:
    """Make files that hold their paths, and folders for paths that end in a slash."""
    folder.mkdir(exist_ok=True)
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            (folder / path).mkdir(exist_ok=True)
        else:
            (folder / path).write_text(path, encoding="utf-8")
    return folder


def files(folder: Path) -> dict[str, str]:
    """Return the contents of all files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()
    }


def test_sheets_are_found_and_the_rest_is_said_to_be_ignored(look: Run, tmp_path: Path) -> None:
    fill(tmp_path / "sheets", "Lab/A b.csv", "Lab/a.txt", "Lab/.x.csv", "Lab/old/", "Field ü.xlsx", "~$Field ü.xlsx")
    fill(tmp_path / "sheets", "photos/1.jpg", "empty/", "notes.txt", ".DS_Store")

    found = look()

    assert found["sheets"] == ["Field ü", "Lab"]
    assert found["files"] == ["Field ü.xlsx", "Lab/A b.csv"]
    assert found["ignored"] == [
        ".DS_Store",
        "Lab/.x.csv",
        "Lab/a.txt",
        "Lab/old",
        "empty/",
        "notes.txt",
        "photos/",
        "~$Field ü.xlsx",
    ]
    assert found["size"] == len("Field ü.xlsx".encode()) + len("Lab/A b.csv")


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        (None, "is not there. Name the folder that holds the sheets."),
        ([], "holds no sheet. It is empty. A sheet is a folder of csv files"),
        (["notes.txt", "photos/1.jpg"], "holds no sheet. It holds notes.txt, photos/. A sheet is"),
        (["a.csv"], "holds csv files itself."),
        (["Lab/a.csv", "Lab.xlsx"], "The sheet 'Lab' is there twice, as csv files in "),
        (["Lab/a.csv", "Lab/b.csv/"], "Lab/b.csv is no file."),
        (["Lab/a.CSV", "Lab/a.csv"], "Lab/a is there twice, with suffixes that mean the same: remove one."),
        (["Lab.XLSX", "Lab.xlsm"], "Lab is there twice, with suffixes that mean the same: remove one."),
        (["Lab/a\n.csv"], "has a name with characters that cannot be shown: rename it."),
    ],
    ids=["missing", "empty", "other-files", "the-sheet-itself", "twice", "folder-as-file", "CSV", "XLSX", "line-break"],
)
def test_a_folder_without_usable_sheets_is_refused(
    look: Run, tmp_path: Path, paths: list[str] | None, says: str
) -> None:
    if paths is not None:
        fill(tmp_path / "sheets", *paths)

    refused = look(archive=str(tmp_path / "sheets.tar.gz"))

    assert refused["failed"]
    assert says in refused["msg"]
    assert refused["msg"].endswith("Nothing was changed.")
    assert not (tmp_path / "sheets.tar.gz").exists()


def test_names_that_cannot_be_shown_are_ignored_in_ascii(look: Run, tmp_path: Path) -> None:
    fill(tmp_path / "sheets", "Lab/a.csv")
    (Path(os.fsdecode(bytes(tmp_path / "sheets") + b"/\xff\n.txt"))).touch()
    assert look()["ignored"] == [r"'\udcff\n.txt'"]


def test_a_folder_that_cannot_be_read_is_ignored_with_the_reason(
    load_plugin: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as somebody else's, or lost+found; root can read it all the same, so that the test must pretend."""
    module = load_plugin("prefect_worker/library/sheets_folder.py")
    folder = fill(tmp_path / "sheets", "Lab/a.csv", "lost+found/")
    iterdir = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    found = module.look(folder)
    assert found.ignored == ["lost+found/ (Permission denied)"]
    assert found.files() == [Path("Lab/a.csv")]


def test_only_names_in_the_folder_must_be_shown(look: Run, tmp_path: Path) -> None:
    """Those of the folders above it are not copied."""
    odd = tmp_path / "odd\n"
    odd.mkdir()
    fill(odd / "sheets", "Lab/a.csv")
    assert look(folder=str(odd / "sheets"))["files"] == ["Lab/a.csv"]


def test_a_file_in_place_of_the_folder_is_refused(look: Run, tmp_path: Path) -> None:
    (tmp_path / "sheets").touch()
    assert "is no folder." in look()["msg"]


@pytest.mark.parametrize("link", ["Lab/b.csv", "Field.xlsx", "Other"])
def test_links_are_refused(look: Run, tmp_path: Path, link: str) -> None:
    """They may lead to any file of this machine."""
    fill(tmp_path / "sheets", "Lab/a.csv")
    target = fill(tmp_path / "elsewhere", "secret.csv")
    (tmp_path / "sheets" / link).symlink_to(target if link == "Other" else target / "secret.csv")

    assert f"{tmp_path / 'sheets' / link} is a link" in look()["msg"]


def test_a_pipe_is_refused_and_not_waited_for(look: Run, tmp_path: Path) -> None:
    fill(tmp_path / "sheets", "Lab/a.csv")
    os.mkfifo(tmp_path / "sheets/Lab/b.csv")

    assert "b.csv is no file." in look()["msg"]


@pytest.mark.parametrize("closed", ["", "Lab", "Lab/a.csv", "Field.xlsx"])
def test_what_other_accounts_cannot_read_is_refused_with_the_command_that_lets_them(
    look: Run, tmp_path: Path, closed: str
) -> None:
    """The command mends it."""
    folder = fill(tmp_path / "sheets", "Lab/a.csv", "Field.xlsx", "private.txt")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (folder / "private.txt").chmod(0o600)
    assert "failed" not in look(readable=True)
    (folder / closed).chmod(0o700 if (folder / closed).is_dir() else 0o600)
    assert "failed" not in look()

    refused = look(readable=True)

    command = refused["msg"].splitlines()[0].partition("cannot read them: ")[2]
    assert command.startswith("chmod ")
    assert os.system(command) == 0  # noqa: S605 - the user would type it
    assert "failed" not in look(readable=True)
    assert (folder / "private.txt").stat().st_mode & 0o777 == 0o600


def test_a_file_that_changes_while_it_is_packed_is_refused(
    load_plugin: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what somebody is writing is not loaded."""
    module = load_plugin("prefect_worker/library/sheets_folder.py")
    path = fill(tmp_path / "sheets", "Lab/a.csv") / "Lab/a.csv"
    add = tarfile.TarFile.addfile

    def slow(archive: tarfile.TarFile, entry: tarfile.TarInfo, file: Any) -> None:  # noqa: ANN401 - a file
        path.write_text("longer than it was before", encoding="utf-8")
        add(archive, entry, file)

    monkeypatch.setattr(tarfile.TarFile, "addfile", slow)
    with pytest.raises(module.SheetsError, match="was changed while it was read: try again"):
        module.pack(tmp_path / "sheets", [Path("Lab/a.csv")], tmp_path / "sheets.tar.gz")


def test_what_is_copied_is_what_is_there(copy: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    """Only the group can read it; a second copy changes nothing."""
    fill(tmp_path / "sheets", "Lab/a.csv", "Lab/ü b.csv", "Field.xlsx", "notes.txt")

    done = copy()

    assert done["changed"]
    expected = {name: name for name in ("Lab/a.csv", "Lab/ü b.csv", "Field.xlsx")}
    assert files(tmp_path / "host") == expected
    assert (tmp_path / "host/Lab").stat().st_mode & 0o7777 == 0o750
    for name in expected:
        status = (tmp_path / "host" / name).stat()
        assert (status.st_mode & 0o7777, status.st_gid) == (0o640, os.getegid())
    assert {path.name for path in (tmp_path / "host").iterdir()} == {"Lab", "Field.xlsx"}
    assert not copy()["changed"]


def test_a_sheet_is_replaced_and_others_stay(copy: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    """A worksheet that the sheet no longer has is removed; files that are none stay."""
    fill(tmp_path / "host", "Lab/a.csv", "Lab/old.csv", "Lab/readme.txt", "Other/x.csv", "Another.xlsx")
    (tmp_path / "host/Lab/a.csv").write_text("old", encoding="utf-8")
    fill(tmp_path / "sheets", "Lab/a.csv")

    done = copy()

    assert (done["written"], done["removed"]) == (["Lab/a.csv"], ["Lab/old.csv"])
    expected = ("Lab/a.csv", "Lab/readme.txt", "Other/x.csv", "Another.xlsx")
    assert files(tmp_path / "host") == {name: name for name in expected}


def test_a_file_that_a_flow_reads_stays_whole(copy: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    """The flow reads on in the old file."""
    fill(tmp_path / "host", "Lab/a.csv")
    (tmp_path / "host/Lab/a.csv").write_text("old " * 100_000, encoding="utf-8")
    fill(tmp_path / "sheets", "Lab/a.csv")

    with (tmp_path / "host/Lab/a.csv").open(encoding="utf-8") as reading:
        begin = reading.read(4)
        copy()
        assert begin + reading.read() == "old " * 100_000


@pytest.mark.parametrize(("before", "after"), [("Lab/a.csv", "Lab.xlsx"), ("Lab.xlsx", "Lab/a.csv")])
def test_a_sheet_that_changes_its_kind_is_not_there_twice(
    copy: Callable[[], dict[str, Any]], tmp_path: Path, before: str, after: str
) -> None:
    fill(tmp_path / "host", before)
    fill(tmp_path / "sheets", after)

    copy()

    assert {path.name for path in (tmp_path / "host").iterdir()} == {after.partition("/")[0]}
    assert files(tmp_path / "host") == {after: after}


def test_what_an_interrupted_copy_left_is_removed(copy: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    fill(tmp_path / "host", ".sheets-abc/Lab/a.csv")
    fill(tmp_path / "sheets", "Lab/b.csv")

    copy()

    assert files(tmp_path / "host") == {"Lab/b.csv": "Lab/b.csv"}
    assert not (tmp_path / "host/.sheets-abc").exists()


@pytest.mark.parametrize("name", ["../a.csv", "/a.csv", "Lab/../../a.csv", "Lab/a.txt", "a.csv", "Lab/x/a.csv"])
def test_an_archive_writes_nothing_but_sheets(run_module: Run, tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "sheets.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo(name), BytesIO())
    (tmp_path / "host").mkdir()

    refused = run_module(
        "prefect_worker/library/sheets_install.py",
        archive=str(tmp_path / "sheets.tar.gz"),
        directory=str(tmp_path / "host"),
        group=GROUP,
    )

    assert refused["msg"] == f"{name} is no file of a sheet."
    assert files(tmp_path / "host") == {}


def test_a_full_disk_is_found_before_anything_is_replaced(
    load_plugin: Callable[[str], ModuleType],
    copy: Callable[[], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = load_plugin("prefect_worker/library/sheets_install.py")
    fill(tmp_path / "sheets", "Lab/a.csv")
    copy()
    (tmp_path / "host/Lab/a.csv").write_text("old", encoding="utf-8")
    monkeypatch.setattr(module, "MARGIN", 1 << 60)

    with pytest.raises(module.InstallError, match="make room there"):
        module.install(tmp_path / "sheets.tar.gz", tmp_path / "host", GROUP)

    assert files(tmp_path / "host") == {"Lab/a.csv": "old"}


def test_two_copies_at_once_are_refused(
    load_plugin: Callable[[str], ModuleType], copy: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    module = load_plugin("prefect_worker/library/sheets_install.py")
    fill(tmp_path / "sheets", "Lab/a.csv")
    with module.alone(tmp_path / "host"):
        refused = copy()
    assert "Someone else is copying sheets" in refused["msg"]
    assert copy()["changed"]


def test_a_directory_that_no_converge_has_made_is_refused(run_module: Run, tmp_path: Path) -> None:
    refused = run_module(
        "prefect_worker/library/sheets_install.py",
        archive=str(tmp_path / "sheets.tar.gz"),
        directory=str(tmp_path / "nowhere"),
        group=GROUP,
    )
    assert "There is no directory" in refused["msg"]
