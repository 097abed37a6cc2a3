"""A prefix holds the conda packages of pixi.lock, or a solution of pixi.toml; anything else is refused clearly."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from zipfile import ZipFile

import pytest
from rattler import Subdir

from tests.conda.channel import make_channel
from tests.conda.lockfile import Wheel, locked_wheels, write_lockfile

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "roles/release/files/conda_prefix.py"
PLATFORM = str(Subdir.current())


class Site(NamedTuple):
    """A directory and the URL at which it is served."""

    directory: Path
    url: str


class Prefix(NamedTuple):
    """A prefix, its record and its Python's version."""

    path: Path
    record: dict[str, Any]
    source: Path

    def python(self, code: str) -> str:
        """Run code in the prefix, as the service would; return its output."""
        command = [str(self.path / "bin/python"), "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env={}, check=False)
        return done.stdout.strip() or done.stderr


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Suppress the log."""


@contextmanager
def served(directory: Path) -> Iterator[Site]:
    """Serve a directory on the loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(directory))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield Site(directory, f"http://127.0.0.1:{server.server_port}/")
        server.shutdown()


@pytest.fixture(scope="session")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Serve a channel with this Debian's Python."""
    directory = tmp_path_factory.mktemp("channel")
    make_channel(directory)
    with served(directory) as site:
        yield site


@pytest.fixture(scope="session")
def python_version(channel: Site) -> str:
    """Return the version of Python in the channel, as 3.X."""
    (package,) = (channel.directory / PLATFORM).glob("python-*.conda")
    return ".".join(package.name.split("-")[1].split(".")[:2])


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache that all prefixes share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Serve a wheel built here: example_wheel 1.0."""
    project, directory = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("wheels")
    (project / "pyproject.toml").write_text(
        '[project]\nname = "example-wheel"\nversion = "1.0"\n'
        '[build-system]\nrequires = ["uv_build>=0.13,<0.14"]\nbuild-backend = "uv_build"\n'
    )
    (project / "src/example_wheel").mkdir(parents=True)
    (project / "src/example_wheel/__init__.py").write_text('ANSWER = "from a wheel"\n')
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "build", "--quiet", "--offline", "--wheel", "--out-dir", directory, project], check=True)
    with served(directory) as site:
        yield site


def own_wheel(wheels: Site, url: str | None = None) -> Wheel:
    """Return the wheel built here, at its address or another."""
    (path,) = wheels.directory.glob("*.whl")
    return Wheel.of(path, (url or wheels.url) + path.name)


def make(source: Path, prefix: Path, cache: Path, *options: str, environment: str = "etl") -> Prefix:
    """Make a prefix."""
    done = attempt(source, prefix, cache, *options, environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return Prefix(prefix, json.loads((source / "record.json").read_text()), source)


def refusal(source: Path, prefix: Path, cache: Path, *options: str, environment: str = "etl") -> str:
    """Return the one-line error message of a prefix that could not be made."""
    done = attempt(source, prefix, cache, *options, environment=environment)
    assert done.returncode == 1, done.stdout
    assert not (source / "record.json").exists()
    (line,) = done.stderr.splitlines()
    return line


def attempt(
    source: Path, prefix: Path, cache: Path, *options: str, environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the program with the Python of this environment, which also has py-rattler and uv."""
    places = ("--source", source, "--prefix", prefix, "--cache", cache, "--record", source / "record.json")
    return subprocess.run(
        [sys.executable, PROGRAM, "--environment", environment, *places, *options],
        capture_output=True,
        text=True,
        check=False,
    )


Lock = Callable[..., Path]


@pytest.fixture
def lock(channel: Site, tmp_path: Path) -> Lock:
    """Return a function that locks packages of the channel, and returns the folder of pixi.lock."""

    def lock(*conda: str, environment: str = "etl", site: Site = channel, **more: object) -> Path:
        (tmp_path / "source").mkdir(exist_ok=True)
        write_lockfile(
            tmp_path / "source/pixi.lock",
            environment=environment,
            channel_directory=site.directory,
            channel_url=site.url,
            conda=conda,
            **more,  # type: ignore[arg-type] # wheels and local, passed on
        )
        return tmp_path / "source"

    return lock


def edit(path: Path, pattern: str, replacement: str) -> None:
    """Replace what a pattern matches in a file."""
    text, found = re.subn(pattern, replacement, path.read_text())
    assert found, pattern
    path.write_text(text)


@pytest.fixture(scope="module")
def locked(
    channel: Site, wheels: Site, cache: Path, python_version: str, tmp_path_factory: pytest.TempPathFactory
) -> Prefix:
    """Return a prefix of conda packages, a wheel built here, and a wheel of the index."""
    source = tmp_path_factory.mktemp("locked")
    pinned = re.search(r"(?ms)^markupsafe==.*?(?=^\S|\Z)", (ROOT / "requirements/application.txt").read_text())
    assert pinned
    (source / "requirements.txt").write_text(pinned[0])
    write_lockfile(
        source / "pixi.lock",
        environment="etl",
        channel_directory=channel.directory,
        channel_url=channel.url,
        conda=["python", "example-activation", "example-module"],
        wheels=[own_wheel(wheels), *locked_wheels(source / "requirements.txt", python_version)],
        local=["./libraries/b", "./libraries/a", "./"],
    )
    return make(source, source / "prefix", cache)


def test_python_and_its_libraries_are_the_prefixs(locked: Prefix, python_version: str) -> None:
    code = """
import ctypes, sqlite3, ssl, sys, sysconfig, zlib
print(sys.prefix, sys.base_prefix, sysconfig.get_path("purelib"), sep="\\n")
for library in ("ssl", "sqlite3", "z", "ffi"):
    print(next(line.split()[-1] for line in open("/proc/self/maps") if f"/lib{library}.so" in line))
"""
    prefix, base_prefix, purelib, *libraries = locked.python(code).splitlines()
    assert prefix == base_prefix == str(locked.path)
    assert purelib == f"{prefix}/lib/python{python_version}/site-packages"
    assert {str(Path(library).parent) for library in libraries} == {f"{prefix}/lib"}


def test_wheels_lie_beside_conda_packages(locked: Prefix) -> None:
    code = "import example_module, example_wheel, markupsafe._speedups as m; print(m.__file__)"
    assert locked.python(code).startswith(str(locked.path))
    code = "import example_module, example_wheel; print(example_module.ANSWER, example_wheel.ANSWER)"
    assert locked.python(code) == "from conda from a wheel"


def test_the_record_names_everything(locked: Prefix, channel: Site, wheels: Site) -> None:
    record = locked.record
    text = (locked.source / "pixi.lock").read_text()
    conda = {package["name"]: package for package in record["conda"]}
    assert set(conda) == {path.stem.rsplit("-", 2)[0] for path in channel.directory.glob("*/*.conda")} - {
        "example-new-glibc"
    }
    assert conda["example-module"]["version"] == "1.0"
    assert conda["example-module"]["build"] == "0"
    assert conda["example-module"]["url"] == f"{channel.url}noarch/example-module-1.0-0.conda"
    for package in [*record["conda"], *record["pypi"]]:
        assert f"{package['url']}\n" in text
        assert f"sha256: {package['sha256']}\n" in text
    own = own_wheel(wheels)
    assert record["pypi"][0] == {"name": own.name, "version": "1.0", "url": own.url, "sha256": own.sha256}
    assert [package["name"] for package in record["pypi"]] == ["example-wheel", "markupsafe"]
    assert record["local"] == ["./libraries/b", "./libraries/a", "./"]
    assert record["virtual_packages"] == sorted(set(re.findall(r"__glibc >=[\d.]+", text)))
    floors = [tuple(map(int, need.split("=")[1].split("."))) for need in record["virtual_packages"]]
    assert record["glibc"] == ".".join(map(str, max(floors)))
    assert record["variables"] == {
        "CONDA_PREFIX": str(locked.path),
        "EXAMPLE_HOME": f"{locked.path}/share/example",
        "EXAMPLE_MODE": "tested",
    }


def test_nothing_is_left_to_compile(locked: Prefix) -> None:
    def compiled() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in locked.path.rglob("*.pyc")}

    before = compiled()
    assert before
    locked.python("import asyncio, ctypes, email, sqlite3, ssl, unittest, example_module, example_wheel, markupsafe")
    assert compiled() == before
    sources = {path.with_suffix("") for path in (locked.path / "lib").rglob("*.py")}
    assert sources == {path.parents[1] / path.name.split(".")[0] for path in before}


def test_a_wheel_that_is_no_longer_locked_is_not_in_the_next_prefix(
    locked: Prefix, lock: Lock, cache: Path, tmp_path: Path
) -> None:
    prefix = make(lock("python"), tmp_path / "prefix", cache)
    assert locked.python("import example_wheel") == ""
    assert "No module named 'example_wheel'" in prefix.python("import example_wheel")
    assert prefix.record["pypi"] == []
    assert prefix.record["variables"] == {"CONDA_PREFIX": str(tmp_path / "prefix")}


def test_a_prefix_is_made_anew(locked: Prefix, cache: Path, tmp_path: Path) -> None:
    shutil.copy(locked.source / "pixi.lock", tmp_path)
    assert re.match(rf"{locked.path} is not empty: .* anew", refusal(tmp_path, locked.path, cache))


@pytest.mark.parametrize("scheme", ["http", "file"])
@pytest.mark.parametrize("damage", ["changed", "appended", "truncated"])
def test_a_tampered_conda_package_is_refused(
    channel: Site, lock: Lock, tmp_path: Path, damage: str, scheme: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(channel.directory, copy, copy_function=os.link)
    package = copy / "noarch/example-module-1.0-0.conda"
    data = package.read_bytes()
    package.unlink()
    package.write_bytes(
        {"changed": data.replace(b"from conda", b"from mouse"), "appended": data + b"\n", "truncated": data[:700]}[
            damage
        ]
    )
    with served(copy) as site:
        source = lock("example-module", site=site if scheme == "http" else Site(copy, copy.as_uri() + "/"))
        line = refusal(source, tmp_path / "prefix", tmp_path / "cache")
    assert line.startswith("example-module-1.0-0.conda: its SHA-256 is not the one in pixi.lock: ")
    assert "lock anew" in line


def test_a_file_changed_in_the_cache_is_not_installed(lock: Lock, tmp_path: Path) -> None:
    source, cache, script = lock("example-activation"), tmp_path / "cache", "etc/conda/activate.d/example.sh"
    prefix = make(source, tmp_path / "first", cache)
    genuine = (prefix.path / script).read_text()
    (cached,) = cache.rglob(script)
    cached.unlink()
    cached.write_text("export EXAMPLE_HOME=/elsewhere\n")
    (source / "record.json").unlink()
    again = make(source, tmp_path / "second", cache)
    assert (again.path / script).read_text() == genuine


def test_a_tampered_wheel_is_refused(wheels: Site, lock: Lock, cache: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(wheels.directory, copy)
    wheel = own_wheel(wheels)
    with ZipFile(copy / wheel.url.rsplit("/", 1)[1], "a") as archive:
        archive.writestr("example_wheel/more.py", "ANSWER = 42\n")
    with served(copy) as site:
        line = refusal(lock("python", wheels=[own_wheel(wheels, site.url)]), tmp_path / "prefix", cache)
    assert line.startswith("example_wheel-1.0-py3-none-any.whl: its SHA-256 is not the one in pixi.lock: ")


@pytest.mark.parametrize("file", ["example-module-1.0-0.conda", "example_wheel-1.0-py3-none-any.whl"])
def test_a_package_without_a_hash_is_refused(wheels: Site, lock: Lock, cache: Path, tmp_path: Path, file: str) -> None:
    source = lock("example-module", wheels=[own_wheel(wheels)])
    edit(source / "pixi.lock", rf"(?m)^(- \w+: \S+/{re.escape(file)}\n(?:  (?!sha256).*\n)*)  sha256: .*\n", r"\1")
    line = refusal(source, tmp_path / "prefix", cache)
    assert line.startswith(f"{file}: it has no SHA-256 in pixi.lock: ")
    edit(source / "pixi.lock", r"(?m)^  md5: .*\n", "")
    assert refusal(source, tmp_path / "prefix", cache) == line


@pytest.mark.parametrize("location", ["{url}example_wheel-1.0.tar.gz", "git+{url}repository@0123abc"])
def test_nothing_is_built(wheels: Site, lock: Lock, cache: Path, tmp_path: Path, location: str) -> None:
    url = location.format(url=wheels.url)
    source = lock("python", wheels=[Wheel("example-wheel", "1.0", url, "0" * 64)])
    line = refusal(source, tmp_path / "prefix", cache)
    assert re.search(rf"pixi.lock: example-wheel is locked as {re.escape(url)}, which would have to be built", line)
    assert not (tmp_path / "prefix").exists()


def test_a_host_with_too_old_a_glibc_is_refused(channel: Site, lock: Lock, cache: Path, tmp_path: Path) -> None:
    line = refusal(lock("python", "example-new-glibc"), tmp_path / "prefix", cache)
    assert re.match(r"package example-new-glibc 1\.0 needs __glibc >=99, this host has __glibc 2\.\d+", line)
    assert "deploy to a newer system" in line
    assert not (tmp_path / "prefix").exists()

    (tmp_path / "source/pixi.lock").unlink()
    write_manifest(tmp_path / "source", channel.url, '[dependencies]\nexample-new-glibc = "*"\n')
    line = refusal(tmp_path / "source", tmp_path / "prefix", cache)
    assert re.search(r"pixi\.toml: environment etl has no solution on this host\. .* __glibc >=99, for which", line)


def write_manifest(source: Path, channel: str, text: str) -> None:
    """Write a pixi.toml with an environment `etl`."""
    source.mkdir(exist_ok=True)
    head = f'[workspace]\nname = "example"\nchannels = ["{channel}"]\nplatforms = ["{PLATFORM}", "osx-arm64"]\n'
    (source / "pixi.toml").write_text(f'{head}[environments]\netl = ["etl"]\n[feature.etl]\n{text}')


def test_what_is_not_there_is_named(channel: Site, lock: Lock, cache: Path, tmp_path: Path) -> None:
    source, prefix = lock("example-activation"), tmp_path / "prefix"
    line = refusal(source, prefix, cache, environment="elt")
    assert line == f"{source}/pixi.lock has no environment elt: name one of etl"
    edit(source / "pixi.lock", PLATFORM, "osx-arm64")
    line = refusal(source, prefix, cache)
    assert line.startswith(f"{source}/pixi.lock: environment etl is for osx-arm64, this host is {PLATFORM}: ")
    edit(source / "pixi.lock", "version: 6", "version: 99")
    assert re.match(rf"{source}/pixi.lock cannot be read \(.*99.*\): ", refusal(source, prefix, cache))

    (source / "pixi.lock").unlink()
    assert refusal(source, prefix, cache).startswith(f"{source} has neither pixi.lock nor pixi.toml: ")
    write_manifest(source, channel.url, "")
    line = refusal(source, prefix, cache, environment="elt")
    assert line == f"{source}/pixi.toml has no environment elt: name one of default, etl"
    edit(source / "pixi.toml", f'"{PLATFORM}", ', "")
    line = refusal(source, prefix, cache)
    assert line.startswith(f"{source}/pixi.toml: environment etl is for osx-arm64, this host is {PLATFORM}: ")
    edit(source / "pixi.toml", "osx-arm64", PLATFORM)
    edit(source / "pixi.toml", r"\[feature.etl\]", "[feature.other]")
    assert "environment etl has a feature etl, which is not there" in refusal(source, prefix, cache)


def test_a_manifest_is_solved(channel: Site, cache: Path, tmp_path: Path) -> None:
    manifest = f"""
[feature.etl.dependencies]
python = ">=99"
example-module = {{ version = "1.*", channel = "{channel.url}" }}
[feature.etl.target.{PLATFORM}.dependencies]
python = ">=3.10"
[feature.etl.pypi-dependencies]
nothing-of-that-name = "*"
[feature.unused.dependencies]
example-new-glibc = "*"
[dependencies]
example-activation = "*"
"""
    write_manifest(tmp_path / "source", channel.url, manifest)
    prefix = make(tmp_path / "source", tmp_path / "prefix", cache)
    assert prefix.python("import example_module, ssl; print(example_module.ANSWER)") == "from conda"
    conda = {package["name"]: package for package in prefix.record["conda"]}
    assert set(conda) > {"python", "example-module", "example-activation", "zlib1g"}
    index = json.loads((channel.directory / "noarch/repodata.json").read_text())["packages.conda"]
    file = "example-module-1.0-0.conda"
    assert conda["example-module"] == {
        "name": "example-module",
        "version": "1.0",
        "build": "0",
        "url": f"{channel.url}noarch/{file}",
        "sha256": index[file]["sha256"],
    }
    assert prefix.record["pypi"] == prefix.record["local"] == []
    assert prefix.record["variables"]["EXAMPLE_MODE"] == "tested"
    assert prefix.record["glibc"]


def test_packages_come_from_mirrors(channel: Site, wheels: Site, lock: Lock, cache: Path, tmp_path: Path) -> None:
    original, index = "http://channel.invalid/channel/", "http://index.invalid/files/"
    site = Site(channel.directory, original)
    mirrors = ["--mirror", f"{original}={channel.url}", "--mirror", f"{index.rstrip('/')}={wheels.url.rstrip('/')}"]
    source = lock("python", "example-activation", site=site, wheels=[own_wheel(wheels, index)])
    prefix = make(source, tmp_path / "prefix", cache, *mirrors)
    assert prefix.python("import example_wheel; print(example_wheel.ANSWER)") == "from a wheel"
    assert prefix.record["pypi"][0]["url"].startswith(index)
    assert {package["url"].split("/")[2] for package in prefix.record["conda"]} == {"channel.invalid"}

    for path in (source / "pixi.lock", source / "record.json"):
        path.unlink()
    write_manifest(source, "not-this-channel", '[dependencies]\nexample-activation = "*"\n')
    solved = make(source, tmp_path / "solved", tmp_path / "cache", "--channel", original, *mirrors)
    assert [package["url"] for package in solved.record["conda"]] == [
        f"{original}noarch/example-activation-1.0-0.conda"
    ]


def test_a_channel_that_cannot_be_reached_is_named(lock: Lock, channel: Site, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:1/channel/"
    source = lock("example-activation", site=Site(channel.directory, nowhere))
    line = refusal(source, tmp_path / "prefix", tmp_path / "cache")
    assert re.match(
        rf"The conda packages cannot be installed; is a mirror needed\? .*{nowhere}.*Connection refused", line
    )
    (source / "pixi.lock").unlink()
    shutil.rmtree(tmp_path / "prefix")
    write_manifest(source, nowhere, '[dependencies]\npython = "*"\n')
    line = refusal(source, tmp_path / "prefix", tmp_path / "cache")
    assert re.match(rf"A channel of {source}/pixi.toml cannot be read; is a mirror needed\? .*{nowhere}", line)
