"""All that this package uses of Prefect without Prefect promising it; tests/test_internals.py watches it.

``forks`` gives Prefect's executor of a flow run another way to start the process, ``events`` sees task-run events
before they are sent, and ``polling`` surrounds the worker's question for flow runs.
"""
