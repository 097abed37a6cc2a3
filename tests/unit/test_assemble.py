"""What the build of a release says when a step fails, in the words of the real uv, which needs no network here."""

import os
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = """
[project]
name = "soil-maps"
version = "1"
[build-system]
requires = ["{requires}"]
build-backend = "{backend}"
"""


@pytest.fixture
def build(load_plugin: Callable[[str], ModuleType]) -> ModuleType:
    """Return the module that assembles releases."""
    return load_plugin("release/files/assemble.py")


@pytest.fixture
def install(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that installs what it is told into an empty environment, and returns the lines of the error."""
    build.run("Making a virtual environment", build.UV, "venv", "--quiet", "--python", sys.executable, tmp_path / "env")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_NO_CONFIG", "true")

    def failing(*arguments: str | Path) -> list[str]:
        command = (build.UV, "pip", "install", "--quiet", "--offline", "--python", tmp_path / "env/bin/python")
        with pytest.raises(build.BuildError) as failed:
            build.run("Installing the project", *command, *arguments)
        return str(failed.value).splitlines()

    return failing


def project(folder: Path, requires: str, backend: str) -> Path:
    """Write a package without any module; return its directory."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT.format(requires=requires, backend=backend), encoding="utf-8")
    return folder


def test_a_package_that_cannot_be_built_is_named_with_the_reason(
    install: Callable[..., list[str]], tmp_path: Path
) -> None:
    said = install(project(tmp_path / "maps", "uv_build", "uv_build"))

    assert said[0].startswith("Installing the project failed: Failed to build `soil-maps`: Expected a Python module at")
    assert said[1].startswith("error: Failed to build"), "uv's own text follows"


def test_a_build_backend_that_may_not_be_downloaded_names_the_variable(
    install: Callable[..., list[str]], tmp_path: Path
) -> None:
    said = install("--no-deps", project(tmp_path / "maps", "hatchling", "hatchling.build"))

    assert said[0] == (
        "Installing the project failed: Failed to build `soil-maps`: hatchling was not found in the cache; "
        "release_build_backends_from_index: true lets build backends be downloaded."
    )


def test_a_backend_s_own_reason_is_found_in_its_output(install: Callable[..., list[str]], tmp_path: Path) -> None:
    folder = project(tmp_path / "maps", "", "own_backend")
    pyproject = (folder / "pyproject.toml").read_text(encoding="utf-8").replace('[""]', '[]\nbackend-path = ["."]')
    (folder / "pyproject.toml").write_text(pyproject, encoding="utf-8")
    (folder / "own_backend.py").write_text(
        "import sys\ndef build_wheel(*arguments, **options):\n"
        "    print('maps.c:1:10: fatal error: gdal.h: No such file or directory', file=sys.stderr)\n"
        "    sys.exit('compilation terminated.')\n",
        encoding="utf-8",
    )

    said = install(folder)

    assert said[0].endswith("Failed to build `soil-maps`: maps.c:1:10: fatal error: gdal.h: No such file or directory.")


def test_a_wheel_that_is_not_the_locked_one_is_named(install: Callable[..., list[str]], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "maps-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("maps-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: maps\nVersion: 1\n")
        wheel.writestr("maps-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("maps-1.dist-info/RECORD", "")
    lock = tmp_path / "requirements.txt"
    lock.write_text(f"maps==1 --hash=sha256:{'0' * 64}\n", encoding="utf-8")

    said = install("--no-index", "--find-links", tmp_path, "--require-hashes", "--requirement", lock)

    assert said[0].startswith("Installing the project failed: ")
    assert "Hash mismatch for `maps" in said[0]


def test_a_requirement_without_a_hash_is_named(install: Callable[..., list[str]], tmp_path: Path) -> None:
    lock = tmp_path / "requirements.txt"
    lock.write_text("prefect==3.9.1\n", encoding="utf-8")

    said = install("--require-hashes", "--requirement", lock)

    assert said[0] == (
        "Installing the project failed: In `--require-hashes` mode, all requirements must have a hash, but none were "
        "provided for: prefect==3.9.1."
    )


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "error: No solution found when resolving dependencies\n"
            "  cause: Because numpy==1.19.0 has no usable wheels and you require numpy==1.19.0, we can conclude that "
            "your requirements are unsatisfiable.",
            "numpy==1.19.0 has no usable wheels.",
        ),
        (
            "error: Request failed after 3 retries in 13.4s\n"
            "  cause: Failed to fetch: https://index.example/simple/six/\n"
            "  cause: dns error\n"
            "  cause: failed to lookup address information: Name or service not known",
            "Failed to fetch: https://index.example/simple/six/: failed to lookup address information: Name or service "
            "not known.",
        ),
        (
            "Found 1 incompatibility\nThe package `requests` requires `idna>=2.5,<4`, but it's not installed",
            "The package `requests` requires `idna>=2.5,<4`, but it's not installed.",
        ),
        ("tar: Unexpected EOF in archive", ""),
    ],
)
def test_reasons(build: ModuleType, said: str, reason: str) -> None:
    assert build.reason(said) == reason


def test_no_directory_of_prefect_s_remains(build: ModuleType) -> None:
    """Prefect makes its home wherever it is imported; accounts of services have a home that must not exist."""
    home = build.run(
        "Importing Prefect", sys.executable, "-c", "from prefect.settings import PREFECT_HOME as h; print(h.value())"
    )

    assert not Path(home.strip()).exists()
    assert not Path("/nonexistent").exists()


def test_a_process_that_a_command_has_left_is_not_waited_for(build: ModuleType) -> None:
    """It would hold the command's output open; the sandbox ends it with the build."""
    left = int(build.run("Leaving a process", "sh", "-c", "sleep 60 & echo $!"))

    # It fails if the process has ended.
    os.kill(left, signal.SIGKILL)
