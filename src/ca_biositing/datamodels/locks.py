"""Who holds a lock of the database that another session has waited for in vain."""

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

_LOCK_NOT_AVAILABLE = "55P03"
# PostgreSQL tells the time of a transaction to its own login, and to logins that may read statistics.
_HOLDERS = """
SELECT pid, usename, application_name, xact_start,
       string_agg(DISTINCT mode || CASE WHEN locktype = 'relation' THEN ' of ' || relation::regclass ELSE '' END, ', ')
  FROM pg_locks JOIN pg_stat_activity USING (pid)
 WHERE granted AND pid <> pg_backend_pid()
   AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND ({condition})
 GROUP BY pid, usename, application_name, xact_start
 ORDER BY pid
"""


def timed_out(error: DBAPIError) -> bool:
    """Return whether a statement ended because it had waited for a lock as long as ``lock_timeout``."""
    return getattr(error.orig, "pgcode", None) == _LOCK_NOT_AVAILABLE


def holders(engine: Engine, condition: str, **parameters: object) -> str:
    """Return sentences that name the sessions whose locks meet a condition on ``pg_locks``, and how to end them.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database cannot be reached, or returns an error.

    """
    with engine.connect() as connection:
        # A role that the login assumes does not see the login's own sessions.
        connection.execute(text("SET ROLE NONE"))
        rows = connection.execute(text(_HOLDERS.format(condition=condition)), parameters).all()
    if not rows:
        return "By now, no other session holds it."
    held = "; ".join(
        f"process {pid} of login {login}, application {application or 'without a name'} ({locks}"
        + (f", in a transaction since {since:%Y-%m-%d %H:%M:%S %z})" if since else ")")
        for pid, login, application, since, locks in rows
    )
    pids = ", ".join(str(row[0]) for row in rows)
    since_when = f"SELECT pid, xact_start, query FROM pg_stat_activity WHERE pid IN ({pids})"  # noqa: S608 - numbers
    return (
        f"Sessions that hold it: {held}. As postgres on the database's host (make exec-db), psql -c '{since_when}' "
        f"shows since when, and psql -c 'SELECT pg_terminate_backend({rows[0][0]})' ends one."
    )
