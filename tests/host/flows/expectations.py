"""A flow that does what docs/flows.md says that a flow may do. Its last line says what failed, and why."""

# mypy: disable-error-code="import-not-found,import-untyped"
import concurrent.futures
import multiprocessing
import os
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from prefect import flow

# As if they were installed, for other programs too.
_HERE = Path(__file__).resolve().parent
sys.path += [str(_HERE), str(_HERE / "packages")]
os.environ["PYTHONPATH"] = os.pathsep.join([os.environ["PYTHONPATH"], *sys.path[-2:]])


def in_processes(method: str) -> None:
    """Compute in a pool of processes, each started by `fork` or `spawn`."""
    from parallel import square

    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        results = list(pool.map(square, range(8)))
    assert [result for result, _ in results] == [number * number for number in range(8)]
    assert os.getpid() not in {process for _, process in results}


def in_shared_memory() -> None:
    """Make a block of memory and a lock that processes share."""
    from multiprocessing.shared_memory import SharedMemory

    block = SharedMemory(create=True, size=2**20)
    assert block.buf is not None
    block.buf[0] = 7
    block.close()
    block.unlink()
    with multiprocessing.get_context("spawn").Lock():
        pass


def on_dask() -> None:
    """Compute on a cluster of this host, with processes, as Dask starts it by default."""
    from dask.distributed import Client, LocalCluster
    from parallel import square

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        results = client.gather(client.map(square, range(8)))
    assert [result for result, _ in results] == [number * number for number in range(8)]


def with_psutil() -> None:
    """Look at memory, processors, load, disks, interfaces' traffic, and the own process."""
    import psutil

    assert psutil.virtual_memory().total > 2**28
    assert psutil.cpu_count()
    assert psutil.cpu_percent(interval=0.1) >= 0
    assert len(psutil.getloadavg()) == 3
    assert psutil.disk_usage(tempfile.gettempdir()).total
    assert psutil.net_io_counters()
    me = psutil.Process()
    assert me.memory_info().rss
    assert me.num_threads()
    assert os.getpid() in psutil.pids()


def with_matplotlib() -> None:
    """Draw, which needs a directory for a cache of fonts."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    assert Path(mpl.get_cachedir()).is_relative_to(Path.home())
    figure, axes = plt.subplots()
    axes.plot([1, 2], [3, 4])
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        figure.savefig(file.name)
        assert Path(file.name).stat().st_size > 1000


def with_openmp() -> None:
    """Run a compiled extension whose loops are parallel, and one that starts processes."""
    from joblib import Parallel, delayed
    from parallel import square
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_info

    assert len(set(KMeans(2, n_init=1).fit_predict([[0.0], [0.1], [9.0], [9.1]] * 1000))) == 2
    assert "openmp" in {library["user_api"] for library in threadpool_info()}
    assert len(Parallel(n_jobs=2)(delayed(square)(number) for number in range(4))) == 4


def with_sqlite() -> None:
    """Write an SQLite database with a write-ahead log, which needs locks and shared memory in a file."""
    with tempfile.TemporaryDirectory() as directory:
        connection = sqlite3.connect(Path(directory, "some.db"))
        assert connection.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
        connection.execute("CREATE TABLE some (number integer)")
        connection.execute("INSERT INTO some VALUES (1)")
        connection.commit()
        connection.close()


def with_temporary_files() -> None:
    """Write where temporary files go, and the account's own directory."""
    for directory in (tempfile.gettempdir(), "/var/tmp", Path.home()):  # noqa: S108 - documented
        with tempfile.TemporaryDirectory(dir=directory) as path:
            Path(path, "some").write_text("some", encoding="ascii")


def with_dns() -> None:
    """Resolve the name of the host, of the loopback, and of the API."""
    for name in (socket.gethostname(), "localhost", str(urlsplit(os.environ["PREFECT_API_URL"]).hostname)):
        assert socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)


def what_is_refused() -> None:
    """Change priorities and list the addresses of interfaces, which the sandbox refuses."""
    import psutil

    for call in (lambda: os.nice(1), lambda: os.sched_setaffinity(0, {0}), psutil.net_if_addrs):
        try:
            call()
        except OSError:
            continue
        raise AssertionError(f"{call} is not refused")


CHECKS: dict[str, Callable[[], None]] = {
    "fork": lambda: in_processes("fork"),
    "spawn": lambda: in_processes("spawn"),
    "forkserver": lambda: in_processes("forkserver"),
    "shared memory": in_shared_memory,
    "Dask": on_dask,
    "psutil": with_psutil,
    "matplotlib": with_matplotlib,
    "OpenMP": with_openmp,
    "SQLite": with_sqlite,
    "temporary files": with_temporary_files,
    "DNS": with_dns,
    "refusals": what_is_refused,
}


@flow
def expectations() -> None:
    """Try each expectation, whatever became of the others."""
    failed = []
    for name, check in CHECKS.items():
        try:
            check()
        except Exception as error:  # noqa: BLE001 - all are collected
            failed.append(f"{name}: {type(error).__name__}: {error}")
    if failed:
        raise RuntimeError("; ".join(failed))
