"""A flow run whose process is killed is marked as crashed, and retried; tests/drills covers more faults."""

from typing import TYPE_CHECKING, Any

import pytest
from testinfra.host import Host

from tests import limits

if TYPE_CHECKING:
    from tests.host.conftest import Api

pytestmark = pytest.mark.disruptive

UNLOCK = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'BEGIN; LOCK TABLE%'"


def test_a_killed_flow_run_runs_again(database: Host, worker: Host, api: "Api") -> None:
    deployment = api.ask("/deployments/name/Master%20ETL%20Flow/master-etl-deployment")["id"]
    # The run cannot end by itself while another session locks this table.
    psql = "runuser --user postgres -- psql biocirv_db -c %s"
    lock = "BEGIN; LOCK TABLE etl_run; SELECT pg_sleep(3600)"
    database.check_output(f"systemd-run --quiet --collect --unit=hold-etl {psql}", lock)
    run = api.ask(f"/deployments/{deployment}/create_flow_run", {})

    def read(run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = api.ask(f"/flow_runs/{run_id}")
        return found

    def has_begun() -> bool:
        found = read(run["id"])
        return found["state"]["type"] == "RUNNING" and bool(found["infrastructure_pid"])

    try:
        limits.wait_until(has_begun, "the flow run has a process")
        pid = str(read(run["id"])["infrastructure_pid"]).rpartition(":")[2]
        worker.check_output("kill -9 %s", str(int(pid)))
    finally:
        # The session would outlive its client.
        database.check_output(psql, UNLOCK)

    limits.wait_until(lambda: read(run["id"])["state"]["type"] == "CRASHED", "the flow run is Crashed", limits.ANSWER)
    assert "-9" in read(run["id"])["state"]["message"]

    def successors() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = api.ask(
            "/flow_runs/filter", {"flow_runs": {"name": {"any_": [f"{run['name']}-retry"]}}}
        )
        return [
            successor for successor in found if successor["state"]["type"] not in ("SCHEDULED", "PENDING", "RUNNING")
        ]

    (successor,) = limits.wait_until(successors, "the retry of the flow run ends", limits.CRASH)
    assert successor["state"]["type"] == "COMPLETED", successor["state"]
