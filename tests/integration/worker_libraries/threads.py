"""A library that starts a thread when it is imported, as some do; so it is left to flow runs."""

import os
import threading

# The process that imported it.
PID = os.getpid()

threading.Thread(target=threading.Event().wait, name="of a library", daemon=True).start()
