"""The archive of a source depends on names, contents and the executable bit, and on nothing else.

It holds nothing from outside of the source, and no secrets: every account of a host can read a release.
"""

import os
import subprocess
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROLES = Path(__file__).parents[2] / "roles"


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


# A key as OpenSSL writes it; the letters are none.
KEY = f"-----BEGIN PRIVATE KEY-----\n{'A' * 64}\n-----END PRIVATE KEY-----\n"
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(archive: ModuleType, tmp_path: Path) -> Run:
    """Return a function that packs paths of tmp_path/source: the result with the packed names, or why not."""

    def pack_paths(*paths: str) -> dict[str, Any]:
        try:
            result: dict[str, Any] = archive.write(tmp_path / "source", list(paths), tmp_path / "archives")
        except archive.SourceError as error:
            return {"msg": str(error)}
        with tarfile.open(result["archive"]) as packed:
            return {**result, "names": packed.getnames()}

    return pack_paths


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a source, outside of which is a file that a release must not hold."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/id").write_text("an operator's own", encoding="utf-8")
    return tree(tmp_path / "source", ["src/a.py"])


def repository(source: Path) -> Path:
    """Make a source a git repository, with its files committed."""
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=It"]):
        options = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", "-C", str(source), *options, *command], check=True)
    return source


@pytest.mark.parametrize("with_git", [False, True])
@pytest.mark.parametrize("target", ["../../outside/id", "../../outside", "/etc/hostname", "/proc/self/environ"])
@pytest.mark.parametrize("path", [".", "src", "src/link"])
def test_a_link_that_leads_out_is_refused(run: Run, source: Path, path: str, target: str, with_git: bool) -> None:
    (source / "src/link").symlink_to(target)
    if with_git:
        repository(source)
    assert "src/link leads out of the source" in run(path)["msg"]
    assert not (source.parent / "archives").exists()


@pytest.mark.parametrize("path", ["../outside", "../outside/id", "/etc/hostname", "src/link/id"])
def test_a_path_that_leads_out_is_refused(run: Run, source: Path, path: str) -> None:
    (source / "src/link").symlink_to("../../outside")
    assert "leads out of the source" in run(path)["msg"]


def test_a_link_to_nothing_is_named(run: Run, source: Path) -> None:
    (source / "src/link").symlink_to("nothing")
    assert "src/link is a link to nothing, which does not exist" in run(".")["msg"]


def test_a_link_within_the_source_is_packed_as_what_it_leads_to(run: Run, source: Path) -> None:
    (source / "src/link").symlink_to("a.py")
    assert run(".")["names"] == ["src/a.py", "src/link"]


SECRETS = [".env", ".env.production", "inventory/mine/.secrets/api", "deep/.netrc", "tls/ca.key"]


@pytest.mark.parametrize("with_git", [False, True])
def test_secrets_are_not_packed_and_are_named(run: Run, source: Path, with_git: bool) -> None:
    """Also those that somebody has committed."""
    tree(source, [*SECRETS, ".env.example", "environment.py"])
    found = {
        "pem.txt": KEY,
        "account.json": KEY.replace("\n", "\\n"),
        "old.pem": KEY.replace("-\nA", "-\nDEK-Info: AES\n\nA"),
    }
    for name, text in found.items():
        (source / name).write_text(text, encoding="utf-8")
    # The name says nothing of what it leads to.
    (source / "src/settings").symlink_to("../.env")
    if with_git:
        repository(source)
    result = run(".")
    assert result["secrets"] == sorted([*SECRETS, *found, "src/settings"])
    assert result["names"] == [".env.example", "environment.py", "src/a.py"]


def test_text_about_keys_is_no_key(run: Run, source: Path) -> None:
    (source / "src/text.py").write_text('MARK = "-----BEGIN PRIVATE KEY-----"\n# and more\n', encoding="utf-8")
    assert run(".")["names"] == ["src/a.py", "src/text.py"]


def test_what_git_ignores_is_not_packed_unless_it_is_named(run: Run, source: Path) -> None:
    tree(source, ["ignored/b.py", "src/gone.py", "src/ü.py"])
    (source / ".gitignore").write_text("ignored/\n*.log\n", encoding="utf-8")
    repository(source)
    tree(source, ["src/new.py", "src/x.log"])
    (source / "src/gone.py").unlink()
    assert "has no *.log" in run("src", "*.log")["msg"]
    assert run(".")["names"] == [".gitignore", "src/a.py", "src/new.py", "src/ü.py"]
    assert run("src", "ignored")["names"] == ["ignored/b.py", "src/a.py", "src/new.py", "src/ü.py"]
    assert run("src", "src/x.log")["names"] == ["src/a.py", "src/new.py", "src/x.log", "src/ü.py"]


def test_a_source_within_a_repository_and_one_within_it_are_packed(run: Run, source: Path) -> None:
    """As an application in a folder of a repository, and as a submodule; also where the outer one ignores it."""
    repository(tree(source / "module", ["c.py"]))
    assert run(".")["names"] == ["module/c.py", "src/a.py"]
    repository(source)
    assert run(".")["names"] == ["module/c.py", "src/a.py"]
    (source.parent / ".gitignore").write_text("outside\n", encoding="utf-8")
    repository(source.parent)
    assert run(".")["names"] == ["module/c.py", "src/a.py"]


def test_a_repository_that_git_refuses_is_an_error(run: Run, source: Path) -> None:
    """Instead of packing all that git would ignore."""
    tree(source, [".git/HEAD"])
    assert "git does not list the files of" in run(".")["msg"]


def clone(repository: str, dest: Path, configuration: Path) -> subprocess.CompletedProcess[str]:
    """Clone a repository with its submodules, with the role's options, by an operator who allows everything."""
    variables = yaml.safe_load((ROLES / "release/vars/main.yml").read_text(encoding="utf-8"))
    configuration.write_text("[protocol]\nallow = always\n", encoding="utf-8")
    environment = {"GIT_CONFIG_GLOBAL": str(configuration), **variables["__release_git_environment"]}
    command = ["git", "clone", "--quiet", "--recurse-submodules", repository, str(dest)]
    return subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **environment})


def test_a_repository_by_a_path_is_cloned(source: Path, tmp_path: Path) -> None:
    assert clone(str(repository(source)), tmp_path / "clone", tmp_path / "config").returncode == 0
    assert (tmp_path / "clone/src/a.py").exists()


@pytest.mark.parametrize("protocol", ["ext", "http", "git"])
def test_a_protocol_that_runs_a_program_or_authenticates_nobody_is_refused(tmp_path: Path, protocol: str) -> None:
    address = f"ext::sh -c touch% {tmp_path}/ran" if protocol == "ext" else f"{protocol}://127.0.0.1:9/it"
    refused = clone(address, tmp_path / "clone", tmp_path / "config")
    assert f"transport '{protocol}' not allowed" in refused.stderr
    assert not (tmp_path / "ran").exists()


def test_a_submodule_is_no_directory_of_the_controller(source: Path, tmp_path: Path) -> None:
    private = repository(tree(tmp_path / "private", ["id"]))
    add = ["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(private), "module"]
    subprocess.run(["git", "-C", str(repository(source)), *add], check=True)
    refused = clone(str(repository(source)), tmp_path / "clone", tmp_path / "config")
    assert "transport 'file' not allowed" in refused.stderr
    assert not (tmp_path / "clone/module/id").exists()
