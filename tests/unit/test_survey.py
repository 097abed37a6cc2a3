"""What a host has already, and what of it the platform would take or cut off."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROLES = Path(__file__).parents[2] / "roles"
OURS = "# Ansible managed\n[Unit]\n"


@pytest.fixture(scope="module")
def survey(load_plugin: Callable[[str], ModuleType]) -> ModuleType:
    """Return the program as a module."""
    return load_plugin("preflight/files/survey.py")


@pytest.fixture
def listening() -> Iterator[tuple[int, int, int]]:
    """Listen: TCP on all addresses, TCP on loopback, UDP below the ports that the kernel chooses; return the ports."""
    with socket.socket() as everywhere, socket.socket() as local, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        everywhere.bind(("0.0.0.0", 0))  # noqa: S104 - it accepts nothing
        local.bind(("127.0.0.1", 0))
        for port in range(20000, 20100):
            try:
                datagrams.bind(("0.0.0.0", port))  # noqa: S104
                break
            except OSError:
                continue
        everywhere.listen()
        local.listen()
        yield everywhere.getsockname()[1], local.getsockname()[1], datagrams.getsockname()[1]


def write(path: Path, text: str = "") -> None:
    """Write a file, and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_the_program_answers_as_preflight_runs_it(survey: ModuleType, listening: tuple[int, int, int]) -> None:
    """From standard input, for a system where nothing is installed yet."""
    everywhere, local, datagrams = listening
    asked = {
        "names": ["localhost", "no-such-name.invalid"],
        "addresses": [f"127.0.0.1:{everywhere}", "127.0.0.1:1"],
        "services": [{"unit": "mine.service", "listens": [f"127.0.0.1:{local}", "127.0.0.1:1"], "own": True}],
        "accounts": ["daemon"],
        "postgresql": {},
        "port": 5432,
        "open_ports": [],
        "closed_ports": [],
    }
    program = (ROLES / "preflight/files/survey.py").read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-", survey.json.dumps(asked)], input=program, capture_output=True, text=True, check=True
    )
    answer = survey.json.loads(done.stdout.rpartition(survey.MARK)[2])
    facts = answer["facts"]
    assert facts["unresolved_names"] == ["no-such-name.invalid"]
    assert facts["silent_addresses"] == ["127.0.0.1:1"]
    assert facts["memtotal_mb"] > 0
    assert facts["architecture"] == os.uname().machine
    assert facts["python"]["version"]["minor"] == sys.version_info[1]
    assert abs(facts["time"] - survey.time.time()) < 60
    taken, account, *closing = answer["problems"]
    program_name = Path("/proc/self/comm").read_text(encoding="utf-8").strip()
    assert taken.startswith(f"tcp/{local} ({program_name}")
    assert f"listens where mine.service will (127.0.0.1:{local})" in taken
    assert account.startswith("the account daemon is not this platform's")
    (closed,) = closing
    assert f"tcp/{everywhere} " in closed
    assert f"udp/{datagrams} " in closed
    assert f"tcp/{local}" not in closed


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ("0100007F", "127.0.0.1"),
        ("0000000000000000FFFF00000100007F", "127.0.0.1"),
        ("00000000000000000000000001000000", "::1"),
        ("B80D0120000000000000000007000000", "2001:db8::7"),
    ],
)
def test_addresses_are_read_as_the_kernel_writes_them(survey: ModuleType, line: str, address: str) -> None:
    assert survey.readable(line) == address


@pytest.mark.parametrize(
    ("listens", "taken"),
    [("*:443", True), ("[::]:443", True), ("192.0.2.1:443", True), ("192.0.2.2:443", False), ("*:444", False)],
)
def test_an_address_is_taken_by_who_listens_on_it(survey: ModuleType, listens: str, *, taken: bool) -> None:
    other = survey.Listener("tcp", "192.0.2.1", 443, "root", "apache2", "apache2.service")
    problems = list(survey.port_problems([{"unit": "nginx.service", "listens": [listens]}], [other]))
    assert (problems != []) == taken
    assert all(problem.startswith("tcp/443 (apache2, apache2.service) listens where") for problem in problems)


@pytest.mark.parametrize(
    ("listener", "told"),
    [
        (("udp", "192.0.2.1", 161, "Debian-snmp", "snmpd", "snmpd.service"), "udp/161 (snmpd, snmpd.service)"),
        (
            ("udp", "192.0.2.1", 51820, "root", "", ""),
            "udp/51820 (of account root)",
        ),  # WireGuard's, which is the kernel's
        (
            ("tcp", "192.0.2.1", 8080, "root", "docker-proxy", "docker.service"),
            "tcp/8080 (docker-proxy, docker.service)",
        ),
        (("udp", "192.0.2.1", 68, "root", "dhclient", ""), ""),
        (("tcp", "::1", 8080, "root", "ours", ""), ""),
        (("tcp", "192.0.2.1", 22, "root", "sshd", "ssh.service"), ""),
        (("udp", "192.0.2.1", 5353, "avahi", "avahi-daemon", ""), ""),
    ],
)
def test_who_would_be_cut_off_is_told(
    survey: ModuleType, listener: tuple[str, str, int, str, str, str], told: str
) -> None:
    problems = list(survey.closing_problems([survey.Listener(*listener)], ["tcp/22"], ["udp/5353"]))
    assert [told in problem for problem in problems] == ([True] if told else [])
    assert all("preflight_closed_ports: [" in problem for problem in problems)


def make_cluster(
    root: Path, version: str, name: str, *, port: int = 5432, own: bool = False, used: bool = False
) -> None:
    """Write what Debian's tools leave of a cluster."""
    configuration = root / "etc/postgresql" / version / name
    data = f"/var/lib/postgresql/{version}/{name}"
    write(configuration / "postgresql.conf", f"data_directory = '{data}'\t\t# use data\nport = 5432\n#port = 1\n")
    write(configuration / f"conf.d/{'biocirv' if own else 'more'}.conf", f"port = {port}\n")
    for number in [1, 4, 5, *([16384] if used else [])]:
        (root / data.lstrip("/") / "base" / str(number)).mkdir(parents=True)


@pytest.mark.parametrize(
    ("version", "name", "port", "own", "used", "words"),
    [
        ("17", "main", 5432, False, False, ""),
        ("17", "main", 5432, True, True, ""),
        ("17", "main", 5432, False, True, "holds databases of somebody else"),
        ("17", "other", 5433, False, True, ""),
        ("17", "other", 5432, False, False, "has port 5432"),
        ("15", "main", 5432, False, True, "has port 5432"),
        ("15", "main", 5432, True, True, "holds this platform's data, and the platform would run 17/main"),
        ("15", "main", 5433, True, True, "holds this platform's data, and the platform would run 17/main"),
    ],
)
def test_a_cluster_that_is_in_the_way_is_told(
    survey: ModuleType, tmp_path: Path, version: str, name: str, port: int, words: str, *, own: bool, used: bool
) -> None:
    make_cluster(tmp_path, version, name, port=port, own=own, used=used)
    problems = list(survey.cluster_problems(survey.clusters(tmp_path), "17", 5432))
    assert [words in problem for problem in problems] == ([True] if words else [])


def test_a_cluster_that_was_upgraded_may_stay_beside_the_new_one(survey: ModuleType, tmp_path: Path) -> None:
    """pg_upgradecluster gives the new one pg_ident.conf, and nothing of conf.d, where the old one has its port."""
    make_cluster(tmp_path, "15", "main", own=True, used=True)
    make_cluster(tmp_path, "17", "main", used=True)
    idents = tmp_path / "etc/postgresql/17/main/pg_ident.conf"
    write(idents, "# MAPNAME SYSTEM-USERNAME PG-USERNAME\nbiocirv   postgres        biocirv_reader\n")
    assert list(survey.cluster_problems(survey.clusters(tmp_path), "17", 5432)) == []
    write(idents, "# MAPNAME SYSTEM-USERNAME PG-USERNAME\nbiocirvine postgres biocirv\n")
    assert len(list(survey.cluster_problems(survey.clusters(tmp_path), "17", 5432))) == 2


def test_sites_of_another_nginx_are_told(survey: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "etc/nginx/sites-enabled/default")
    assert list(survey.site_problems(tmp_path)) == []
    write(tmp_path / "etc/nginx/sites-enabled/lab")
    write(tmp_path / "etc/nginx/conf.d/status.conf")
    (problem,) = survey.site_problems(tmp_path)
    assert "(/etc/nginx/sites-enabled/lab, /etc/nginx/conf.d/status.conf)" in problem
    write(tmp_path / "etc/systemd/system/nginx.service", OURS)
    assert list(survey.site_problems(tmp_path)) == []


def test_a_unit_of_somebody_else_is_told(survey: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "etc/systemd/system/prefect-server.service", OURS)
    write(tmp_path / "etc/systemd/system/prefect-worker.service", "[Service]\nExecStart=/srv/mine\n")
    units = ["prefect-server.service", "prefect-worker.service", "nginx.service", "postgresql@*.service"]
    (problem,) = survey.unit_problems(units, tmp_path)
    assert problem.startswith("/etc/systemd/system/prefect-worker.service is not this platform's")
    shipped = [each for each in ROLES.glob("*/files/*") if each.suffix in (".service", ".target", ".timer")]
    assert shipped
    for each in shipped:
        write(tmp_path / "etc/systemd/system" / each.name, each.read_text(encoding="utf-8"))
    assert list(survey.unit_problems([each.name for each in shipped], tmp_path)) == []


def test_packages_are_those_that_are_installed(survey: ModuleType, tmp_path: Path) -> None:
    write(
        tmp_path / "var/lib/dpkg/status",
        "Package: zstd\nStatus: install ok installed\nPriority: optional\n\n"
        "Package: nginx\nStatus: deinstall ok config-files\n\nPackage: acl\nStatus: hold ok installed\n",
    )
    assert survey.installed_packages(tmp_path) == ["zstd", "acl"]
