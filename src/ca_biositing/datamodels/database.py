"""The connection to biocirv_db: the only module that reads the connection settings."""

import os
from collections.abc import Mapping

from sqlalchemy import URL, Engine, NullPool, create_engine, make_url
from sqlalchemy.exc import ArgumentError

_CONNECT_TIMEOUT_SECONDS = "10"


class SettingsError(Exception):
    """A setting is missing or unusable; the message names the variable."""


def database_url(environment: Mapping[str, str] = os.environ) -> URL:
    """Return the URL of biocirv_db, always with the psycopg2 driver.

    ``DATABASE_URL`` takes precedence. If it is unset or empty, the URL is composed from ``POSTGRES_HOST``,
    ``POSTGRES_USER``, ``POSTGRES_PASSWORD``, ``POSTGRES_DB`` and ``POSTGRES_PORT`` (5432 if unset).
    libpq's options go into the URL's query (``?sslmode=verify-full``), or into its own variables
    (``PGSSLMODE``); a connection attempt times out after 10 s unless ``connect_timeout`` is set.

    Raises:
        SettingsError: a variable is missing, or is not a valid PostgreSQL URL or port.

    """
    url = _given_url(environment["DATABASE_URL"]) if environment.get("DATABASE_URL") else _composed_url(environment)
    if "connect_timeout" not in url.query and "PGCONNECT_TIMEOUT" not in environment:
        url = url.update_query_dict({"connect_timeout": _CONNECT_TIMEOUT_SECONDS})
    # The default driver of a bare "postgresql://" depends on the SQLAlchemy release.
    return url.set(drivername="postgresql+psycopg2")


def engine_from_environment() -> Engine:
    """Return an engine for biocirv_db that keeps no connection open between uses.

    Raises:
        SettingsError: as :func:`database_url`.

    """
    return create_engine(database_url(), poolclass=NullPool)


def _given_url(value: str) -> URL:
    # Neither the message nor a chained exception may repeat the value: it contains a password.
    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        raise SettingsError(
            "DATABASE_URL is not a database URL; expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE "
            "with special characters in the password percent-encoded"
        ) from None
    if url.get_backend_name() != "postgresql":
        raise SettingsError(f"DATABASE_URL names a {url.get_backend_name()} database; only postgresql:// will do")
    return url


def _composed_url(environment: Mapping[str, str]) -> URL:
    required = ("POSTGRES_HOST", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB")
    if missing := [name for name in required if not environment.get(name)]:
        raise SettingsError(f"Not set: {', '.join(missing)}. Set DATABASE_URL, or all of {', '.join(required)}")
    port = environment.get("POSTGRES_PORT") or "5432"
    if not port.isdecimal():
        raise SettingsError(f"POSTGRES_PORT is {port!r}, which is not a port number")
    return URL.create(
        "postgresql",
        host=environment["POSTGRES_HOST"],
        port=int(port),
        username=environment["POSTGRES_USER"],
        password=environment["POSTGRES_PASSWORD"],
        database=environment["POSTGRES_DB"],
    )
