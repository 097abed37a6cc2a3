"""What root copies of a release that an account without rights has made."""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FILES = Path(__file__).parents[2] / "roles/release/files"


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(FILES)
    import build  # a program of the role

    yield build
    for name in ("build", "sandbox"):
        sys.modules.pop(name)


class Copied:
    """A directory that the account made, and what root makes of it."""

    def __init__(self, build: ModuleType, folder: Path) -> None:
        self._build = build
        self.made, self.copy, self.earlier = folder / "made", folder / "partial", folder / "current"
        for directory in (self.made / "env", self.copy, self.earlier):
            directory.mkdir(parents=True)

    def run(self) -> Path:
        """Copy the environment, and return the copy."""
        copying = self._build.Copying(self.made, (str(self.made), *self._build.SYSTEM), compiled=False)
        copying.copy(self.made / "env", self.copy / "env", self.earlier / "env")
        return self.copy / "env"


@pytest.fixture
def copied(build: ModuleType, tmp_path: Path) -> Copied:
    return Copied(build, tmp_path)


def test_modes_are_those_of_a_release(copied: Copied) -> None:
    program, secret = copied.made / "env/program", copied.made / "env/secret"
    for path, mode in ((program, 0o6777), (secret, 0o600)):
        path.write_text("x", encoding="utf-8")
        path.chmod(mode)
    copied.made.joinpath("env").chmod(0o2777)

    env = copied.run()

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (env, env / "program", env / "secret")}
    assert modes == {"env": 0o755, "program": 0o755, "secret": 0o644}


@pytest.mark.parametrize("leads", ["/root/.ssh/id_ed25519", "../../../../var/lib/postgresql", "/opt/biocirv/build"])
def test_a_link_out_of_the_release_is_refused(copied: Copied, build: ModuleType, leads: str) -> None:
    (copied.made / "env/link").symlink_to(leads)
    with pytest.raises(build.BuildError, match="env/link leads out of the release"):
        copied.run()


def test_links_to_the_release_and_to_the_distribution_stay(copied: Copied) -> None:
    (copied.made / "env/lib64").symlink_to("lib")
    (copied.made / "env/python").symlink_to("/usr/bin/python3")
    env = copied.run()
    assert (str((env / "lib64").readlink()), str((env / "python").readlink())) == ("lib", "/usr/bin/python3")


def test_neither_pipes_nor_a_link_in_place_of_a_directory_are_copied(copied: Copied, build: ModuleType) -> None:
    os.mkfifo(copied.made / "env/pipe")
    with pytest.raises(build.BuildError, match="env/pipe is not a file"):
        copied.run()
    (copied.made / "env/pipe").unlink()
    (copied.made / "env").rmdir()
    (copied.made / "env").symlink_to("/usr")
    with pytest.raises(build.BuildError, match="env is not a file or a directory"):
        copied.run()


def test_bytecode_is_not_what_the_account_says_it_is(copied: Copied, build: ModuleType) -> None:
    """Root compiles the files; those of an earlier release are linked with the bytecode that it compiled then."""
    for folder, text in ((copied.made, "account"), (copied.earlier, "root")):
        for name in ("same", "other"):
            path = folder / f"env/{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"name = {name if name == 'same' else text!r}\n", encoding="utf-8")
            path.chmod(0o644)
            bytecode = Path(build.cache_from_source(str(path)))
            bytecode.parent.mkdir(exist_ok=True)
            bytecode.write_text(text, encoding="utf-8")

    env = copied.run()

    found = {path.name.partition(".")[0]: path.read_text(encoding="utf-8") for path in (env / "__pycache__").iterdir()}
    assert found == {"same": "root"}
    assert (env / "same.py").samefile(copied.earlier / "env/same.py")
    assert (env / "other.py").read_text(encoding="utf-8") == "name = 'account'\n"


def test_compiling_runs_nothing_and_reads_nothing_from_elsewhere(
    copied: Copied, build: ModuleType, tmp_path: Path
) -> None:
    """An environment file with a secret is valid Python: bytecode of a link to it would be readable by everyone."""
    (tmp_path / "secret").write_text('PASSWORD="secret"\n', encoding="utf-8")
    (copied.copy / "link.py").symlink_to(tmp_path / "secret")
    (copied.copy / "sitecustomize.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")

    build.compile_bytecode(copied.copy, tmp_path / "release")

    assert [path.name.partition(".")[0] for path in (copied.copy / "__pycache__").iterdir()] == ["sitecustomize"]
    assert not (tmp_path / "ran").exists()


def test_variables_of_the_loader_are_refused(copied: Copied, build: ModuleType, tmp_path: Path) -> None:
    """Activation scripts of conda packages set them in the release's environment files, which systemd reads as root."""
    with pytest.raises(build.BuildError, match="LD_PRELOAD"):
        build.write_environments(tmp_path / "r/releases/id", copied.copy, {"LD_PRELOAD": "library.so"})


def test_the_sandbox_of_builds_is_that_of_the_units(build: ModuleType) -> None:
    """They are started in different ways, so that their properties stand in two files."""
    template = (FILES.parents[1] / "systemd_unit/templates/unit.j2").read_text(encoding="utf-8")
    wanted = template.partition("# Sandbox")[2].partition("{{ systemd_unit_service")[0]
    lacking = {line for line in wanted.splitlines() if "=" in line} - {*build.sandbox.PROPERTIES.splitlines()}
    # Flows see the memory of their host; what a build makes is for everyone to read; the account has no capability.
    assert lacking == {"ProcSubset=pid", "UMask=0077", "AmbientCapabilities="}
