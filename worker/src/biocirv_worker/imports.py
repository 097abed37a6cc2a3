"""Reads which libraries an application imports before any other code of it runs, without running any of its code."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import json
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from importlib.machinery import ModuleSpec

# Statements that run no code which could change how a library begins. The value of an assignment is taken for harmless.
_HARMLESS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Pass)


@dataclass(frozen=True)
class Import:
    """An import statement: a module, and what is imported from it, which are attributes or submodules."""

    module: str
    names: tuple[str, ...] = ()

    def execute(self) -> None:
        """Import it, as the statement does."""
        importlib.import_module(self.module)
        importlib.__import__(self.module, fromlist=self.names)


def shared_imports(application: Path) -> tuple[list[Import], list[str]]:
    """Return what forks may have imported for the flows that an application's ``prefect.yaml`` names, in order.

    Also returns notes that name the statements behind which imports were not followed. A file that cannot be read has
    no imports: its flow runs say why they fail.
    """
    libraries = _Libraries()
    readers = [_read(application, entrypoint, libraries) for entrypoint in _entrypoints(application)]
    found = list(dict.fromkeys(each for reader in readers for each in reader.found))
    stopped = [reader for reader in readers if reader.stopped]
    # A process has a library from its beginning or not at all: where an entrypoint runs other code first, only those
    # are shared that it imports before that.
    shared = [
        each for each in found if all(each.module in {other.module for other in reader.found} for reader in stopped)
    ]
    return shared, [
        f"Libraries that are imported after {reader.stopped} are left to each flow run, because this code runs first"
        for reader in stopped
    ]


def _entrypoints(application: Path) -> list[str]:
    try:
        deployments = yaml.safe_load((application / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
        return sorted({str(deployment["entrypoint"]) for deployment in deployments})
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return []


def _read(application: Path, entrypoint: str, libraries: _Libraries) -> _Reader:
    place, colon, _ = entrypoint.rpartition(":")
    if not colon:
        place = entrypoint.rpartition(".")[0]
    is_file = place.endswith(".py")
    file = application / place
    reader = _Reader(libraries, [str(file.parent), str(application)] if is_file else [str(application)])
    if is_file:
        reader.read(file, "")
    else:
        reader.follow(place)
    return reader


class _Libraries:
    """Tells libraries from the application's own code: they are installed from an index or belong to Python."""

    def __init__(self) -> None:
        self._files = {path for distribution in importlib.metadata.distributions() for path in _files(distribution)}
        self._standard = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib"))

    def has(self, name: str, spec: ModuleSpec) -> bool:
        """Return whether a module belongs to a library."""
        origin = spec.origin or ""
        if name.partition(".")[0] in sys.stdlib_module_names:
            return origin in ("built-in", "frozen") or origin.startswith(self._standard)
        return origin in self._files


def _files(distribution: importlib.metadata.Distribution) -> Iterator[str]:
    """Return the files of a distribution; none of one that was installed from a directory or a repository."""
    # Conda's packages name the directory in which they were built.
    if (distribution.read_text("INSTALLER") or "").strip() != "conda":
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        if "dir_info" in origin or "vcs_info" in origin:
            return
    place = str(distribution.locate_file(""))
    for line in (distribution.read_text("RECORD") or "").splitlines():
        yield str(Path(place, line.partition(",")[0]))


class _Reader:
    """Follows the imports of one entrypoint, in the order in which Python would execute them."""

    def __init__(self, libraries: _Libraries, places: list[str]) -> None:
        self._libraries = libraries
        self._path = [*places, *sys.path]
        self._known: set[str] = set()
        self.found: list[Import] = []
        # The first statement that may change how libraries begin; and the same, once a library is imported after it.
        self._code = ""
        self.stopped = ""

    def read(self, file: Path, package: str) -> None:
        """Follow the imports of a module of the application."""
        if str(file) in self._known:
            return
        self._known.add(str(file))
        try:
            body = ast.parse(file.read_bytes()).body
        except (OSError, SyntaxError, ValueError):
            return
        self._follow_all(body, file, package)

    def _follow_all(self, body: Iterable[ast.stmt], file: Path, package: str) -> None:
        for statement in body:
            if self.stopped:
                return
            match statement:
                case ast.Import(names=names):
                    for each in names:
                        self.follow(each.name)
                case ast.ImportFrom(module=module, names=names, level=level):
                    self._follow_from(_absolute(module, level, package), [each.name for each in names])
                case ast.Try(body=inner, orelse=[], finalbody=[]):
                    self._follow_all(inner, file, package)
                case ast.Raise():
                    # It cannot be imported, so that nothing follows.
                    return
                case _ if not _is_harmless(statement):
                    self._code = self._code or f"line {statement.lineno} of {file}"

    def _follow_from(self, module: str, names: Sequence[str]) -> None:
        # In a file that is in no package, a relative import fails.
        if module and not self.follow(module, tuple(name for name in names if name != "*")):
            for name in names:
                self.follow(f"{module}.{name}")

    def follow(self, module: str, names: tuple[str, ...] = ()) -> bool:
        """Follow the import of a module, and of the packages that it is in; return whether it belongs to a library."""
        path: Sequence[str] | None = self._path
        parts, of_library = module.split("."), False
        for depth in range(len(parts)):
            name = ".".join(parts[: depth + 1])
            spec = None if path is None else _find(name, path)
            if spec is None:
                break
            path = spec.submodule_search_locations
            if self._libraries.has(name, spec):
                of_library = True
            elif spec.origin and spec.origin.endswith(".py"):
                self.read(Path(spec.origin), name if path is not None else name.rpartition(".")[0])
        else:
            if of_library and not self._code:
                self.found.append(Import(module, names))
            elif of_library and module not in {each.module for each in self.found}:
                self.stopped = self._code
        return of_library


def _is_harmless(statement: ast.stmt) -> bool:
    match statement:
        case ast.Expr(value=ast.Constant()) | ast.AnnAssign(target=ast.Name()):
            return True
        case ast.Assign(targets=targets):
            return all(isinstance(target, ast.Name) for target in targets)
        # For type checkers, or for programs.
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"), orelse=[]):
            return True
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__")), orelse=[]):
            return True
    return isinstance(statement, _HARMLESS)


def _absolute(module: str | None, level: int, package: str) -> str:
    if not level:
        return module or ""
    base = package.rsplit(".", level - 1)[0] if level > 1 else package
    return ".".join(part for part in (base, module) if part)


def _find(name: str, path: Sequence[str]) -> ModuleSpec | None:
    """Return where a module is, without importing the packages that it is in."""
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    return None
