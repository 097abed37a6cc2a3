"""Real services: a PostgreSQL with an empty database per test, and a Prefect server."""

import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from alembic.command import upgrade
from alembic.config import Config
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, temporary_settings
from sqlalchemy import URL, Engine, NullPool, create_engine, make_url, text

from tests import limits
from tests.integration.postgresql import throw_away_postgresql

ROOT = Path(__file__).parents[2]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the folder of prefect.yaml, alembic.ini and deploy.py."""
    return ROOT


@pytest.fixture(scope="session")
def postgresql_admin_url() -> Iterator[str]:
    """Return the URL of a superuser of a PostgreSQL in a container of its own, published on loopback."""
    with throw_away_postgresql() as url:
        yield url


@contextmanager
def empty_database(postgresql_admin_url: str) -> Iterator[URL]:
    """Create a database; return its URL. It is dropped at the end."""
    admin = make_url(postgresql_admin_url).set(drivername="postgresql+psycopg2")
    name = f"test_{uuid.uuid4().hex}"
    engine = create_engine(admin, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield admin.set(database=name)
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def database_url(postgresql_admin_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the URL of an empty database, which ``DATABASE_URL`` names during the test."""
    with empty_database(postgresql_admin_url) as database:
        url = database.render_as_string(hide_password=False)
        monkeypatch.setenv("DATABASE_URL", url)
        yield url


@pytest.fixture
def engine(database_url: str) -> Engine:
    """Return an engine for the test's database."""
    return create_engine(database_url, poolclass=NullPool)


@pytest.fixture(scope="session")
def run() -> Run:
    """Return a function that runs a module or script in the project's folder, with this interpreter."""

    def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run_python


@pytest.fixture
def migrated_database(engine: Engine) -> Engine:
    """Return an engine for the test's database, migrated to the newest schema."""
    # Without alembic.ini, whose logging configuration would replace that of the test.
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    upgrade(config, "head")
    return engine


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the sample data, which ``ETL_SOURCE_DIRECTORY`` names during the test."""
    folder = tmp_path / "source"
    shutil.copytree(ROOT / "data" / "sample", folder)
    monkeypatch.setenv("ETL_SOURCE_DIRECTORY", str(folder))
    return folder


def free_port() -> int:
    """Return a port of the loopback that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def prefect_server(postgresql_admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a Prefect server with a PostgreSQL database of its own; return its API's URL."""
    with empty_database(postgresql_admin_url) as database:
        yield from _serve(database.set(drivername="postgresql+asyncpg"), tmp_path_factory)


def _serve(database: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    log = home / "server.log"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env={
                **inherited,
                "PREFECT_HOME": str(home),
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": database.render_as_string(hide_password=False),
                "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
                "PREFECT_UI_ENABLED": "false",
                "DO_NOT_TRACK": "1",
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_ready(server, url, log)
        yield url
    finally:
        # Else Prefect would send its last lines at exit, and try for a minute to reach a server that is gone.
        APILogHandler().flush()
        # On SIGTERM Prefect sends itself SIGINT, but it inherits SIGINT as ignored if the tests run in the
        # background.
        server.kill()
        server.wait()


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    def is_ready() -> bool:
        assert server.poll() is None, "the process has exited"
        with suppress(httpx.TransportError):
            return httpx.get(f"{url}/ready").is_success
        return False

    try:
        limits.wait_until(is_ready, "the server is ready")
    except AssertionError as error:
        pytest.fail(f"Prefect's server did not start: {error}. Its log:\n{log.read_text()}")


@pytest.fixture
def prefect(prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    """Return a client of the server, which flows in this process and its children use too."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    # A flow run that ends waits up to a second for the thread that sends heartbeats.
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY  # which an old Prefect lacks, as it lacks the thread

    changes = {PREFECT_API_URL: prefect_server, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    with temporary_settings(changes), get_client(sync_client=True) as client:
        yield client
