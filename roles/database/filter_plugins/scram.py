"""Filter that computes PostgreSQL's verifier of a password, so that the password itself is never sent to the server."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable

# PostgreSQL's default; sufficient for a generated password.
ITERATIONS = 4096


# Fewer characters than a generated secret has could be guessed.
KEY_LENGTH = 32


def scram_sha_256(password: str, role: str, key: str) -> str:
    """Return the SCRAM verifier of a role's password, in the format of pg_authid.rolpassword (RFC 5802, RFC 7677).

    The same password always gives the same verifier, to compare: its salt is derived from both and from a key.
    PostgreSQL sends the salt to whoever asks: without the key, a password could be guessed from it, by one digest a
    guess.
    Only accepts ASCII, which SASLprep does not change.

    Raises:
        ValueError: the password has other characters, or the key is too short.

    """
    if len(key) < KEY_LENGTH:
        raise ValueError(f"database_salt_key must be of at least {KEY_LENGTH} characters")
    if not (password and password.isascii() and password.isprintable()):
        raise ValueError(f"the password of {role} must be of printable ASCII characters")
    salt = hmac.digest(key.encode(), f"{role}\0{password}".encode(), hashlib.sha256)[:16]
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", hashlib.sha256)).digest()
    server_key = hmac.digest(salted, b"Server Key", hashlib.sha256)
    parts = (base64.b64encode(part).decode() for part in (salt, stored_key, server_key))
    return "SCRAM-SHA-256${}:{}${}:{}".format(ITERATIONS, *parts)


class FilterModule:
    """Filters of this file, as Ansible loads them."""

    def filters(self) -> dict[str, Callable[[str, str, str], str]]:
        """Return the filter by its name."""
        return {"scram_sha_256": scram_sha_256}
