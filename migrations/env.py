"""How alembic reaches the database; alembic runs this module for every command."""

from logging.config import fileConfig

from alembic import context
from sqlalchemy import text

from ca_biositing.datamodels.database import database_url, engine_from_environment
from ca_biositing.datamodels.models import Base

# Any number does, as long as nothing else in this database takes the same advisory lock.
_UPGRADE_LOCK = 0x62696F636972


def _run_offline() -> None:
    context.configure(url=database_url(), target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


def _run_online() -> None:
    # One transaction around everything: an upgrade happens as a whole or not at all, and the lock
    # is gone with it, however it ends.
    with engine_from_environment().begin() as connection:
        # Before alembic reads the current revision: of two upgrades at once the second then finds
        # the first one's work done.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        # A migration that waits for a table's lock makes every later query on that table wait too.
        connection.execute(text("SET LOCAL lock_timeout = '10s'"))
        context.configure(connection=connection, target_metadata=Base.metadata)
        context.run_migrations()


if context.config.config_file_name:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)
if context.is_offline_mode():
    _run_offline()
else:
    _run_online()
