"""Connects alembic to the database; alembic runs this module for every command."""

from logging.config import fileConfig

from alembic import context
from alembic.autogenerate import rewriter
from alembic.operations.ops import CreateTableOp, ExecuteSQLOp
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from ca_biositing.datamodels.database import database_url, engine_from_environment
from ca_biositing.datamodels.models import Base

# An arbitrary number that no other advisory lock in this database uses.
_UPGRADE_LOCK = 0x62696F636972


_with_history = rewriter.Rewriter()


@_with_history.rewrites(CreateTableOp)
def _keep_history(_context: MigrationContext, _revision: object, table: CreateTableOp) -> list[object]:
    # A table that loads write is one with the columns of provenance.
    keeps = "changed_from" in {getattr(column, "name", None) for column in table.columns}
    return [table, *([ExecuteSQLOp(f"SELECT keep_history('{table.table_name}')")] if keeps else [])]


def _run_offline() -> None:
    context.configure(url=database_url(), target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


def _run_online() -> None:
    # One transaction around everything: an upgrade is atomic, and its end releases the lock in any case.
    with engine_from_environment().begin() as connection:
        # Before alembic reads the current revision, so that the second of two concurrent upgrades finds the first one
        # completed.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        # While a migration waits for a table lock, every later query on that table waits as well.
        connection.execute(text("SET LOCAL lock_timeout = '10s'"))
        context.configure(
            connection=connection, target_metadata=Base.metadata, process_revision_directives=_with_history
        )
        context.run_migrations()


if context.config.config_file_name:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)
if context.is_offline_mode():
    _run_offline()
else:
    _run_online()
