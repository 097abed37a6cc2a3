"""Certificates: every client refuses an invalid one, and one that expires soon is renewed without a restart."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.host.conftest import recap

if TYPE_CHECKING:
    from tests.host.conftest import Inventory
    from tests.scenarios.secure.conftest import Platform

# The connections of flows and worker, in the worker's environment: each prints "in" or the error.
WORKERS_CLIENTS = """
import asyncio, json, os
import sqlalchemy
from prefect.client.orchestration import get_client
from prefect.events.clients import get_events_subscriber

async def http():
    async with get_client() as client:
        await client.read_work_pools()

async def websocket():
    async with get_events_subscriber(reconnection_attempts=0):
        pass

def psycopg2():
    with sqlalchemy.create_engine(os.environ["DATABASE_URL"]).connect() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))

def words(error):
    return f"{error!r} {words(error.__cause__ or error.__context__) if error.__cause__ or error.__context__ else ''}"

said = {}
for name, attempt in (
    ("psycopg2", psycopg2),
    ("Prefect over HTTP", lambda: asyncio.run(http())),
    ("Prefect's websocket", lambda: asyncio.run(websocket())),
):
    try:
        attempt()
        said[name] = "in"
    except Exception as error:
        said[name] = words(error)
print(json.dumps(said))
"""
# The connection of Prefect's server to its database.
SERVERS_CLIENT = """
import asyncio, json
import sqlalchemy
from prefect.server.database import provide_database_interface

async def ask():
    async with provide_database_interface().session_context() as session:
        await session.execute(sqlalchemy.text("SELECT 1"))

try:
    asyncio.run(ask())
    said = "in"
except Exception as error:
    said = repr(error)
print(json.dumps({"asyncpg": said}))
"""
CLIENTS = {"psql", "psycopg2", "asyncpg", "curl", "Prefect over HTTP", "Prefect's websocket"}


class Pair(NamedTuple):
    """A certificate and its key, in PEM."""

    certificate: str
    key: str


def make(
    names: x509.SubjectAlternativeName,
    begin: datetime,
    end: datetime,
    authority: tuple[x509.Name, ec.EllipticCurvePrivateKey],
) -> Pair:
    """Make a host's certificate as the role tls does, but with a given fault."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer, issuer_key = authority
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "biocirv-secure")]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return Pair(
        certificate.public_bytes(Encoding.PEM).decode(),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    )


def kept(platform: "Platform") -> Pair:
    """Return the host's pair in the inventory."""
    stem = platform.tls / platform.name
    return Pair(*(stem.with_name(f"{stem.name}{suffix}").read_text(encoding="utf-8") for suffix in (".crt", ".key")))


@pytest.fixture
def made(platform: "Platform") -> dict[str, Pair]:
    """Return certificates with one fault each."""
    now = datetime.now(UTC)
    day = timedelta(days=1)
    names = (
        x509.load_pem_x509_certificate(kept(platform).certificate.encode())
        .extensions.get_extension_for_class(x509.SubjectAlternativeName)
        .value
    )
    others = x509.SubjectAlternativeName([x509.DNSName("another-host.example")])
    ca = x509.load_pem_x509_certificate((platform.tls / "ca.crt").read_bytes())
    ca_key = load_pem_private_key((platform.tls / "ca.key").read_bytes(), password=None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    ours, foreign = (ca.subject, ca_key), (ca.subject, ec.generate_private_key(ec.SECP256R1()))
    return {
        "expired": make(names, now - 30 * day, now - day, ours),
        "of another host": make(others, now - day, now + 30 * day, ours),
        "of another authority": make(names, now - day, now + 30 * day, foreign),
        "without a fault": make(names, now - day, now + 30 * day, ours),
        "ends soon": make(names, now - 345 * day, now + 20 * day, ours),
    }


@pytest.fixture
def put_back(platform: "Platform") -> Iterator[None]:
    """Serve the inventory's certificate again after the test."""
    yield
    platform.serve(*kept(platform))
    platform.host.check_output("systemctl start prefect-worker prefect-server")


def attempts(platform: "Platform") -> dict[str, str]:
    """Return what each client prints when it connects."""
    said = {}
    psql = platform.psql("SELECT 1", "biocirv_reader")
    said["psql"] = psql.stderr.strip() or {"1\n": "in"}.get(psql.stdout, psql.stdout)
    curl = platform.curl("/api/health", "--fail")
    said["curl"] = curl.stderr.strip() or {"true": "in"}.get(curl.stdout.strip(), curl.stdout)
    for unit, code in (("prefect-worker", WORKERS_CLIENTS), ("prefect-server", SERVERS_CLIENT)):
        done = platform.python(unit, code)
        assert done.stdout.strip(), done.stderr
        said |= json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("without a fault", ()),
        ("expired", ("certificate has expired", "certificate verify failed")),
        # By its name, or because its authority may not issue it.
        (
            "of another host",
            (
                *("doesn't match", "does not match", "name matches target host", "Hostname mismatch"),
                *("permitted subtree violation", "certificate verify failed"),
            ),
        ),
        (
            "of another authority",
            ("unable to get local issuer", "self-signed", "certificate verify failed", "certificate signature failure"),
        ),
    ],
)
def test_a_bad_certificate_is_refused_by_every_client(
    platform: "Platform", made: dict[str, Pair], note: Callable[[str], None], fault: str, words: tuple[str, ...]
) -> None:
    """The error names the certificate; a certificate made in the same way without a fault is accepted."""
    platform.serve(*made[fault])
    said = attempts(platform)
    assert set(said) == CLIENTS
    if not words:
        assert set(said.values()) == {"in"}, said
        return
    for client, text in said.items():
        assert any(word in text for word in words), f"{client}: {text}"
        found = next(word for word in words if word in text)
        note(f"a certificate {fault}, {client}: {found}")


@pytest.mark.usefixtures("put_back")
def test_a_certificate_is_renewed_before_it_ends(
    inventory: "Inventory", platform: "Platform", made: dict[str, Pair], note: Callable[[str], None]
) -> None:
    """A converge renews it with a reload and no restart; the next one changes nothing."""
    soon = made["ends soon"]
    for suffix, text in ((".crt", soon.certificate), (".key", soon.key)):
        (platform.tls / f"{platform.name}{suffix}").write_text(text, encoding="utf-8")
    platform.serve(*soon)
    before, processes = platform.served(443), platform.processes()

    done = inventory.playbook("site.yml", "--tags", "database,proxy")

    assert done.returncode == 0, done.stdout
    first = kept(platform)
    renewed = x509.load_pem_x509_certificate(first.certificate.encode())
    assert renewed.serial_number != before[0]
    assert renewed.not_valid_after_utc > datetime.now(UTC) + timedelta(days=300)
    served = {port: platform.served(port)[0] for port in (443, 5432)}
    assert served == dict.fromkeys(served, renewed.serial_number), done.stdout
    assert platform.processes() == processes
    note(f"renewed: {before[1]} became {platform.served(443)[1]}; no process restarted: {processes}")

    again = inventory.playbook("site.yml", "--tags", "database,proxy")

    assert again.returncode == 0, again.stdout
    assert recap(again.stdout)[0] == 0, again.stdout
    assert kept(platform) == first
    assert platform.processes() == processes
