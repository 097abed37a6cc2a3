"""The times that have to fit together, so that a flow run is never executed twice at once. In seconds.

The server holds a flow run for crashed when it has heard no heartbeat for ``SILENCE``: that is ``SILENCE - HEARTBEAT``
after its process was cut off at the earliest. Its worker has ended the process by then, because it does so after
``CONTACT`` without an answer of the API. The flow run that replaces it begins ``SUCCESSOR`` later still.

The role prefect_worker sets the heartbeats of flow runs, and the role prefect_deployments writes the server's
automation; the platform's tests compare them with this module.
"""

# How often a flow run sends a heartbeat; Prefect takes no less.
HEARTBEAT = 30
# A flow run that is heard of no more for so long has crashed: a minute without network ends nothing, before which up to
# a HEARTBEAT may have passed since it was heard of, and after which its next one needs time to come.
SILENCE = 60 + HEARTBEAT + 15
# Two seconds are for the signal that ends the process.
CONTACT = SILENCE - HEARTBEAT - 2
# A minute, and what Prefect takes away from it: it rounds to seconds, and dates a begin back to when it was asked for.
SUCCESSOR = 60 + 2
