"""The role tls, run by ansible-playbook: the certificate authority and the hosts' certificates on the controller."""

import ipaddress
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

REPOSITORY = Path(__file__).parents[2]
NAMES = {"db": ["db", "192.0.2.7"], "app": ["app", "app.example.org"]}


@dataclass(frozen=True)
class Issued:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def general_names(names: list[str]) -> list[x509.GeneralName]:
    """Convert names and addresses to entries of subjectAltName."""
    return [
        x509.IPAddress(ipaddress.ip_address(name)) if re.search(r"^[0-9.]+$|:", name) else x509.DNSName(name)
        for name in names
    ]


def issue(
    subject: str,
    issuer: Issued | None = None,
    *,
    names: list[str] | None = None,
    authority: bool = False,
    key: ec.EllipticCurvePrivateKey | None = None,
    begin: int = -1,
    end: int = 365,
    now: datetime | None = None,
) -> Issued:
    """Return a certificate, by default self-signed; begin and end are days from now."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    now = now or datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    signing = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.certificate.subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=begin))
        .not_valid_after(now + timedelta(days=end))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(general_names(names)), critical=False)
    return Issued(builder.sign(signing, hashes.SHA256()), key)


def key_pem(key: ec.EllipticCurvePrivateKey, encryption: KeySerializationEncryption | None = None) -> bytes:
    """Return a key as PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def write(directory: Path, name: str, issued: Issued, *following: Issued) -> None:
    """Write `name`.crt, with the following certificates appended, and `name`.key."""
    pems = [each.certificate.public_bytes(Encoding.PEM) for each in (issued, *following)]
    (directory / f"{name}.crt").write_bytes(b"".join(pems))
    (directory / f"{name}.key").write_bytes(key_pem(issued.key))
    (directory / f"{name}.crt").chmod(0o644)
    (directory / f"{name}.key").chmod(0o600)


def read(directory: Path, name: str) -> Issued:
    """Read a pair that `write` or the role wrote."""
    key = load_pem_private_key((directory / f"{name}.key").read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Issued(x509.load_pem_x509_certificate((directory / f"{name}.crt").read_bytes()), key)


def contents(directory: Path) -> dict[str, bytes]:
    """Return the files of a directory."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def replaced(before: dict[str, bytes], directory: Path) -> set[str]:
    """Return the names of the files that have changed."""
    after = contents(directory)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def verify(directory: Path, leaf: x509.Certificate, name: str) -> None:
    """Verify a certificate as a strict client does."""
    subject = general_names([name])[0]
    assert isinstance(subject, x509.DNSName | x509.IPAddress)
    authority = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
    PolicyBuilder().store(Store([authority])).build_server_verifier(subject).verify(leaf, [])


def foreign(directory: Path, host: str) -> Issued:
    """Return a host's certificate from another authority of the same name, which differs only in the signature."""
    name = read(directory, "ca").certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    return issue(host, issue(str(name), authority=True), names=NAMES[host])


def judge(load_plugin: Callable[[str], ModuleType], directory: Path) -> str:
    """Return why the role would reissue the certificate of the host db, or an empty string."""
    look = load_plugin("tls/action_plugins/tls_certificates.py")
    authority = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
    lifetimes = look.Lifetimes(days=365, renewal_days=90, authority_days=3650)
    return str(look.certificate_reason(directory, "db", NAMES["db"], authority, lifetimes, datetime.now(UTC)))


def run(directory: Path, *arguments: str, names: dict[str, list[str]] = NAMES, **variables: object) -> dict[str, int]:
    """Run the role for unreachable hosts; return the number of changes by host."""
    hosts = {host: {"tls_names": own} for host, own in names.items()}
    common = {
        "tls_directory": str(directory),
        # A missing become program: the role must need neither privilege escalation nor a connection.
        "ansible_become_exe": "/nowhere/sudo",
        "ansible_ssh_executable": "/nowhere/ssh",
        **variables,
    }
    inventory = directory.parent / f"{directory.name}.json"
    inventory.write_text(json.dumps({"all": {"hosts": hosts, "vars": common}}), encoding="utf-8")
    playbook = directory.parent / f"{directory.name}.yml"
    play = {"hosts": "all", "become": True, "gather_facts": False, "roles": ["tls"]}
    playbook.write_text(json.dumps([play]), encoding="utf-8")
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "--inventory", inventory, playbook, *arguments],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return {host: int(changed) for host, changed in re.findall(r"(?m)^(\w+) +: ok=.* changed=(\d+)", done.stdout)}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the first run; it must not be changed."""
    directory = tmp_path_factory.mktemp("first") / ".secrets" / "tls"
    directory.parent.mkdir()
    assert all(run(directory).values())
    return directory


@pytest.fixture
def made(first: Path, tmp_path: Path) -> Path:
    """Return a copy of the directory of the first run."""
    return Path(shutil.copytree(first, tmp_path / "tls"))


def test_the_first_run_makes_files_of_the_right_modes(first: Path) -> None:
    modes = {path.name: f"{stat.S_IMODE(path.stat().st_mode):04o}" for path in [first, *first.iterdir()]}
    keys = {f"{name}.key": "0600" for name in ("ca", *NAMES)}
    certificates = {f"{name}.crt": "0644" for name in ("ca", *NAMES)}
    assert modes == {"tls": "0700", **keys, **certificates}


def test_what_the_authority_may_do(first: Path) -> None:
    authority = read(first, "ca")
    extensions = authority.certificate.extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    assert usage.critical
    assert (usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature) == (True, True, False)
    assert isinstance(authority.key.curve, ec.SECP256R1)
    assert re.fullmatch("CN=ca-biositing [0-9a-f]{8}", authority.certificate.subject.rfc4514_string())
    assert authority.certificate.public_key() == authority.key.public_key()


@pytest.mark.parametrize("name", ["bank.example.com", "example.org", "192.0.2.8", "::1"])
def test_the_authority_s_key_is_of_no_use_for_other_names(first: Path, name: str) -> None:
    """Whoever steals it cannot pass for other servers before those who trust it in a browser."""
    issued = issue("app", read(first, "ca"), names=[name])
    with pytest.raises(VerificationError):
        verify(first, issued.certificate, name)


def test_an_authority_without_constraints_is_issued_again(made: Path) -> None:
    """With its key: who trusts the one before goes on trusting."""
    old = read(made, "ca")
    extension = old.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    unconstrained = issue(str(old.certificate.subject.rfc4514_string()[3:]), authority=True, key=old.key)
    assert extension.value
    (made / "ca.crt").write_bytes(unconstrained.certificate.public_bytes(Encoding.PEM))
    run(made)
    new = read(made, "ca").certificate
    assert new.extensions.get_extension_for_class(x509.NameConstraints).critical
    assert new.public_key() == old.certificate.public_key()
    verify(made, read(made, "db").certificate, "db")


def test_an_inventory_without_addresses_has_none(tmp_path: Path) -> None:
    """A kind of name that is not mentioned would be permitted."""
    run(tmp_path / "tls", names={"app": ["app"]})
    issued = issue("app", read(tmp_path / "tls", "ca"), names=["192.0.2.8"])
    with pytest.raises(VerificationError):
        verify(tmp_path / "tls", issued.certificate, "192.0.2.8")


@pytest.mark.parametrize("host", NAMES)
def test_a_hosts_certificate_verifies_for_all_its_names(first: Path, host: str) -> None:
    issued = read(first, host)
    for name in NAMES[host]:
        verify(first, issued.certificate, name)
    extensions = issued.certificate.extensions
    usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == general_names(NAMES[host])
    assert extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    assert issued.certificate.subject.rfc4514_string() == f"CN={host}"
    assert issued.certificate.public_key() == issued.key.public_key()
    assert timedelta(days=364) < issued.certificate.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=365)


def test_the_next_run_changes_nothing(made: Path) -> None:
    before = contents(made)
    assert run(made) == {"db": 0, "app": 0}
    assert replaced(before, made) == set()


def test_check_mode_foresees_the_first_run_and_writes_nothing(tmp_path: Path) -> None:
    assert run(tmp_path / "tls", "--check", "--diff") == {"db": 1, "app": 1}
    assert not (tmp_path / "tls").exists()


def test_check_mode_foresees_a_renewal(made: Path) -> None:
    before = contents(made)
    assert run(made, "--check", names={**NAMES, "app": ["app"]}) == {"db": 0, "app": 1}
    assert replaced(before, made) == set()


def test_other_names_renew_only_that_hosts_certificate(made: Path) -> None:
    before = contents(made)
    run(made, names={"db": ["192.0.2.7", "DB"], "app": ["app", "2001:db8::1"]})
    # Order and case of names do not matter. The key is kept.
    # The authority may now issue for the new address, too.
    assert replaced(before, made) == {"app.crt", "ca.crt"}
    verify(made, read(made, "app").certificate, "2001:db8::1")


def test_what_ends_soon_and_what_another_authority_issued_is_replaced(made: Path) -> None:
    write(made, "app", foreign(made, "app"))
    before = contents(made)
    # A certificate of the role for 365 days, as one made by cryptography would differ in more than the expiry.
    run(made, tls_days=500, tls_renewal_days=400)
    assert replaced(before, made) == {"db.crt", "app.crt"}
    for host in NAMES:
        issued = read(made, host)
        verify(made, issued.certificate, host)
        assert issued.certificate.public_key() == issued.key.public_key()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, "^$"),
        ({"names": ["192.0.2.7", "DB"]}, "^$"),
        ({"names": ["db"]}, "names"),
        ({"end": 91}, "^$"),
        ({"end": 89}, "in fewer than 90 days"),
        ({"end": -1, "begin": -9}, "in fewer than 90 days"),
        ({"begin": 2}, "not valid before"),
    ],
)
def test_why_a_certificate_is_made_again(
    load_plugin: Callable[[str], ModuleType], made: Path, changed: dict[str, Any], reason: str
) -> None:
    write(made, "db", issue("db", read(made, "ca"), **{"names": NAMES["db"], **changed}))
    assert re.search(reason, judge(load_plugin, made))


def test_why_a_damaged_or_foreign_certificate_is_made_again(
    load_plugin: Callable[[str], ModuleType], made: Path
) -> None:
    shutil.copy(made / "app.key", made / "db.key")
    assert "key" in judge(load_plugin, made)
    (made / "db.key").write_text("cut off", encoding="utf-8")
    assert "key" in judge(load_plugin, made)
    write(made, "db", foreign(made, "db"))
    assert judge(load_plugin, made) == "another authority issued it"
    (made / "db.crt").write_text("cut off", encoding="utf-8")
    assert "cannot be read" in judge(load_plugin, made)


def test_an_authority_near_its_end_is_issued_again_for_the_certificates_that_are_out(made: Path) -> None:
    old = read(made, "ca")
    before = contents(made)
    # Its 3650 days are now fewer than the sum of both.
    assert sum(run(made, tls_days=3600, tls_renewal_days=90, tls_authority_days=9000).values()) == 1
    assert replaced(before, made) == {"ca.crt"}
    new = read(made, "ca").certificate
    assert new.subject == old.certificate.subject
    assert new.not_valid_after_utc - datetime.now(UTC) > timedelta(days=8999)
    for host in NAMES:
        verify(made, read(made, host).certificate, host)


@pytest.mark.parametrize("wrong", ["missing", "another"])
def test_an_authority_without_its_key_is_never_replaced(made: Path, wrong: str) -> None:
    (made / "ca.key").unlink()
    if wrong == "another":
        shutil.copy(made / "db.key", made / "ca.key")
    before = contents(made)
    with pytest.raises(RuntimeError, match=r"ca\.key.*: restore the key"):
        run(made)
    assert replaced(before, made) == set()


def test_modes_that_are_too_wide_are_closed(made: Path) -> None:
    made.chmod(0o755)
    (made / "app.key").chmod(0o644)
    before = contents(made)
    assert run(made)["app"] >= 1
    assert (stat.S_IMODE(made.stat().st_mode), stat.S_IMODE((made / "app.key").stat().st_mode)) == (0o700, 0o600)
    assert replaced(before, made) == set()


def test_provided_files_are_left_as_they_are(made: Path) -> None:
    (made / "ca.key").unlink()
    (made / "app.crt").unlink()
    before = contents(made)
    assert run(made, tls_mode="provided") == {"db": 0, "app": 0}
    assert replaced(before, made) == set()
