"""The fault that each drill injects. ``DRILLS`` lists them in the order in which they run."""

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
from tests.drills.load import LIMIT, LIMITED
from tests.source import copy_source

if TYPE_CHECKING:
    from testinfra.host import Host

    from tests.drills.hosts import Platform
    from tests.drills.load import Load

ROOT = Path(__file__).parents[2]
DRAIN_SECONDS = 8
MEGABYTE = 2**20
# More than the limit that eat-memory sets.
HUNGER = 8192
ALLOWANCE = 600 * MEGABYTE
FULL_SECONDS = 10
JUMP = 3600


class Drill:
    """A fault that is injected under load.

    ``prepare`` and ``restore`` run before and after, while no flow run is running; ``strike`` injects the fault, and
    returns when it is over. Drills of the same ``batch`` run one right after the other, and then wait together for
    their flow runs to end.
    """

    name: ClassVar[str]
    # Description of the fault, for the summary table.
    breaks: ClassVar[str]
    batch: ClassVar[str]
    kind: ClassVar[str] = "steady"
    # Seconds that each flow run has left when the fault occurs.
    steps: tuple[int, ...] = (20, 20, 20, 20)
    # If true, seconds that it has left when the fault is over: for a fault that takes long to inject.
    outlasts: ClassVar[bool] = False
    # Pattern of the names of flow runs whose process the fault ends, and which are retried; None if there are none.
    crashing: ClassVar[str | None] = None
    # Maximum number of these flow runs, if it is known only after the fault.
    most_crashes: float = math.inf
    # Pattern that the state message of a crashed run must match.
    message: ClassVar[str] = "."
    # Whether its flow runs hold slots of concurrency limits; none may stay taken.
    takes_slots: ClassVar[bool] = False
    needs_container: ClassVar[bool] = False
    # Seconds by which the fault sets the server's clock ahead of the database's.
    clock_ahead: ClassVar[float] = 0

    def unavailable(self, platform: Platform) -> str:
        """Return why the drill cannot run here, or an empty string."""
        return "needs a container" if self.needs_container and not platform.container else ""

    def may_crash(self, name: str) -> bool:
        """Return whether the fault may end a flow run's process."""
        return self.crashing is not None and re.search(self.crashing, name) is not None

    def says_why(self, message: str) -> bool:
        """Return whether the state message of a crashed run gives the reason."""
        return re.search(self.message, message) is not None

    def prepare(self, platform: Platform) -> None:
        """Arrange what the fault needs; all services are healthy, and no flow run is running."""

    def strike(self, load: Load) -> float | None:
        """Inject the fault; return when it occurred, by the database's clock, or None if it was immediately."""
        raise NotImplementedError

    def restore(self, platform: Platform) -> None:
        """Undo ``prepare``; no flow run is running."""


class RestartPostgresql(Drill):
    """PostgreSQL restarts, as after a converge or a package upgrade."""

    name = "restart-postgresql"
    breaks = "PostgreSQL restarts"
    batch = "services"

    def strike(self, load: Load) -> None:
        """Restart PostgreSQL."""
        load.platform.database.check_output("systemctl restart postgresql")


class KillPostmaster(Drill):
    """PostgreSQL crashes: all connections are lost, and it recovers from its WAL."""

    name = "kill-postmaster"
    breaks = "kill -9 of PostgreSQL's postmaster"
    batch = "services"

    def strike(self, load: Load) -> None:
        """Kill the postmaster."""
        load.platform.database.check_output("kill -9 $(head -1 /var/lib/postgresql/*/main/postmaster.pid)")


class KillServer(Drill):
    """Prefect's server is killed, and loses what it held in memory."""

    name = "kill-server"
    breaks = "kill -9 of Prefect's server"
    batch = "services"

    def strike(self, load: Load) -> None:
        """Kill the server."""
        load.platform.server.check_output("kill -9 %s", load.platform.main_pid("prefect-server"))


class RestartServer(Drill):
    """Prefect's server restarts; a flow run of ten minutes, longer than two leases of its slots, keeps them."""

    name = "restart-server"
    breaks = "Prefect's server restarts during a flow run with limits"
    batch = "limits"
    kind = LIMITED
    steps = (600,)
    takes_slots = True

    def strike(self, load: Load) -> None:
        """Restart the server, which then still knows of the slots."""
        before = load.field.taken_slots()
        load.platform.server.check_output("systemctl restart prefect-server")
        load.platform.seconds_until_well()
        after = load.field.taken_slots()
        # That of the master run may be free by now.
        held = [name for name, slots in before.items() if slots and after[name]]
        assert LIMIT in held, f"slots before: {before}, after: {after}"
        assert len(held) > 1, f"slots before: {before}, after: {after}"


class DiskFull(Drill):
    """PostgreSQL's file system is full for a while, with no room left for WAL."""

    name = "disk-full"
    breaks = "PostgreSQL's file system is full"
    batch = "services"
    needs_container = True
    MOUNT = "/mnt/drill"

    def _data(self, platform: Platform) -> tuple[str, str]:
        version, cluster, *rest = platform.database.check_output("pg_lsclusters --no-header | head -1").split()
        return rest[3], f"postgresql@{version}-{cluster}"

    def prepare(self, platform: Platform) -> None:
        """Move the cluster to a small tmpfs."""
        data, unit = self._data(platform)
        platform.database.check_output(
            f"systemctl stop {unit} && mkdir -p {self.MOUNT}"
            f" && mount -t tmpfs -o mode=0755,size=$(($(du -sm {data} | cut -f1) + 200))M drill {self.MOUNT}"
            f" && cp -a {data} {self.MOUNT}/data && mount --bind {self.MOUNT}/data {data} && systemctl start {unit}"
        )
        platform.seconds_until_well()

    def strike(self, load: Load) -> None:
        """Fill the file system, and free it again."""
        database = load.platform.database
        filler = f"{self.MOUNT}/filler"
        database.check_output(f"install --owner=postgres /dev/null {filler}")
        # In a session that is already open: a full file system may refuse new ones while there is still room for WAL.
        # When that is used up, nothing can be written any more, and PostgreSQL shuts down.
        full = database.run(
            "runuser --user postgres -- psql -At -c %s -c %s",
            f"\\! dd if=/dev/zero of={filler} bs=4k",
            "SELECT pg_logical_emit_message(false, 'drill', repeat('x', 10000000)) FROM generate_series(1, 100)",
        )
        try:
            assert "dd: error writing" in full.stderr, full.stderr
            assert full.rc != 0, full.stdout
            load.platform.wait_until(lambda: database.run("pg_isready").rc != 0, "PostgreSQL stops with a full disk")
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
    """The worker restarts: it drains, that is, waits for its flow runs and accepts no new ones."""

    name = "restart-worker"
    breaks = "systemctl restart prefect-worker"
    batch = "worker"
    steps = (20, 25, 25, 25)

    def strike(self, load: Load) -> None:
        """Restart the worker, and observe how it drains."""
        platform = load.platform
        before = platform.main_pid("prefect-worker")
        platform.worker.check_output("systemctl restart --no-block prefect-worker")
        status = "systemctl show --property=StatusText --value prefect-worker"
        platform.wait_until(
            lambda: re.search(r"(?i)draining.*\d", platform.worker.check_output(status)) is not None,
            "`systemctl status prefect-worker` shows that it is draining, and how many runs are left",
        )
        # A flow run that is created meanwhile waits for the new process.
        load.add("steady", "meanwhile", 1)
        platform.wait_until(lambda: platform.main_pid("prefect-worker") != before, "the worker has drained")


class StopOneWorker(Drill):
    """One of several workers stops during a burst: it completes its own flow runs, the others take the rest."""

    name = "stop-one-worker"
    breaks = "one of several workers stops, in a burst of 30"
    batch = "worker"
    steps = (10,) * 8
    BURST = 22

    def unavailable(self, platform: Platform) -> str:
        """Return that there is only one worker, or an empty string."""
        return "" if len(platform.inventory.names("prefect_worker")) > 1 else "needs two workers"

    def strike(self, load: Load) -> None:
        """Stop the worker, and start it when all flow runs have ended."""
        platform = load.platform
        for number in range(self.BURST):
            load.add("steady", f"burst-{number}", 3)
        platform.worker.check_output("systemctl stop prefect-worker")
        platform.wait_until(lambda: load.field.is_settled(load), "the other workers complete the rest")
        platform.worker.check_output("systemctl start prefect-worker")


class ReleaseSwitch(Drill):
    """A changed application is deployed, and rolled back."""

    name = "release-switch"
    breaks = "a deploy of a changed application"
    batch = "worker"
    steps = (5, 5, 5, 5)
    outlasts = True

    def strike(self, load: Load) -> float:
        """Deploy; return when the link `current` was switched."""
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
        """Roll back to the previous release."""
        back = platform.inventory.playbook("playbooks/rollback.yml", "--extra-vars", "rollback_confirmed=true")
        assert back.returncode == 0, back.stdout

    @staticmethod
    def _current(platform: Platform) -> str:
        return str(platform.worker.check_output("readlink /opt/biocirv/current"))


class CutOff(Drill):
    """The worker and its flow runs cannot reach Prefect's server for a while."""

    SECONDS: ClassVar[int]

    def strike(self, load: Load) -> None:
        """Drop what the worker's account sends to the server."""
        platform = load.platform
        port = urlsplit(str(platform.inventory.value("prefect_api_url"))).port or 443
        host = platform.worker
        # A separate table, removed by a timer: connectivity is restored even if the tests are killed.
        host.check_output(
            "nft add table inet drill && nft add chain inet drill output '{ type filter hook output priority 0; }'"
            f" && nft add rule inet drill output meta skuid prefect-worker tcp dport {port} counter drop"
            f" && systemd-run --quiet --collect --on-active={self.SECONDS} --timer-property=AccuracySec=1s"
            " nft delete table inet drill"
        )
        dropped = "nft list chain inet drill output"
        platform.wait_until(
            lambda: re.search(r"packets [1-9]", host.check_output(dropped)) is not None,
            "packets from the worker to the server are dropped",
            self.SECONDS,
        )
        platform.wait_until(lambda: host.run(dropped).rc != 0, "the filter is removed", self.SECONDS + limits.START)


class CutOff60(CutOff):
    """As long as a move of the server to another host takes: all flow runs continue afterwards."""

    name = "cut-off-60"
    breaks = "the worker cannot reach the server, 60 s"
    batch = "ends"
    SECONDS = 60
    # Some flow runs end meanwhile, and cannot report it.
    steps = (20, 20, 75, 75)


class CutOff180(CutOff):
    """So long that the server marks the runs as crashed: their processes must be ended before the retry."""

    name = "cut-off-180"
    breaks = "the worker cannot reach the server, 180 s"
    batch = "deaths"
    SECONDS = 180
    steps = (20, 20, 150, 200)
    crashing = "."


class PowerCut(Drill):
    """The host loses power: all processes end at once, including PostgreSQL."""

    name = "power-cut"
    breaks = "power cut of the whole host"
    batch = "deaths"
    crashing = "."
    needs_container = True

    def strike(self, load: Load) -> None:
        """Kill the container, and boot it again."""
        container = str(load.platform.container)
        subprocess.run(["docker", "kill", container], check=True, capture_output=True)
        subprocess.run(["docker", "start", container], check=True, capture_output=True)


class KillWorker(Drill):
    """The worker is killed, and its flow runs with it."""

    name = "kill-worker"
    breaks = "kill -9 of the worker"
    batch = "deaths"
    crashing = "."

    def strike(self, load: Load) -> None:
        """Kill the worker's main process."""
        platform = load.platform
        platform.worker.check_output("kill -9 %s", platform.main_pid("prefect-worker"))


class KillWorkerAndFlow(Drill):
    """The worker and a flow run are killed together, so that no process observes the end of the flow run."""

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
    """The worker stops, and its flow runs outlast the drain."""

    crashing = "."
    message = "(?i)drain|stop"
    DROP_IN = "/etc/systemd/system/prefect-worker.service.d/drill.conf"
    VARIABLES = "/etc/biocirv/drill.env"

    def prepare(self, platform: Platform) -> None:
        """Limit the drain to a few seconds; by a file, because the unit's EnvironmentFile= overrides Environment=."""
        # Two drills share this drop-in.
        platform.worker.check_output(
            f"test -e {self.DROP_IN} || {{ mkdir -p $(dirname {self.DROP_IN})"
            f" && echo DRAIN_TIMEOUT={DRAIN_SECONDS} > {self.VARIABLES}"
            f" && printf '[Service]\\nEnvironmentFile={self.VARIABLES}\\n' > {self.DROP_IN}"
            " && systemctl daemon-reload && systemctl restart prefect-worker; }"
        )

    def strike(self, load: Load) -> None:
        """Stop and start the worker; no process of its flow runs may be left in between."""
        worker = load.platform.worker
        start = time.monotonic()
        worker.check_output("systemctl stop prefect-worker")
        took = time.monotonic() - start
        left = worker.run("pgrep --uid prefect-worker").stdout.split()
        worker.check_output("systemctl start prefect-worker")
        assert left == [], f"the worker has stopped, but these processes remain: {left}"
        assert DRAIN_SECONDS <= took < DRAIN_SECONDS + limits.limit(limits.ANSWER), f"it stopped after {took:.0f} s"

    def restore(self, platform: Platform) -> None:
        """Remove the limit."""
        platform.worker.check_output(
            f"! test -e {self.DROP_IN} || {{ rm {self.DROP_IN} {self.VARIABLES}"
            f" && rmdir $(dirname {self.DROP_IN}) && systemctl daemon-reload && systemctl restart prefect-worker; }}"
        )


class StopWorkerOverLimit(OverLimit):
    """The flow runs are ended with a reason in their state, and retried."""

    name = "stop-worker-over-limit"
    breaks = f"systemctl stop prefect-worker, runs longer than the {DRAIN_SECONDS} s that it waits"
    batch = "ends"
    steps = (30, 30, 30, 30)


class IgnoreSigterm(OverLimit):
    """The flow runs ignore SIGTERM."""

    name = "ignore-sigterm"
    breaks = "the same, and the runs ignore SIGTERM"
    batch = "ends"
    kind = "stubborn"
    steps = (40, 40, 40)


class EatMemory(Drill):
    """One flow run exhausts the memory: the kernel kills it, and no service.

    If the kernel needs memory again while that of the killed process is still being freed, it kills another one.
    """

    name = "eat-memory"
    breaks = "a flow run takes all memory"
    batch = "ends"
    crashing = "."
    message = "SIGKILL"
    needs_container = True

    def strike(self, load: Load) -> None:
        """Limit the memory until the run that exhausts it has ended."""
        platform = load.platform
        container = docker.from_env().containers.get(str(platform.container))
        statistics = container.stats(stream=False)
        assert isinstance(statistics, dict)
        memory = statistics["memory_stats"]
        # The kernel frees its caches before it kills a process.
        caches = memory["stats"].get("total_inactive_file", memory["stats"].get("inactive_file", 0))
        limit = memory["usage"] - caches + ALLOWANCE
        killed = self._killed(platform)
        container.update(mem_limit=limit, memswap_limit=limit)
        try:
            load.add("hungry", "hungry", 1, megabytes=HUNGER)
            key = load.names[-1]
            platform.wait_until(
                lambda: any(run.name == key and run.has_ended for run in load.runs()),
                "the run that exhausts the memory ends",
                limits.CRASH,
            )
        finally:
            total = int(docker.from_env().info()["MemTotal"])
            container.update(mem_limit=total, memswap_limit=total)
        self.most_crashes = self._killed(platform) - killed

    @staticmethod
    def _killed(platform: Platform) -> int:
        """Return how many processes the kernel has killed for lack of memory since it booted."""
        return int(platform.worker.check_output("awk '/^oom_kill / {print $2}' /proc/vmstat"))


class ClockJump(Drill):
    """The clock of server and worker jumps an hour ahead, as after a suspend."""

    name = "clock-jump"
    breaks = "the clock jumps an hour ahead"
    batch = "clock"
    # Runs whose last heartbeat is an hour old when the server checks, before they send the next one.
    crashing = "."
    clock_ahead = JUMP
    LIBRARY = "/usr/lib/*/faketime/libfaketime.so.1"
    CLOCK = "/etc/biocirv-drill-clock"
    CACHE_SECONDS = 1
    UNITS = ("prefect-server", "prefect-worker")

    def unavailable(self, platform: Platform) -> str:
        """Return that the library is missing, or an empty string."""
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
        """Set the clock, and wait until the start time of a new run shows it."""
        self._set(load.platform, JUMP)
        # A process that has read the clock reads it again after CACHE_SECONDS.
        load.platform.let_pass(2 * self.CACHE_SECONDS)
        # The start time that the server records shows whether it sees the new clock.
        load.add("steady", "afterwards", 1)
        name = load.names[-1]
        load.platform.wait_until(
            lambda: any(
                run.name == name and run.started is not None and run.started > load.platform.now() + JUMP / 2
                for run in load.runs()
            ),
            "a flow run has a start time an hour ahead",
        )

    def restore(self, platform: Platform) -> None:
        """Restart both with the host's clock."""
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
        # systemd does not show a unit whose drop-in was deleted until it is reloaded.
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
        # An immediate crash is retried after a minute, mostly once the network is restored. EatMemory must run alone.
        EatMemory(),
        StopWorkerOverLimit(),
        IgnoreSigterm(),
        CutOff60(),
        # A crash found by missing heartbeats is retried after two minutes: during the interruption, or after it.
        PowerCut(),
        KillWorker(),
        KillWorkerAndFlow(),
        CutOff180(),
        ClockJump(),
        RestartServer(),
    )
}
