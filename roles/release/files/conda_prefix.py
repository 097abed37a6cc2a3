"""Create a release's Python from conda packages, as pixi does: from pixi.lock, or else by solving pixi.toml.

Run by the builder's Python, which has py-rattler, and uv next to it. A prefix is complete only if this exits with 0.
"""

import argparse
import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import rattler
from rattler.exceptions import (
    GatewayError,
    InstallerError,
    InvalidChannelError,
    InvalidMatchSpecError,
    ParseCondaLockError,
    SolverError,
)
from rattler.networking import AuthenticationMiddleware, MirrorMiddleware, OciMiddleware, RetryMiddleware
from rattler.shell import ActivationVariables, Shell, activate

PLATFORM = str(rattler.Subdir.current())
# Variables of every shell, and conda's internal ones. A service gets its PATH from its unit.
NOT_RECORDED = re.compile(r"PATH|PS1|PWD|OLDPWD|SHLVL|_|CONDA_(?!PREFIX$).*")


class Refused(Exception):  # noqa: N818 # an error of the input, not of this program
    """The input is refused; the message says what is wrong, where, and how to correct it."""


@dataclass
class Contents:
    """Packages of a prefix, and the file that specifies them."""

    source: Path
    conda: list[rattler.RepoDataRecord] = field(default_factory=list)
    wheels: list[dict[str, str]] = field(default_factory=list)
    local: list[str] = field(default_factory=list)

    @property
    def hashes(self) -> str:
        """Source of the hashes."""
        return "pixi.lock" if self.source.name == "pixi.lock" else "the channel's index"


def main() -> int:
    """Create the prefix that the command line specifies; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="holds pixi.lock or pixi.toml")
    parser.add_argument("--environment", required=True, metavar="NAME")
    parser.add_argument("--prefix", type=Path, required=True, help="a new directory, where the prefix stays")
    parser.add_argument("--cache", type=Path, required=True, metavar="DIR", help="of downloaded packages")
    parser.add_argument("--record", type=Path, required=True, metavar="FILE", help="gets what was installed, as JSON")
    parser.add_argument("--channel", action="append", metavar="URL", help="instead of those in pixi.toml")
    parser.add_argument("--mirror", action="append", default=[], type=mirror, metavar="ORIGINAL=MIRROR")
    arguments = parser.parse_args()
    try:
        record = asyncio.run(make_prefix(arguments))
        arguments.record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except Refused as error:
        print(one_line(error), file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001 # rattler's exceptions have no common base class
        print(one_line(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return 1
    return 0


async def make_prefix(arguments: argparse.Namespace) -> dict[str, object]:
    """Fill the prefix; return its record."""
    prefix: Path = arguments.prefix.absolute()
    if prefix.exists() and any(prefix.iterdir()):
        raise Refused(f"{prefix} is not empty: a prefix is made anew, so that nothing is in it that nothing names")
    mirrors = dict(arguments.mirror)
    mirroring = MirrorMiddleware({original: [url] for original, url in mirrors.items()})
    client = rattler.Client([RetryMiddleware(), mirroring, AuthenticationMiddleware(), OciMiddleware()])

    if (lock := arguments.source / "pixi.lock").exists():
        contents = locked(lock, arguments.environment)
    elif (manifest := arguments.source / "pixi.toml").exists():
        gateway = rattler.Gateway(cache_dir=arguments.cache / "repodata", client=client)
        contents = await solved(manifest, arguments.environment, arguments.channel, gateway)
    else:
        raise Refused(f"{arguments.source} has neither pixi.lock nor pixi.toml: commit them, or name another source")
    needs = virtual_packages(contents)
    check_hashes(contents)

    await install_conda(contents, prefix, arguments.cache / "conda", client)
    install_wheels(contents, prefix, arguments.cache / "uv", mirrors)
    for library in (prefix / "lib").glob("python3.*"):
        if not library.is_symlink():
            # Services cannot write bytecode there. Files that do not compile, such as templates, do not matter.
            command = [str(prefix / "bin/python"), "-I", "-m", "compileall", "-qq", "-j", "0", str(library)]
            subprocess.run(command, check=False)

    floors = re.findall(r"(?m)^__glibc\s*>=(\d+(?:\.\d+)*)", "\n".join(needs))
    return {
        "conda": [
            {"name": package.name.normalized, "version": str(package.version), "build": str(package.build)}
            | {"url": package.url, "sha256": (package.sha256 or b"").hex()}
            for package in contents.conda
        ],
        "pypi": contents.wheels,
        "local": contents.local,
        "virtual_packages": needs,
        "glibc": max(floors, key=rattler.Version, default=None),
        "variables": activation(prefix),
    }


def locked(lock: Path, name: str) -> Contents:
    """Return the packages that a lock file lists for an environment on this platform."""
    try:
        environments = dict(rattler.LockFile.from_path(lock).environments())
    except ParseCondaLockError as error:
        raise Refused(f"{lock} cannot be read ({error}): make it with a pixi that writes format 6 or 7") from None
    if name not in environments:
        raise unknown(lock, name, environments)
    platforms = {str(platform.subdir): platform for platform in environments[name].platforms()}
    if PLATFORM not in platforms:
        raise no_platform(lock, name, platforms)
    text = lock.read_text(encoding="utf-8")
    packages = environments[name].packages(platforms[PLATFORM]) or []
    contents = Contents(lock)
    for package in sorted(packages, key=lambda package: text.find(f" {package.location}\n")):
        url = urlsplit(package.location)
        downloaded = url.scheme in ("http", "https", "file") and url.path.endswith(".whl")
        if isinstance(package, rattler.CondaLockedBinaryPackage):
            contents.conda.append(package.repo_data_record())
        elif isinstance(package, rattler.PypiLockedPackage) and not url.scheme:
            contents.local.append(package.location)
        elif isinstance(package, rattler.PypiLockedPackage) and downloaded:
            wheel = {"name": package.name, "version": package.version, "url": package.location}
            contents.wheels.append(wheel | {"sha256": sha256_of(package)})
        else:
            raise Refused(
                f"{lock}: {package.name} is locked as {package.location}, which would have to be built: nothing is "
                "built from code that no hash covers. Lock a version that there is a wheel or a conda package of"
            )
    return contents


def sha256_of(package: rattler.LockedPackage) -> str:
    """Return a locked package's hash, or an empty string."""
    try:
        return ((package.hashes and package.hashes.sha256) or b"").hex()
    except AttributeError:  # raised by rattler for a package without hashes
        return ""


async def solved(manifest: Path, name: str, channels: list[str] | None, gateway: rattler.Gateway) -> Contents:
    """Solve a manifest's environment for this host; return its packages. PyPI packages are ignored."""
    text = tomllib.loads(manifest.read_text(encoding="utf-8"))
    workspace = text.get("workspace") or text.get("project") or {}
    environments: dict[str, Any] = {"default": [], **text.get("environments", {})}
    if name not in environments:
        raise unknown(manifest, name, environments)
    if PLATFORM not in workspace.get("platforms", []):
        raise no_platform(manifest, name, workspace.get("platforms", []))
    environment = environments[name]
    if isinstance(environment, list):
        environment = {"features": environment}
    if missing := [feature for feature in environment.get("features", []) if feature not in text.get("feature", {})]:
        raise Refused(f"{manifest}: environment {name} has a feature {missing[0]}, which is not there: add it")
    features = [text["feature"][feature] for feature in environment.get("features", [])]
    features += [] if environment.get("no-default-feature") else [text]

    if not channels:
        listed = [channel for table in [*features, workspace] for channel in table.get("channels", [])]
        channels = [channel["channel"] if isinstance(channel, dict) else channel for channel in listed]
    try:
        specs = [match_spec(manifest, *item) for feature in features for item in dependencies(feature).items()]
        records = await rattler.solve(
            [rattler.Channel(channel) for channel in dict.fromkeys(channels)],
            specs,
            gateway=gateway,
            virtual_packages=rattler.VirtualPackage.detect(),
            channel_priority=rattler.ChannelPriority[workspace.get("channel-priority", "strict").capitalize()],
        )
    except (InvalidChannelError, InvalidMatchSpecError) as error:
        raise Refused(f"{manifest}: {error}: correct it") from None
    except GatewayError as error:
        raise Refused(f"A channel of {manifest} cannot be read; is a mirror needed? {error}") from None
    except SolverError as error:
        raise Refused(f"{manifest}: environment {name} has no solution on this host. {error}") from None
    return Contents(manifest, sorted(records, key=lambda record: record.url))


def dependencies(feature: dict[str, Any]) -> dict[str, Any]:
    """Return a feature's dependencies on this platform: the most specific target takes precedence."""
    found = dict(feature.get("dependencies", {}))
    for target in ("unix", "linux", PLATFORM):
        found |= feature.get("target", {}).get(target, {}).get("dependencies", {})
    return found


def match_spec(manifest: Path, name: str, wanted: str | dict[str, Any]) -> rattler.MatchSpec:
    """Convert a dependency of a manifest to rattler's type."""
    if isinstance(wanted, str):
        return rattler.MatchSpec(f"{name} {wanted}")
    if source := {"git", "path", "url"} & wanted.keys():
        raise Refused(f"{manifest}: {name} comes from a {source.pop()}: take it from a channel")
    fields = ",".join(f"{key.replace('-', '_')}={json.dumps(str(value))}" for key, value in wanted.items())
    return rattler.MatchSpec(f"{name}[{fields}]")


def virtual_packages(contents: Contents) -> list[str]:
    """Return the packages' requirements on a host; refuse a host that does not meet them."""
    host = {}
    for package in (detected.into_generic() for detected in rattler.VirtualPackage.detect()):
        version = str(package.version)
        host[package.name.normalized] = rattler.PackageRecord(package.name, version, package.build_string, 0, PLATFORM)
    needs = set()
    for record in contents.conda:
        for text in [*record.depends, *record.constrains]:
            if not text.startswith("__"):
                continue
            spec = rattler.MatchSpec(text)
            name = spec.name.normalized
            if name not in host and text not in record.depends:
                continue  # a constraint on a feature that this host does not have
            needs.add(text)
            if name not in host or not spec.matches(host[name]):
                has = (
                    f"{name} {host[name].version} {host[name].build}".removesuffix(" 0")
                    if name in host
                    else f"no {name}"
                )
                raise Refused(
                    f"package {record.name.normalized} {record.version} needs {text}, this host has {has}: lock it "
                    "with the host's [system-requirements] in pixi.toml, or deploy to a newer system"
                )
    return sorted(needs)


def check_hashes(contents: Contents) -> None:
    """Refuse packages without a hash, and local files with another hash; rattler checks its downloads itself."""
    for record in contents.conda:
        url = urlsplit(record.url)
        if record.sha256 is None:
            raise no_hash(record.file_name, contents)
        if url.scheme == "file" and hashlib.sha256(Path(unquote(url.path)).read_bytes()).digest() != record.sha256:
            raise other_hash(record.file_name, contents)
    for wheel in contents.wheels:
        if not wheel["sha256"]:
            raise no_hash(file_name(wheel["url"]), contents)


async def install_conda(contents: Contents, prefix: Path, cache: Path, client: rattler.Client) -> None:
    """Download, verify and link the conda packages. Cached packages are verified too."""
    layer = rattler.PackageCacheLayer(cache).with_validation_mode(rattler.ValidationMode.full())
    try:
        await rattler.install(
            contents.conda,
            prefix,
            package_cache=rattler.PackageCache.from_layers([layer]),
            client=client,
            execute_link_scripts=False,
            show_progress=False,
        )
    except InstallerError as error:
        package = re.search(r"failed to fetch (\S+)", str(error))
        # Unpacking a modified archive may fail before its hash is known.
        if package and re.search(r"hash mismatch|Invalid checksum", str(error)):
            raise other_hash(package[1], contents) from None
        raise Refused(f"The conda packages cannot be installed; is a mirror needed? {error}") from None


def install_wheels(contents: Contents, prefix: Path, cache: Path, mirrors: dict[str, str]) -> None:
    """Download, verify and install the wheels, in addition to the conda packages."""
    if not contents.wheels:
        return
    if not (prefix / "bin/python").exists():
        raise Refused(f"{contents.source} has wheels but no conda package python: add it to the dependencies")
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as requirements:
        for wheel in contents.wheels:
            requirements.write(f"{wheel['name']} @ {mirrored(wheel['url'], mirrors)} --hash=sha256:{wheel['sha256']}\n")
        requirements.flush()
        # Not `uv pip sync`, which would remove the Python packages that conda installed.
        uv = Path(sys.executable).with_name("uv")
        command = [str(uv), "pip", "install", "--python", str(prefix / "bin/python"), "--cache-dir", str(cache)]
        command += ["--no-deps", "--no-build", "--require-hashes", "--compile-bytecode", "--system-certs", "--quiet"]
        command += ["--color", "never", "--no-progress", "--requirement", requirements.name]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        for wheel in contents.wheels:
            if "Hash mismatch" in result.stderr and mirrored(wheel["url"], mirrors) in result.stderr:
                raise other_hash(file_name(wheel["url"]), contents)
        raise Refused(f"uv cannot install the wheels of {contents.source}; is a mirror needed? {result.stderr}")


def activation(prefix: Path) -> dict[str, str]:
    """Return the variables that activating the prefix sets."""
    script = activate(prefix, ActivationVariables(current_path=["/usr/bin", "/bin"]), Shell.bash).script
    command = ["bash", "--noprofile", "--norc", "-c", f"{script}\n/usr/bin/env -0"]
    result = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise Refused(f"A script in {prefix}/etc/conda/activate.d fails: {result.stderr}")
    variables = dict(line.split("=", 1) for line in result.stdout.split("\0") if "=" in line)
    return {name: value for name, value in sorted(variables.items()) if not NOT_RECORDED.fullmatch(name)}


def mirror(text: str) -> tuple[str, str]:
    """Parse ORIGINAL=MIRROR; return both URLs."""
    original, equals, url = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text} is not ORIGINAL=MIRROR")
    return original.rstrip("/") + "/", url.rstrip("/") + "/"


def mirrored(url: str, mirrors: dict[str, str]) -> str:
    """Return the URL to fetch a file from, with its mirror applied."""
    original = max((original for original in mirrors if url.startswith(original)), key=len, default="")
    return mirrors.get(original, "") + url.removeprefix(original)


def file_name(url: str) -> str:
    """Return the file name of a URL."""
    return unquote(urlsplit(url).path.rsplit("/", 1)[-1])


def one_line(error: object) -> str:
    """Return an error message as one line, without the tree symbols of rattler and uv."""
    return " ".join(re.sub(r"[^\w\s!-~]", " ", str(error)).split())


def unknown(source: Path, name: str, environments: Iterable[str]) -> Refused:
    """Return the error for an environment that does not exist."""
    return Refused(f"{source} has no environment {name}: name one of {', '.join(sorted(environments))}")


def no_platform(source: Path, name: str, platforms: Iterable[str]) -> Refused:
    """Return the error for a platform that an environment does not support."""
    there = ", ".join(sorted(platforms))
    return Refused(f"{source}: environment {name} is for {there}, this host is {PLATFORM}: add it to `platforms`")


def no_hash(name: str, contents: Contents) -> Refused:
    """Return the error for a package that cannot be verified."""
    return Refused(f"{name}: it has no SHA-256 in {contents.hashes}: lock it from a channel or index that gives one")


def other_hash(name: str, contents: Contents) -> Refused:
    """Return the error for a package whose hash differs."""
    return Refused(
        f"{name}: its SHA-256 is not the one in {contents.hashes}: it was damaged or replaced. Ask whoever runs the "
        "channel, index or mirror; lock anew only where the new file is meant"
    )


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # rattler's threads can abort an interpreter during a regular exit
