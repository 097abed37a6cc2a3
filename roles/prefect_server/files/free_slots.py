#!/usr/bin/python3
"""Free the slots of concurrency limits that no lease holds, before Prefect's server starts.

The server counts taken slots in its database, and keeps the leases, by which they are freed again, in files. After a
restoration, a power cut or a loss of the files, slots would stay taken for ever. Reads PREFECT_HOME, and connects by
PGHOST and the like. Limits whose slots free themselves with time have no leases.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

STATEMENT = """
    WITH held AS (SELECT key::uuid AS id, value::integer AS slots FROM jsonb_each_text(:'held'))
    UPDATE concurrency_limit_v2 AS a SET active_slots = coalesce(held.slots, 0)
      FROM concurrency_limit_v2 AS b LEFT JOIN held USING (id)
     WHERE b.id = a.id AND a.slot_decay_per_second = 0 AND a.active_slots > coalesce(held.slots, 0)
    RETURNING format('%s slots of the concurrency limit %s are free: no lease holds them',
                     b.active_slots - a.active_slots, a.name);
"""


def held_slots(directory: Path) -> Counter[str]:
    """Return how many slots the leases in a directory hold of each limit, by its id. Other files hold none."""
    slots: Counter[str] = Counter()
    for path in directory.glob("*-*.json"):
        try:
            lease = json.loads(path.read_text(encoding="utf-8"))
            slots.update(dict.fromkeys(lease["resource_ids"], int(lease["metadata"]["slots"])))
        except (OSError, ValueError, KeyError, TypeError) as error:
            sys.stderr.write(f"{path} is no lease: {type(error).__name__}: {error}\n")
    return slots


def main() -> int:
    """Run the program; return the exit code."""
    held = json.dumps(held_slots(Path(os.environ["PREFECT_HOME"], "concurrency_leases")))
    command = ["psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]
    return subprocess.run([*command, f"--set=held={held}"], input=STATEMENT, text=True, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
