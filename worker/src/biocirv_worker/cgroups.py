"""The cgroup of each flow run, which ends with it and has limits of its own.

systemd delegates the unit's cgroup (``Delegate=``). In it, ``worker`` holds the worker, the launcher and the keepers,
and ``run-<process id of its keeper>`` a flow run with all that it starts, whatever that does to its session or its
parents. The account of flow runs owns these cgroups: they contain what is careless, not what means to leave.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("prefect.worker.biocirv")

# Of systemd, for the processes of ExecReload=, which become workers; and of this package.
_CONTROL, _WORKER = ".control", "worker"
_RUN = "run-"
_KILL_SECONDS = 5


@dataclass(frozen=True)
class Groups:
    """The unit's cgroup, and the limits of each flow run, as ``memory.max`` and ``pids.max`` take them; empty: none."""

    unit: str = ""
    memory: str = ""
    tasks: str = ""

    def create(self) -> Path | None:
        """Create the cgroup of the flow run whose keeper this process is.

        Raises:
            OSError: it cannot be created, or limited.

        """
        if not self.unit:
            return None
        group = Path(self.unit, f"{_RUN}{os.getpid()}")
        # Left by a process with the same number.
        end(group)
        group.mkdir()
        for name, value in (("memory.max", self.memory), ("memory.oom.group", "1"), ("pids.max", self.tasks)):
            # Without a controller, its files are missing; the worker has said so.
            if value and (group / name).exists():
                (group / name).write_text(value, encoding="ascii")
        return group


def enter(group: Path | None) -> None:
    """Move this process into a cgroup."""
    if group:
        (group / "cgroup.procs").write_text("0", encoding="ascii")


def ended_for_memory(group: Path | None) -> bool:
    """Return whether the kernel has killed a process of a cgroup for lack of memory, whichever limit it met."""
    with suppress(OSError):
        # Without the controller, there is no such file.
        events = (group / "memory.events").read_text(encoding="ascii") if group else ""
        return any(line.split()[0] == "oom_kill" and int(line.split()[1]) > 0 for line in events.splitlines())
    return False


def end(group: Path | None) -> None:
    """Kill all processes of a cgroup, and remove it with those that were made in it."""
    if not group or not group.exists():
        return
    deadline = time.monotonic() + _KILL_SECONDS
    with suppress(OSError):
        (group / "cgroup.kill").write_text("1", encoding="ascii")
        # The kernel takes milliseconds, and could only tell of the end through another kind of wait.
        while "populated 1" in (group / "cgroup.events").read_text(encoding="ascii") and time.monotonic() < deadline:
            time.sleep(0.01)
    for folder, _, _ in os.walk(group, topdown=False):
        with suppress(OSError):
            Path(folder).rmdir()


def prepare(memory: str, tasks: str) -> Groups:
    """Take over the unit's cgroup for flow runs; return none, and log why, if that cannot be done.

    Limits are numbers or percentages of the unit's own limits. Flow runs that a worker before has left are ended.
    """
    try:
        unit = _delegated()
        worker = unit / _WORKER
        worker.mkdir(exist_ok=True)
        # A cgroup whose children have limits may hold no processes.
        enter(worker)
        wanted = {"memory": memory, "pids": tasks}
        found = [name for name in (unit / "cgroup.controllers").read_text(encoding="ascii").split() if name in wanted]
        (unit / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in found), encoding="ascii")
    except (OSError, ValueError) as error:
        logger.warning("Flow runs have no cgroups of their own, so that each can use up the worker's limits: %s", error)
        return Groups()
    for name in wanted.keys() - set(found):
        logger.warning("Flow runs have no limit of their own of %s: systemd does not delegate the controller", name)
    for group in unit.glob(f"{_RUN}*"):
        if not _is_alive(group.name.removeprefix(_RUN)):
            end(group)
    limits = {name: _limit(wanted[name], unit / f"{name}.max") if name in found else "" for name in wanted}
    return Groups(str(unit), limits["memory"], limits["pids"])


def _is_alive(process: str) -> bool:
    """Return whether a process of this account has the id; /proc does not show keepers, see prctl.close_to_others."""
    with suppress(OSError, ValueError):
        os.kill(int(process), 0)
        return True
    return False


def _delegated() -> Path:
    """Return this process's own unit's cgroup.

    Raises:
        ValueError: there is none that this process may change.

    """
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    found = [mount[4] for mount in mounts if mount[mount.index("-") + 1] == "cgroup2"]
    if not own or not found:
        raise ValueError("this host has no cgroup of version 2")
    group = Path(found[0], own.lstrip("/"))
    if group.name in (_CONTROL, _WORKER):
        group = group.parent
    if not os.access(group / "cgroup.procs", os.W_OK):
        raise ValueError(f"{group} is not delegated; that takes effect when the unit starts anew")
    if not (group / "cgroup.kill").exists():
        raise ValueError("this kernel has no cgroup.kill (Linux 5.14 and newer)")
    return group


def _limit(wanted: str, unit: Path) -> str:
    """Return a limit as the kernel takes it."""
    if not wanted.endswith("%"):
        return wanted
    whole = unit.read_text(encoding="ascii").strip()
    if whole == "max":
        return whole
    return str(int(whole) * int(wanted.removesuffix("%")) // 100)
