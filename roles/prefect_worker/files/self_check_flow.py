"""The platform's own flow, which `make self-check` runs: shows that flow runs can write to the application's database.

It needs nothing of the application, and leaves nothing in its database.
"""

import os
import subprocess

from prefect import State, flow
from prefect.states import Completed, Failed
from sqlalchemy import make_url

# psql ends without a commit. A server that only reads, or that has no space left, refuses the table.
SCRIPT = """
BEGIN;
CREATE TEMPORARY TABLE self_check AS SELECT now();
SELECT format('%s writes to %s', session_user, current_database());
"""


@flow(name="Self Check")
def self_check() -> State[str]:
    """Write a temporary table with the login of ``DATABASE_URL``; the state's message says who did it, or why not."""
    url = make_url(os.environ["DATABASE_URL"])
    login = {
        "PGHOST": url.host or "",
        "PGPORT": str(url.port or 5432),
        "PGUSER": url.username or "",
        "PGPASSWORD": str(url.password or ""),
        "PGDATABASE": url.database or "",
    }
    done = subprocess.run(
        ["/usr/bin/psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"],
        input=SCRIPT,
        env={**os.environ, **login},
        capture_output=True,
        text=True,
        check=False,
    )
    said = (done.stdout if done.returncode == 0 else done.stderr).strip()
    return Completed(message=said, data=said) if done.returncode == 0 else Failed(message=f"psql: {said}")
