"""Build a release. A release without a manifest is not finished.

Run as root by the distribution's Python. Everything that runs code of the source or of a package is done by
``assemble.py`` in the sandbox, as an account that owns nothing but the directory in which it works; this program only
copies what has come of it. The argument is the specification, a JSON file that the role's ``tasks/build.yml`` writes,
and the builder's Python. If a step fails, prints the reason, removes the partial release and exits with 1.
"""

import filecmp
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import sandbox

HERE = Path(__file__).parent
LINKS = ("current", "candidate")
# What the account makes; all else of a release is made by this program.
MADE = ("app", "env", "conda.json", "requirements.txt")
# Variables of an environment file: none that the loader obeys, and one line each.
VARIABLE = re.compile(
    r"(?!LD_|GCONV_|GETCONF_|GLIBC_|LOCPATH|MALLOC_|NIS_|NLSPATH)[A-Za-z_][A-Za-z0-9_]*=[^\x00-\x1f]*"
)
# Only root can write there: links of an environment lead to the distribution's Python.
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc")


class BuildError(Exception):
    """A step failed; the message is meant for the operator."""


def main() -> int:
    """Build the specified release, unless it exists already; return the exit code."""
    specification_file, python = Path(sys.argv[1]), sys.argv[2]
    if not specification_file.exists():
        # The process that held the lock before has built it, and has removed the specification.
        specification_file.with_suffix(".tar.gz").unlink(missing_ok=True)
        return 0
    specification = json.loads(specification_file.read_text(encoding="utf-8"))
    release = Path(specification["release"])
    try:
        # A background build may have built it already.
        if not (release / "manifest.json").exists():
            build(specification, release, python)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    Path(specification["archive"]).unlink()
    specification_file.unlink()
    return 0


def build(specification: dict[str, Any], release: Path, python: str) -> None:
    """Build a release: the account makes it, as if in its place, and root puts a copy there."""
    made, partial = HERE / "made", HERE / "partial"
    try:
        for directory in (made, partial, release):
            # Remnants of an interrupted build.
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(mode=0o755, parents=True)
        shutil.chown(made, sandbox.ACCOUNT, sandbox.ACCOUNT)
        manifest = assemble(specification, made, partial, python)
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        os.sync()
        partial.replace(release)
    finally:
        for directory in (made, partial):
            shutil.rmtree(directory, ignore_errors=True)
        with suppress(OSError):
            # Without a manifest, it is empty.
            release.rmdir()


def assemble(specification: dict[str, Any], made: Path, partial: Path, python: str) -> dict[str, Any]:
    """Let the account make the release, and copy it; return its manifest."""
    release = Path(specification["release"])
    cache = str(release.parent.parent / "cache")
    done = sandbox.run(
        [python, "-I", str(HERE / "assemble.py")],
        writable={str(made): str(release), cache: cache},
        text=json.dumps(specification),
    )
    if done.returncode != 0:
        raise BuildError(done.stderr.strip() or f"It ended with exit code {done.returncode}: see the host's journal.")
    try:
        said = json.loads(done.stdout)
        description, requires, variables = said["description"], said["requires"], said["variables"]
        manifest = {
            **description,
            **{key: specification[key] for key in ("id", "revision", "source", "alembic_config")},
            "requires": requires,
            "built": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise BuildError(f"The build says nothing of its result, but: {done.stdout[:200]!r}") from error
    if strange := [text for text in texts(manifest) if not text.isprintable()]:
        raise BuildError(f"The release describes itself by what cannot be shown: {strange!r}")
    # The release that was active when this one was begun.
    earlier = release.parent.parent / "current"
    copying = Copying(made, (str(made), str(release), *SYSTEM), compiled=specification["python"] == "conda")
    for name in MADE:
        if os.path.lexists(made / name):
            copying.copy(made / name, partial / name, earlier / name)
    if specification["python"] == "system":
        compile_bytecode(partial, release)
    (partial / "work").symlink_to(Path("app") / specification["working_directory"])
    (partial / "alembic").symlink_to(Path("app") / specification["alembic_directory"])
    write_environments(release, partial, variables)
    return manifest


@dataclass
class Copying:
    """What may be copied of the directory that the account made.

    Links may lead to ``places``. Bytecode is copied only if it is ``compiled`` by a Python of the release's own.
    """

    made: Path
    places: tuple[str, ...]
    _: KW_ONLY
    compiled: bool

    def copy(self, path: Path, target: Path, earlier: Path) -> None:
        """Copy files and directories, without owners and special modes, and links.

        Files of which ``earlier`` has the same are linked to it, with their bytecode.
        """
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode) and path.parent != self.made:
            leads = os.path.realpath(path)
            if not any(leads == place or leads.startswith(f"{place}/") for place in self.places):
                raise BuildError(f"{path.relative_to(self.made)} leads out of the release, to {leads}.")
            target.symlink_to(path.readlink())
        elif stat.S_ISDIR(mode):
            if path.name == "__pycache__" and not self.compiled:
                return
            target.mkdir(mode=0o755)
            for entry in sorted(path.iterdir()):
                self.copy(entry, target / entry.name, earlier / entry.name)
        elif stat.S_ISREG(mode):
            wanted = 0o755 if mode & stat.S_IXUSR else 0o644
            if same(path, earlier, wanted):
                target.hardlink_to(earlier)
                if not self.compiled:
                    share_bytecode(earlier, target)
                return
            shutil.copyfile(path, target)
            target.chmod(wanted)
            os.utime(target, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        else:
            raise BuildError(f"{path.relative_to(self.made)} is not a file or a directory, where one belongs.")


def same(path: Path, earlier: Path, mode: int) -> bool:
    """Return whether a release that root owns has the same file."""
    if not earlier.is_file() or earlier.is_symlink():
        return False
    return stat.S_IMODE(earlier.stat().st_mode) == mode and filecmp.cmp(path, earlier, shallow=False)


def share_bytecode(earlier: Path, target: Path) -> None:
    """Link the bytecode that root has compiled of an earlier release's file."""
    bytecode, place = (Path(cache_from_source(str(path))) for path in (earlier, target))
    if earlier.suffix == ".py" and bytecode.is_file() and not bytecode.is_symlink():
        place.parent.mkdir(mode=0o755, exist_ok=True)
        place.hardlink_to(bytecode)


def compile_bytecode(partial: Path, release: Path) -> None:
    """Compile the files that have no bytecode, by the distribution's Python, which runs none of them.

    conda's Python is another one: its bytecode comes with the release. Files that do not compile, such as templates, do
    not matter; files that a link brings in from elsewhere could hold secrets.
    """
    command = ["/usr/bin/python3", "-I", "-S", "-m", "compileall", "-qq", "-j", "0", "-e", str(partial)]
    # Tracebacks name the source by where it will be.
    command += ["-s", str(partial), "-p", str(release), str(partial)]
    subprocess.run(command, check=False, capture_output=True)


def write_environments(release: Path, partial: Path, variables: dict[str, str]) -> None:
    """Write the environment file of each link.

    Paths go through the link that a unit uses, so that its processes do not depend on the release's path.
    """
    for name in LINKS:
        place = str(release.parent.parent / name / "env")
        lines = {"PATH": f"{place}/bin:/usr/local/bin:/usr/bin:/bin"} | {
            variable: str(value).replace(str(release / "env"), place) for variable, value in variables.items()
        }
        text = "".join(f"{variable}={json.dumps(value)}\n" for variable, value in lines.items())
        if refused := [line for line in text.splitlines() if not VARIABLE.fullmatch(line)]:
            raise BuildError(f"Activating the environment sets what concerns more than the release: {refused[0]}")
        (partial / f"{name}.env").write_text(text, encoding="utf-8")


def texts(value: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Yield all texts of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value:
            yield from texts(item)
        if isinstance(value, dict):
            yield from texts(list(value.values()))


if __name__ == "__main__":
    sys.exit(main())
