"""Run a command on the first host of an inventory group, with a terminal if this process has one; show journals of all.

Ansible cannot run interactive commands. This program finds the host in Ansible's inventory and executes `docker exec`
or `ssh`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

SERVICES = Path(__file__).parents[1] / "playbooks/group_vars/all/services.yml"


Host = tuple[str, dict[str, Any]]


def hosts_of(inventory: str, group: str) -> list[Host]:
    """Return the names and variables of a group's hosts, or of the one host of that name.

    Raises SystemExit with advice if there is none.
    """
    listed = subprocess.run(
        # That of this environment, which need not be active.
        [Path(sys.executable).with_name("ansible-inventory"), "--inventory", inventory, "--list"],
        check=False,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        sys.exit(f"The inventory {inventory} cannot be read: {listed.stderr.strip()}")
    listing = json.loads(listed.stdout)
    variables = listing["_meta"]["hostvars"]
    own = [group] if group in variables else []
    hosts = list(variables) if group == "all" else listing.get(group, {}).get("hosts", own)
    if not hosts:
        sys.exit(f"The inventory {inventory} has no host in the group {group!r}: add one, or choose another INVENTORY.")
    return [(host, variables.get(host, {})) for host in hosts]


def services(variables: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the platform's services and those that the inventory adds."""
    listed: list[dict[str, Any]] = yaml.safe_load(SERVICES.read_text(encoding="utf-8"))["__platform_services"]
    other = variables.get("other_services")
    # A template is not resolved here.
    return [*listed, *other] if isinstance(other, list) else listed


def check_account(unit: str, listed: list[dict[str, Any]]) -> None:
    """Raise SystemExit with the valid names if no service of a name, given without its suffix, has an account."""
    names = [service["unit"].removesuffix(".service") for service in listed if "account" in service]
    if unit not in names:
        sys.exit(f"No service {unit!r} with an account of its own: choose one of {', '.join(names)}.")


def in_unit(unit: str, command: list[str], *, terminal: bool) -> list[str]:
    """Return the command as one that runs with a unit's account, variables and sandbox, and the active release."""
    return [
        "/opt/biocirv/bin/in-unit",
        "--pty" if terminal else "--pipe",
        unit,
        "/opt/biocirv/current/app",
        # env searches this PATH for the program; systemd-run would search the host's.
        "/usr/bin/env",
        "PATH=/opt/biocirv/current/env/bin:/usr/local/bin:/usr/bin:/bin",
        *command,
    ]


def transport(name: str, variables: dict[str, Any], command: list[str], *, terminal: bool) -> list[str]:
    """Return the local command that runs `command` as root on a host."""
    address = str(variables.get("ansible_host", name))
    if "docker" in str(variables.get("ansible_connection", "ssh")):
        return ["docker", "exec", "--interactive", *(["--tty"] if terminal else []), address, *command]
    login = [f"-l{variables['ansible_user']}"] if "ansible_user" in variables else []
    key = [f"-i{variables['ansible_ssh_private_key_file']}"] if "ansible_ssh_private_key_file" in variables else []
    port = [f"-p{variables['ansible_port']}"] if "ansible_port" in variables else []
    options = shlex.split(str(variables.get("ansible_ssh_common_args", "")))
    return [
        "ssh",
        *(["-t"] if terminal else []),
        *login,
        *key,
        *port,
        *options,
        address,
        "--",
        "sudo",
        shlex.join(command),
    ]


def follow(hosts: list[Host], command: list[str]) -> int:
    """Run a command on hosts at once, print its lines after the host's name, and return the worst exit code."""
    width = max(len(name) for name, _ in hosts)

    def run(host: Host) -> int:
        name, variables = host
        argv = transport(name, variables, command, terminal=False)
        with subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
        ) as process:
            for line in process.stdout or ():
                print(f"{name:<{width}}  {line}", end="", flush=True)
        return process.returncode

    with ThreadPoolExecutor(len(hosts)) as pool:
        return max(pool.map(run, hosts))


def main() -> None:
    """Parse the command line and execute the command in place of this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--inventory", required=True, help="Ansible inventory")
    parser.add_argument("--unit", help="run with this unit's account and environment")
    parser.add_argument("--journal", metavar="UNIT", help="show the journal of this unit, or of every service if empty")
    parser.add_argument(
        "group", help="run on the first host of this group, of all hosts if 'all', or on the host of this name"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="command and its arguments")
    arguments = parser.parse_args()
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    hosts = hosts_of(arguments.inventory, arguments.group)
    name, variables = hosts[0]
    command = arguments.command
    if arguments.unit:
        check_account(arguments.unit, services(variables))
        command = in_unit(arguments.unit, command, terminal=terminal)
    if arguments.journal is not None:
        units = arguments.journal.split() if arguments.journal else [each["unit"] for each in services(variables)]
        command = ["journalctl", "--no-hostname", *command, *(f"--unit={unit}" for unit in units)]
        if len(hosts) > 1:
            sys.exit(follow(hosts, command))
    argv = transport(name, variables, command, terminal=terminal)
    os.execvp(argv[0], argv)  # noqa: S606 - replaces this process, without a shell


if __name__ == "__main__":
    main()
