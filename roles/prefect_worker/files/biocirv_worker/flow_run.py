"""Runs one flow run: in a fork, or as ``python -m biocirv_worker.flow_run`` in a process of its own."""

from __future__ import annotations

import runpy
import sys

ENGINE = "prefect.engine"


def main() -> None:
    """Run the flow run that the environment names, as ``python -m prefect.engine`` does."""
    from biocirv_worker.outbox import keep_events

    keep_events()
    sys.argv = [ENGINE]
    sys.modules.pop(ENGINE, None)
    runpy.run_module(ENGINE, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
