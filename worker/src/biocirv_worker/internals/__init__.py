"""The private interfaces of Prefect that this package uses; its tests check that they still exist.

``forks`` makes Prefect's flow run executor start processes as forks, ``events`` intercepts events before they are sent,
``heartbeats`` lets flow runs end without waiting for the thread that sends them, and ``polling`` wraps the worker's
request for scheduled flow runs.
"""
