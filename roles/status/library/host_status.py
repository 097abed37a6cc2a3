#!/usr/bin/python
"""Ansible module that asks a host for its state: all at once, so that the answer is there in a second."""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

DOCUMENTATION = r"""
module: host_status
short_description: Ask a host for the state of its services, disks, certificates, databases and Prefect
description:
  - Changes nothing. Parts that do not answer within ten seconds are named in C(failures), and hide nothing else.
options:
  units: {type: list, elements: str, required: true, description: Names or patterns of units.}
  health:
    type: list
    elements: dict
    default: []
    description: Services with a C(unit) and the C(health_url) that answers with 2xx while it is well.
  errors: {type: str, required: true, description: Regular expression of journal entries that are errors.}
  disks: {type: list, elements: path, required: true, description: Directories whose file systems are measured.}
  certificates:
    type: list
    elements: dict
    default: []
    description: Certificates to look at, each with C(name), C(address) (name:port) and C(starttls), empty or postgres.
  ca_file: {type: path, default: '', description: Certificates of the authorities that servers are verified with.}
  environment_file: {type: path, default: '', description: Environment file that names a database and a login.}
  schema_program: {type: path, default: '', description: Program that prints its revisions and tables as JSON.}
  schema_record: {type: path, default: '', description: What it printed after the last migration.}
  database: {type: str, default: '', description: Database on this host whose rows are counted.}
  database_login: {type: str, default: '', description: Login that can read its tables.}
  database_port: {type: int, default: 5432, description: PostgreSQL's port.}
  recovery_program: {type: path, default: '', description: Program that prints the state of backups as JSON.}
  prefect:
    type: dict
    default: {}
    description:
      - C(url) of Prefect's API, C(user), the C(pool) to look at, and the C(deployments) to expect, the main one first.
      - C(schedules_program), which lists deployments whose runs are not planned, and its C(environment_file).
  prefect_password: {type: str, default: '', description: The user's password.}
"""
RETURN = r"""
answers:
  type: dict
  returned: always
  description:
    - Of each part that answered, its state, by name.
    - C(services) (units with state, times and restarts within an hour), C(health), C(disks), C(errors) (lines).
    - C(rows) (numbers by table), C(backups) (what the program prints).
    - C(certificate of NAME) (its end), C(schema) (C(revisions), and C(missing_tables) that its migration made).
    - C(prefect) (pool, workers, counts, deployments that are missing, schedules that lag, the last run).
failures: {type: dict, returned: always, description: Reasons of the parts that did not answer, by name.}
"""

TIMEOUT_SECONDS = 10
LIMIT_SECONDS = 8
# Backup repositories may be far away: each has 15 s to say what it holds, and then lists its archive.
RECOVERY_SECONDS = 60
# Entries of the journal by which systemd, and nobody else, says that it starts a unit again after a failure.
RESTARTED = ("_PID=1", "MESSAGE_ID=5eb03494b6584870a536b337290809b3")
COUNTS = r"""
SELECT json_object_agg(name, rows) FROM (
  SELECT CASE table_schema WHEN 'public' THEN table_name ELSE table_schema || '.' || table_name END AS name,
         (xpath('/row/count/text()',
                query_to_xml(format('SELECT count(*) FROM %I.%I', table_schema, table_name),
                             false, true, '')))[1]::text::bigint AS rows
    FROM information_schema.tables
   WHERE table_schema NOT IN ('pg_catalog', 'information_schema') AND table_type = 'BASE TABLE'
     AND table_name <> 'alembic_version'
     AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND deptype = 'e'
                        AND objid = to_regclass(format('%I.%I', table_schema, table_name)))
   ORDER BY table_schema <> 'public', table_schema, table_name) AS counts
"""
PSQL = ("psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1")


class NoAnswerError(Exception):
    """A part of the host did not answer; the message says why."""


def run(
    *command: str,
    accepted: Iterable[int] = (0,),
    stdin: str | None = None,
    seconds: float = TIMEOUT_SECONDS,
    **environment: str,
) -> str:
    """Return a command's output.

    Raises:
        NoAnswerError: it ended with a code that is not accepted, or did not end in time.

    """
    try:
        done = subprocess.run(  # noqa: S603 - no shell
            command,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            input=stdin,
            timeout=seconds,
            env={**os.environ, "LC_ALL": "C.UTF-8", "PGCONNECT_TIMEOUT": "5", **environment},
        )
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"`{command[0]}` gave no answer within {seconds} s") from None
    except OSError as error:
        raise NoAnswerError(str(error)) from error
    if done.returncode not in accepted:
        raise NoAnswerError(" ".join((done.stderr or done.stdout).split()) or f"`{command[0]}` failed")
    return done.stdout


def run_in_environment(file: str, *command: str) -> str:
    """Return the output of a command with the variables of a unit's environment file; raises as run does."""
    return run("sh", "-c", 'set -a && . "$1" && shift && exec "$@"', "sh", file, *command)


def services(units: list[str]) -> list[dict[str, Any]]:
    """Return the state of units, with the number of restarts within the last hour."""
    names = "Id,LoadState,ActiveState,SubState,Result,StateChangeTimestamp,StatusText,NRestarts"
    shown = run("systemctl", "show", "--timestamp=unix", f"--property={names}", *units)
    found = []
    for block in filter(str.strip, shown.split("\n\n")):
        unit = dict(line.split("=", 1) for line in block.strip().splitlines())
        # Systemd's own count goes back to 0 when a person starts the unit.
        restarts = int(unit.get("NRestarts") or 0)
        if restarts:
            query = ("journalctl", *RESTARTED, f"UNIT={unit['Id']}", "--since=-1 hour", "--output=cat", "--quiet")
            # No entry matches.
            restarts = min(restarts, len(run(*query, accepted=(0, 1)).splitlines()))
        since = unit["StateChangeTimestamp"].removeprefix("@")
        found.append(
            {
                "unit": unit["Id"].removesuffix(".service"),
                "state": unit["ActiveState"] if unit["LoadState"] != "not-found" else "not installed",
                "sub_state": unit["SubState"],
                # Timers have no result and no status.
                "result": unit.get("Result", ""),
                "since": datetime.fromtimestamp(int(since), UTC).isoformat() if since else "",
                "status": unit.get("StatusText", ""),
                "restarts": restarts,
            }
        )
    return found


def health(services: list[dict[str, Any]], ca_file: str) -> list[dict[str, Any]]:
    """Return the services whose health URL was asked, with what is wrong with the answer; empty: nothing."""
    found = []
    for service in services:
        # A service of the inventory may have a certificate of a public authority, or one of the platform's own.
        for authorities in (None, ca_file) if ca_file and service["health_url"].startswith("https:") else (None,):
            problem = ""
            try:
                open_url(service["health_url"], timeout=TIMEOUT_SECONDS, ca_path=authorities)
                break
            except Exception as error:  # noqa: BLE001 - whatever a URL or its answer is, the others are asked
                problem = str(error)
        found.append({"unit": service["unit"], "health_url": service["health_url"], "problem": problem})
    return found


def disks(paths: list[str]) -> list[dict[str, Any]]:
    """Return each file system that holds one of the paths once."""
    found: dict[int, dict[str, Any]] = {}
    for path in filter(os.path.exists, paths):
        device = Path(path).stat().st_dev
        if device not in found:
            usage = shutil.disk_usage(path)
            # As df counts: what is reserved for root counts as neither used nor available.
            percent = -(-100 * usage.used // (usage.used + usage.free)) if usage.used + usage.free else 100
            mount = next(str(each) for each in (Path(path), *Path(path).parents) if each.is_mount())
            found[device] = {"path": mount, "used_percent": percent, "available_bytes": usage.free}
    return list(found.values())


def errors(units: list[str], pattern: str) -> list[str]:
    """Return the newest journal entries of the last day that are errors, one line each."""
    shown = run(
        "journalctl",
        *(f"--unit={unit}" for unit in units),
        "--since=-1 day",
        f"--grep={pattern}",
        "--lines=5",
        "--output=short-iso",
        "--no-hostname",
        "--no-pager",
        "--quiet",
        # No entry matches.
        accepted=(0, 1),
    )
    # Continuation lines of a message are indented; splitlines would find more lines, such as after U+2028.
    return [line for line in shown.split("\n") if line and not line.startswith(" ")]


def certificate(address: str, starttls: str) -> str:
    """Return when the certificate of a server ends, in ISO 8601."""
    name = address.rpartition(":")[0].strip("[]")
    options = ["-starttls", starttls] if starttls else ["-servername", name]
    shown = run("openssl", "s_client", "-connect", address, *options, stdin="", accepted=(0, 1))
    pem = re.search(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", shown, re.DOTALL)
    if not pem:
        raise NoAnswerError("it shows no certificate")
    text = run("openssl", "x509", "-noout", "-enddate", stdin=pem[0]).strip().removeprefix("notAfter=")
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC).isoformat()


def schema(file: str, program: str, record: str) -> dict[str, list[str]]:
    """Return the revisions of a schema, and the tables that its migration made and that are gone.

    file: environment file of a unit that names the database; program: prints revisions and tables; record: what it
    printed after the last migration, which an installation may not have yet.
    """
    found: dict[str, list[str]] = json.loads(run_in_environment(file, program))
    recorded = json.loads(Path(record).read_text(encoding="utf-8")) if Path(record).is_file() else found
    # After a restore, the database can be at another revision until it is migrated.
    gone = set(recorded["tables"]) - set(found["tables"]) if recorded["revisions"] == found["revisions"] else set()
    return {"revisions": found["revisions"], "missing_tables": sorted(gone)}


def rows(database: str, login: str, port: int) -> dict[str, int]:
    """Return the number of rows of each of a database's tables.

    login: one that can read them, and nothing else: in the session of a superuser, functions of the database's owner
    that have names of PostgreSQL's would run as superuser.
    """
    command = (*PSQL, "--dbname", database, "--username", login, "--port", str(port), "--command", COUNTS)
    # The server ends a count that takes too long; of a database without tables, the sum of them is NULL.
    counted = run("runuser", "--user", "postgres", "--", *command, PGOPTIONS=f"-cstatement_timeout={LIMIT_SECONDS}s")
    found: dict[str, int] = json.loads(counted.strip() or "{}")
    return found


class Prefect:
    """Prefect's API."""

    def __init__(self, access: dict[str, str], password: str, ca_file: str) -> None:
        self._access, self._password, self._ca_file = access, password, ca_file

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
        """Return the answer to a GET, or to a POST if there is a body."""
        try:
            with open_url(
                f"{self._access['url']}{path}",
                method="GET" if body is None else "POST",
                data=None if body is None else json.dumps(body),
                headers={"Content-Type": "application/json"},
                url_username=self._access["user"],
                url_password=self._password,
                force_basic_auth=True,
                ca_path=self._ca_file or None,
                timeout=TIMEOUT_SECONDS,
            ) as answer:
                return json.load(answer)
        # A refused connection, an expired certificate, an error page instead of JSON.
        except (OSError, ValueError) as error:
            raise NoAnswerError(f"Prefect's API does not answer: {error}") from error

    def report(self) -> dict[str, Any]:
        """Return the work pool, its workers, counts of runs, what deployments and schedules lack, and the last run."""
        pool = self._access["pool"]
        in_pool = {"work_pools": {"name": {"any_": [pool]}}}
        counts = [
            self.ask("/flow_runs/count", {**in_pool, "flow_runs": {"state": state}})
            for state in ({"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}, {"name": {"any_": ["Late"]}})
        ]
        found = self.ask(f"/work_pools/{pool}")
        workers = self.ask(f"/work_pools/{pool}/workers/filter", {})
        return {
            "pool": {"name": found["name"], "paused": found["is_paused"]},
            "workers": [
                {"name": each["name"], "status": each["status"].lower(), "seen": each["last_heartbeat_time"]}
                for each in workers
            ],
            "running": counts[0],
            "late": counts[1],
            "late_since": self.late_since(in_pool) if counts[1] else "",
            "missing_deployments": self.missing_deployments(),
            "lagging": self.lagging(),
            "last_run": self.last_run(),
        }

    def late_since(self, in_pool: dict[str, Any]) -> str:
        """Return when the oldest of the late flow runs should have begun."""
        query = {"sort": "EXPECTED_START_TIME_ASC", "limit": 1, "flow_runs": {"state": {"name": {"any_": ["Late"]}}}}
        found = self.ask("/flow_runs/filter", {**in_pool, **query})
        return str(found[0]["expected_start_time"]) if found else ""

    def missing_deployments(self) -> list[str]:
        """Return the expected deployments that Prefect does not have, as after the restoration of an empty database."""
        expected = self._access["deployments"]
        found = self.ask("/deployments/filter", {"deployments": {"name": {"any_": expected}}})
        return [name for name in expected if name not in {deployment["name"] for deployment in found}]

    def lagging(self) -> list[str]:
        """Return the deployments with an active schedule whose planned runs do not reach ahead as they should."""
        program = self._access["schedules_program"]
        return run_in_environment(self._access["environment_file"], program, "--list").splitlines()

    def last_run(self) -> list[dict[str, Any]]:
        """Return the last run of the first deployment, and its sub-flow runs."""
        query = {
            "sort": "START_TIME_DESC",
            "limit": 1,
            "deployments": {"name": {"any_": self._access["deployments"][:1]}},
            "flow_runs": {"start_time": {"is_null_": False}},
        }
        runs = self.ask("/flow_runs/filter", query)
        if runs:
            parent = {"parent_flow_run_id": {"any_": [runs[0]["id"]]}}
            runs += self.ask("/flow_runs/filter", {"sort": "START_TIME_ASC", "flow_runs": parent})
        ids = sorted({run["flow_id"] for run in runs})
        names = {flow["id"]: flow["name"] for flow in self.ask("/flows/filter", {"flows": {"id": {"any_": ids}}})}
        return [
            {
                "flow": names[run["flow_id"]],
                "state": run["state"]["name"],
                "message": run["state"]["message"] or "",
                "start": run["start_time"],
                "end": run["end_time"] or "",
                "seconds": run["total_run_time"],
            }
            for run in runs
        ]


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "required": True},
            "health": {"type": "list", "elements": "dict", "default": []},
            "errors": {"type": "str", "required": True},
            "disks": {"type": "list", "elements": "path", "required": True},
            "certificates": {"type": "list", "elements": "dict", "default": []},
            "ca_file": {"type": "path", "default": ""},
            "environment_file": {"type": "path", "default": ""},
            "schema_program": {"type": "path", "default": ""},
            "schema_record": {"type": "path", "default": ""},
            "database": {"type": "str", "default": ""},
            "database_login": {"type": "str", "default": ""},
            "database_port": {"type": "int", "default": 5432},
            "recovery_program": {"type": "path", "default": ""},
            "prefect": {"type": "dict", "default": {}},
            "prefect_password": {"type": "str", "default": "", "no_log": True},
        },
        supports_check_mode=True,
    )
    asked = module.params
    parts: dict[str, Callable[[], Any]] = {
        "services": lambda: services(asked["units"]),
        "health": lambda: health(asked["health"], asked["ca_file"]),
        "disks": lambda: disks(asked["disks"]),
        "errors": lambda: errors(asked["units"], asked["errors"]),
    }
    for each in asked["certificates"]:
        parts[f"certificate of {each['name']}"] = partial(certificate, each["address"], each["starttls"])
    if asked["environment_file"]:
        parts["schema"] = lambda: schema(asked["environment_file"], asked["schema_program"], asked["schema_record"])
    if asked["database"]:
        parts["rows"] = lambda: rows(asked["database"], asked["database_login"], asked["database_port"])
    if asked["recovery_program"]:
        parts["backups"] = lambda: json.loads(run(asked["recovery_program"], "state", seconds=RECOVERY_SECONDS))
    if asked["prefect"]:
        parts["prefect"] = Prefect(asked["prefect"], asked["prefect_password"], asked["ca_file"]).report
    with ThreadPoolExecutor(len(parts)) as pool:
        running = {name: pool.submit(part) for name, part in parts.items()}
    answers, failures = {}, {}
    for name, future in running.items():
        try:
            answers[name] = future.result()
        except NoAnswerError as error:
            failures[name] = str(error)
        # An answer in a form that nobody foresaw must not hide the others.
        except Exception as error:  # noqa: BLE001
            failures[name] = f"{type(error).__name__}: {error}"
    module.exit_json(changed=False, answers=answers, failures=failures)


if __name__ == "__main__":
    main()
