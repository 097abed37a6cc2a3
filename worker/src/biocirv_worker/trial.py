"""``python -m biocirv_worker.trial``: whether the worker runs with the Prefect that is installed, and how well.

It needs no server. It prints, and the worker logs, which abilities an old Prefect has no place for. Where the worker
cannot run it says why, and ends with exit code 1.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version

# The oldest Prefect that the worker's tests are run with.
LEAST = "3.4.0"


def main() -> int:
    """Try it; return the exit code."""
    try:
        found = version("prefect")
    except PackageNotFoundError:
        print(f"It needs Prefect {LEAST} or newer, and finds none.", file=sys.stderr)
        return 1
    if _numbers(found) < _numbers(LEAST):
        print(f"It needs Prefect {LEAST} or newer.", file=sys.stderr)
        return 1
    try:
        _try()
    except Exception as error:  # noqa: BLE001 - a new Prefect, or a package that it needs, may fail in any way
        why = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"It runs with Prefect from {LEAST} on, but not with what is installed here: {why}", file=sys.stderr)
        return 1
    for line in lacking():
        print(line)
    return 0


def lacking() -> list[str]:
    """Return what the worker does less well with the Prefect that is installed than with a newer one."""
    from biocirv_worker.internals.heartbeats import do_flow_runs_wait
    from biocirv_worker.worker import run_by_executor

    lines = []
    if run_by_executor is None:
        lines.append(
            "A cancellation is noticed within some seconds, and the flow run is Crashed for a moment before it is "
            "Cancelled (Prefect 3.8.4 and newer: at once)"
        )
    if do_flow_runs_wait():
        lines.append(
            "Each flow run waits up to a second for its heartbeats to end (Prefect 3.6.25 and newer: does not)"
        )
    return lines


def _try() -> None:
    """Do what the worker and its flow runs do with Prefect when they start."""
    from biocirv_worker import clock, engine, flow_run, launcher, outbox, preload, worker  # noqa: F401 - they are tried

    worker.Worker(launcher=engine.Launcher(forks=False), crash_retries=0, pool="trial", name="trial")
    # With these, events are intercepted, and none is written to a file.
    os.environ.update({clock.VARIABLE: "0", outbox.SWITCH: "false"})
    flow_run.prepare()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


if __name__ == "__main__":
    sys.exit(main())
