"""The filter without_secrets: replaces secrets in a text that is given away."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from urllib.parse import quote, unquote, urlsplit

# What is shorter would occur everywhere, and is no secret.
LEAST_LENGTH = 6


def without_secrets(text: str, secrets: Iterable[object]) -> str:
    """Return the text with asterisks for each secret: as it is, as a URL holds it, and encoded as base64."""
    found = {str(secret).strip() for secret in secrets}
    forms = {form for secret in found if len(secret) >= LEAST_LENGTH for form in _forms(secret)}
    # A secret may contain another one.
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "********")
    return text


def _forms(secret: str) -> Iterable[str]:
    yield secret
    # Of a key in several lines, a text may hold one.
    yield from (line for line in secret.splitlines() if len(line) >= LEAST_LENGTH and not line.startswith("-----"))
    yield quote(secret)
    yield quote(secret, safe="")
    yield base64.b64encode(secret.encode()).decode()
    yield json.dumps(secret)[1:-1]
    # A URL may hold a password, which is also logged alone.
    with suppress(ValueError):
        password = urlsplit(secret).password or ""
        if len(password) >= LEAST_LENGTH:
            yield from (password, unquote(password))


class FilterModule:
    """Filters of this file, as Ansible loads them."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by their names."""
        return {"without_secrets": without_secrets}
