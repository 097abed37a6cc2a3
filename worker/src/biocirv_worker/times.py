"""The times, in seconds, that have to fit together so that a flow run is never executed twice at once.

The server considers a flow run crashed when it has received no heartbeat for ``SILENCE``: at the earliest
``SILENCE - HEARTBEAT`` after the process lost its connection. By then the worker has killed the process, because it
does so after ``CONTACT`` without an answer from the API. The flow run's successor begins another ``SUCCESSOR`` later.

The role prefect_worker sets the heartbeats of flow runs, and the role prefect_deployments writes the server's
automation; the platform's tests compare them with this module.
"""

# Interval between a flow run's heartbeats; the shortest that Prefect accepts.
HEARTBEAT = 30
# A flow run without a heartbeat for this long has crashed. An outage of 60 s is tolerated: up to one HEARTBEAT may have
# passed since the last heartbeat when it begins, and the next one may take 15 s to arrive when it ends.
SILENCE = 60 + HEARTBEAT + 15
# Two seconds are for killing the process.
CONTACT = SILENCE - HEARTBEAT - 2
# A minute, plus what Prefect may subtract: it rounds to seconds, and backdates a start to the time of its request.
SUCCESSOR = 60 + 2
