"""Keeps what goes wrong where it belongs: with one flow run, one file or one connection, never with the whole worker.

Two kinds of errors are told apart. A server that does not answer, fails or refuses the credentials concerns everything
that would be asked of it: the pass ends, and the next one repeats it. Every other error concerns the one thing that was
being done: it is logged once with its reason, and that thing is put aside.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("prefect.worker.biocirv")

# What the API does in an outage that is not about credentials.
SILENT = "does not answer"
# The server refuses credentials after the API's password has changed, until a worker with the new one has taken over.
_REFUSED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
# The server, or a proxy before it, asks to come back later.
_LATER = (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS)
# Errors whose message suffices; others are logged with their traceback.
_SPEAKING = (httpx.HTTPStatusError, OSError, ValueError)


def outage(error: Exception) -> str:
    """Return what the API does if an error is an outage of it, such as `does not answer`; empty for other errors."""
    if isinstance(error, httpx.HTTPStatusError):
        if error.response.status_code in _REFUSED:
            return "refuses"
        return SILENT if error.response.is_server_error or error.response.status_code in _LATER else ""
    return SILENT if isinstance(error, httpx.HTTPError | TimeoutError) else ""


def reason(error: BaseException) -> str:
    """Return an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


class Asides:
    """What was put aside, each with the reason that was logged. ``api`` is whether errors may be outages of the API."""

    def __init__(self, *, api: bool = True) -> None:
        self._api = api
        self._reasons: dict[object, str] = {}

    @contextmanager
    def each(self, key: object, what: str) -> Iterator[None]:
        """Keep an error of the body to one thing: log it once, as what did not happen, and go on after the body.

        Raises:
            httpx.HTTPError, TimeoutError: the API has an outage, which is no fault of the thing.

        """
        try:
            yield
        except Exception as error:
            if self._api and outage(error):
                raise
            if self._reasons.get(key) != (why := reason(error)):
                self._reasons[key] = why
                logger.error("%s: %s", what, why, exc_info=not isinstance(error, _SPEAKING))
        else:
            self._reasons.pop(key, None)

    def __contains__(self, key: object) -> bool:
        """Return whether a thing failed when it was last tried."""
        return key in self._reasons

    def keep(self, keys: set[object]) -> None:
        """Forget all things but these, so that the list does not grow without end."""
        for key in self._reasons.keys() - keys:
            del self._reasons[key]
