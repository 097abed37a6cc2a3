"""A flow with a library that must not be imported before a fork."""

import threading

import threads  # type: ignore[import-not-found] # see worker_libraries
from notes import note  # type: ignore[import-not-found]
from prefect import flow


@flow
def with_a_thread(notes: str) -> None:
    """Note whether the library's thread lives here."""
    note(notes, "with a thread", imported_by=threads.PID, alive=[thread.name for thread in threading.enumerate()])
