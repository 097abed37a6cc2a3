"""Runs one flow run: in a fork, or as ``python -m biocirv_worker.flow_run`` in a new process."""

from __future__ import annotations

import contextlib
import runpy
import sys
from pathlib import Path

ENGINE = "prefect.engine"

# Added to the worker's oom_score_adj, see proc(5); the unit sets the worker's by OOMScoreAdjust.
_OOM_SCORE_OFFSET = 200


def main() -> None:
    """Run the flow run that the environment names, as ``python -m prefect.engine`` does."""
    prepare()
    sys.argv = [ENGINE]
    sys.modules.pop(ENGINE, None)
    runpy.run_module(ENGINE, run_name="__main__", alter_sys=True)


def prepare() -> None:
    """Change what this package changes of Prefect in a flow run's process."""
    from prefect import context

    from biocirv_worker.clock import correct_heartbeats
    from biocirv_worker.internals import heartbeats, metrics, websockets
    from biocirv_worker.outbox import keep_events

    _raise_oom_score()
    keep_events()
    correct_heartbeats()
    heartbeats.let_flow_runs_go()
    websockets.do_without_websockets()
    metrics.tolerate_a_taken_port(context)


def _raise_oom_score() -> None:
    """Make the kernel's OOM killer choose this flow run before the worker, whose end would end all flow runs."""
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):
        score.write_text(str(min(int(score.read_text()) + _OOM_SCORE_OFFSET, 1000)))


if __name__ == "__main__":
    main()
