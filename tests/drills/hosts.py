"""The platform under test: its hosts, their state, and how long to wait for them."""

from __future__ import annotations

import base64
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tests import limits
from tests.host.conftest import Api

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.host.conftest import Inventory

POLL_SECONDS = 0.5
# The API's page size.
PAGE = 200


class NotYetError(AssertionError):
    """A condition did not become true in time."""


class Platform:
    """An inventory's hosts, accessed as root, and Prefect's API."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.server = inventory.host("prefect_server")
        self.database = inventory.host("database")
        # Each host once, even if it is in several groups.
        names = {name: None for group in ("prefect_server", "prefect_worker") for name in inventory.names(group)}
        self.hosts = [inventory.host_named(name) for name in names]
        # Drills that affect one worker use the first.
        self.worker = inventory.host("prefect_worker")
        self.container = inventory.name("database") if inventory.is_container("database") else None
        self.pool = str(inventory.value("prefect_work_pool"))
        self._api = Api(self.server)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
        """Return the API's response to a GET, or to a POST if there is a body."""
        return self._api.ask(path, body)

    def all_of(self, kind: str, **filters: object) -> list[dict[str, Any]]:
        """Return all objects that match a filter, read page by page."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.ask(f"/{kind}/filter", {**filters, "limit": PAGE, "offset": len(found)})
            found += page
            if len(page) < PAGE:
                return found

    def delete(self, path: str) -> None:
        """Delete an object by its path in the API."""
        self._api.delete(path)

    def sql(self, statement: str) -> list[list[str]]:
        """Run a statement in the application's database, as PostgreSQL's superuser; return rows of text."""
        command = "runuser --user postgres -- psql -AtXq -F '|' -v ON_ERROR_STOP=1 biocirv_db -c %s"
        return [line.split("|") for line in self.database.check_output(command, statement).splitlines()]

    def put(self, text: str, path: str) -> None:
        """Write a world-readable file on all hosts that run Python."""
        encoded = base64.b64encode(text.encode()).decode()
        for host in self.hosts:
            host.check_output(f"mkdir -p $(dirname {path}) && echo {encoded} | base64 -d > {path} && chmod 0644 {path}")

    def now(self) -> float:
        """Return the time that the database's clock shows, in seconds since the epoch."""
        return float(self.sql("SELECT extract(epoch FROM clock_timestamp())")[0][0])

    def wait_until(self, ready: Callable[[], bool], what: str, seconds: float = limits.START) -> None:
        """Wait until a condition is true; an error while evaluating it counts as false."""
        seconds = limits.limit(seconds)
        deadline = time.monotonic() + seconds
        reason = ""
        while True:
            try:
                if ready():
                    return
            # The host or the API does not answer.
            except (AssertionError, ValueError) as error:
                reason = f"; the last answer was: {error}"
            if time.monotonic() > deadline:
                raise NotYetError(f"{what}: not within {seconds:g} s{reason}")
            time.sleep(POLL_SECONDS)

    def let_pass(self, seconds: float) -> None:
        """Wait while a fault lasts."""
        end = time.monotonic() + seconds
        self.wait_until(lambda: time.monotonic() >= end, "time passes", 2 * seconds)

    def unwell(self) -> str:
        """Return what is not healthy: empty if all services are active, the API is ready and a worker is online."""
        looked = {
            "PostgreSQL": self.database.run("pg_isready").rc == 0,
            **{
                unit: host.run(f"systemctl is-active {unit}").rc == 0
                for host, unit in ((self.server, "nginx"), (self.server, "prefect-server"), *self._workers())
            },
        }
        looked["the API"] = self._api.is_ready()
        looked["a worker online"] = looked["the API"] and self.heard_of_workers() != []
        return ", ".join(name for name, is_so in looked.items() if not is_so)

    def _workers(self) -> Iterable[tuple[Any, str]]:
        names = self.inventory.names("prefect_worker")
        return ((self.inventory.host_named(name), "prefect-worker") for name in names)

    def heard_of_workers(self) -> list[float]:
        """Return the time of the last heartbeat of each worker that the server considers online."""
        body = {"workers": {"status": {"any_": ["ONLINE"]}}}
        workers = self.ask(f"/work_pools/{self.pool}/workers/filter", body)
        return [moment(worker["last_heartbeat_time"]) for worker in workers]

    def seconds_until_well(self) -> float:
        """Wait until all services are healthy, and return how long that took."""
        start = time.monotonic()
        self.wait_until(lambda: self.unwell() == "", "all services are healthy")
        return time.monotonic() - start

    def mend(self) -> None:
        """Start services that a drill has left stopped, so that it does not affect the next one's result."""
        self.database.run("systemctl reset-failed; systemctl start 'postgresql@*' postgresql")
        for host in self.hosts:
            host.run("systemctl reset-failed; systemctl start biocirv.target")
        self.seconds_until_well()

    def main_pid(self, unit: str) -> str:
        """Return the process id of a unit's main process."""
        host = self.worker if unit == "prefect-worker" else self.server
        pid = str(host.check_output("systemctl show --property=MainPID --value %s", unit))
        assert pid != "0", f"{unit} has no main process"
        return pid

    def journal(self) -> Iterator[str]:
        """Yield the end of the services' journals, host by host."""
        units = "--unit 'prefect-*' --unit 'postgresql@*' --unit nginx"
        for host in self.hosts:
            yield host.run(f"journalctl --no-pager --lines 80 {units}").stdout


def moment(text: str) -> float:
    """Convert a timestamp of the API to seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()


def literals(values: Iterable[str]) -> str:
    """Return our own ids as the elements of an SQL list that is never empty."""
    return ", ".join(f"'{value}'" for value in values) or "NULL"
