"""A scheduler of Prefect that stands still while the server answers: noticed, and mended by one restart."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from testinfra.host import Host

from tests.host.conftest import Api, Inventory, properties
from tests.limits import wait_until

DROP_IN = "/run/systemd/system/prefect-server.service.d/test.conf"
NAME = "drill-of-the-scheduler"


@dataclass
class Scheduler:
    """The server's scheduler, and a deployment with an active schedule that it plans runs of."""

    server: Host
    database: Host
    api: Api
    deployment: str

    def planned(self) -> list[str]:
        """Return the ids of the runs that are planned."""
        query = {"deployments": {"id": {"any_": [self.deployment]}}, "limit": 200}
        return [run["id"] for run in self.api.ask("/flow_runs/filter", query)]

    def lagging(self) -> list[str]:
        """Return the deployments that the check finds, each in its line."""
        script = "set -a; . /etc/biocirv/prefect-server.env; exec /opt/biocirv/bin/check-schedules --list"
        listed: str = self.server.check_output(script)
        return listed.splitlines()

    def stop(self) -> None:
        """Let the server run on without its scheduler, as if it had stood still until no run was planned any more."""
        self.server.check_output(
            f"mkdir -p $(dirname {DROP_IN});"
            f" printf '[Service]\\nEnvironment=PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED=false\\n' >{DROP_IN};"
            " systemctl daemon-reload; systemctl restart prefect-server"
        )
        for run in self.planned():
            self.api.delete(f"/flow_runs/{run}")
        # A deployment that was changed a moment ago is not judged yet.
        for table, column in (("deployment", "id"), ("deployment_schedule", "deployment_id")):
            update = f"UPDATE {table} SET updated = updated - interval '1 day' WHERE {column} = '{self.deployment}'"  # noqa: S608
            self.database.check_output(f'runuser --user postgres -- psql --dbname prefect_db --command "{update}"')

    def allow(self) -> None:
        """Let the next start of the server have its scheduler."""
        self.server.check_output(f"rm -f {DROP_IN}; systemctl daemon-reload")

    def check(self) -> int:
        """Run the check's unit; return its exit code."""
        return int(self.server.run("systemctl start prefect-schedules.service").rc)

    def process(self) -> str:
        """Return the server's process id."""
        return properties(self.server, "prefect-server", "MainPID")["MainPID"]


@pytest.fixture
def scheduler(server: Host, database: Host, api: Api, inventory: Inventory) -> Iterator[Scheduler]:
    """Create a deployment that is due every day."""
    flow = api.ask("/flows/", {"name": NAME})
    created = api.ask(
        "/deployments/",
        {
            "name": NAME,
            "flow_id": flow["id"],
            "entrypoint": "none.py:none",
            "schedules": [{"schedule": {"cron": "0 2 * * *", "timezone": "UTC"}, "active": True}],
            "work_pool_name": inventory.value("prefect_work_pool"),
        },
    )
    server.check_output("systemctl reset-failed 'prefect-server-renewal.service' || true")
    found = Scheduler(server, database, api, created["id"])
    yield found
    found.allow()
    api.delete(f"/deployments/{found.deployment}")
    api.delete(f"/flows/{flow['id']}")
    server.check_output("systemctl restart prefect-server; systemctl reset-failed 'prefect-s*' || true")


def test_the_check_runs_beside_the_server(server: Host) -> None:
    assert properties(server, "prefect-schedules.timer", "ActiveState") == {"ActiveState": "active"}
    assert server.run("systemctl start prefect-schedules.service").rc == 0
    # A server that does not answer is no failure of the check.
    invocation = properties(server, "prefect-schedules.service", "InvocationID")["InvocationID"]
    said = server.check_output(
        "journalctl --sync; journalctl --output=cat --identifier=check-schedules _SYSTEMD_INVOCATION_ID=%s", invocation
    )
    assert said == "", said


@pytest.mark.thorough
@pytest.mark.disruptive
def test_a_scheduler_that_stands_still_is_mended_by_one_restart(scheduler: Scheduler, inventory: Inventory) -> None:
    wait_until(lambda: len(scheduler.planned()) >= 3, "runs are planned")
    assert scheduler.lagging() == []

    scheduler.stop()
    assert scheduler.api.is_ready()
    assert scheduler.lagging() == [NAME]
    assert NAME in json.dumps(inventory.status()["problems"])
    before = scheduler.process()
    scheduler.allow()
    assert scheduler.check() != 0
    wait_until(lambda: scheduler.process() not in ("0", before), "the server is restarted")
    wait_until(lambda: scheduler.api.is_ready() and scheduler.lagging() == [], "runs are planned again")

    # What a restart does not mend is not restarted again and again.
    scheduler.stop()
    before = scheduler.process()
    assert scheduler.check() != 0
    wait_until(
        lambda: properties(scheduler.server, "prefect-server-renewal", "Result")["Result"] == "start-limit-hit",
        "systemd refuses a second restart",
    )
    assert scheduler.process() == before
    journal = scheduler.server.check_output("journalctl --unit prefect-schedules --lines 20 --output cat")
    assert f"Prefect plans no more runs of {NAME}, though its API answers." in journal
