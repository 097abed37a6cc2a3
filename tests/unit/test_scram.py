"""The SCRAM verifier that PostgreSQL gets instead of a password; each converge proves that logins work with it."""

import base64
import hashlib
import hmac
import re
from collections.abc import Callable
from types import ModuleType

import pytest

Verifier = Callable[..., str]
KEY = "k" * 32


@pytest.fixture(scope="module")
def verifier(load_plugin: Callable[[str], ModuleType]) -> Verifier:
    """Return the filter: password, role, key -> verifier."""
    plugin: Verifier = load_plugin("database/filter_plugins/scram.py").scram_sha_256
    return plugin


def test_a_client_proves_itself_against_it(verifier: Verifier) -> None:
    """The client's proof of RFC 5802 yields the stored key."""
    match = re.fullmatch(
        r"SCRAM-SHA-256\$4096:([\w+/=]+)\$([\w+/=]+):([\w+/=]+)", verifier("pencil", "biocirv_user", KEY)
    )
    assert match
    salt, stored_key, server_key = (base64.b64decode(part) for part in match.groups())
    client_key = hmac.digest(hashlib.pbkdf2_hmac("sha256", b"pencil", salt, 4096), b"Client Key", hashlib.sha256)
    signature = hmac.digest(stored_key, b"exchange", hashlib.sha256)
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    recovered = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
    assert hashlib.sha256(recovered).digest() == stored_key
    assert len(salt) == 16
    assert len(server_key) == 32


def test_the_same_password_gives_the_same_verifier_and_no_other_does(verifier: Verifier) -> None:
    assert verifier("one", "a", KEY) == verifier("one", "a", KEY)
    others = [("one", "a", KEY), ("two", "a", KEY), ("one", "b", KEY), ("one", "a", "l" * 32), ("e", "a\0on", KEY)]
    assert len({verifier(*other) for other in others}) == len(others)


def test_a_password_is_not_guessed_from_its_salt(verifier: Verifier) -> None:
    """Whoever asks PostgreSQL for it has the salt; without the key, one guess must not be one digest."""
    salt = base64.b64decode(re.split("[$:]", verifier("pencil", "a", KEY))[2])
    words = [b"pencil", b"a", b"apencil", b"pencila", b"a\0pencil", b"pencil\0a", b""]
    guesses = {hmac.digest(key, text, hashlib.sha256)[:16] for key in words for text in words}
    guesses |= {hashlib.sha256(text).digest()[:16] for text in words}
    assert salt not in guesses


@pytest.mark.parametrize("password", ["", "café", "tab\t"])
def test_what_clients_would_prepare_differently_is_refused(verifier: Verifier, password: str) -> None:
    with pytest.raises(ValueError, match="password of a must be of printable ASCII"):
        verifier(password, "a", KEY)


@pytest.mark.parametrize("key", ["", "short", "k" * 31])
def test_a_key_that_can_be_guessed_is_refused(verifier: Verifier, key: str) -> None:
    with pytest.raises(ValueError, match="database_salt_key must be of at least 32 characters"):
        verifier("pencil", "a", key)
