"""A Prefect process worker that loses no flow run and starts flow runs fast.

``python -m biocirv_worker --pool NAME`` runs under systemd as ``prefect-worker.service``; it extends Prefect's
own process worker (type `process`):

- SIGTERM drains it: it takes no new flow runs, and exits when those in flight have ended (``__main__``).
- ``systemctl reload`` starts a new worker that takes over at once, while the old one drains (``__main__``).
- Flow runs are forks of a process that has already imported Prefect and libraries (``engine``, ``launcher``); their
  own processes end with them.
- What concerns one flow run, one file or one connection does not end it (``asides``).
- It kills a flow run that the server considers crashed, and all of them when it has lost contact to the API
  (``worker``).
- It keeps task-run events in files until the server has recorded them (``outbox``).
- It retries a crashed flow run, by a new flow run, a limited number of times (``crashes``).
"""
