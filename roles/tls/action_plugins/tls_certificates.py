"""Action that checks the certificate authority's and a host's TLS files on the controller, and writes nothing."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

# Names that a host must not have: its key would be the file of the authority's or the ACME account's key.
TAKEN = ("ca", "acme-account")

# Longer than any certificate is of use; beyond it dates cannot be computed. Days.
MOST_DAYS = 36500

# A provided certificate with fewer days left than this is a problem, because only its owner can renew it. Days.
LEAST_DAYS = 14


class Lifetimes(NamedTuple):
    """Days: a host's certificate is valid, it is renewed before its end, and the authority's certificate is valid."""

    days: int
    renewal_days: int
    authority_days: int


def name_of(text: str) -> x509.GeneralName:
    """Return a name or address as it appears in certificates; names beyond ASCII in punycode."""
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName((text if text.isascii() else text.encode("idna").decode()).lower())


def alternative_names(names: Iterable[str]) -> list[str]:
    """Return names in the format of community.crypto, without duplicates: `DNS:db` or `IP:192.0.2.1`."""
    kinds = {x509.DNSName: "DNS", x509.IPAddress: "IP"}
    return list(dict.fromkeys(f"{kinds[type(name)]}:{name.value}" for name in map(name_of, names)))


def held_names(certificate: x509.Certificate) -> set[x509.GeneralName]:
    """Return the names and addresses in a certificate."""
    try:
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {x509.DNSName(name.value.lower()) if isinstance(name, x509.DNSName) else name for name in held}


def holds(certificate: x509.Certificate, text: str) -> bool:
    """Return whether clients accept a certificate for this name or address."""
    name, held = name_of(text), held_names(certificate)
    # A wildcard matches exactly one label, the first.
    wildcard = {x509.DNSName(f"*.{name.value.partition('.')[2]}")} if isinstance(name, x509.DNSName) else set()
    return not held.isdisjoint({name} | wildcard)


def constraint(name: x509.GeneralName) -> x509.GeneralName:
    """Return the subtree of names in which a name is: of an address only itself, of a wildcard what it matches."""
    if isinstance(name, x509.IPAddress):
        return x509.IPAddress(ipaddress.ip_network(name.value))
    return x509.DNSName(str(name.value).removeprefix("*."))


def wanted_constraints(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the constraints of an authority for these names, in the format of community.crypto.

    A kind of name without a permitted one would not be constrained.
    """
    permitted = sorted({constraint(name_of(text)) for text in names}, key=repr)
    addresses = [f"IP:{each.value}" for each in permitted if isinstance(each, x509.IPAddress)]
    domains = [f"DNS:{each.value}" for each in permitted if isinstance(each, x509.DNSName)]
    excluded = ([] if addresses else ["IP:0.0.0.0/0", "IP:::/0"]) + ([] if domains else ["DNS:"])
    return {"permitted": domains + addresses, "excluded": excluded}


def lacking_constraints(authority: x509.Certificate, names: Iterable[str]) -> str:
    """Return why an authority's certificate must be issued again for these names, or an empty string."""
    try:
        held = authority.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or []
    except x509.ExtensionNotFound:
        return "it could issue certificates for all names"
    lacking = sorted(text for text in names if constraint(name_of(text)) not in held)
    return f"it may not issue certificates for {', '.join(lacking)}" if lacking else ""


def read_certificates(path: Path) -> tuple[list[x509.Certificate], str]:
    """Return a PEM file's certificates, and the file's problem (or an empty string)."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes()), ""
    except OSError as error:
        return [], f"{path} cannot be read ({error.strerror}): put it there, as tls_mode is 'provided'."
    except ValueError:
        return [], f"{path} is not a certificate in PEM format: replace it, or convert it with openssl."


def read_key(path: Path) -> tuple[bytes | None, str]:
    """Return the public key of a PEM file's private key, and the file's problem (or an empty string)."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        return None, f"{path} cannot be read ({error.strerror}): put it there, as tls_mode is 'provided'."
    except TypeError:
        return None, f"{path} has a passphrase, which services that start unattended cannot give: remove it."
    except (ValueError, UnsupportedAlgorithm):
        return None, f"{path} is not a private key in PEM format: replace it, or convert it with openssl."
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo), ""


def public_key(certificate: x509.Certificate) -> bytes:
    """Return a certificate's public key."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def verifies(leaf: x509.Certificate, between: list[x509.Certificate], authorities: list[x509.Certificate]) -> bool:
    """Return whether a chain of signatures leads from a certificate to an authority.

    Only authorities may issue; a certificate that is itself trusted needs none. cryptography's own verifier requires
    more, and refuses authorities of organisations that PostgreSQL and nginx accept.
    """

    def issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
        try:
            certificate.verify_directly_issued_by(issuer)
            return issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (InvalidSignature, TypeError, ValueError, UnsupportedAlgorithm, x509.ExtensionNotFound):
            return False

    if leaf in authorities or any(issued(leaf, authority) for authority in authorities):
        return True
    # Each certificate is used only once, so that the loop ends.
    return any(
        issued(leaf, issuer) and verifies(issuer, between[:index] + between[index + 1 :], authorities)
        for index, issuer in enumerate(between)
    )


def period_problems(path: Path, certificate: x509.Certificate, now: datetime) -> list[str]:
    """Return the problems of a provided certificate's period of validity."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    what = f"{path} ({certificate.subject.rfc4514_string()})"
    if now < begin:
        return [f"{what} is not valid before {begin:%Y-%m-%d %H:%M} UTC: wait, or correct this machine's clock."]
    if now > end:
        return [f"{what} expired on {end:%Y-%m-%d}: replace it."]
    if end - now < timedelta(days=LEAST_DAYS):
        return [f"{what} ends on {end:%Y-%m-%d}, in less than {LEAST_DAYS} days: replace it."]
    return []


def provided_problems(directory: Path, host: str, names: Iterable[str] | None, now: datetime) -> list[str]:
    """Return the problems of the files that an operator provides.

    names: names and addresses that the certificate must contain, None for any; now: with a time zone.
    """
    authority, own = directory / "ca.crt", directory / f"{host}.crt"
    authorities, authority_problem = read_certificates(authority)
    key, key_problem = read_key(directory / f"{host}.key")
    chain, chain_problem = read_certificates(own)
    problems = [problem for problem in (authority_problem, key_problem, chain_problem) if problem]
    for path, certificates in ((authority, authorities), (own, chain)):
        for certificate in certificates:
            problems += period_problems(path, certificate, now)
    if not chain:
        return problems
    if key and key != public_key(chain[0]):
        problems.append(
            f"{directory / f'{host}.key'} is not the key of {own}: put the key there with which the certificate was "
            "requested. The host's own certificate is the first of its file."
        )
    if missing := sorted(name for name in names or () if not holds(chain[0], name)):
        problems.append(f"{own} does not hold {', '.join(missing)}: get one with all of tls_names.")
    roots = [certificate for certificate in authorities if certificate.subject == certificate.issuer]
    between = [certificate for certificate in authorities if certificate not in roots]
    if authorities and not verifies(chain[0], chain[1:] + between, roots):
        problems.append(
            f"{own} does not verify against {authority} (issuer: {chain[0].issuer.rfc4514_string()}): put the root "
            f"certificate into ca.crt, and the intermediate ones into {own.name}, after the host's own."
        )
    return problems


def authority_problems(directory: Path) -> list[str]:
    """Return the reasons why the inventory's own authority cannot issue certificates.

    A new key would be a different authority, while hosts and users still trust the present one.
    """
    path, certificate = directory / "ca.key", directory / "ca.crt"
    restore = f"restore the key, or remove {directory} to make a new authority with all certificates."
    if not path.exists():
        return [f"{certificate} is there without {path}: {restore}"] if certificate.exists() else []
    key, problem = read_key(path)
    if problem:
        return [f"{path} cannot be read as a PEM key without passphrase: {restore}"]
    authorities, _ = read_certificates(certificate)
    if authorities and public_key(authorities[0]) != key:
        return [f"{path} is not the key of {certificate}: {restore}"]
    return []


def lifetime_problems(lifetimes: Lifetimes) -> list[str]:
    """Return the contradictions between the configured lifetimes."""
    if min(lifetimes) < 1 or max(lifetimes) > MOST_DAYS:
        return [f"tls_days, tls_renewal_days and tls_authority_days must be between 1 and {MOST_DAYS}."]
    problems = []
    if lifetimes.renewal_days >= lifetimes.days:
        problems.append("tls_renewal_days must be less than tls_days, or each converge would renew every certificate.")
    if lifetimes.authority_days <= lifetimes.days + lifetimes.renewal_days:
        problems.append("tls_authority_days must be more than tls_days and tls_renewal_days together.")
    return problems


def certificate_problems(
    directory: Path, host: str, names: Iterable[str] | None, mode: str, now: datetime
) -> list[str]:
    """Return the problems of a host's TLS files on the controller that a converge cannot correct.

    names: names and addresses that the certificate must contain, None for any; mode: tls_mode; now: with a time zone.
    """
    if host in TAKEN:
        return [f"no host can be named {host!r}: {host}.key in {directory} is another key's file. Rename the host."]
    return provided_problems(directory, host, names, now) if mode == "provided" else authority_problems(directory)


def ends_soon(certificate: x509.Certificate, days: int, now: datetime) -> str:
    """Return a message if a certificate has fewer days left than these, or an empty string."""
    end = certificate.not_valid_after_utc
    return f"it ends on {end:%Y-%m-%d}, in fewer than {days} days" if end - now < timedelta(days=days) else ""


def authority_reason(
    directory: Path, names: Iterable[str], lifetimes: Lifetimes, now: datetime
) -> tuple[str, x509.Certificate | None, list[dict[str, str]]]:
    """Return why the authority's certificate must be issued (or an empty string), the present one, and its subject."""
    if not (directory / "ca.key").exists():
        return "there is none", None, []
    certificates, problem = read_certificates(directory / "ca.crt")
    if problem:
        return "it is missing, or cannot be read", None, []
    subject = [{attribute.oid.dotted_string: str(attribute.value)} for attribute in certificates[0].subject]
    # A host's certificate issued today must not outlive the authority's.
    reason = ends_soon(certificates[0], lifetimes.days + lifetimes.renewal_days, now)
    return reason or lacking_constraints(certificates[0], names), certificates[0], subject


def certificate_reason(
    directory: Path,
    host: str,
    names: Iterable[str],
    authority: x509.Certificate | None,
    lifetimes: Lifetimes,
    now: datetime,
) -> str:
    """Return why a host's certificate must be issued, or an empty string."""
    certificates, problem = read_certificates(directory / f"{host}.crt")
    if problem:
        return "it is missing, or cannot be read"
    certificate = certificates[0]
    if authority is None:
        return "it has no authority"
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, TypeError, ValueError):
        return "another authority issued it"
    if read_key(directory / f"{host}.key")[0] != public_key(certificate):
        return "its key is missing, or another one's"
    if held_names(certificate) != set(map(name_of, names)):
        return "its names are not those of tls_names"
    if now < certificate.not_valid_before_utc:
        return f"it is not valid before {certificate.not_valid_before_utc:%Y-%m-%d}"
    return ends_soon(certificate, lifetimes.renewal_days, now)


def wrong_modes(directory: Path, host: str) -> list[dict[str, str]]:
    """Return the files whose mode is wrong, each with the correct mode."""
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


class ActionModule(ActionBase):  # type: ignore[misc] # ansible has no type hints
    """Return `problems`, which need an operator, and the reasons why certificates must be issued.

    Reads the role's variables itself, because preflight must report even if some of them cannot be templated. With
    `report: true` it only reports; otherwise it fails on a problem, and in check mode it reports the change
    that the next tasks would make. `authority` and `certificate` give the reason why each must be issued, or are empty.
    """

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run as an Ansible action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        values = {
            name: self.value(f"tls_{name}", variables)
            for name in ("directory", "mode", "names", "acme_directory", "acme_names", *Lifetimes._fields)
        }
        host, now = variables["inventory_hostname"], datetime.now(UTC)
        mode = values["mode"] or "internal"
        names = [str(name) for name in values["names"]] if isinstance(values["names"], list) else None
        problems = []
        if values["directory"]:
            directory = Path(values["directory"]).expanduser()
            try:
                problems += certificate_problems(directory, host, names, mode, now)
            except (OSError, UnicodeError) as error:
                problems.append(f"The TLS files in {directory} cannot be checked: {error}. Correct that first.")
        if names == []:
            problems.append("tls_names is empty: list the names and addresses under which clients reach the host.")
        try:
            lifetimes = Lifetimes(*(int(values[name]) for name in Lifetimes._fields))
            problems += lifetime_problems(lifetimes)
        except (TypeError, ValueError):
            # Preflight validates each variable's type.
            lifetimes = None
        if mode == "acme" and host in variables["groups"].get("prefect_server", []):
            problems += [
                f"{name} is not set: tls_mode acme needs it (`ansible-doc -t role tls` describes it)."
                for name in ("tls_acme_directory", "tls_acme_names")
                if not values[name.removeprefix("tls_")]
            ]
        result["problems"] = problems
        if self._task.args.get("report"):
            return result
        if problems:
            return {**result, "failed": True, "msg": "\n".join(problems)}
        if names is None or lifetimes is None or not values["directory"]:
            raise AnsibleError("tls_directory, tls_names and the lifetimes of certificates must be set.")

        # Of all hosts of the inventory, also of those that this run leaves out.
        every = sorted({name for other in variables["groups"]["all"] for name in self.names_of(other, variables)})
        authority, present, subject = authority_reason(directory, every, lifetimes, now)
        certificate = certificate_reason(directory, host, names, present, lifetimes, now)
        changes = [
            f"{file}: {reason}\n" for file, reason in (("ca.crt", authority), (f"{host}.crt", certificate)) if reason
        ]
        return {
            **result,
            "authority": authority,
            "subject": subject,
            "constraints": wanted_constraints(every),
            "certificate": certificate,
            "names": alternative_names(names),
            "modes": wrong_modes(directory, host),
            "changed": bool(self._task.check_mode and changes),
            "diff": {"before": "", "after": "".join(changes)} if changes else {},
        }

    def names_of(self, host: str, variables: dict[str, Any]) -> list[str]:
        """Return the names of a host's certificate; for a host without the variable, that of the role's default."""
        try:
            return [str(name) for name in variables["hostvars"][host]["tls_names"]]
        except (AnsibleError, KeyError):
            return [host]

    def value(self, name: str, variables: dict[str, Any]) -> Any:  # noqa: ANN401 - a variable
        """Return a variable's value; None if it has none or cannot be templated, which preflight reports."""
        try:
            return self._templar.template(variables.get(name))
        except AnsibleError:
            return None
