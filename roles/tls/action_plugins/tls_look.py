"""Action that judges the authority and a host's certificate on the controller, and writes nothing."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

# Hosts of these names would have the authority's or the ACME account's key for theirs.
TAKEN = ("ca", "acme-account")


class Lifetimes(NamedTuple):
    """What is asked of certificates, in days: of a host's, its renewal, and of the authority's."""

    days: int
    renewal_days: int
    authority_days: int


def name_of(text: str) -> x509.GeneralName:
    """Return a name or address as certificates hold it; names beyond ASCII in punycode."""
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName((text if text.isascii() else text.encode("idna").decode()).lower())


def alternative_names(names: Iterable[str]) -> list[str]:
    """Return names as community.crypto takes them, without doubles: `DNS:db` or `IP:192.0.2.1`."""
    kinds = {x509.DNSName: "DNS", x509.IPAddress: "IP"}
    return list(dict.fromkeys(f"{kinds[type(name)]}:{name.value}" for name in map(name_of, names)))


def held_names(certificate: x509.Certificate) -> set[x509.GeneralName]:
    """Return the names and addresses that a certificate holds."""
    try:
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {x509.DNSName(name.value.lower()) if isinstance(name, x509.DNSName) else name for name in held}


def read_certificate(path: Path) -> x509.Certificate | None:
    """Return a PEM file's first certificate, or None where none can be read."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None


def read_public_key(path: Path) -> bytes | None:
    """Return the public half of a PEM file's private key, or None where no key can be read."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def public_key(certificate: x509.Certificate) -> bytes:
    """Return a certificate's public key."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def ends_soon(certificate: x509.Certificate, days: int, now: datetime) -> str:
    """Return that a certificate has fewer days left than these, or nothing."""
    end = certificate.not_valid_after_utc
    return f"it ends on {end:%Y-%m-%d}, in fewer than {days} days" if end - now < timedelta(days=days) else ""


def judge_authority(
    directory: Path, lifetimes: Lifetimes, now: datetime
) -> tuple[str, x509.Certificate | None, list[dict[str, str]]]:
    """Return why the authority's certificate must be made (or nothing), the one there is, and its subject.

    Fails where making one would part the hosts from the certificates that they have.
    """
    restore = f"restore {directory / 'ca.key'}, or remove the directory to make a new authority with all certificates."
    key = read_public_key(directory / "ca.key")
    if key is None:
        if (directory / "ca.key").exists():
            raise AnsibleActionFail(f"{directory / 'ca.key'} cannot be read as a PEM key without passphrase: {restore}")
        if (directory / "ca.crt").exists():
            raise AnsibleActionFail(f"{directory / 'ca.crt'} is there without its key: {restore}")
        return "there is none", None, []
    certificate = read_certificate(directory / "ca.crt")
    if certificate is None:
        return "it is missing, or cannot be read", None, []
    if public_key(certificate) != key:
        raise AnsibleActionFail(f"{directory / 'ca.key'} is not the key of ca.crt: {restore}")
    subject = [{attribute.oid.dotted_string: str(attribute.value)} for attribute in certificate.subject]
    # A host's certificate that is made today must not outlive its authority.
    return ends_soon(certificate, lifetimes.days + lifetimes.renewal_days, now), certificate, subject


def judge_certificate(
    directory: Path,
    host: str,
    names: Iterable[str],
    authority: x509.Certificate | None,
    lifetimes: Lifetimes,
    now: datetime,
) -> str:
    """Return why a host's certificate must be made, or nothing."""
    certificate = read_certificate(directory / f"{host}.crt")
    if certificate is None:
        return "it is missing, or cannot be read"
    if authority is None:
        return "it has no authority"
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, TypeError, ValueError):
        return "another authority issued it"
    if read_public_key(directory / f"{host}.key") != public_key(certificate):
        return "its key is missing, or another one's"
    if held_names(certificate) != set(map(name_of, names)):
        return "its names are not those of tls_names"
    if now < certificate.not_valid_before_utc:
        return f"it is not valid before {certificate.not_valid_before_utc:%Y-%m-%d}"
    return ends_soon(certificate, lifetimes.renewal_days, now)


def wrong_modes(directory: Path, host: str) -> list[dict[str, str]]:
    """Return the files whose mode is not what it should be, each with its right one."""
    right = {
        directory: 0o700,
        directory / "ca.key": 0o600,
        directory / "ca.crt": 0o644,
        directory / f"{host}.key": 0o600,
        directory / f"{host}.crt": 0o644,
    }
    return [
        {"path": str(path), "mode": f"{mode:04o}"}
        for path, mode in right.items()
        if path.exists() and path.stat().st_mode & 0o7777 != mode
    ]


class ActionModule(ActionBase):  # type: ignore[misc] # ansible carries no types
    """Returns why `authority` and `certificate` must be made (empty: they need not), and what to make them of.

    Takes `directory`, `host`, `names`, `days`, `renewal_days` and `authority_days`. In check mode it reports as its own
    the change that the next tasks would make.
    """

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run as an Ansible action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        given = self._task.args
        host, names = str(given["host"]), [str(name) for name in given["names"]]
        directory = Path(given["directory"]).expanduser()
        lifetimes = Lifetimes(*(int(given[name]) for name in Lifetimes._fields))
        if host in TAKEN:
            raise AnsibleActionFail(f"no host can be named {host!r}: {host}.key is another key's file.")
        if not names:
            raise AnsibleActionFail("tls_names is empty: name what clients reach the host under.")
        # Otherwise each run would renew what the run before made.
        if lifetimes.renewal_days >= lifetimes.days:
            raise AnsibleActionFail("tls_renewal_days must be less than tls_days.")
        if lifetimes.authority_days <= lifetimes.days + lifetimes.renewal_days:
            raise AnsibleActionFail("tls_authority_days must be more than tls_days and tls_renewal_days together.")

        now = datetime.now(UTC)
        authority, present, subject = judge_authority(directory, lifetimes, now)
        certificate = judge_certificate(directory, host, names, present, lifetimes, now)
        modes = wrong_modes(directory, host)
        changes = [
            f"{file}: {reason}\n" for file, reason in (("ca.crt", authority), (f"{host}.crt", certificate)) if reason
        ]
        return {
            **result,
            "authority": authority,
            "subject": subject,
            "certificate": certificate,
            "names": alternative_names(names),
            "modes": modes,
            "changed": bool(self._task.check_mode and changes),
            "diff": {"before": "", "after": "".join(changes)} if changes else {},
        }
