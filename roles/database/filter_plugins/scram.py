"""Filter that makes of a password what PostgreSQL keeps of it, so that the password itself never reaches the server."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable

# PostgreSQL's own number; a generated password needs no more.
ITERATIONS = 4096


def scram_sha_256(password: str, role: str) -> str:
    """Return the verifier of a role's password, as pg_authid.rolpassword holds it (RFC 5802, RFC 7677).

    The salt is made of password and role: the same password gives the same verifier, which can be compared.
    Only ASCII is taken, of which SASLprep changes nothing.
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
    """What Ansible asks for."""

    def filters(self) -> dict[str, Callable[[str, str], str]]:
        """Return the filter by its name."""
        return {"scram_sha_256": scram_sha_256}
