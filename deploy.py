"""Registers a deployment of prefect.yaml with the Prefect server.

``python deploy.py master-etl-deployment`` waits for the server, creates the work pool if it does not
exist, and runs ``prefect deploy``. Run it again after any change: it updates an existing deployment.

Exit codes: 0 registered, 1 no env file, 2 gave up.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import yaml
from dotenv import load_dotenv

ROOT = Path(__file__).absolute().parent

# Variables that prefect.yaml refers to. Prefect does not substitute a variable that is unset or empty, and
# computes a version from the flow's file if none is given.
DEFAULTS = {
    "DEPLOYMENT_VERSION": "",
    "PREFECT_WORK_POOL": "biocirv_dev_work_pool",
    "ETL_SCHEDULE_CRON": "0 2 * * *",
    "ETL_SCHEDULE_TIMEZONE": "America/Los_Angeles",
    "ETL_SCHEDULE_ACTIVE": "false",
}


class DeployError(Exception):
    """The deployment cannot be registered, and a retry would not help."""


class ServerNotReadyError(Exception):
    """The server does not answer yet, or answers with a server error."""


def main() -> int:
    """Run the command line; return the exit code."""
    arguments = _parse_arguments()
    if arguments.env_file:
        if not arguments.env_file.is_file():
            print(
                f"There is no env file {arguments.env_file}. Make one: cp {ROOT / '.env.example'} "
                f"{arguments.env_file}, and edit it; or give --no-env-file if the environment sets all variables",
                file=sys.stderr,
            )
            return 1
        load_dotenv(arguments.env_file)
    try:
        _complete_environment(arguments.project)
        declared = _declared(arguments.project, arguments.deployment)
        with _prefect_file(arguments.project, arguments.working_directory) as file:
            _deploy(arguments.project, declared, file, attempts=arguments.attempts, delay=arguments.delay)
    except DeployError as error:
        print(f"Gave up on {arguments.deployment}: {error}", file=sys.stderr)
        return 2
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Register a deployment of prefect.yaml with the server that PREFECT_API_URL names.",
        epilog="Exit codes: 0 registered, 1 no env file, 2 gave up.",
    )
    parser.add_argument("deployment", metavar="deployment-name", help="its name in prefect.yaml")
    parser.add_argument(
        "--project", type=Path, default=ROOT, help="directory of prefect.yaml (default: %(default)s, beside this file)"
    )
    parser.add_argument(
        "--working-directory",
        type=Path,
        help="directory in which flow runs find the code, instead of the build, push and pull steps of prefect.yaml",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--env-file",
        type=Path,
        default=ROOT / ".env",
        help="variables to add to the environment, which takes precedence (default: %(default)s)",
    )
    source.add_argument(
        "--no-env-file",
        dest="env_file",
        action="store_const",
        const=None,
        help="take everything from the environment, as under systemd",
    )
    parser.add_argument("--attempts", type=int, default=30, help="maximum number of attempts (default: %(default)s)")
    parser.add_argument("--delay", type=float, default=2, help="seconds between two attempts (default: %(default)s)")
    return parser.parse_args()


def _complete_environment(project: Path) -> None:
    if not os.environ.get("PREFECT_API_URL"):
        raise DeployError("PREFECT_API_URL is not set: set it to the server's, such as http://127.0.0.1:4200/api")
    # Not resolved: on a host the path goes through the link to the current release, and must keep doing so.
    for name, default in {"APP_DIRECTORY": str(project.absolute()), **DEFAULTS}.items():
        os.environ[name] = os.environ.get(name) or default
    active = os.environ["ETL_SCHEDULE_ACTIVE"]
    if active.lower() not in ("true", "false"):
        raise DeployError(f"ETL_SCHEDULE_ACTIVE is {active!r}: set it to true or false")


def _declared(project: Path, deployment: str) -> dict[str, Any]:
    # Checked here because Prefect would register the only deployment of a file under any given name.
    try:
        declared = yaml.safe_load((project / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    except FileNotFoundError as error:
        raise DeployError(f"there is no {error.filename}: --project names the directory of prefect.yaml") from error
    by_name: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in declared}
    if deployment not in by_name:
        raise DeployError(f"prefect.yaml declares no such deployment; it declares: {', '.join(by_name)}")
    return by_name[deployment]


@contextmanager
def _prefect_file(project: Path, working_directory: Path | None) -> Iterator[Path]:
    """Yield the prefect.yaml to register: the project's, or a copy whose flow runs change to a directory."""
    file = project.absolute() / "prefect.yaml"
    if working_directory is None:
        yield file
        return
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    for part in (document, *document["deployments"]):
        for steps in ("build", "push", "pull"):
            part.pop(steps, None)
    change = {"prefect.deployments.steps.set_working_directory": {"directory": str(working_directory.absolute())}}
    document["pull"] = [change]
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / file.name
        copy.write_text(yaml.safe_dump(document), encoding="utf-8")
        yield copy


def _deploy(project: Path, declared: dict[str, Any], file: Path, *, attempts: int, delay: float) -> None:
    arguments = ["--no-prompt", "deploy", "--name", declared["name"], "--prefect-file", str(file)]
    # For projects whose prefect.yaml sets neither.
    if os.environ["DEPLOYMENT_VERSION"]:
        arguments += ["--version", os.environ["DEPLOYMENT_VERSION"]]
    if not (declared.get("work_pool") or {}).get("name"):
        arguments += ["--pool", os.environ["PREFECT_WORK_POOL"]]
    for attempt in range(1, attempts + 1):
        try:
            _ensure_work_pool(os.environ["PREFECT_WORK_POOL"])
            if _run_prefect(arguments, project) == 0:
                return
            # Prefect's exit code is the same for a refusal and for an unreachable server, so ask the server.
            _ensure_work_pool(os.environ["PREFECT_WORK_POOL"])
        except ServerNotReadyError as error:
            left = attempts - attempt
            retry = f"next attempt in {delay:g} s, {left} left" if left else "no attempt left"
            print(f"Attempt {attempt} of {attempts}: {error}; {retry}", flush=True)
            if left:
                time.sleep(delay)
        else:
            raise DeployError("prefect deploy failed, though the server answers; its output is above")
    raise DeployError(f"the server at {os.environ['PREFECT_API_URL']} was not ready in {attempts} attempts")


def _run_prefect(arguments: list[str], directory: Path) -> int:
    # In this process: a new one would take two seconds to import Prefect again.
    from prefect.cli import app

    sys.argv = ["prefect", *arguments]
    with chdir(directory):
        try:
            app()
        except SystemExit as exit_:
            return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return 0


def _ensure_work_pool(name: str) -> None:
    # Imported here: Prefect reads its settings on import, which must come after loading the env file.
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    url = os.environ["PREFECT_API_URL"]
    try:
        # Without the client's own retries, so that each attempt is reported.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
            try:
                client.read_work_pool(name)
            except ObjectNotFound:
                from prefect.workers.process import ProcessWorker  # slow to import, and rarely needed

                template = ProcessWorker.get_default_base_job_template()
                pool = WorkPoolCreate(name=name, type="process", base_job_template=template)
                with suppress(ObjectAlreadyExists):  # another process created it first
                    client.create_work_pool(pool)
                    print(f"Created the work pool {name}", flush=True)
    except httpx.HTTPStatusError as error:
        reason = f"{url} answers {error.response.status_code} {error.response.reason_phrase}"
        if error.response.is_server_error:
            raise ServerNotReadyError(reason) from error
        if error.response.status_code == httpx.codes.NOT_FOUND:
            raise DeployError(f"{reason}; the URL of a Prefect API usually ends in /api") from error
        raise DeployError(f"{reason}: {error.response.text[:200]}") from error
    except httpx.UnsupportedProtocol as error:
        raise DeployError(f"PREFECT_API_URL is {url!r}, which is no http(s) URL") from error
    except httpx.TransportError as error:
        reason = f"{url} cannot be reached: {error or type(error).__name__}"
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            raise DeployError(f"{reason}. Set PREFECT_API_SSL_CERT_FILE to the CA that signed it") from error
        raise ServerNotReadyError(reason) from error
    except ValueError as error:
        raise DeployError(f"{url} does not answer as a Prefect API, whose URL usually ends in /api") from error


if __name__ == "__main__":
    sys.exit(main())
