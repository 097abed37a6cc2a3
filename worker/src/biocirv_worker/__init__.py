"""A Prefect process worker that loses no flow run, and starts them fast.

``python -m biocirv_worker --pool NAME`` runs under systemd as ``prefect-worker.service``; it is Prefect's own process
worker (type `process`) and adds to it:

- SIGTERM drains it: it takes no new flow runs, and ends when those in flight have (``__main__``).
- ``systemctl reload`` puts a new worker in its place at once, while the old one drains beside it (``__main__``).
- Flow runs are forks of a process that has imported Prefect and the application (``engine``).
- A flow run that has no contact to the API any more, or that the server holds for crashed, is ended (``worker``).
- What happened to tasks is kept until the server has recorded it (``outbox``).
- A flow run that crashed is run again, by a new flow run, a limited number of times (``crashes``).
"""
