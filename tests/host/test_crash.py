"""A flow run whose process is killed is known to have crashed, and runs again; tests/drills kills more."""

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
    # As long as another holds this table, the run cannot end by itself.
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
        # Without its client the session would go on.
        database.check_output(psql, UNLOCK)

    limits.wait_until(lambda: read(run["id"])["state"]["type"] == "CRASHED", "the crash is known", limits.ANSWER)
    assert "-9" in read(run["id"])["state"]["message"]

    def successors() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = api.ask(
            "/flow_runs/filter", {"flow_runs": {"name": {"any_": [f"{run['name']}-retry"]}}}
        )
        return [
            successor for successor in found if successor["state"]["type"] not in ("SCHEDULED", "PENDING", "RUNNING")
        ]

    (successor,) = limits.wait_until(successors, "the flow run has run again", limits.CRASH)
    assert successor["state"]["type"] == "COMPLETED", successor["state"]
