"""What each drill breaks. ``DRILLS`` lists them, in the order in which they are held."""

from __future__ import annotations

import math
import re
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

import docker

from tests import limits
from tests.source import copy_source

if TYPE_CHECKING:
    from testinfra.host import Host

    from tests.drills.hosts import Platform
    from tests.drills.load import Load

ROOT = Path(__file__).parents[2]
DRAIN_SECONDS = 8
MEGABYTE = 2**20
# More than there is below the limit that eat-memory sets.
HUNGER = 8192
ALLOWANCE = 600 * MEGABYTE
FULL_SECONDS = 10
JUMP = 3600


class Drill:
    """One thing that breaks, under load.

    ``prepare`` and ``restore`` are what has to be arranged before and after, while nothing runs; ``strike`` breaks, and
    returns when the fault is over. Drills of the same ``batch`` are held one right after the other, and share the wait
    for flow runs to end.
    """

    name: ClassVar[str]
    # What breaks, for the table in the end.
    breaks: ClassVar[str]
    batch: ClassVar[str]
    kind: ClassVar[str] = "steady"
    # Seconds that each flow run still takes when it breaks.
    steps: tuple[int, ...] = (20, 20, 20, 20)
    # Or when that is over: of a fault that takes its time to come.
    outlasts: ClassVar[bool] = False
    # Flow runs whose process the fault ends, and which therefore run again: all, those of a name, or none.
    crashing: ClassVar[str | None] = None
    # And how many at most, where that is known only when it has struck.
    most_crashes: float = math.inf
    # What the state of a run that crashed has to say.
    message: ClassVar[str] = "."
    needs_container: ClassVar[bool] = False
    # Seconds by which it sets the server's clock ahead of the database's.
    clock_ahead: ClassVar[float] = 0

    def unavailable(self, platform: Platform) -> str:
        """Return why the drill cannot be held here, if it cannot."""
        return "needs a container" if self.needs_container and not platform.container else ""

    def may_crash(self, name: str) -> bool:
        """Say whether the fault may cost a flow run its process."""
        return self.crashing is not None and re.search(self.crashing, name) is not None

    def says_why(self, message: str) -> bool:
        """Say whether the message of a run that crashed gives its reason."""
        return re.search(self.message, message) is not None

    def prepare(self, platform: Platform) -> None:
        """Arrange what the fault needs; all is well, and nothing runs."""

    def strike(self, load: Load) -> float | None:
        """Break it; return the time when it broke, by the database's clock, where that was not at once."""
        raise NotImplementedError

    def restore(self, platform: Platform) -> None:
        """Take back what was arranged; nothing runs."""


class RestartPostgresql(Drill):
    """What a converge or an update of the package does."""

    name = "restart-postgresql"
    breaks = "PostgreSQL restarts"
    batch = "services"

    def strike(self, load: Load) -> None:
        """Restart it."""
        load.platform.database.check_output("systemctl restart postgresql")


class KillPostmaster(Drill):
    """What a crash of PostgreSQL does: all connections are gone, and it recovers from its log."""

    name = "kill-postmaster"
    breaks = "kill -9 of PostgreSQL's postmaster"
    batch = "services"

    def strike(self, load: Load) -> None:
        """Kill the postmaster."""
        load.platform.database.check_output("kill -9 $(head -1 /var/lib/postgresql/*/main/postmaster.pid)")


class KillServer(Drill):
    """Prefect's server dies: what it held in memory is gone."""

    name = "kill-server"
    breaks = "kill -9 of Prefect's server"
    batch = "services"

    def strike(self, load: Load) -> None:
        """Kill the server."""
        load.platform.server.check_output("kill -9 %s", load.platform.main_pid("prefect-server"))


class DiskFull(Drill):
    """PostgreSQL's file system is full, down to the last block of its log, for a while."""

    name = "disk-full"
    breaks = "PostgreSQL's file system is full"
    batch = "services"
    needs_container = True
    MOUNT = "/mnt/drill"

    def _data(self, platform: Platform) -> tuple[str, str]:
        version, cluster, *rest = platform.database.check_output("pg_lsclusters --no-header | head -1").split()
        return rest[3], f"postgresql@{version}-{cluster}"

    def prepare(self, platform: Platform) -> None:
        """Move the cluster to a file system of its own, in memory, with little room."""
        data, unit = self._data(platform)
        platform.database.check_output(
            f"systemctl stop {unit} && mkdir -p {self.MOUNT}"
            f" && mount -t tmpfs -o mode=0755,size=$(($(du -sm {data} | cut -f1) + 200))M drill {self.MOUNT}"
            f" && cp -a {data} {self.MOUNT}/data && mount --bind {self.MOUNT}/data {data} && systemctl start {unit}"
        )
        platform.seconds_until_well()

    def strike(self, load: Load) -> None:
        """Fill it, and make room again."""
        database = load.platform.database
        filler = f"{self.MOUNT}/filler"
        database.check_output(f"install --owner=postgres /dev/null {filler}")
        # Of a session that is there before: a full file system may refuse new ones while the log still has room. When
        # that is used up, nothing can be written any more, and PostgreSQL gives up.
        full = database.run(
            "runuser --user postgres -- psql -At -c %s -c %s",
            f"\\! dd if=/dev/zero of={filler} bs=4k; df --output=avail {self.MOUNT} | tail -1",
            "SELECT pg_logical_emit_message(false, 'drill', repeat('x', 10000000)) FROM generate_series(1, 100)",
        )
        try:
            assert (full.stdout.split(), full.rc != 0) == (["0"], True), f"{full.stdout}{full.stderr}"
            load.platform.wait_until(lambda: database.run("pg_isready").rc != 0, "PostgreSQL is down for want of room")
            load.platform.let_pass(FULL_SECONDS)
        finally:
            database.check_output(f"rm {filler}")

    def restore(self, platform: Platform) -> None:
        """Move the cluster back."""
        data, unit = self._data(platform)
        platform.database.check_output(
            f"systemctl stop {unit} && umount {data} && cp -a {self.MOUNT}/data {data}.new && rm -r {data}"
            f" && mv {data}.new {data} && umount {self.MOUNT} && rmdir {self.MOUNT} && systemctl start {unit}"
        )
        platform.seconds_until_well()


class RestartWorker(Drill):
    """A restart waits for the flow runs in flight, and takes no new ones."""

    name = "restart-worker"
    breaks = "systemctl restart prefect-worker"
    batch = "worker"
    steps = (20, 25, 25, 25)

    def strike(self, load: Load) -> None:
        """Restart it, and look how it drains."""
        platform = load.platform
        before = platform.main_pid("prefect-worker")
        platform.worker.check_output("systemctl restart --no-block prefect-worker")
        status = "systemctl show --property=StatusText --value prefect-worker"
        platform.wait_until(
            lambda: re.search(r"(?i)draining.*\d", platform.worker.check_output(status)) is not None,
            "`systemctl status prefect-worker` says that it drains, and how many runs are left",
        )
        # Who comes meanwhile waits for the new one.
        load.add("steady", "meanwhile", 1)
        platform.wait_until(lambda: platform.main_pid("prefect-worker") != before, "the worker has drained")


class StopOneWorker(Drill):
    """One of several workers stops in the middle of a burst: what it has begun it ends, the others do the rest."""

    name = "stop-one-worker"
    breaks = "one of several workers stops, in a burst of 30"
    batch = "worker"
    steps = (10,) * 8
    BURST = 22

    def unavailable(self, platform: Platform) -> str:
        """Return that there is one worker only, where it is so."""
        return "" if len(platform.inventory.names("prefect_worker")) > 1 else "needs two workers"

    def strike(self, load: Load) -> None:
        """Stop it; start it when all is done."""
        platform = load.platform
        for number in range(self.BURST):
            load.add("steady", f"burst-{number}", 3)
        platform.worker.check_output("systemctl stop prefect-worker")
        platform.wait_until(lambda: load.field.is_settled(load), "the other workers have done the rest")
        platform.worker.check_output("systemctl start prefect-worker")


class ReleaseSwitch(Drill):
    """A changed application is deployed."""

    name = "release-switch"
    breaks = "a deploy of a changed application"
    batch = "worker"
    steps = (5, 5, 5, 5)
    outlasts = True

    def strike(self, load: Load) -> float:
        """Deploy; return when `current` was switched."""
        platform = load.platform
        before = self._current(platform)
        with TemporaryDirectory(prefix="drill-") as directory:
            source = copy_source(Path(directory) / "source")
            (source / "data/sample/drill.txt").write_text(f"{load.session}\n", encoding="utf-8")
            done = platform.inventory.playbook("playbooks/deploy.yml", "--extra-vars", f"release_source={source}")
        assert done.returncode == 0, done.stdout
        assert self._current(platform) != before
        return float(platform.worker.check_output("stat --format=%.Y /opt/biocirv/current"))

    def restore(self, platform: Platform) -> None:
        """Go back to the release before."""
        back = platform.inventory.playbook("playbooks/rollback.yml", "--extra-vars", "rollback_confirmed=true")
        assert back.returncode == 0, back.stdout

    @staticmethod
    def _current(platform: Platform) -> str:
        return str(platform.worker.check_output("readlink /opt/biocirv/current"))


class CutOff(Drill):
    """The worker, its flow runs with it, and Prefect's server do not reach each other for a while."""

    SECONDS: ClassVar[int]

    def strike(self, load: Load) -> None:
        """Drop what the worker's account sends there."""
        platform = load.platform
        port = urlsplit(str(platform.inventory.value("prefect_api_url"))).port or 443
        host = platform.worker
        # A table of its own, with an end of its own: it goes also where the tests do not live to see it.
        host.check_output(
            "nft add table inet drill && nft add chain inet drill output '{ type filter hook output priority 0; }'"
            f" && nft add rule inet drill output meta skuid prefect-worker tcp dport {port} counter drop"
            f" && systemd-run --quiet --collect --on-active={self.SECONDS} --timer-property=AccuracySec=1s"
            " nft delete table inet drill"
        )
        dropped = "nft list chain inet drill output"
        platform.wait_until(
            lambda: re.search(r"packets [1-9]", host.check_output(dropped)) is not None,
            "the worker tries to reach the server, in vain",
            self.SECONDS,
        )
        platform.wait_until(lambda: host.run(dropped).rc != 0, "the cut is mended", self.SECONDS + limits.START)


class CutOff60(CutOff):
    """As long as a server that is moved to another host is away: everything goes on afterwards."""

    name = "cut-off-60"
    breaks = "the worker cannot reach the server, 60 s"
    batch = "ends"
    SECONDS = 60
    # Some end meanwhile, and cannot say so.
    steps = (20, 20, 75, 75)


class CutOff180(CutOff):
    """So long that the server must take the runs for dead: then they are, before they run again."""

    name = "cut-off-180"
    breaks = "the worker cannot reach the server, 180 s"
    batch = "deaths"
    SECONDS = 180
    steps = (20, 20, 150, 200)
    crashing = "."


class PowerCut(Drill):
    """Everything is gone at once, PostgreSQL too."""

    name = "power-cut"
    breaks = "power cut of the whole host"
    batch = "deaths"
    crashing = "."
    needs_container = True

    def strike(self, load: Load) -> None:
        """Kill the container, and boot it."""
        container = str(load.platform.container)
        subprocess.run(["docker", "kill", container], check=True, capture_output=True)
        subprocess.run(["docker", "start", container], check=True, capture_output=True)


class KillWorker(Drill):
    """Its flow runs go with it."""

    name = "kill-worker"
    breaks = "kill -9 of the worker"
    batch = "deaths"
    crashing = "."

    def strike(self, load: Load) -> None:
        """Kill its main process."""
        platform = load.platform
        platform.worker.check_output("kill -9 %s", platform.main_pid("prefect-worker"))


class KillWorkerAndFlow(Drill):
    """Nobody is left who saw the flow run end."""

    name = "kill-worker-and-flow"
    breaks = "kill -9 of the worker and of a flow run"
    batch = "deaths"
    crashing = "."

    def strike(self, load: Load) -> None:
        """Kill both at once."""
        platform = load.platform
        (run,) = (run for run in load.runs() if run.name == load.names[0])
        pid = str(platform.ask(f"/flow_runs/{run.id}")["infrastructure_pid"]).rpartition(":")[2]
        platform.worker.check_output(f"kill -9 {int(pid)} {platform.main_pid('prefect-worker')}")


class OverLimit(Drill):
    """The worker stops, and flow runs take longer than it waits for them."""

    crashing = "."
    message = "(?i)drain|stop"
    DROP_IN = "/etc/systemd/system/prefect-worker.service.d/drill.conf"
    VARIABLES = "/etc/biocirv/drill.env"

    def prepare(self, platform: Platform) -> None:
        """Let the worker wait for a few seconds only; a file, because the unit's own wins over Environment=."""
        # Two drills share it.
        platform.worker.check_output(
            f"test -e {self.DROP_IN} || {{ mkdir -p $(dirname {self.DROP_IN})"
            f" && echo DRAIN_TIMEOUT={DRAIN_SECONDS} > {self.VARIABLES}"
            f" && printf '[Service]\\nEnvironmentFile={self.VARIABLES}\\n' > {self.DROP_IN}"
            " && systemctl daemon-reload && systemctl restart prefect-worker; }"
        )

    def strike(self, load: Load) -> None:
        """Stop and start it; what ran is gone in between."""
        worker = load.platform.worker
        start = time.monotonic()
        worker.check_output("systemctl stop prefect-worker")
        took = time.monotonic() - start
        left = worker.run("pgrep --uid prefect-worker").stdout.split()
        worker.check_output("systemctl start prefect-worker")
        assert left == [], f"the worker has stopped, and left {left}"
        assert DRAIN_SECONDS <= took < DRAIN_SECONDS + limits.limit(limits.ANSWER), f"it stopped after {took:.0f} s"

    def restore(self, platform: Platform) -> None:
        """Take that back."""
        platform.worker.check_output(
            f"! test -e {self.DROP_IN} || {{ rm {self.DROP_IN} {self.VARIABLES}"
            f" && rmdir $(dirname {self.DROP_IN}) && systemctl daemon-reload && systemctl restart prefect-worker; }}"
        )


class StopWorkerOverLimit(OverLimit):
    """They are ended, say so, and run again."""

    name = "stop-worker-over-limit"
    breaks = f"systemctl stop prefect-worker, runs longer than the {DRAIN_SECONDS} s that it waits"
    batch = "ends"
    steps = (30, 30, 30, 30)


class IgnoreSigterm(OverLimit):
    """They do not listen."""

    name = "ignore-sigterm"
    breaks = "the same, and the runs ignore SIGTERM"
    batch = "ends"
    kind = "stubborn"
    steps = (40, 40, 40)


class EatMemory(Drill):
    """One flow run takes all memory that there is: the kernel ends it, and no service.

    A kernel that wants memory again while that of the first is being freed no longer sees the first, and ends another.
    """

    name = "eat-memory"
    breaks = "a flow run takes all memory"
    batch = "ends"
    crashing = "."
    message = "SIGKILL"
    needs_container = True

    def strike(self, load: Load) -> None:
        """Limit the memory until the run that eats has ended."""
        platform = load.platform
        container = docker.from_env().containers.get(str(platform.container))
        statistics = container.stats(stream=False)
        assert isinstance(statistics, dict)
        memory = statistics["memory_stats"]
        # What the kernel's caches hold it gives away before it ends anybody.
        caches = memory["stats"].get("total_inactive_file", memory["stats"].get("inactive_file", 0))
        limit = memory["usage"] - caches + ALLOWANCE
        killed = self._killed(platform)
        container.update(mem_limit=limit, memswap_limit=limit)
        try:
            load.add("hungry", "hungry", 1, megabytes=HUNGER)
            key = load.names[-1]
            platform.wait_until(
                lambda: any(run.name == key and run.has_ended for run in load.runs()),
                "the hungry run has ended",
                limits.CRASH,
            )
        finally:
            total = int(docker.from_env().info()["MemTotal"])
            container.update(mem_limit=total, memswap_limit=total)
        self.most_crashes = self._killed(platform) - killed

    @staticmethod
    def _killed(platform: Platform) -> int:
        """Return how many processes the kernel has ended for want of memory since it booted."""
        return int(platform.worker.check_output("awk '/^oom_kill / {print $2}' /proc/vmstat"))


class ClockJump(Drill):
    """The clock of server and worker is an hour ahead from one moment to the next, as after a suspended machine."""

    name = "clock-jump"
    breaks = "the clock jumps an hour ahead"
    batch = "clock"
    # Those of which the server finds that it has not heard for an hour, before it hears of them again.
    crashing = "."
    clock_ahead = JUMP
    LIBRARY = "/usr/lib/*/faketime/libfaketime.so.1"
    CLOCK = "/etc/biocirv-drill-clock"
    CACHE_SECONDS = 1
    UNITS = ("prefect-server", "prefect-worker")

    def unavailable(self, platform: Platform) -> str:
        """Return that the library is not there, where it is not."""
        missing = any(host.run(f"ls {self.LIBRARY}").rc != 0 for host in platform.hosts)
        return "needs the package libfaketime on the hosts" if missing else ""

    def prepare(self, platform: Platform) -> None:
        """Restart both with a clock that can be set."""
        self._set(platform, 0)
        for host in platform.hosts:
            library = host.check_output(f"ls {self.LIBRARY}")
            variables = {
                "LD_PRELOAD": library,
                "FAKETIME_TIMESTAMP_FILE": self.CLOCK,
                "FAKETIME_CACHE_DURATION": self.CACHE_SECONDS,
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
            text = "[Service]\\n" + "".join(f"Environment={name}={value}\\n" for name, value in variables.items())
            for unit in self._units(host):
                directory = f"/etc/systemd/system/{unit}.service.d"
                host.check_output(f"mkdir -p {directory} && printf '{text}' > {directory}/drill.conf")
        self._restart(platform)

    def strike(self, load: Load) -> None:
        """Set it; a run that starts afterwards shows it."""
        self._set(load.platform, JUMP)
        # Whoever has looked at the clock looks again after CACHE_SECONDS.
        load.platform.let_pass(2 * self.CACHE_SECONDS)
        # Seen by the server, in the time that it notes.
        load.add("steady", "afterwards", 1)
        name = load.names[-1]
        load.platform.wait_until(
            lambda: any(
                run.name == name and run.started is not None and run.started > load.platform.now() + JUMP / 2
                for run in load.runs()
            ),
            "a flow run starts in an hour from now",
        )

    def restore(self, platform: Platform) -> None:
        """Restart both by the host's clock."""
        for host in platform.hosts:
            for unit in self._units(host):
                directory = f"/etc/systemd/system/{unit}.service.d"
                host.check_output(f"rm -f {directory}/drill.conf && rmdir --ignore-fail-on-non-empty {directory}")
        self._restart(platform)
        for host in platform.hosts:
            host.check_output(f"rm {self.CLOCK}")

    def _set(self, platform: Platform, seconds: int) -> None:
        platform.put(f"+{seconds}\n", self.CLOCK)

    def _units(self, host: Host) -> list[str]:
        # systemd does not show a unit whose drop-in is gone and which it has not read again.
        return [unit for unit in self.UNITS if host.file(f"/etc/systemd/system/{unit}.service").exists]

    def _restart(self, platform: Platform) -> None:
        for host in platform.hosts:
            host.check_output(f"systemctl daemon-reload && systemctl restart {' '.join(self._units(host))}")
        platform.seconds_until_well()


DRILLS: dict[str, Drill] = {
    drill.name: drill
    for drill in (
        RestartPostgresql(),
        KillPostmaster(),
        KillServer(),
        DiskFull(),
        RestartWorker(),
        StopOneWorker(),
        ReleaseSwitch(),
        # What crashes at once runs again after a minute: most of it when the cut is over. Memory is for one alone.
        EatMemory(),
        StopWorkerOverLimit(),
        IgnoreSigterm(),
        CutOff60(),
        # What is found dead by its silence runs again after two minutes: in the cut, or after it.
        PowerCut(),
        KillWorker(),
        KillWorkerAndFlow(),
        CutOff180(),
        ClockJump(),
    )
}
