"""Make a conda channel from a Debian's own Python: `python -m tests.conda.channel --out DIR [--debs DIR]`.

Without `--debs` it uses this machine's packages. An environment from the channel needs the glibc of that Debian, which
its packages declare as a dependency, as conda-forge's do.
"""

import argparse
import asyncio
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from rattler import Subdir
from rattler.index import index_fs

DOWNLOAD = Path(__file__).with_name("download.sh")


def main() -> None:
    """Make the channel according to the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the channel's directory")
    parser.add_argument("--debs", type=Path, metavar="DIR", help="what download.sh downloaded on another Debian")
    arguments = parser.parse_args()
    make_channel(arguments.out, arguments.debs)


def make_channel(channel: Path, debs: Path | None = None) -> None:
    """Fill a directory with a channel: Python and its libraries, and a few example packages.

    Args:
        channel: the directory to make.
        debs: Debian packages from `download.sh`; without them those of this machine's Debian are downloaded.

    Raises:
        subprocess.CalledProcessError: a package could not be downloaded, unpacked or patched.

    """
    subdir = str(Subdir.current())
    with tempfile.TemporaryDirectory() as temporary:
        if debs is None:
            debs = Path(temporary) / "debs"
            subprocess.run([DOWNLOAD, debs], check=True)
        python = Path(temporary) / "python"
        needs = []
        for deb in sorted(debs.glob("*.deb")):
            name, version, libc = _described(deb)
            unpacked = Path(temporary) / deb.stem
            subprocess.run(["dpkg-deb", "--extract", deb, unpacked], check=True)
            if "python3" in name:
                shutil.copytree(unpacked, python, symlinks=True, dirs_exist_ok=True)
                if name.endswith("-minimal"):
                    python_version = version
                needs += [f"__glibc >={libc}"]
            else:
                _make_library(unpacked, Path(temporary) / name)
                write_package(channel / subdir, name, version, Path(temporary) / name, [f"__glibc >={libc}"])
                needs += [f"{name} >={version}"]
        _make_python(python, Path(temporary) / "prefix")
        write_package(channel / subdir, "python", python_version, Path(temporary) / "prefix", sorted(set(needs)))
        _write_examples(channel / "noarch", Path(temporary) / "examples")
    # Without force, a package of the same name would keep its hash from an older index.
    asyncio.run(index_fs(channel, write_shards=False, force=True))


def write_package(
    directory: Path, name: str, version: str, files: Path, depends: list[str], noarch: str | None = None
) -> Path:
    """Write a directory's files as a reproducible `.conda` package; return its path."""
    paths: list[dict[str, str | int]] = []
    for path in sorted(files.rglob("*")):
        entry: dict[str, str | int] = {"_path": path.relative_to(files).as_posix()}
        if path.is_symlink():
            paths.append(entry | {"path_type": "softlink"})
        elif path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            paths.append(entry | {"path_type": "hardlink", "sha256": digest, "size_in_bytes": path.stat().st_size})
    index = {
        "name": name,
        "version": version,
        "build": "0",
        "build_number": 0,
        "depends": depends,
        "subdir": directory.name,
        **({"noarch": noarch} if noarch else {}),
    }
    information: dict[str, object] = {"index.json": index, "paths.json": {"paths": paths, "paths_version": 1}}
    if noarch == "python":
        information["link.json"] = {"noarch": {"type": "python"}, "package_metadata_version": 1}

    stem = f"{name}-{version}-0"
    contents = {str(entry["_path"]): files / str(entry["_path"]) for entry in paths}
    texts = {f"info/{file}": json.dumps(text, indent=1).encode() for file, text in information.items()}
    directory.mkdir(parents=True, exist_ok=True)
    package = directory / f"{stem}.conda"
    with zipfile.ZipFile(package, "w") as archive:
        for part, data in (
            ("metadata.json", b'{"conda_pkg_format_version": 2}'),
            (f"pkg-{stem}.tar.zst", _zstd(_tar(contents))),
            (f"info-{stem}.tar.zst", _zstd(_tar(texts))),
        ):
            archive.writestr(zipfile.ZipInfo(part), data)
    return package


def _tar(members: Mapping[str, Path | bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, source in members.items():
            entry = tarfile.TarInfo(name)
            if isinstance(source, Path) and source.is_symlink():
                entry.type = tarfile.SYMTYPE
                entry.linkname = str(source.readlink())
                archive.addfile(entry)
                continue
            data = source if isinstance(source, bytes) else source.read_bytes()
            entry.size = len(data)
            entry.mode = 0o755 if isinstance(source, Path) and os.access(source, os.X_OK) else 0o644
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _zstd(data: bytes) -> bytes:
    """Return the data as a Zstandard frame of uncompressed blocks: the standard library cannot compress it."""
    size = 1 << 17
    blocks = [data[start : start + size] for start in range(0, len(data), size)] or [b""]
    frame = b"\x28\xb5\x2f\xfd" + bytes([0, 7 << 3])  # no checksum, a window of 128 KiB
    for number, block in enumerate(blocks, 1):
        frame += (len(block) << 3 | (number == len(blocks))).to_bytes(3, "little") + block
    return frame


def _described(deb: Path) -> tuple[str, str, str]:
    """Return a Debian package's name, its version as conda can read it, and the oldest glibc it runs with."""
    fields = "${Package}\n${Version}\n${Pre-Depends}, ${Depends}"
    command = ["dpkg-deb", "--show", "--showformat", fields, str(deb)]
    name, version, depends = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    numbers = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version)
    libc = re.search(r"libc6 \(>= ([0-9.]+)\)", depends)
    assert numbers, version
    assert libc, depends
    return name, numbers[1], libc[1]


def _make_library(unpacked: Path, prefix: Path) -> None:
    """Copy a Debian package's shared libraries to PREFIX/lib, with a run path to each other."""
    lib = prefix / "lib"
    lib.mkdir(parents=True)
    for path in unpacked.glob("**/*-linux-gnu*/lib*.so.*"):
        shutil.copy2(path, lib, follow_symlinks=False)
    _set_rpath("$ORIGIN", [path for path in lib.iterdir() if not path.is_symlink()])


def _make_python(unpacked: Path, prefix: Path) -> None:
    """Make a prefix of Debian's Python, and revert Debian's changes to the location of packages."""
    (binary,) = (unpacked / "usr/bin").glob("python3.*")
    (prefix / "bin").mkdir(parents=True)
    shutil.copy2(binary, prefix / "bin")
    for alias in ("python", "python3"):
        (prefix / "bin" / alias).symlink_to(binary.name)
    library = prefix / "lib" / binary.name
    leave_out = shutil.ignore_patterns("test", "_test*", "sitecustomize.py", "EXTERNALLY-MANAGED", "LICENSE.txt")
    shutil.copytree(unpacked / "usr/lib" / binary.name, library, symlinks=True, ignore=leave_out)

    (sysconfig,) = [path for name in ("sysconfig.py", "sysconfig/__init__.py") if (path := library / name).exists()]
    _replace(sysconfig, r"prefix_scheme = '(posix_local|deb_system)'", "prefix_scheme = 'posix_prefix'")
    # The module site is frozen into the binary and cannot be changed: it searches here.
    (library / "dist-packages").symlink_to("site-packages")
    for path in library.glob("_sysconfigdata_*.py"):
        if not path.is_symlink():
            _replace(path, r"'WHEEL_PKG_DIR': '[^']*'", "'WHEEL_PKG_DIR': ''")

    _set_rpath("$ORIGIN/../lib", [prefix / "bin" / binary.name])
    _set_rpath("$ORIGIN/../..", list((library / "lib-dynload").iterdir()))


def _replace(path: Path, pattern: str, replacement: str) -> None:
    text, found = re.subn(pattern, replacement, path.read_text(encoding="utf-8"))
    assert found, f"{path.name}: nothing matches {pattern}"
    path.write_text(text, encoding="utf-8")


def _set_rpath(rpath: str, files: list[Path]) -> None:
    subprocess.run(["patchelf", "--set-rpath", rpath, *files], check=True)


def _write_examples(directory: Path, temporary: Path) -> None:
    """Write packages that set variables, that are a Python module, and that need a newer glibc than any host's."""
    examples: dict[str, tuple[dict[str, str], list[str], str]] = {
        "example-activation": (
            {
                "etc/conda/activate.d/example.sh": 'export EXAMPLE_HOME="$CONDA_PREFIX/share/example"\n',
                "etc/conda/env_vars.d/example.json": '{"EXAMPLE_MODE": "tested"}\n',
            },
            [],
            "generic",
        ),
        "example-module": ({"site-packages/example_module.py": 'ANSWER = "from conda"\n'}, ["python"], "python"),
        "example-new-glibc": ({"share/example-new-glibc": "\n"}, ["__glibc >=99"], "generic"),
    }
    for name, (files, depends, noarch) in examples.items():
        for file, text in files.items():
            path = temporary / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        write_package(directory, name, "1.0", temporary / name, depends, noarch)


if __name__ == "__main__":
    main()
    # All is written; rattler's threads can crash an interpreter that ends as usual.
    os._exit(0)
