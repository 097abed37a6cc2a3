"""The private interfaces of Prefect that this package uses; its tests check that they still exist.

``forks`` makes Prefect's flow run executor start processes by the launcher, ``events`` intercepts events before they
are sent, ``heartbeats`` lets flow runs end without waiting for the thread that sends them, or adds one to old versions,
``metrics`` lets processes live without a port for metrics, ``polling`` wraps what the worker does for one flow run, and
``websockets`` sends events by requests where websockets are refused.
"""
