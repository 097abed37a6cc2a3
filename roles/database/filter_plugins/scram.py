"""Filter that computes PostgreSQL's verifier of a password, so that the password itself is never sent to the server."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable

# PostgreSQL's default; sufficient for a generated password.
ITERATIONS = 4096


def scram_sha_256(password: str, role: str) -> str:
    """Return the SCRAM verifier of a role's password, in the format of pg_authid.rolpassword (RFC 5802, RFC 7677).

    The salt is derived from password and role, so that the same password always gives the same verifier to compare.
    Only accepts ASCII, which SASLprep does not change.
    """
    if not (password and password.isascii() and password.isprintable()):
        raise ValueError(f"the password of {role} must be of printable ASCII characters")
    salt = hmac.digest(password.encode(), role.encode(), hashlib.sha256)[:16]
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", hashlib.sha256)).digest()
    server_key = hmac.digest(salted, b"Server Key", hashlib.sha256)
    parts = (base64.b64encode(part).decode() for part in (salt, stored_key, server_key))
    return "SCRAM-SHA-256${}:{}${}:{}".format(ITERATIONS, *parts)


class FilterModule:
    """Filters of this file, as Ansible loads them."""

    def filters(self) -> dict[str, Callable[[str, str], str]]:
        """Return the filter by its name."""
        return {"scram_sha_256": scram_sha_256}
