"""deploy.py against a real server, and a run of the registered deployment by a real worker."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from sqlalchemy import Engine, text

from run_prefect_flow import AVAILABLE_FLOWS
from tests import limits
from tests.integration.flow_runs import sub_flow_runs

Run = Callable[..., subprocess.CompletedProcess[str]]

NAME = "master-etl-deployment"
FULL_NAME = f"Master ETL Flow/{NAME}"


@pytest.fixture(autouse=True)
def _no_settings_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith(("ETL_SCHEDULE_", "PREFECT_")) or variable in (
            "APP_DIRECTORY",
            "DEPLOYMENT_VERSION",
        ):
            monkeypatch.delenv(variable)


@pytest.fixture
def deploy(run: Run, prefect: SyncPrefectClient) -> Callable[..., DeploymentResponse]:
    """Return a function that registers the deployment and returns it as the server has it."""

    def deploy_with(**environment: str) -> DeploymentResponse:
        done = run("deploy.py", NAME, "--no-env-file", **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return prefect.read_deployment_by_name(FULL_NAME)

    return deploy_with


def test_the_server_follows_the_variables(
    deploy: Callable[..., DeploymentResponse], prefect: SyncPrefectClient, root: Path
) -> None:
    """Without variables the defaults apply; the only schedule is activated, changed, and deactivated."""
    deployment = deploy(DEPLOYMENT_VERSION="4f1d2c")

    assert deployment.version == "4f1d2c"
    assert deployment.work_pool_name == "biocirv_dev_work_pool"
    assert prefect.read_work_pool("biocirv_dev_work_pool").type == "process"
    assert deployment.entrypoint == "run_prefect_flow.py:master_flow"
    assert set(deployment.tags) == {"etl", "master"}
    assert deployment.description
    assert deployment.global_concurrency_limit
    assert deployment.global_concurrency_limit.limit == 1
    assert deployment.concurrency_options
    assert deployment.concurrency_options.collision_strategy == "ENQUEUE"
    assert working_directory(deployment) == str(root)
    assert [schedule.active for schedule in deployment.schedules] == [False]

    for active in ("True", "false"):
        cron, zone, version = f"30 {len(active)} * * 1", "UTC", f"version {active}"
        deployment = deploy(
            APP_DIRECTORY="/srv/app",
            PREFECT_WORK_POOL="other_pool",
            DEPLOYMENT_VERSION=version,
            ETL_SCHEDULE_CRON=cron,
            ETL_SCHEDULE_TIMEZONE=zone,
            ETL_SCHEDULE_ACTIVE=active,
        )

        assert (deployment.work_pool_name, deployment.version) == ("other_pool", version)
        assert working_directory(deployment) == "/srv/app"
        (schedule,) = deployment.schedules
        assert isinstance(schedule.schedule, CronSchedule)
        assert (schedule.schedule.cron, schedule.schedule.timezone) == (cron, zone)
        assert schedule.active is (active == "True")
        wait_for_scheduled_runs(prefect, deployment, present=schedule.active)


def wait_for_scheduled_runs(client: SyncPrefectClient, deployment: DeploymentResponse, *, present: bool) -> None:
    """Wait until the server has created the runs of the schedule, or deleted them."""
    of_deployment = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]))

    def is_so() -> bool:
        runs = client.read_flow_runs(flow_run_filter=of_deployment)
        return any(run.auto_scheduled for run in runs) is present

    limits.wait_until(is_so, f"the scheduler has {'runs' if present else 'no runs'} for the schedule", limits.ANSWER)


def working_directory(deployment: DeploymentResponse) -> object:
    """Return the folder that a worker changes to before it imports the flow."""
    assert deployment.pull_steps
    (step,) = deployment.pull_steps
    return step["prefect.deployments.steps.set_working_directory"]["directory"]


def test_the_environment_wins_over_the_env_file(
    run: Run, prefect: SyncPrefectClient, prefect_server: str, tmp_path: Path, root: Path
) -> None:
    """The file, here made of the example, sets the remaining variables."""
    env_file = tmp_path / "settings"
    example = (root / ".env.example").read_text(encoding="utf-8")
    env_file.write_text(example.replace("biocirv_dev_work_pool", "from_file"), encoding="utf-8")

    done = run("deploy.py", NAME, "--env-file", str(env_file), PREFECT_API_URL=prefect_server)

    assert done.returncode == 0, done.stdout + done.stderr
    deployment = prefect.read_deployment_by_name(FULL_NAME)
    assert deployment.work_pool_name == "from_file"
    assert [schedule.active for schedule in deployment.schedules] == [False]


def test_without_an_env_file(run: Run, tmp_path: Path) -> None:
    """The exit code is 1, and the message says how to make the file."""
    done = run("deploy.py", NAME, "--env-file", str(tmp_path / "none"))

    assert done.returncode == 1
    assert f"no env file {tmp_path / 'none'}" in done.stderr
    assert ".env.example" in done.stderr


@pytest.mark.parametrize(
    ("name", "environment", "says"),
    [
        ("mistyped", {}, f"it declares: {NAME}"),
        (NAME, {"ETL_SCHEDULE_ACTIVE": "perhaps"}, "ETL_SCHEDULE_ACTIVE is 'perhaps'"),
        (NAME, {"ETL_SCHEDULE_CRON": "every day"}, 'Invalid cron string: "every day"'),
        (NAME, {"PREFECT_API_URL": ""}, "PREFECT_API_URL is not set"),
        (NAME, {"PREFECT_API_URL": "nonsense"}, "no http(s) URL"),
    ],
)
def test_gives_up_at_once_where_a_retry_cannot_help(
    run: Run, prefect: SyncPrefectClient, name: str, environment: dict[str, str], says: str
) -> None:
    """The exit code is 2, there is no second attempt, and nothing is registered."""
    # The status of these deployments changes with the workers.
    before = [deployment.id for deployment in prefect.read_deployments()]

    done = run("deploy.py", name, "--no-env-file", **environment)

    assert done.returncode == 2
    assert says in done.stdout + done.stderr
    assert "Attempt" not in done.stdout
    assert [deployment.id for deployment in prefect.read_deployments()] == before


class _Unavailable(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def unavailable_server() -> Iterator[str]:
    """Answer every request with 503; yield the URL."""
    with HTTPServer(("127.0.0.1", 0), _Unavailable) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/api"
        finally:
            server.shutdown()


def test_waits_for_a_server_that_is_not_ready(run: Run) -> None:
    """One line per attempt shows the remaining time, then the exit code is 2."""
    arguments = ["deploy.py", NAME, "--no-env-file", "--attempts", "2", "--delay", "0.1"]
    with unavailable_server() as url:
        answered = run(*arguments, PREFECT_API_URL=url)
    refused = run(*arguments, PREFECT_API_URL=url)

    for done, reason in [(answered, "answers 503"), (refused, "Connection refused")]:
        assert done.returncode == 2
        first, second = done.stdout.splitlines()
        for part in ["Attempt 1 of 2", url, reason, "next attempt in 0.1 s, 1 left"]:
            assert part in first
        for part in ["Attempt 2 of 2", url, reason, "no attempt left"]:
            assert part in second
        assert "was not ready in 2 attempts" in done.stderr


@pytest.mark.thorough
@pytest.mark.usefixtures("source")
def test_a_worker_runs_what_was_registered(
    deploy: Callable[..., DeploymentResponse],
    prefect: SyncPrefectClient,
    migrated_database: Engine,
    tmp_path: Path,
) -> None:
    """The worker runs it from another folder: the run and its sub-flow runs are Completed, and rows are loaded."""
    deployment = deploy(PREFECT_WORK_POOL="worker_test")
    run = prefect.create_flow_run_from_deployment(deployment.id)
    log = tmp_path / "worker.log"

    with log.open("w") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "worker_test"],
            cwd=tmp_path,
            env={**os.environ, "PREFECT_WORKER_QUERY_SECONDS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            run = _wait_for_end(prefect, run, worker)
        finally:
            # SIGTERM would not work, see the fixture prefect_server.
            worker.kill()
            worker.wait()

    assert run.state_name == "Completed", f"{run.state}\n{log.read_text()}"
    children = sub_flow_runs(prefect, run.id)
    assert [child.state_name for child in children] == ["Completed"] * len(AVAILABLE_FLOWS)
    with migrated_database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM primary_product"))
        assert connection.scalar(text("SELECT count(*) FROM analysis_types"))


def _wait_for_end(client: SyncPrefectClient, run: FlowRun, worker: subprocess.Popen[bytes]) -> FlowRun:
    def has_ended() -> bool:
        state = client.read_flow_run(run.id).state
        return worker.poll() is not None or (state is not None and state.is_final())

    limits.wait_until(has_ended, f"the end of {run.name}")
    return client.read_flow_run(run.id)


def test_steps_that_were_made_for_a_container_are_replaced(
    run: Run, prefect: SyncPrefectClient, root: Path, tmp_path: Path
) -> None:
    """Flow runs then begin in the platform's directory, whatever the project's build, push and pull steps are."""
    document = yaml.safe_load((root / "prefect.yaml").read_text(encoding="utf-8"))
    elsewhere = {"prefect.deployments.steps.set_working_directory": {"directory": "/app"}}
    image = {"prefect_docker.deployments.steps.build_docker_image": {"image_name": "image", "tag": "latest"}}
    document |= {"pull": [elsewhere], "build": [image], "push": [image]}
    document["deployments"][0] |= {"pull": [elsewhere], "build": [image]}
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    (tmp_path / "run_prefect_flow.py").symlink_to(root / "run_prefect_flow.py")

    options = ("--project", str(tmp_path), "--working-directory", str(tmp_path), "--no-env-file")
    done = run("deploy.py", NAME, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    deployment = prefect.read_deployment_by_name(FULL_NAME)
    assert working_directory(deployment) == str(tmp_path)
    assert deployment.pull_steps
    assert len(deployment.pull_steps) == 1
