"""Attacks from the same network: two ports are open, and both require a password."""

import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

from tests import limits
from tests.scenarios.secure.conftest import ATTACKER

if TYPE_CHECKING:
    from tests.host.conftest import Inventory
    from tests.scenarios.secure.conftest import Platform

FIREWALL = "molecule/secure/firewall.yml"
ANY_API = "/api/flow_runs/count"
# A port that does not answer within this time is blocked by the firewall.
SILENCE_SECONDS = 1
# Exit code of curl.
OUT_OF_TIME = 28
# More than nginx had room for, with 1024 connections for each of two processes.
HELD = 2500
# Begins requests and does not end them; the server has a minute to close the connections.
HOLD = """
import resource, socket, ssl, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
context = ssl.create_default_context(cafile="/root/ca.crt")
held, closed = [], 0
for _ in range(int(sys.argv[2])):
    try:
        plain = socket.create_connection((sys.argv[1], 443), timeout=60)
        connection = context.wrap_socket(plain, server_hostname=sys.argv[1])
        connection.send(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n")
        held.append(connection)
    except OSError:
        closed += 1
print("held", flush=True)
until = time.monotonic() + 60
for connection in held:
    try:
        connection.settimeout(max(until - time.monotonic(), 0.001))
        connection.recv(1)
        closed += 1
    except TimeoutError:
        pass
    except OSError:
        closed += 1
print("closed", closed, flush=True)
"""
# Prefect's own client, in the worker's own environment.
SUBSCRIBE = """
import asyncio
from prefect.events.clients import get_events_subscriber
async def subscribe():
    async with get_events_subscriber(reconnection_attempts=0):
        print("subscribed")
asyncio.run(subscribe())
"""
# A client that sends arbitrary messages.
SPEAK = """
import asyncio, json, os, ssl, websockets
async def speak():
    context = ssl.create_default_context(cafile=os.environ["PREFECT_API_SSL_CERT_FILE"])
    url = os.environ["PREFECT_API_URL"].replace("https", "wss") + "/events/out"
    async with websockets.connect(url, subprotocols=["prefect"], ssl=context, proxy=None) as socket:
        await socket.send(os.path.expandvars(os.environ["FIRST_MESSAGE"]))
        print(json.loads(await socket.recv())["type"])
try:
    asyncio.run(speak())
except websockets.ConnectionClosed as closed:
    print(closed.rcvd.code, closed.rcvd.reason)
"""


@pytest.fixture
def another_service(platform: "Platform") -> Iterator[int]:
    """Run a service on all addresses of the host that the firewall does not know; return its port."""
    port = 8443
    listen = f"systemd-run --quiet --collect --unit=another-service python3 -m http.server {port}"
    platform.host.check_output(listen)
    ask = f"curl --silent --output /dev/null 127.0.0.1:{port}"
    limits.wait_until(lambda: platform.host.run(ask).rc == 0, "the service listens", limits.ANSWER)
    yield port
    platform.host.check_output("systemctl stop another-service")


def test_of_all_ports_two_are_open(
    platform: "Platform", attacker: Host, another_service: int, note: Callable[[str], None]
) -> None:
    """Only these ports are open, whatever else listens on the host."""
    platform.copy("biocirv-attacker", "/root/scan.py", Path(__file__).with_name("scan.py").read_text(encoding="utf-8"))
    begin = time.monotonic()
    found = attacker.check_output(f"python3 /root/scan.py {platform.name} {limits.limit(SILENCE_SECONDS)}")
    note(f"open of ports 1-65535: {found} (in {time.monotonic() - begin:.1f} s); {another_service} is, on loopback")
    assert found.split() == ["443", "5432"]


# Answers on the port of Prefect's server, and writes what it is told.
LISTEN = """
import socket
with socket.create_server(("127.0.0.1", 4200)) as server:
    while True:
        with server.accept()[0] as client:
            print(client.recv(65536), flush=True)
"""


def test_an_account_that_takes_the_server_s_port_is_told_no_password(platform: "Platform") -> None:
    """While the server is stopped, its port is free; nginx would pass on what its clients send."""
    listen = f"systemd-run --quiet --collect --unit=squatter --uid=nobody python3 -c {shlex.quote(LISTEN)}"
    platform.host.check_output("systemctl stop prefect-server")
    try:
        platform.host.check_output(listen)
        listening = "ss --no-header --listening --tcp --numeric 'sport = :4200'"
        limits.wait_until(lambda: platform.host.check_output(listening) != "", "it listens", limits.ANSWER)
        options = ("--request", "POST", "--data", "{}", "--output", "/dev/null", "--write-out", "%{http_code}")
        assert platform.curl("/api/flows/filter", *options, auth=platform.auth_string).stdout == "504"
        said = platform.host.check_output("journalctl --unit squatter --output cat --since -5min")
        assert "POST" not in said
        assert "Authorization" not in said
    finally:
        platform.host.check_output("systemctl stop squatter; systemctl start prefect-server")


def test_the_server_s_own_port_is_the_proxy_s(platform: "Platform") -> None:
    """Its documentation and its websockets would answer without a password there."""
    ask = "curl --silent --output /dev/null --noproxy '*' --max-time 10 http://127.0.0.1:4200/docs"
    assert platform.host.run(ask).rc == 0
    for account in ("nobody", "prefect-worker", "biocirv", "postgres"):
        assert platform.host.run(f"runuser --user {account} -- {ask}").rc == 7, account


def test_without_the_firewall_there_would_be_no_more(platform: "Platform") -> None:
    """All other services listen on loopback."""
    listening = platform.host.check_output("ss --no-header --listening --tcp --udp --numeric").splitlines()
    addresses = [line.split()[4] for line in listening]
    wide = {address.rsplit(":", 1)[1] for address in addresses if not re.match(r"127\.|\[::1\]", address)}
    assert wide == {"443", "5432"}, listening


def test_a_host_that_is_not_a_database_client_gets_no_answer(
    inventory: "Inventory", platform: "Platform", attacker: Host
) -> None:
    """Its packets are dropped without a reset, while the proxy still answers it."""
    connect = f"timeout {limits.limit(3)} bash -c 'exec 3<>/dev/tcp/{platform.name}/%s'"
    assert attacker.run(connect % 5432).rc == 0
    try:
        narrowed = inventory.playbook(FIREWALL, "--extra-vars", '{"database_clients": ["127.0.0.1/32"]}')
        dropped, proxy = attacker.run(connect % 5432), attacker.run(connect % 443)
        closed = platform.psql("SELECT 1", "biocirv_reader", connect_timeout="3")
    finally:
        restored = inventory.playbook(FIREWALL)
    assert narrowed.returncode == 0, narrowed.stdout
    assert restored.returncode == 0, restored.stdout
    # 124 is timeout's exit code; a closed port would answer at once.
    assert dropped.rc == 124, dropped.stderr
    assert proxy.rc == 0
    assert "timeout expired" in closed.stderr
    assert attacker.run(connect % 5432).rc == 0


def test_plain_http_is_sent_to_https(platform: "Platform") -> None:
    plain = platform.curl(
        f"http://{platform.name}:443/api/health",
        "--write-out",
        "\n%{http_code} %{redirect_url}",
        auth=platform.auth_string,
    )
    *body, status = plain.stdout.splitlines()
    assert status == f"308 https://{platform.name}:443/api/health"
    assert "true" not in "".join(body)


@pytest.mark.parametrize(
    "path", ["/docs", "/redoc", "/openapi.json", "//docs", "/%64ocs", "/docs/oauth2-redirect", "/x/../docs"]
)
def test_pages_about_the_api_ask_for_the_password(platform: "Platform", path: str) -> None:
    options = ("--location", "--path-as-is", "--output", "/dev/null", "--write-out", "%{http_code}")
    assert platform.curl(path, *options).stdout == "401"


@pytest.mark.parametrize("path", ["/api/health", "/api/ready"])
def test_health_is_for_everybody(platform: "Platform", path: str) -> None:
    assert platform.curl(path, "--fail").stdout.strip() in ("true", '{"message":"OK"}')


@pytest.mark.parametrize("auth", ["", "biocirv:wrong", "admin:pass"])
def test_the_api_wants_the_password(platform: "Platform", auth: str) -> None:
    write = ["--write-out", "\n%{http_code}"]
    refused = platform.curl(ANY_API, "--json", "{}", *write, auth=auth).stdout.splitlines()
    assert refused == ['{"exception_message":"Unauthorized"}', "401"]
    count, status = platform.curl(ANY_API, "--json", "{}", *write, auth=platform.auth_string).stdout.splitlines()
    assert (count.isdigit(), status) == (True, "200")


def test_pages_of_other_sites_may_not_ask_the_api(platform: "Platform") -> None:
    """CORS: without that header a browser withholds the response from them."""
    answers = {}
    for origin in ("https://elsewhere.example", f"https://{platform.name}"):
        headers = ["--output", "/dev/null", "--dump-header", "-", "--header", f"Origin: {origin}"]
        done = platform.curl("/api/admin/version", *headers, auth=platform.auth_string)
        assert re.match(r"HTTP/1.1 200", done.stdout), done.stdout + done.stderr
        answers[origin] = re.findall(r"(?im)^access-control-allow-origin: *(\S+)", done.stdout)
    assert answers == {"https://elsewhere.example": [], f"https://{platform.name}": [f"https://{platform.name}"]}


def test_browsers_are_told_to_stay_with_https(platform: "Platform") -> None:
    headers = platform.curl("/", "--output", "/dev/null", "--dump-header", "-").stdout
    assert re.search(r"(?im)^strict-transport-security: max-age=\d{7,}", headers), headers


def test_pages_may_talk_to_their_own_host_alone(platform: "Platform") -> None:
    """Otherwise Prefect's pages would send usage statistics to its vendor, and images what a flow wrote to anyone."""
    headers = platform.curl("/", "--output", "/dev/null", "--dump-header", "-").stdout
    policy = re.search(r"(?im)^content-security-policy: (.*)", headers)
    assert policy, headers
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'self'"
    # The graph of a flow run needs it; the scripts themselves are this host's.
    assert rules.pop("script-src") == "'self' 'unsafe-eval'"
    assert {source for rule in rules.values() for source in rule.split()} <= {
        *("'self'", "'none'", "'unsafe-inline'", "data:", "blob:")
    }


def test_requests_that_do_not_end_keep_nobody_out(platform: "Platform", note: Callable[[str], None]) -> None:
    """There is room for others beside them, and they are closed."""
    platform.copy(ATTACKER, "/root/hold.py", HOLD)
    command = ["docker", "exec", ATTACKER, "python3", "/root/hold.py", platform.name, str(HELD)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holding:
        assert holding.stdout
        assert holding.stdout.readline() == "held\n"
        begin = time.monotonic()
        answer = platform.curl("/api/health", "--fail")
        note(f"beside {HELD} requests that do not end, the API answers in {time.monotonic() - begin:.2f} s")
        assert answer.stdout.strip() == "true", answer
        assert holding.stdout.readline() == f"closed {HELD}\n"


def test_the_server_reaches_no_other_addresses_than_it_is_told_to(platform: "Platform") -> None:
    """Whoever holds the API's password makes it post to any address, by an automation (`prefect_server_addresses`)."""
    group = platform.host.check_output("systemctl show --property=ControlGroup --value prefect-server")
    mount = platform.host.check_output("findmnt --types cgroup2 --noheadings --output TARGET | head -n 1")
    enter = f"echo $$ >{mount}{group}/cgroup.procs && "

    def ask(address: str, before: str = "") -> int:
        """Return curl's exit code."""
        curl = f"curl --silent --insecure --noproxy '*' --output /dev/null --max-time 5 https://{address}/api/health"
        code: int = platform.host.run("sh -c %s", f"{before}exec {curl}").rc
        return code

    platform.host.check_output("ip address add 192.0.2.1/32 dev lo")
    try:
        limits.wait_until(lambda: ask("192.0.2.1") == 0, "it answers root", limits.ANSWER)
        # The other address shows that the process can ask at all.
        limits.wait_until(lambda: ask("127.0.0.1", enter) == 0, "the server's own host answers it", limits.ANSWER)
        assert ask("192.0.2.1", enter) == OUT_OF_TIME
    finally:
        platform.host.run("ip address del 192.0.2.1/32 dev lo")


@pytest.mark.parametrize(("port", "starttls"), [(443, ""), (5432, "-starttls postgres")], ids=["proxy", "postgresql"])
def test_only_tls_1_3_is_spoken(
    platform: "Platform", attacker: Host, note: Callable[[str], None], port: int, starttls: str
) -> None:
    """The transcripts are printed."""
    command = (
        f"openssl s_client -connect {platform.name}:{port} {starttls} -verify_return_error -CAfile /root/ca.crt"
        f" -verify_hostname {platform.name} %s </dev/null 2>&1"
    )
    old, new = attacker.run(command % "-tls1_2"), attacker.run(command % "-tls1_3")
    words = (
        r"(?m)^ *(?:New, .*|Verification.*|Verified peername.*|Server Temp Key.*|.*alert .*|Verify return code: \d.*)$"
    )
    for version, shown in (("1.2", old), ("1.3", new)):
        said = dict.fromkeys(line.strip() for line in re.findall(words, shown.stdout))
        if "New, (NONE), Cipher is (NONE)" in said:
            # The verification result is irrelevant here.
            said = {line: None for line in said if "erif" not in line}
        note(f"openssl s_client, port {port}, TLS {version}:\n    " + "\n    ".join(said))
    assert old.rc != 0
    assert "alert protocol version" in old.stdout
    assert new.rc == 0, new.stdout
    assert "New, TLSv1.3" in new.stdout
    assert "Verification: OK" in new.stdout
    assert f"Verified peername: {platform.name}" in new.stdout


def test_prefects_own_websocket_client_is_let_in(platform: "Platform") -> None:
    """It connects through the proxy with the worker's environment, and is refused with a wrong password."""
    welcome = platform.python("prefect-worker", SUBSCRIBE)
    assert welcome.stdout.strip() == "subscribed", welcome.stderr
    refused = platform.python("prefect-worker", SUBSCRIBE, PREFECT_API_AUTH_STRING="biocirv:wrong")
    assert refused.stdout == ""
    assert "401 Unauthorized" in refused.stderr


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        ({"type": "auth", "token": "$PREFECT_API_AUTH_STRING"}, "auth_success"),
        ({"type": "auth", "token": "biocirv:wrong"}, "1008 Invalid token"),
        ({"type": "auth", "token": ""}, "1008 Auth required but no token provided"),
        ({"type": "filter", "filter": {}}, "1008 Expected 'auth' message"),
    ],
    ids=["right", "wrong", "empty", "none"],
)
def test_a_websocket_wants_the_password(platform: "Platform", message: dict[str, str], answer: str) -> None:
    """Prefect requires it inside the websocket, which nginx does not inspect."""
    asked = platform.python("prefect-worker", SPEAK, FIRST_MESSAGE=json.dumps(message))
    assert asked.stdout.strip() == answer, asked.stderr
