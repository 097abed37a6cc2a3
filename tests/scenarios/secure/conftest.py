"""The platform, an attacker on its network, and texts that are printed at the end."""

import base64
import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import testinfra
from testinfra.backend.base import CommandResult
from testinfra.host import Host

from tests import limits
from tests.host.conftest import Inventory, container, database, inventory, server, worker

__all__ = ["container", "database", "inventory", "server", "worker"]

ATTACKER = "biocirv-attacker"
# The secret with the password of each PostgreSQL login.
LOGINS = {
    "biocirv_user": "biocirv_db_password",
    "biocirv_migrations": "biocirv_migrations_password",
    "biocirv_reader": "biocirv_reader_password",
    "biocirv_monitor": "biocirv_monitor_password",
    "prefect_user": "prefect_db_password",
}
# The files of each certificate, without suffix, and the unit that serves it.
PLACES = {"/etc/biocirv/tls/reverse_proxy": "nginx", "/etc/postgresql/*/main/biocirv": "postgresql@*"}
UNITS = ("nginx", "postgresql@*", "prefect-server", "prefect-worker")
# A shorter line of a key is not specific, and would give false positives.
SHORTEST = 16
PYTHON = "/opt/biocirv/current/env/bin/python"
NOTES = pytest.StashKey[list[str]]()


class Answer(NamedTuple):
    """The result of a command on the attacker."""

    rc: int
    stdout: str
    stderr: str


class Needles:
    """Strings that must not be found, by the names of their secrets. A class, as pytest shows plain arguments."""

    def __init__(self, strings: dict[str, str]) -> None:
        self._strings = strings
        self.names = set(strings.values())
        self.lines = "".join(f"{string}\n" for string in strings)

    def within(self, text: str) -> set[str]:
        """Return the names of the secrets that a text contains."""
        return {name for string, name in self._strings.items() if string in text}


class Platform:
    """The host under test, its operator's secrets, and access to it from the attacker."""

    def __init__(self, inventory: Inventory, attacker: Host) -> None:
        self.name = inventory.name("database")
        self.host = inventory.host("database")
        self.secrets = Path(inventory.value("secrets_directory"))
        self.tls = self.secrets / "tls"
        self._attacker = attacker
        self.copy(ATTACKER, "/root/ca.crt", (self.tls / "ca.crt").read_text(encoding="utf-8"))

    def password(self, secret: str) -> str:
        """Return a secret's value."""
        return (self.secrets / secret).read_text(encoding="utf-8").strip()

    def login(self, name: str) -> str:
        """Return the login of a pair that is in use."""
        noted = self.secrets / "alternate_logins"
        return f"{name}_alternate" if noted.exists() and name in noted.read_text(encoding="utf-8").split() else name

    def copy(self, host: str, path: str, text: str) -> None:
        """Write a file for root only on a host, without its content on a command line."""
        command = ["docker", "exec", "--interactive", host, "sh", "-c", f"umask 077 && cat > {path}"]
        subprocess.run(command, input=text, text=True, check=True)

    def psql(
        self, statement: str, login: str, database: str = "biocirv_db", password: str | None = None, **connection: str
    ) -> Answer:
        """Run a statement from the attacker, by default with the login's own password."""
        known = LOGINS.get(login.removesuffix("_alternate"))
        parameters = {
            "host": self.name,
            "dbname": database,
            "user": self.login(login) if password is None else login,
            "sslmode": "verify-full",
            "sslrootcert": "/root/ca.crt",
            "connect_timeout": f"{limits.limit(10):.0f}",
            **connection,
        }
        conninfo = " ".join(f"{name}={value}" for name, value in parameters.items())
        secret = password if password is not None else self.password(known) if known else ""
        # Verbose, for the SQLSTATE, which does not depend on the language.
        words = ["psql", "-AtXq", "-v", "VERBOSITY=verbose", f"--dbname={conninfo}", f"--command={statement}"]
        return self._attack(words, PGPASSWORD=secret)

    def curl(self, path: str, *options: str, auth: str = "") -> Answer:
        """Request a path from the proxy, from the attacker; ``auth`` is `user:password` or empty."""
        url = path if "://" in path else f"https://{self.name}{path}"
        user = 'exec curl ${AUTH:+--user "$AUTH"} "$@"'
        fixed = [
            "--noproxy",
            "*",
            "--cacert",
            "/root/ca.crt",
            "--silent",
            "--show-error",
            "--max-time",
            str(limits.limit(20)),
        ]
        return self._attack(["sh", "-c", user, "-", *fixed, *options, url], AUTH=auth)

    def _attack(self, words: list[str], **secrets: str) -> Answer:
        """Run a command on the attacker, without secrets on its command line, which a failed test would show."""
        names = [word for name in secrets for word in ("--env", name)]
        done = subprocess.run(
            ["docker", "exec", *names, ATTACKER, *words],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, **secrets},
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def api(self, path: str, body: Any = None) -> Any:  # noqa: ANN401 - JSON
        """Call Prefect's API with the operator's password; by POST if there is a body."""
        data = ["--json", json.dumps(body)] if body is not None else []
        done = self.curl(f"/api{path}", "--fail-with-body", *data, auth=self.auth_string)
        assert done.rc == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    @property
    def auth_string(self) -> str:
        """Return the API's login, `user:password`."""
        return f"biocirv:{self.password('prefect_api_password')}"

    def python(self, unit: str, code: str, **environment: str) -> CommandResult:
        """Run Python code with the account, the environment, the sandbox and the release of a unit."""
        words = [
            *("/opt/biocirv/bin/in-unit", "--pipe", unit, "/"),
            *("/usr/bin/env", *(f"{name}={value}" for name, value in environment.items()), PYTHON, "-c", code),
        ]
        return self.host.run(" ".join(map(shlex.quote, words)))

    def served(self, port: int) -> tuple[int, str]:
        """Return serial number and expiry of the certificate that is served on a port."""
        starttls = "-starttls postgres" if port == 5432 else ""
        shown = self._attacker.check_output(
            f"openssl s_client -connect {self.name}:{port} -servername {self.name} {starttls} </dev/null 2>/dev/null"
            " | openssl x509 -noout -serial -enddate"
        )
        fields = dict(line.split("=", 1) for line in shown.splitlines())
        return int(fields["serial"], 16), fields["notAfter"]

    def serve(self, certificate: str, key: str) -> None:
        """Install a certificate for nginx and PostgreSQL, and wait until both serve it."""
        for place, unit in PLACES.items():
            stem = self.host.check_output(f"ls -d {place}.crt").removesuffix(".crt")
            # Overwrite the existing files, so that owner and mode are kept.
            for suffix, text in ((".crt", certificate), (".key", key)):
                self.copy(self.name, "/run/given", text)
                self.host.check_output(f"cat /run/given > {stem}{suffix} && rm /run/given")
            self.host.check_output(f"systemctl reload '{unit}'")
        serial = int(
            subprocess.run(
                ["openssl", "x509", "-noout", "-serial"], input=certificate, text=True, check=True, capture_output=True
            ).stdout.split("=")[1],
            16,
        )
        limits.wait_until(
            lambda: all(self.served(port)[0] == serial for port in (443, 5432)), "both serve the new certificate"
        )

    def processes(self) -> dict[str, str]:
        """Return the main process of each service."""
        shown = self.host.check_output(
            "systemctl show --property=Id,MainPID " + " ".join(f"'{unit}'" for unit in UNITS)
        )
        units = [dict(line.split("=", 1) for line in block.splitlines()) for block in shown.split("\n\n")]
        found = {unit["Id"]: unit["MainPID"] for unit in units if unit["MainPID"] != "0"}
        assert len(found) == len(UNITS), shown
        return found

    def needles(self) -> Needles:
        """Return every current secret, in every form in which it could leak."""
        found: dict[str, str] = {}
        for path in sorted(self.secrets.rglob("*")):
            if path.name == "alternate_logins" or path.suffix == ".crt" or path.is_dir():
                continue
            # Each line of a PEM key, as it may be written with or without line breaks.
            lines = path.read_text(encoding="utf-8").splitlines()
            found |= {line: path.name for line in lines if len(line) >= SHORTEST and not line.startswith("-----")}
        key = self.password("prefect_encryption_key")
        for name, text in (("the encryption key", key), ("the API's header", self.auth_string)):
            found[base64.b64encode(text.encode()).decode()] = f"{name} in base64"
        return Needles(found)


@pytest.fixture(scope="session")
def attacker(inventory: Inventory) -> Host:
    """Return a host on the platform's network that is not part of it, with clients for all its services."""
    network = inventory.value("container_network")
    # tests/host recreates the platform's container, and with it the network.
    listing = ["docker", "network", "inspect", "--format", "{{range .Containers}}{{.Name}} {{end}}", network]
    connected = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split()
    if ATTACKER not in connected:
        subprocess.run(["docker", "network", "connect", network, ATTACKER], check=True)
    return testinfra.get_host(f"docker://{ATTACKER}")


@pytest.fixture(scope="session")
def platform(inventory: Inventory, attacker: Host) -> Platform:
    """Return the platform under test."""
    return Platform(inventory, attacker)


@pytest.fixture(scope="session")
def note(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that keeps a text, to be printed at the end."""
    notes: list[str] = request.config.stash.setdefault(NOTES, [])
    return notes.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print transcripts and figures."""
    notes = config.stash.get(NOTES, [])
    if notes:
        terminalreporter.section("secure: transcripts and figures")
        for text in notes:
            terminalreporter.write_line(text)
