"""Surveys a host for preflight: what roles need to know of it, and what is there that the platform would take or close.

Runs on the host as root, in any Python from 3.9 on, so that an unsupported system is reported as such. Changes nothing.
Its argument is JSON, see `survey`; prints its answer as JSON in one line, after MARK: a login banner may precede it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

MARK = "biocirv-survey "
LISTEN = {"tcp": "0A", "udp": "07"}
# Names and addresses are asked for this long. Seconds.
RESOLVE_SECONDS = 10
CONNECT_SECONDS = 5
# DHCP clients, whose replies the firewall lets through as part of their requests.
ANSWERED = {("udp", 68), ("udp", 546)}
# First object id of what users create, see "OID Assignment" in PostgreSQL's documentation of its system catalogs.
FIRST_USER_OID = 16384


class Listener(NamedTuple):
    """A socket that waits for others.

    account: of the process that opened it. program, unit: empty for one of the kernel itself, and in a container whose
    root may not look into other accounts' processes.
    """

    protocol: str
    address: str
    port: int
    account: str
    program: str
    unit: str

    @property
    def name(self) -> str:
        """Return protocol and port, and who listens."""
        who = ", ".join(part for part in (self.program, self.unit) if part) or f"of account {self.account}"
        return f"{self.protocol}/{self.port} ({who})"

    def is_local(self) -> bool:
        """Return whether only the host itself can reach it."""
        return ipaddress.ip_address(self.address).is_loopback

    def collides(self, address: str, port: int) -> bool:
        """Return whether a service cannot listen on a TCP address; `*`, 0.0.0.0 and :: are all of them."""
        everywhere = {"*", "0.0.0.0", "::"}  # noqa: S104 - nothing listens here
        return (self.protocol, self.port) == ("tcp", port) and (
            self.address == address or bool(everywhere & {self.address, address})
        )


class Cluster(NamedTuple):
    """A cluster of PostgreSQL. `own`: it has the platform's settings. `used`: it holds databases of users."""

    version: str
    name: str
    port: int
    own: bool
    used: bool


def survey(asked: dict[str, Any], root: Path = Path("/")) -> dict[str, Any]:
    """Return the facts and the problems of a host.

    asked:
        names, addresses: what the host must resolve (name), and where something must answer (name:port).
        services: those of this host, each with `unit`, `listens` (addresses, name:port) and `own`, whether it
        is the platform's, and not one that an inventory adds.
        accounts: names of the accounts that the platform creates; their homes are below /var/lib.
        postgresql, port: version of the platform's cluster by the system ("Debian 13"), and its port; empty where the
        host has none.
        open_ports, closed_ports: `protocol/port` that the firewall will open, and that it may close.
    """
    found = facts(root)
    found["unresolved_names"] = [name for name in asked["names"] if not is_resolved(name)]
    found["silent_addresses"] = [address for address in asked["addresses"] if not answers(address)]
    patterns = [service["unit"] for service in asked["services"]]
    own = {*asked["accounts"], *(["postgres"] if asked["postgresql"] else [])}
    others = [
        each
        for each in listeners(root)
        if each.account not in own and not any(fnmatchcase(each.unit, pattern) for pattern in patterns)
    ]
    found["time"] = time.time()
    problems = [
        *port_problems(asked["services"], others),
        *unit_problems((service["unit"] for service in asked["services"] if service["own"]), root),
        *account_problems(asked["accounts"], found["accounts"]),
        *(site_problems(root) if "nginx.service" in patterns else []),
    ]
    version = asked["postgresql"].get(f"{found['distribution']} {found['distribution_major_version']}")
    if version:
        problems += cluster_problems(clusters(root), version, asked["port"])
    # An installed firewall closes what it closes: what was started behind it never was open.
    if not (root / "etc/biocirv/firewall.nft").exists():
        problems += closing_problems(others, asked["open_ports"], asked["closed_ports"])
    return {"facts": found, "problems": problems}


def facts(root: Path) -> dict[str, Any]:
    """Return what the roles need to know."""
    memory = re.search(r"(?m)^MemTotal: +([0-9]+)", text(root / "proc/meminfo"))
    release = dict(re.findall(r'(?m)^(\w+)="?([^"\n]*)', text(root / "etc/os-release")))
    names = {"debian": "Debian", "ubuntu": "Ubuntu"}
    zone = os.path.realpath(str(root / "etc/localtime"))
    return {
        "distribution": names.get(release.get("ID", ""), release.get("NAME", "unknown")),
        "distribution_major_version": release.get("VERSION_ID", "").split(".")[0],
        "architecture": os.uname().machine,
        "python": {"version": {"major": sys.version_info[0], "minor": sys.version_info[1]}},
        "service_mgr": text(root / "proc/1/comm").strip(),
        "memtotal_mb": int(memory.group(1)) // 1024 if memory else 0,
        "free_mb": {path: free_mb(root / path.lstrip("/")) for path in ("/opt", "/var")},
        "has_release": (root / "opt/biocirv/current").exists(),
        "has_python3_apt": has_module("apt"),
        "package_lists": any((root / "var/lib/apt/lists").glob("*Packages*")),
        "installed_packages": installed_packages(root),
        "accounts": [":".join((each[0], each[5], each[6])) for each in accounts()],
        "postgresql_clusters": [cluster.version for cluster in clusters(root) if cluster.name == "main"],
        "timezone": zone.partition("/zoneinfo/")[2],
    }


def text(path: Path) -> str:
    """Return a file's text; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def free_mb(path: Path) -> int:
    """Return the space that is free on the file system of a directory that may not exist yet, in MB."""
    there = path if path.exists() else path.parent
    return shutil.disk_usage(str(there)).free // 2**20


def has_module(name: str) -> bool:
    """Return whether the distribution's Python has a module."""
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def installed_packages(root: Path) -> list[str]:
    """Return the names of the packages that are installed."""
    status = text(root / "var/lib/dpkg/status")
    return re.findall(r"(?m)^Package: (\S+)\nStatus: \S+ \S+ installed$", status)


def accounts() -> list[list[str]]:
    """Return the fields of each account, in the order of passwd(5); also those of a directory service."""
    done = subprocess.run(["/usr/bin/getent", "passwd"], stdout=subprocess.PIPE, text=True, check=False)
    return [line.split(":") for line in done.stdout.splitlines() if line.count(":") == 6]


def is_resolved(name: str) -> bool:
    """Return whether the host resolves a name, within a limit."""
    try:
        done = subprocess.run(
            ["/usr/bin/getent", "ahosts", name], stdout=subprocess.DEVNULL, timeout=RESOLVE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def answers(address: str) -> bool:
    """Return whether something accepts connections on an address (name:port)."""
    name, _, port = address.rpartition(":")
    try:
        with socket.create_connection((name, int(port)), timeout=CONNECT_SECONDS):
            return True
    except OSError:
        return False


def listeners(root: Path) -> list[Listener]:
    """Return the sockets that wait for others, without those that programs opened to ask others."""
    owners = socket_owners(root)
    first, last = (
        int(part) for part in (text(root / "proc/sys/net/ipv4/ip_local_port_range") or "32768 60999").split()
    )
    found: dict[Listener, None] = {}
    for protocol in ("tcp", "udp"):
        for family in ("", "6"):
            for line in text(root / f"proc/net/{protocol}{family}").splitlines()[1:]:
                fields = line.split()
                address, _, port = fields[1].partition(":")
                remote = fields[2].partition(":")[2]
                if fields[3] != LISTEN[protocol] or int(remote, 16) != 0:
                    continue
                program, unit = owners.get(fields[9], ("", ""))
                owner, number = account(int(fields[7])), int(port, 16)
                # A UDP socket of a client looks as one of a service, but for its port, which the kernel chose. One of
                # the kernel itself, as for WireGuard, is of root.
                if protocol == "udp" and first <= number <= last and (program or owner != "root"):
                    continue
                listener = Listener(protocol, readable(address), number, owner, program, unit)
                found[listener] = None
    return list(found)


def account(number: int) -> str:
    """Return the name of an account; its number if it has none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def readable(address: str) -> str:
    """Return an address as people write it; /proc/net has its 32-bit words in the order of the processor's bytes."""
    words = [bytes.fromhex(address[start : start + 8]) for start in range(0, len(address), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    found = ipaddress.ip_address(packed)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def socket_owners(root: Path) -> dict[str, Any]:
    """Return the program and the unit of the process that has a socket open, by the socket's inode."""
    owners: dict[str, Any] = {}
    for process in (root / "proc").glob("[0-9]*"):
        try:
            sockets = [str(each.readlink()) for each in (process / "fd").iterdir()]
        except OSError:
            # It has ended meanwhile.
            continue
        inodes = [link[8:-1] for link in sockets if link.startswith("socket:[")]
        if inodes:
            units = re.findall(r"/([^/\n]+\.service)(?:/|$)", text(process / "cgroup"), re.MULTILINE)
            owner = (text(process / "comm").strip(), units[-1] if units else "")
            owners.update((inode, owner) for inode in inodes)
    return owners


def clusters(root: Path) -> list[Cluster]:
    """Return the clusters of PostgreSQL that Debian's tools know."""
    return [cluster(path.parent, root) for path in sorted((root / "etc/postgresql").glob("*/*/postgresql.conf"))]


def cluster(directory: Path, root: Path) -> Cluster:
    """Return the cluster that a directory configures."""
    settings = "\n".join(
        text(path) for path in [directory / "postgresql.conf", *sorted(directory.glob("conf.d/*.conf"))]
    )
    port = setting("port", settings)
    data = setting("data_directory", settings)
    numbers = (path.name for path in Path(str(root) + data).glob("base/*")) if data else iter(())
    return Cluster(
        directory.parent.name,
        directory.name,
        int(port) if port else 5432,
        # pg_upgradecluster copies pg_ident.conf, with the platform's map, and nothing in conf.d.
        own=(directory / "conf.d/biocirv.conf").exists()
        or re.search(r"(?m)^biocirv\s", text(directory / "pg_ident.conf")) is not None,
        used=any(name.isdecimal() and int(name) >= FIRST_USER_OID for name in numbers),
    )


def setting(name: str, settings: str) -> str | None:
    """Return the last value of a setting of PostgreSQL."""
    values = re.findall(rf"(?m)^\s*{name}\s*=?\s*'?([^'#\s]+)", settings)
    return values[-1] if values else None


def port_problems(services: Iterable[dict[str, Any]], others: Iterable[Listener]) -> Iterator[str]:
    """Tell of other programs that listen where a service will."""
    taken = list(others)
    for service in services:
        for wanted in service["listens"]:
            address, _, port = wanted.rpartition(":")
            for other in taken:
                if other.collides(address.strip("[]"), int(port)):
                    yield (
                        f"{other.name} listens where {service['unit']} will ({wanted}): stop and disable it, or give "
                        "one of them another port or address."
                    )


def unit_problems(units: Iterable[str], root: Path) -> Iterator[str]:
    """Tell of units of the platform's names that somebody else wrote."""
    for unit in units:
        path = root / "etc/systemd/system" / unit
        if path.is_file() and "ansible managed" not in text(path).lower() and "ca-biositing" not in text(path):
            yield f"/etc/systemd/system/{unit} is not this platform's, which would replace it: rename it, or remove it."


def account_problems(wanted: Iterable[str], present: Iterable[str]) -> Iterator[str]:
    """Tell of accounts of the platform's names that somebody else made."""
    homes = {name: home for name, home, _ in (line.split(":") for line in present)}
    for name in wanted:
        if name in homes and homes[name] != f"/var/lib/{name}":
            yield (f"the account {name} is not this platform's, whose home is /var/lib/{name}: rename it.")


def site_problems(root: Path) -> Iterator[str]:
    """Tell of sites that an nginx serves which the platform's would replace."""
    if (root / "etc/systemd/system/nginx.service").exists():
        return
    directory = root / "etc/nginx"
    sites = [path for path in sorted(directory.glob("sites-enabled/*")) if path.name != "default"]
    sites += sorted(directory.glob("conf.d/*.conf"))
    if sites:
        names = ", ".join("/" + str(path.relative_to(root)) for path in sites)
        yield (
            f"nginx serves sites of its own ({names}), and the platform's nginx would take its place: use another host "
            "for prefect_server, or move these sites elsewhere and remove their files."
        )


def cluster_problems(present: Iterable[Cluster], version: str, port: int) -> Iterator[str]:
    """Tell of clusters that hold the platform's data in another version, have its port, or would be taken over."""
    found = list(present)
    is_upgraded = any((each.version, each.name, each.own) == (version, "main", True) for each in found)
    for each in found:
        name = f"PostgreSQL's cluster {each.version}/{each.name}"
        is_wanted = (each.version, each.name) == (version, "main")
        if is_wanted and each.used and not each.own:
            yield (
                f"{name} holds databases of somebody else, whose clients this platform would lock out: set "
                "postgresql_version to another version, use another host, or name its administrator's login in "
                "database_administrator."
            )
        elif not is_wanted and each.own:
            # One whose data was moved is no longer started, though it may be configured for the same port.
            if not is_upgraded:
                yield (
                    f"{name} holds this platform's data, and the platform would run {version}/main: `make backup`, "
                    'then follow "Upgrade Debian" in docs/operate.md, which moves the data; or set postgresql_version '
                    f"to {each.version}."
                )
        elif not is_wanted and each.port == port:
            yield f"{name} has port {port}: choose another database_port, or move or remove that cluster."


def closing_problems(others: Iterable[Listener], opened: Iterable[str], closed: Iterable[str]) -> Iterator[str]:
    """Tell of other programs that the firewall would cut off from the network."""
    spared = {*opened, *closed}
    ports: dict[str, str] = {}
    for each in others:
        port = f"{each.protocol}/{each.port}"
        if not each.is_local() and (each.protocol, each.port) not in ANSWERED and port not in spared:
            ports[port] = each.name
    if ports:
        yield (
            f"the firewall would close ports that other programs listen on: {', '.join(ports.values())}. Open them by "
            "firewall_other_rules, or list those to close in preflight_closed_ports, such as "
            f"preflight_closed_ports: [{', '.join(ports)}]."
        )


if __name__ == "__main__":
    sys.stdout.write(f"\n{MARK}{json.dumps(survey(json.loads(sys.argv[1])))}\n")
