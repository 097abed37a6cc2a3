"""The private interfaces of Prefect that this package uses; its tests check that they still exist.

``forks`` makes Prefect's flow run executor start processes as forks, ``events`` intercepts events before they are sent,
``heartbeats`` sends those of flow runs, and ``polling`` wraps the worker's request for scheduled flow runs.
"""
