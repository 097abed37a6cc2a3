"""Each flow run ends with its cgroup, in a cgroup of version 2 as systemd delegates it."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import anyio
import pytest
from biocirv_worker import cgroups, engine
from biocirv_worker.processes import Starter
from prefect.client.schemas.objects import FlowRun
from prefect.workers.process import ProcessJobConfiguration

PACKAGE = Path(cgroups.__file__).parent
GIVE_UP_SECONDS = 60
# A flow run that leaves a process in a session of its own, and kills its keeper.
LEAVES = """
setsid --fork sh -c 'trap "" TERM; echo $$ >left; exec sleep 600' >/dev/null 2>&1
cat /proc/self/cgroup
while ! [ -s left ]; do sleep 0.01; done
{}
"""
# The worker, as far as processes go.
PROGRAM = """
import os, select, sys
from pathlib import Path
from biocirv_worker import cgroups, engine
Path(sys.argv[1], "cgroup.procs").write_text("0")
groups = cgroups.prepare("50%", "50%") if sys.argv[2] == "groups" else None
launcher = engine.Launcher(forks=False, groups=groups)
process = launcher.start(dict(os.environ), os.getcwd(), command=["sh", "-c", sys.argv[3]])
select.select([process], [], [])
process.read_status()
process.close()
"""


@pytest.fixture
def unit() -> Iterator[Path]:
    """Return a cgroup that plays the unit's."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    found = [Path(mount[1]) for mount in mounts if mount[2] == "cgroup2" and os.access(mount[1], os.W_OK)]
    if not found or os.geteuid() != 0:
        pytest.skip("this machine has no cgroups of version 2, or they are not ours to make: that takes root")
    own = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("0::/")[2].strip()
    unit = found[0] / own / f"biocirv-test-{uuid4()}"
    unit.mkdir()
    yield unit
    cgroups.end(unit)
    assert not unit.exists()


def run(unit: Path, folder: Path, mode: str, script: str) -> str:
    """Run a worker with one flow run in a unit's cgroup; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(unit), mode, script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=GIVE_UP_SECONDS,
        check=True,
    )
    return done.stdout + done.stderr


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("end", ["exit 0", "kill -KILL $PPID; exec sleep 600"])
def test_what_a_flow_run_leaves_ends_with_it(unit: Path, tmp_path: Path, end: str) -> None:
    """Also in a session of its own, deaf to SIGTERM, and if the flow run has killed its keeper."""
    said = run(unit, tmp_path, "groups", LEAVES.format(end))
    assert f"{unit.name}/run-" in said
    assert not is_alive(int((tmp_path / "left").read_text(encoding="ascii")))
    assert [path.name for path in unit.iterdir() if path.is_dir()] == ["worker"]


def test_without_cgroups_it_would_stay(unit: Path, tmp_path: Path) -> None:
    """So the test above can fail."""
    said = run(unit, tmp_path, "none", LEAVES.format("kill -KILL $PPID; exec sleep 600"))
    assert "run-" not in said
    assert is_alive(int((tmp_path / "left").read_text(encoding="ascii")))


def test_what_a_worker_before_left_is_ended_at_the_start(unit: Path, tmp_path: Path) -> None:
    """Its keeper has been killed with it; flow runs with a keeper are those of a worker that drains."""
    left = {}
    for name, keeper in (("orphaned", 2**22 + 1), ("kept", os.getpid())):
        group = unit / f"run-{keeper}"
        group.mkdir()
        left[name] = subprocess.Popen(["sleep", "600"], preexec_fn=partial(cgroups.enter, group))
    try:
        run(unit, tmp_path, "groups", "exit 0")
        assert left["orphaned"].wait(GIVE_UP_SECONDS) == -9
        # A cgroup is removed when all of it has been killed.
        assert [path.name for path in unit.glob("run-*")] == [f"run-{os.getpid()}"]
        assert left["kept"].poll() is None
    finally:
        for process in left.values():
            process.kill()
            process.wait()


def test_limits_are_shares_of_the_unit_s(tmp_path: Path) -> None:
    (tmp_path / "max").write_text("8000000\n", encoding="ascii")
    assert cgroups._limit("75%", tmp_path / "max") == "6000000"
    assert cgroups._limit("512M", tmp_path / "max") == "512M"
    (tmp_path / "max").write_text("max\n", encoding="ascii")
    assert cgroups._limit("75%", tmp_path / "max") == "max"


def test_limits_are_written_where_the_kernel_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Controllers that are not delegated have no files."""
    monkeypatch.setattr(cgroups, "end", lambda _group: None)
    groups = cgroups.Groups(str(tmp_path), "1000000", "50")
    mkdir = Path.mkdir

    def with_memory(path: Path) -> None:
        mkdir(path)
        for name in ("memory.max", "memory.oom.group"):
            (path / name).touch()

    monkeypatch.setattr(Path, "mkdir", with_memory)
    group = groups.create()
    assert group
    written = {path.name: path.read_text(encoding="ascii") for path in group.iterdir()}
    assert written == {"memory.max": "1000000", "memory.oom.group": "1"}


@pytest.mark.parametrize(
    ("writes", "explained"),
    [
        ("", False),
        (r"printf 'oom 1\noom_kill 0\n' >memory.events && ", False),
        (r"printf 'oom 1\noom_kill 3\noom_group_kill 1\n' >memory.events && ", True),
    ],
)
def test_a_crash_says_that_the_kernel_ended_it_for_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: str, explained: bool
) -> None:
    """By the events of its cgroup, which a directory of files plays here; without the controller, they are missing."""
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE.parent))
    unit = tmp_path / "unit"
    unit.mkdir()
    # Its parent is the keeper, by which its cgroup is called.
    script = f"cd {unit}/run-$PPID && {writes}kill -KILL $$"
    launcher = engine.Launcher(forks=False, groups=cgroups.Groups(str(unit)))
    configuration = ProcessJobConfiguration(command=shlex.join(["sh", "-c", script]), env=dict(os.environ))
    starter = Starter(FlowRun(flow_id=uuid4()), configuration, str(tmp_path), launcher, None)
    assert anyio.run(starter.run, lambda _: None) == -9
    assert ("for lack of memory" in starter.explain("Process exited")) == explained


def test_a_host_without_delegation_is_told_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> Path:
        raise ValueError("this host has no cgroup of version 2")

    monkeypatch.setattr(cgroups, "_delegated", refused)
    assert cgroups.prepare("75%", "50%") == cgroups.Groups()
    assert cgroups.Groups().create() is None
    (said,) = caplog.messages
    assert "no cgroup of version 2" in said
