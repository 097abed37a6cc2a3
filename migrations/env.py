"""Connects alembic to the database; alembic runs this module for every command."""

from contextlib import suppress
from logging.config import fileConfig

from alembic import context
from alembic.autogenerate import rewriter
from alembic.operations.ops import CreateTableOp, ExecuteSQLOp
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from ca_biositing.datamodels.database import database_url, engine_from_environment
from ca_biositing.datamodels.locks import holders, timed_out
from ca_biositing.datamodels.models import Base

# How long an upgrade waits for another one, and one of its statements for the lock of a table.
_UPGRADE_WAIT = "10min"
_TABLE_WAIT = "10s"
# As alembic creates it.
_VERSION_TABLE = """
CREATE TABLE IF NOT EXISTS alembic_version
    (version_num varchar(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))
"""

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
    engine = engine_from_environment()
    # One transaction around everything: an upgrade is atomic, and its end releases the lock in any case.
    with engine.begin() as connection:
        # Before alembic reads the current revision, so that the second of two concurrent upgrades finds the first one
        # completed.
        _lock(engine, connection)
        # While a migration waits for a table lock, every later query on that table waits as well.
        connection.execute(text(f"SET LOCAL lock_timeout = '{_TABLE_WAIT}'"))
        context.configure(
            connection=connection, target_metadata=Base.metadata, process_revision_directives=_with_history
        )
        try:
            context.run_migrations()
        except DBAPIError as error:
            if not timed_out(error):
                raise
            held = holders(engine, "locktype = 'relation' AND relation >= 16384")
            raise CommandError(
                f"Nothing was migrated: a statement waited {_TABLE_WAIT} for the lock of a table, which transactions "
                f"hold until they end. {held} Then migrate again. The statement: {error.statement}"
            ) from error


def _lock(engine: Engine, connection: Connection) -> None:
    """Wait until no other upgrade runs, and keep others from beginning.

    With a lock that only those can take who write the table: anyone who connects can hold an advisory one.
    """
    connection.execute(text(f"SET LOCAL lock_timeout = '{_UPGRADE_WAIT}'"))
    try:
        if _asks(connection, "to_regclass('alembic_version') IS NULL"):
            # A login that cannot create it only asks for the revision.
            if not _asks(connection, "has_schema_privilege(current_schema(), 'CREATE')"):
                return
            # It waits for another upgrade that creates the table, and then fails.
            with suppress(IntegrityError), connection.begin_nested():
                connection.execute(text(_VERSION_TABLE))
        if _asks(connection, "has_table_privilege('alembic_version', 'UPDATE')"):
            connection.execute(text("LOCK TABLE alembic_version IN SHARE UPDATE EXCLUSIVE MODE"))
    except DBAPIError as error:
        if not timed_out(error):
            raise
        held = holders(
            engine, "locktype = 'relation' AND relation >= 16384 AND mode NOT IN ('AccessShareLock', 'RowShareLock')"
        )
        raise CommandError(
            f"Nothing was migrated: another migration has the lock of the table alembic_version, for which this one "
            f"waited {_UPGRADE_WAIT}. {held}"
        ) from error


def _asks(connection: Connection, question: str) -> bool:
    return bool(connection.execute(text(f"SELECT {question}")).scalar_one())


if context.config.config_file_name:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)
if context.is_offline_mode():
    _run_offline()
else:
    _run_online()
