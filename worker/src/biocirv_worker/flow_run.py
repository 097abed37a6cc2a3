"""Runs one flow run: in a fork, or as ``python -m biocirv_worker.flow_run`` in a process of its own."""

from __future__ import annotations

import contextlib
import runpy
import sys
from pathlib import Path

ENGINE = "prefect.engine"

# See oom_score_adj in proc(5); the unit's own is OOMScoreAdjust.
_BEFORE_THE_WORKER = 200


def main() -> None:
    """Run the flow run that the environment names, as ``python -m prefect.engine`` does."""
    from biocirv_worker.outbox import keep_events

    _be_expendable()
    keep_events()
    sys.argv = [ENGINE]
    sys.modules.pop(ENGINE, None)
    runpy.run_module(ENGINE, run_name="__main__", alter_sys=True)


def _be_expendable() -> None:
    """Let a kernel that is out of memory end this flow run before the worker, with which all of them would end."""
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):
        score.write_text(str(min(int(score.read_text()) + _BEFORE_THE_WORKER, 1000)))


if __name__ == "__main__":
    main()
