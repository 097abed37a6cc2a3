"""Measure flow runs: Prefect's own worker, and this project's worker without and with forks.

Uses one host, a container, with one server. The workers take turns in each round, and only the one that is measured
runs. Prints times, CPU, memory, ratios and the bars (the target values); it does not pass or fail. The environment
variables RUNS, BURST and MASTERS set the number of flow runs.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import httpx

ROOT = Path(__file__).parents[1]
NAME = "biocirv-bench-runs"
HOSTS = """
all:
  hosts:
    {name}:
      ansible_connection: community.docker.docker
      ansible_python_interpreter: /usr/bin/python3
      container_debian: {debian}
      container_ports: ["127.0.0.1:{port}:443"]
  children:
    database: {{hosts: {{{name}: }}}}
    prefect_server: {{hosts: {{{name}: }}}}
    prefect_worker: {{hosts: {{{name}: }}}}
"""

ROUNDS = 2
# Flow runs one after the other and runs of the master flow, over all rounds; flow runs at once, in each round.
RUNS = int(os.environ.get("RUNS", "20"))
MASTERS = int(os.environ.get("MASTERS", "5"))
BURST = int(os.environ.get("BURST", "30"))
IDLE_SECONDS = 20
# Interval between API requests: long enough not to affect the measurement.
POLL_SECONDS = 0.5
TRIES = 10
# Concurrent requests that trigger a burst.
TRIGGERS = 15
PLAY_SECONDS = 1800
START_SECONDS = 120
RUN_SECONDS = 300
BURST_SECONDS = 900

ACCOUNT = "prefect-worker"
DIRECTORY = "/opt/biocirv-bench"
VARIABLES = f"/etc/biocirv/{ACCOUNT}.env"
PROGRAMS = "/opt/biocirv/current/env/bin"
MASTER = "Master%20ETL%20Flow/master-etl-deployment"
DEFAULT_POOL = "bench-default"
OUR_POOL = "biocirv_dev_work_pool"
# Drop-in with the effect of `prefect_worker_forks: false`.
NO_FORKS = "/run/systemd/system/prefect-worker.service.d/no-forks.conf"

ONE_BY_ONE = "one after the other"
AT_ONCE = "at once"
MASTER_RUNS = "master flow"


class Host:
    """The container, in which commands run as root."""

    def run(self, *command: str, standard_input: str = "") -> str:
        """Run a command to its end; return its output."""
        done = subprocess.run(
            ["docker", "exec", "--interactive", NAME, *command],
            check=False,
            capture_output=True,
            text=True,
            input=standard_input,
            timeout=START_SECONDS,
        )
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """Write a file with mode 0644."""
        self.run("install", "-D", "-m", "0644", "/dev/stdin", path, standard_input=text)

    def cpu(self, unit: str) -> float:
        """Return the CPU seconds of a unit's processes, including those that have ended."""
        shown = self.run("systemctl", "show", "--property=CPUUsageNSec", "--value", "--", unit)
        return int(shown) / 1e9

    def processes(self, unit: str) -> list[str]:
        """Return the ids of a unit's processes, also of those in groups within its own, such as a flow run's."""
        group = self.run("systemctl", "show", "--property=ControlGroup", "--value", unit).strip()
        return self.run("find", f"/sys/fs/cgroup{group}", "-name", "cgroup.procs", "-exec", "cat", "{}", "+").split()

    def memory(self, unit: str) -> int:
        """Return the memory of a unit's processes in bytes, without the files that they have mapped."""
        read = self.run("cat", *(f"/proc/{process}/status" for process in self.processes(unit)))
        return 1024 * sum(int(line.split()[1]) for line in read.splitlines() if line.startswith("RssAnon:"))


class Api:
    """Prefect's API, through the platform's proxy."""

    def __init__(self, port: int, secrets: Path) -> None:
        self._client = httpx.Client(
            base_url=f"https://127.0.0.1:{port}/api",
            auth=("biocirv", (secrets / "prefect_api_password").read_text("utf-8").strip()),
            verify=ssl.create_default_context(cafile=secrets / "tls/ca.crt"),
            timeout=60,
            trust_env=False,
        )

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
        """Return the API's answer to a GET, or to a POST if there is a body."""
        for _ in range(TRIES):
            answer = self._client.get(path) if body is None else self._client.post(path, json=body)
            # The proxy's answer when the server has just closed a connection; Prefect's clients retry it, too.
            if answer.status_code != httpx.codes.BAD_GATEWAY:
                break
            time.sleep(POLL_SECONDS)
        if answer.is_error:
            raise SystemExit(f"{path}: {answer.status_code} {answer.text}")
        return answer.json()

    def has(self, path: str) -> bool:
        """Return whether an object exists at a path."""
        return self._client.get(path).status_code == httpx.codes.OK

    def deploy(self, name: str, pool: str, flow: dict[str, Any]) -> str:
        """Create a deployment of a flow in a pool; return its id."""
        body = {"name": name, "work_pool_name": pool, "enforce_parameter_schema": False, **flow}
        return str(self.ask("/deployments/", body)["id"])


@dataclass(frozen=True)
class Reading:
    """Seconds of the clock, and CPU seconds of the worker's unit, the whole host and the whole machine."""

    clock: float
    worker: float
    host: float
    machine: float

    @classmethod
    def now(cls, host: Host, unit: str) -> Reading:
        """Read the current values."""
        with Path("/proc/stat").open(encoding="ascii") as file:
            user, nice, system, _, _, irq, softirq, *_ = map(int, file.readline().split()[1:])
        machine = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
        return cls(time.monotonic(), host.cpu(unit), host.cpu("-.slice"), machine)

    def until(self, later: Reading) -> Reading:
        """Return the differences from this reading to a later one."""
        return Reading(
            later.clock - self.clock, later.worker - self.worker, later.host - self.host, later.machine - self.machine
        )


@dataclass
class Figures:
    """One worker's measurements by kind: the times of the flow runs' states, and the resources that they used."""

    runs: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    took: dict[str, list[Reading]] = field(default_factory=dict)
    bursts: list[float] = field(default_factory=list)
    idle: list[Reading] = field(default_factory=list)
    memory_idle: list[int] = field(default_factory=list)
    memory_after: list[int] = field(default_factory=list)

    def seconds(self, kind: str, state: str) -> list[float]:
        """Return the seconds of each run from its trigger to a state, sorted."""
        return sorted(run[state] - run["SCHEDULED"] for run in self.runs[kind])

    def middle(self, kind: str, state: str) -> float:
        """Return the median seconds from trigger to a state."""
        return median(self.seconds(kind, state))

    def most(self, kind: str, state: str) -> float:
        """Return the 95th percentile of the seconds from trigger to a state."""
        seconds = self.seconds(kind, state)
        return seconds[math.ceil(0.95 * len(seconds)) - 1]

    def cpu(self, kind: str) -> float:
        """Return the CPU seconds of the worker and its processes per run."""
        return sum(each.worker for each in self.took[kind]) / len(self.runs[kind])

    def cpu_of_the_rest(self, kind: str) -> float:
        """Return the CPU seconds of the host's other processes (server, database, proxy) per run."""
        return sum(each.host - each.worker for each in self.took[kind]) / len(self.runs[kind])

    def others(self, kind: str) -> float:
        """Return the average number of CPUs that the rest of the machine used."""
        return sum(each.machine - each.host for each in self.took[kind]) / sum(each.clock for each in self.took[kind])


@dataclass(frozen=True)
class Worker:
    """A way to run a pool's flow runs."""

    label: str
    unit: str
    pool: str
    query_seconds: float
    start: Callable[[Host], None]


def start_default(host: Host) -> None:
    """Start Prefect's own worker, with our worker's account and variables, except for Prefect's settings."""
    names = host.run("sed", "--quiet", "s/^\\(PREFECT_[^=]*\\)=.*/\\1/p", VARIABLES).split()
    ours = [name for name in names if not name.startswith(("PREFECT_API_", "PREFECT_HOME"))]
    host.run(
        "systemd-run",
        "--quiet",
        "--collect",
        f"--unit={DEFAULT_POOL}",
        f"--uid={ACCOUNT}",
        f"--gid={ACCOUNT}",
        f"--working-directory=/var/lib/{ACCOUNT}",
        "--property=EnvironmentFile=-/opt/biocirv/current/current.env",
        f"--property=EnvironmentFile={VARIABLES}",
        f"--property=UnsetEnvironment={' '.join(['PYTHONPATH', *ours])}",
        f"{PROGRAMS}/prefect",
        *f"worker start --pool {DEFAULT_POOL} --type process".split(),
    )


def start_without_forks(host: Host) -> None:
    """Start our worker as with ``prefect_worker_forks: false``."""
    command = host.run("grep", "^ExecStart=", "/etc/systemd/system/prefect-worker.service").strip()
    host.write(NO_FORKS, f"[Service]\nExecStart=\n{command} --no-forks\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "prefect-worker")


def start_with_forks(host: Host) -> None:
    """Start our worker as the converge configured it."""
    host.run("rm", "--force", NO_FORKS)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "prefect-worker")


DEFAULT = Worker("(a) Prefect's defaults", f"{DEFAULT_POOL}.service", DEFAULT_POOL, 10, start_default)
WITHOUT_FORKS = Worker("(b) ours, without forks", "prefect-worker.service", OUR_POOL, 1, start_without_forks)
WITH_FORKS = Worker("(c) ours", "prefect-worker.service", OUR_POOL, 1, start_with_forks)
WORKERS = (DEFAULT, WITHOUT_FORKS, WITH_FORKS)


class Bench:
    """Runs flows by each worker, and records times and resources."""

    def __init__(self, host: Host, api: Api) -> None:
        self._host = host
        self._api = api
        self._deployments: dict[tuple[str, str], str] = {}
        self.figures = {worker: Figures() for worker in WORKERS}

    def prepare(self) -> None:
        """Create the work pool and the deployments."""
        self._host.write(f"{DIRECTORY}/runs_flow.py", (ROOT / "benchmarks/runs_flow.py").read_text("utf-8"))
        self._host.run("systemctl", "stop", "prefect-worker")
        DEFAULT.start(self._host)
        wait_until(lambda: self._api.has(f"/work_pools/{DEFAULT_POOL}"), "Prefect's worker made its pool")
        self._host.run("systemctl", "stop", DEFAULT.unit)

        small = {
            "flow_id": self._api.ask("/flows/", {"name": "Benchmark"})["id"],
            "entrypoint": "runs_flow.py:small",
            "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": DIRECTORY}}],
        }
        for pool in (DEFAULT_POOL, OUR_POOL):
            self._deployments[ONE_BY_ONE, pool] = self._api.deploy(f"bench-{pool}", pool, small)
            self._deployments[AT_ONCE, pool] = self._deployments[ONE_BY_ONE, pool]
        master = self._api.ask(f"/deployments/name/{MASTER}")
        kept = {name: master[name] for name in ("flow_id", "entrypoint", "pull_steps")}
        # One run at a time, like the original deployment.
        limit = {"concurrency_limit": 1, "concurrency_options": {"collision_strategy": "ENQUEUE"}}
        self._deployments[MASTER_RUNS, OUR_POOL] = master["id"]
        self._deployments[MASTER_RUNS, DEFAULT_POOL] = self._api.deploy("bench-master", DEFAULT_POOL, kept | limit)

    def turn(self, worker: Worker, *, masters: int) -> None:
        """Measure one worker's part of a round."""
        figures = self.figures[worker]
        worker.start(self._host)
        try:
            # The first run shows that the worker is up; afterwards measure the worker without flow runs.
            self._all_of(worker, ONE_BY_ONE, 1)
            alone = self._settled(worker)
            figures.memory_idle.append(self._host.memory(worker.unit))
            before = Reading.now(self._host, worker.unit)
            time.sleep(IDLE_SECONDS)
            figures.idle.append(before.until(Reading.now(self._host, worker.unit)))
            with self._recorded(worker, ONE_BY_ONE, alone):
                self._one_after_the_other(worker, ONE_BY_ONE, RUNS // ROUNDS)
            with self._recorded(worker, AT_ONCE, alone):
                runs = self._all_of(worker, AT_ONCE, BURST)
                figures.runs.setdefault(AT_ONCE, []).extend(runs)
                figures.bursts.append(
                    max(run["COMPLETED"] for run in runs) - min(run["SCHEDULED"] for run in runs),
                )
            figures.memory_after.append(self._host.memory(worker.unit))
            if masters:
                # Only the very first run loads the data, so one run is not measured.
                self._all_of(worker, MASTER_RUNS, 1)
                self._settled(worker, alone)
                with self._recorded(worker, MASTER_RUNS, alone):
                    self._one_after_the_other(worker, MASTER_RUNS, masters)
        except BaseException:
            sys.stderr.write(self._host.run("journalctl", "--lines", "60", "--no-pager", "--unit", worker.unit))
            raise
        finally:
            self._host.run("systemctl", "stop", worker.unit)

    @contextlib.contextmanager
    def _recorded(self, worker: Worker, kind: str, alone: int) -> Iterator[None]:
        """Record the resources that the body uses, up to the end of its last process."""
        before = Reading.now(self._host, worker.unit)
        yield
        self._settled(worker, alone)
        self.figures[worker].took.setdefault(kind, []).append(before.until(Reading.now(self._host, worker.unit)))

    def _settled(self, worker: Worker, alone: int | None = None) -> int:
        """Wait until no process of a flow run is left; return the number of the worker's own processes."""
        counts: list[int] = []

        def settled() -> bool:
            counts.append(len(self._host.processes(worker.unit)))
            # If the number is not known yet, wait until it is stable.
            return counts[-1] <= alone if alone is not None else counts[-10:] == 10 * [counts[-1]]

        wait_until(settled, "the flow runs' processes have ended")
        return counts[-1]

    def _one_after_the_other(self, worker: Worker, kind: str, count: int) -> None:
        for number in range(count):
            # Spread the triggers over the worker's polling interval, instead of right after a run.
            time.sleep(worker.query_seconds * (number + 0.5) / count)
            self.figures[worker].runs.setdefault(kind, []).extend(self._all_of(worker, kind, 1))

    def _all_of(self, worker: Worker, kind: str, count: int) -> list[dict[str, float]]:
        """Trigger flow runs; return when all have ended, with the times of their states."""
        deployment = self._deployments[kind, worker.pool]
        create = f"/deployments/{deployment}/create_flow_run"

        def trigger(_: int) -> str:
            # The idempotency key prevents a second run if the request is retried.
            return str(self._api.ask(create, {"idempotency_key": str(uuid4())})["id"])

        # Concurrently: a server that already runs the first ones accepts the last ones slowly.
        with ThreadPoolExecutor(TRIGGERS) as pool:
            runs = list(pool.map(trigger, range(count)))
        left = {"id": {"any_": runs}, "state": {"type": {"not_any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}}}
        wait_until(
            lambda: self._api.ask("/flow_runs/count", {"flow_runs": left}) == 0,
            f"{count} runs have ended",
            RUN_SECONDS if count == 1 else BURST_SECONDS,
        )
        found = [self._states(run) for run in runs]
        print(f"{worker.label}, {kind}: {describe(found)}", file=sys.stderr, flush=True)
        return found

    def _states(self, run: str) -> dict[str, float]:
        """Return the time at which a run first had each type of state."""
        states = self._api.ask(f"/flow_run_states/?flow_run_id={run}")
        states.sort(key=lambda state: datetime.fromisoformat(state["timestamp"]))
        if states[-1]["type"] != "COMPLETED":
            raise SystemExit(f"The run {run} ended {states[-1]['name']}: {states[-1]['message']}")
        found: dict[str, float] = {}
        for state in states:
            moment = datetime.fromisoformat(state["timestamp"]).timestamp()
            found.setdefault(state["type"], moment)
            found.setdefault(state["name"], moment)
        return found


def describe(runs: list[dict[str, float]]) -> str:
    """Return the mean time at which the runs reached each state, in seconds after the first trigger."""
    first = min(run["SCHEDULED"] for run in runs)
    names = dict.fromkeys(name for run in runs for name in run if not name.isupper())
    reached = {name: [run[name] - first for run in runs if name in run] for name in names}
    return ", ".join(f"{name} {sum(all_) / len(all_):.2f}" for name, all_ in reached.items())


def wait_until(ready: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    """Wait until a condition is true; exit after a timeout in seconds."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {seconds:g} s")
        time.sleep(POLL_SECONDS)


def table(figures: dict[Worker, Figures]) -> Iterator[str]:
    """Return the lines of a table of all measurements."""
    times = f"{'Pending':>9}{'Running':>9}{'p95':>7}{'Completed':>11}{'p95':>7}"
    for kind in (ONE_BY_ONE, AT_ONCE, MASTER_RUNS):
        yield f"{kind:24}{'runs':>6}{times}{'CPU/run':>9}{'others':>8}{'taken':>7}"
        for worker, of_it in figures.items():
            if kind in of_it.runs:
                pending = of_it.middle(kind, "PENDING")
                running, completed = (
                    f"{of_it.middle(kind, state):{width}.2f}{of_it.most(kind, state):7.2f}"
                    for state, width in (("RUNNING", 9), ("COMPLETED", 11))
                )
                yield (
                    f"{worker.label:24}{len(of_it.runs[kind]):6}{pending:9.2f}{running}{completed}"
                    f"{of_it.cpu(kind):9.2f}{of_it.cpu_of_the_rest(kind):8.2f}{of_it.others(kind):7.2f}"
                )
        yield ""
    yield f"{'':24}{f'burst of {BURST}, s':>18}{'idle: CPU':>12}{'others':>8}{'memory':>10}{'after a burst':>16}"
    for worker, of_it in figures.items():
        bursts = " ".join(f"{seconds:.1f}" for seconds in of_it.bursts)
        clock = sum(each.clock for each in of_it.idle)
        idle = sum(each.worker for each in of_it.idle) / clock
        others = sum(each.host - each.worker for each in of_it.idle) / clock
        memory = f"{_mb(max(of_it.memory_idle)):>10}{_mb(max(of_it.memory_after)):>16}"
        yield f"{worker.label:24}{bursts:>18}{idle:12.1%}{others:8.1%}{memory}"


def bars(figures: dict[Worker, Figures]) -> Iterator[str]:
    """Return the lines that compare the figures with their bars."""

    def lines(what: str, measure: Callable[[Figures, str], float], bars: dict[Worker, str], kind: str) -> Iterator[str]:
        for worker, of_it in figures.items():
            if kind in of_it.runs:
                base, measured = measure(figures[DEFAULT], kind), measure(of_it, kind)
                figures_of_it = f"{measured:8.2f} s{measured / base:9.2f}   {bars.get(worker, '')}"
                yield f"{what:38}{worker.label:24}{figures_of_it}".rstrip()

    yield f"{'':62}{'measured':>10}{'of (a)':>9}   bar"
    for kind, name in ((ONE_BY_ONE, "trigger to Running"), (MASTER_RUNS, "master flow, trigger to Running")):
        expected = {WITHOUT_FORKS: ("at most 3 s", "at most 4 s"), WITH_FORKS: ("at most 1 s", "at most 4 s")}
        middle, most = ({worker: bar[which] for worker, bar in expected.items()} for which in (0, 1))
        yield from lines(f"{name}, p50", lambda of_it, kind: of_it.middle(kind, "RUNNING"), middle, kind)
        yield from lines(f"{name}, p95", lambda of_it, kind: of_it.most(kind, "RUNNING"), most, kind)
    bursts = {WITHOUT_FORKS: "at most 0.5 of (a)", WITH_FORKS: "at most 0.3 of (a)"}
    yield from lines(f"burst of {BURST}, the best", lambda of_it, _: min(of_it.bursts), bursts, AT_ONCE)
    for kind, share in ((ONE_BY_ONE, 0.2), (AT_ONCE, 0.2), (MASTER_RUNS, 0.3)):
        yield from lines(f"CPU per run, {kind}", Figures.cpu, {WITH_FORKS: f"at most {share} of (a)"}, kind)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _load() -> str:
    return f"load {' '.join(f'{each:.2f}' for each in os.getloadavg())}"


def main() -> None:
    """Measure on a new host, and print the results."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        inventory = Path(directory) / "inventory"
        inventory.mkdir()
        hosts = HOSTS.format(name=NAME, debian=os.environ.get("DEBIAN", "13"), port=port)
        (inventory / "hosts.yml").write_text(hosts, "utf-8")
        shutil.copytree(ROOT / "inventory/local/group_vars", inventory / "group_vars")

        def play(playbook: str) -> None:
            done = subprocess.run(
                ["ansible-playbook", "--inventory", str(inventory), playbook],
                check=False,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=PLAY_SECONDS,
            )
            if done.returncode != 0:
                raise SystemExit(f"{playbook} failed:\n{done.stdout}\n{done.stderr}")

        try:
            for playbook in ("containers/destroy.yml", "containers/create.yml", "site.yml"):
                play(playbook)
            before = _load()
            bench = Bench(Host(), Api(port, inventory / ".secrets"))
            bench.prepare()
            for number in range(1, ROUNDS + 1):
                for worker in WORKERS:
                    print(f"Round {number}, {worker.label}: {_load()}", file=sys.stderr, flush=True)
                    with_masters = number == ROUNDS and worker is not WITHOUT_FORKS
                    bench.turn(worker, masters=MASTERS if with_masters else 0)
            after = _load()
        finally:
            play("containers/destroy.yml")

    print(f"{os.cpu_count()} CPUs; before: {before}, after: {after}\n")
    print(*table(bench.figures), "", sep="\n")
    print(
        "Seconds from a run's trigger to its states, median and p95; CPU seconds per run: of the worker and its "
        "processes,\nand of the others on the host: server, database, proxy. taken: CPUs that the rest of the machine "
        "took meanwhile.\nMemory: without mapped files.\n"
    )
    print(*bars(bench.figures), sep="\n")


if __name__ == "__main__":
    main()
