"""The database's URL, from the environment."""

import pytest

from ca_biositing.datamodels.database import SettingsError, database_url

PARTS = {
    "POSTGRES_HOST": "db.example",
    "POSTGRES_USER": "biocirv_user",
    "POSTGRES_PASSWORD": "p@ss/word",
    "POSTGRES_DB": "biocirv_db",
}


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2", "postgresql+asyncpg"])
def test_any_postgresql_url_gets_the_driver_that_is_installed(scheme: str) -> None:
    """The rest of the URL is kept."""
    url = database_url({**PARTS, "DATABASE_URL": f"{scheme}://me:secret@host:5433/it?sslmode=verify-full"})

    assert url.drivername == "postgresql+psycopg2"
    assert (url.username, url.password, url.host, url.port, url.database) == (
        "me",
        "secret",
        "host",
        5433,
        "it",
    )
    assert url.query["sslmode"] == "verify-full"


def test_the_url_is_composed_where_there_is_none() -> None:
    """The password needs no URL encoding, and the port has a default."""
    url = database_url({**PARTS, "DATABASE_URL": ""})

    assert (url.username, url.password, url.host, url.port, url.database) == (
        "biocirv_user",
        "p@ss/word",
        "db.example",
        5432,
        "biocirv_db",
    )


@pytest.mark.parametrize(
    ("environment", "timeout"),
    [
        ({}, "10"),
        ({"DATABASE_URL": "postgresql://host/it?connect_timeout=3"}, "3"),
        ({"PGCONNECT_TIMEOUT": "5"}, None),
    ],
)
def test_connecting_does_not_wait_for_ever(environment: dict[str, str], timeout: str | None) -> None:
    """There is a default timeout, which the URL or PGCONNECT_TIMEOUT overrides."""
    assert database_url({**PARTS, **environment}).query.get("connect_timeout") == timeout


@pytest.mark.parametrize("missing", list(PARTS))
def test_a_missing_setting_is_named(missing: str) -> None:
    """The message lists only missing variables, then DATABASE_URL as the alternative."""
    with pytest.raises(SettingsError, match=f"^Not set: {missing}. Set DATABASE_URL"):
        database_url({**PARTS, missing: ""})


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"DATABASE_URL": "no url: s3cret"}, "DATABASE_URL is not a database URL"),
        ({"DATABASE_URL": "postgresql://me:s3cret@host:port/it"}, "DATABASE_URL is not a database URL"),
        ({"DATABASE_URL": "mysql://me:s3cret@host/it"}, "DATABASE_URL names a mysql database"),
        ({"POSTGRES_PORT": "s3cret"}, "POSTGRES_PORT is"),
    ],
)
def test_an_unusable_setting_is_named(environment: dict[str, str], says: str) -> None:
    """A URL is never repeated, as it contains a password."""
    with pytest.raises(SettingsError, match=says) as caught:
        database_url({**PARTS, **environment})

    assert "DATABASE_URL" not in environment or "s3cret" not in str(caught.value)
