"""Write a pixi.lock as pixi does, in format 6, of packages in a test channel and wheels of an index.

Such a file contains addresses of this machine: it is generated where it is used, and never committed.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename
from rattler import Subdir

REPODATA_FIELDS = ("subdir", "sha256", "md5", "depends", "constrains", "noarch", "license", "size", "timestamp")


@dataclass(frozen=True)
class Wheel:
    """A wheel at a URL."""

    name: str
    version: str
    url: str
    sha256: str | None

    @classmethod
    def of(cls, path: Path, url: str) -> "Wheel":
        """Return the wheel in a file, as published at a URL."""
        name, version = path.name.split("-")[:2]
        return cls(name.replace("_", "-").lower(), version, url, hashlib.sha256(path.read_bytes()).hexdigest())


def main() -> None:
    """Write the lock file according to the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--channel-directory", type=Path, required=True)
    parser.add_argument("--channel-url", required=True, help="where that directory is served")
    parser.add_argument("--environment", default="default")
    parser.add_argument(
        "--conda", action="append", metavar="NAME", help="a package, beside what it needs (default: python)"
    )
    parser.add_argument("--requirements", type=Path, help="hashed requirements, locked as wheels")
    parser.add_argument("--python-version", default="3.13", help="for which wheels are chosen")
    parser.add_argument("--wheel", action="append", default=[], metavar="PATH=URL", help="a wheel, and where it is")
    parser.add_argument("--local", action="append", default=[], metavar="./PATH", help="a package of the source")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    wheels = [Wheel.of(Path(path), url) for path, _, url in (text.partition("=") for text in arguments.wheel)]
    if arguments.requirements:
        wheels += locked_wheels(arguments.requirements, arguments.python_version)
    write_lockfile(
        arguments.output,
        environment=arguments.environment,
        channel_directory=arguments.channel_directory,
        channel_url=arguments.channel_url,
        conda=arguments.conda or ["python"],
        wheels=wheels,
        local=arguments.local,
    )


def write_lockfile(
    output: Path,
    *,
    environment: str,
    channel_directory: Path,
    channel_url: str,
    conda: Iterable[str],
    wheels: Iterable[Wheel] = (),
    local: Iterable[str] = (),
) -> None:
    """Write a lock file of one environment for this platform.

    Args:
        output: the file.
        environment: its name.
        channel_directory: an indexed channel.
        channel_url: the URL at which it is served.
        conda: packages of the channel; their dependencies are locked too.
        wheels: wheels.
        local: packages of the source, as paths relative to the file.

    Raises:
        KeyError: the channel has no such package.

    """
    channel_url = channel_url.rstrip("/") + "/"
    packages: list[dict[str, Any]] = [
        {"conda": channel_url + path, **{field: record[field] for field in REPODATA_FIELDS if field in record}}
        for path, record in sorted(_records(channel_directory, conda).items())
    ]
    for wheel in wheels:
        hashed = {"sha256": wheel.sha256} if wheel.sha256 else {}
        packages.append({"pypi": wheel.url, "name": wheel.name, "version": wheel.version, **hashed})
    for path in local:
        name = (output.parent / path).resolve().name.replace("_", "-")
        packages.append({"pypi": path, "name": name, "version": "0.1.0", "editable": True})
    references = [{kind: package[kind] for kind in ("conda", "pypi") if kind in package} for package in packages]
    lock = {
        "version": 6,
        "environments": {
            environment: {"channels": [{"url": channel_url}], "packages": {str(Subdir.current()): references}}
        },
        "packages": packages,
    }
    output.write_text(yaml.safe_dump(lock, sort_keys=False), encoding="utf-8")


def locked_wheels(requirements: Path, python_version: str) -> list[Wheel]:
    """Return the wheel of each requirement for a version of Python on this platform, from uv's index.

    Raises:
        ValueError: a wheel's hash is not in the requirements.
        subprocess.CalledProcessError: uv found no wheel for a requirement.

    """
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "pylock.toml"
        subprocess.run(
            [
                *(Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", "--no-deps", "--no-build"),
                *("--python-version", python_version, "--python-platform", f"{platform.machine()}-manylinux_2_28"),
                *("--format", "pylock.toml", "--output-file", output, requirements),
            ],
            check=True,
        )
        packages = tomllib.loads(output.read_text(encoding="utf-8"))["packages"]
    hashes = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", requirements.read_text(encoding="utf-8")))
    wheels = []
    for package in packages:
        # uv lists all wheels that fit this platform.
        wheel = min(package["wheels"], key=lambda wheel: _preference(wheel["url"], python_version))
        sha256 = wheel["hashes"]["sha256"]
        if sha256 not in hashes:
            raise ValueError(f"{package['name']}: the index's {wheel['url']} is not the one in {requirements}")
        wheels.append(Wheel(package["name"], package["version"], wheel["url"], sha256))
    return wheels


def _preference(url: str, python_version: str) -> int:
    """Return the rank of a wheel's best tag in pip's order of preference."""
    version = [int(number) for number in python_version.split(".")]
    machine = platform.machine()
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(28, 16, -1)] + [f"manylinux2014_{machine}"]
    order = [*cpython_tags(version, platforms=platforms), *compatible_tags(version, platforms=platforms)]
    return min(order.index(tag) for tag in parse_wheel_filename(url.rsplit("/", 1)[1])[3] if tag in order)


def _records(channel_directory: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the packages and their dependencies, by their path in the channel."""
    found = {}
    for repodata in channel_directory.glob("*/repodata.json"):
        for file, record in json.loads(repodata.read_text(encoding="utf-8"))["packages.conda"].items():
            found[record["name"]] = f"{repodata.parent.name}/{file}", record
    wanted = list(names)
    records: dict[str, dict[str, Any]] = {}
    while wanted:
        path, record = found[wanted.pop()]
        if path not in records:
            records[path] = record
            wanted += [depends.split()[0] for depends in record["depends"] if not depends.startswith("__")]
    return records


if __name__ == "__main__":
    main()
    # All is written; rattler's threads can crash an interpreter that ends as usual.
    os._exit(0)
