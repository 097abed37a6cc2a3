"""The private interfaces of Prefect that this package uses; tests/test_internals.py checks that they still exist.

``forks`` makes Prefect's flow run executor start processes as forks, ``events`` intercepts events before they are sent,
and ``polling`` wraps the worker's request for scheduled flow runs.
"""
