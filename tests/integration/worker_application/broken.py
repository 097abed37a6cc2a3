"""An application that cannot be imported."""

from prefect import flow

raise RuntimeError("This application is broken on purpose")


@flow
def broken(notes: str) -> None:
    """Never get this far."""
