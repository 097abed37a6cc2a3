"""The archive of a source depends on names, contents and the executable bit, and on nothing else."""

import os
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def archive(load_plugin: Callable[[str], ModuleType]) -> ModuleType:
    """Return the Ansible module as a Python module."""
    return load_plugin("release/library/source_archive.py")


def tree(root: Path, names: list[str]) -> Path:
    """Write files that hold their names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")
    return root


def pack(archive: ModuleType, source: Path, paths: list[str]) -> bytes:
    """Return the packed files."""
    packed: bytes = archive.pack(source, archive.source_files(source, paths))
    return packed


def test_order_and_times_do_not_count(archive: ModuleType, tmp_path: Path) -> None:
    one = tree(tmp_path / "one", ["src/a.py", "src/b/c.py", "x.ini"])
    other = tree(tmp_path / "other", ["x.ini", "src/b/c.py", "src/a.py"])
    os.utime(other / "x.ini", (0, 0))
    assert pack(archive, one, ["src", "x.ini"]) == pack(archive, other, ["x.ini", "src"])


def test_leftovers_of_tools_do_not_count(archive: ModuleType, tmp_path: Path) -> None:
    source = tree(tmp_path, ["src/a.py"])
    before = pack(archive, source, ["src"])
    tree(source, ["src/__pycache__/a.cpython-311.pyc", "src/x.egg-info/PKG-INFO"])
    assert pack(archive, source, ["src"]) == before


@pytest.mark.parametrize("change", ["content", "name", "mode"])
def test_contents_names_and_modes_count(archive: ModuleType, tmp_path: Path, change: str) -> None:
    source = tree(tmp_path, ["src/a.py"])
    before = pack(archive, source, ["src"])
    path = source / "src/a.py"
    if change == "content":
        path.write_text("changed", encoding="utf-8")
    elif change == "name":
        path.rename(source / "src/b.py")
    else:
        path.chmod(0o755)
    assert pack(archive, source, ["src"]) != before


def test_what_is_packed_is_what_is_there(archive: ModuleType, tmp_path: Path) -> None:
    source = tree(tmp_path, ["src/a.py", "src/ü.csv", "not/this"])
    with tarfile.open(fileobj=BytesIO(pack(archive, source, ["src"]))) as packed:
        contents = {}
        for member in packed.getmembers():
            file = packed.extractfile(member)
            assert file
            contents[member.name] = file.read().decode()
    assert contents == {"src/a.py": "src/a.py", "src/ü.csv": "src/ü.csv"}
