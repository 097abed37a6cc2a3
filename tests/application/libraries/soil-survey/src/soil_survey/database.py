"""Connections to the database of the survey."""

import os

from sqlalchemy import URL, Engine, NullPool, create_engine, make_url
from sqlalchemy.exc import ArgumentError


class SettingsError(Exception):
    """A setting is missing or unusable; the message names the variable."""


def database_url() -> URL:
    """Return the URL in ``SOIL_DATABASE_URL``.

    Raises:
        SettingsError: it is not set, or is not the URL of a PostgreSQL database.

    """
    expected = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
    value = os.environ.get("SOIL_DATABASE_URL")
    if not value:
        raise SettingsError(f"SOIL_DATABASE_URL is not set: set it to {expected}")
    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        url = None
    # The value is not repeated, as it contains a password.
    if url is None or url.get_backend_name() != "postgresql":
        raise SettingsError(f"SOIL_DATABASE_URL is not of the form {expected}")
    return url.set(drivername="postgresql+psycopg2")


def engine() -> Engine:
    """Return an engine for the database that keeps no connection between uses.

    Raises:
        SettingsError: as :func:`database_url`.

    """
    return create_engine(database_url(), poolclass=NullPool)
