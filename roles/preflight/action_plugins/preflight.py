"""Action that finds all problems of a host and its inventory that would make a converge fail; changes nothing."""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import json
import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible.vars.plugins import get_vars_from_inventory_sources

GROUPS = ("database", "prefect_server", "prefect_worker")
# Groups that must have exactly one host, each with the reason.
SINGLE = {
    "database": "there is one primary",
    "prefect_server": "without Redis each of them would schedule every run and fire every automation",
}

# Roles that playbooks and other roles include with arguments; inventories do not set their variables.
INTERNAL = ("activation", "audit", "managed_files", "packages", "prefect_runs", "secrets", "status", "systemd_unit")

# The entry point whose variables an inventory must set.
INVENTORY = "preflight (inventory)"

# The survey's line of JSON begins with this.
MARK = "biocirv-survey "
# An address that a service listens on.
LISTENS = re.compile(r".+:[0-9]{1,5}")
# First version of PostgreSQL with the privilege MAINTAIN.
MAINTAIN = 17
# Exit code of the survey's command where the host has no Python.
NO_PYTHON = 93
# Difference between the clocks of a host and of the controller from which on times are confused: a certificate may not
# be valid yet, and flow runs are considered crashed after 90 seconds without a heartbeat. Seconds.
CLOCK_SECONDS = 30
# Python of each system's distribution, for which its packages are built.
PYTHONS = {("Debian", "12"): "3.11", ("Debian", "13"): "3.13", ("Ubuntu", "24"): "3.12"}


def read_survey(output: str) -> dict[str, Any] | None:
    """Return the survey's answer from what its command printed; None if there is none."""
    lines = [line for line in output.splitlines() if line.startswith(MARK)]
    answer: dict[str, Any] | None = json.loads(lines[-1].removeprefix(MARK)) if lines else None
    return answer


def mappings(value: object) -> list[Mapping[str, Any]]:
    """Return the mappings of a list; what is none is reported by the argument specs."""
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def group_problems(groups: Mapping[str, list[str]], own: Iterable[str]) -> list[str]:
    """Return the problems of an inventory's groups.

    groups: name -> hosts, as Ansible's magic variable; own: additional groups that the operator declared.
    """
    problems = []
    known = {*GROUPS, *own, "all", "ungrouped"}
    for name in sorted(set(groups) - known):
        near = difflib.get_close_matches(name, GROUPS, n=1)
        hint = f"did you mean {near[0]!r}? If not" if near else "if it is yours"
        problems.append(
            f"group {name!r} of the inventory is not one of {', '.join(GROUPS)}: {hint}, add it to "
            "preflight_other_groups."
        )
    problems += [
        f"group {name!r} has no host: name at least one in the inventory." for name in GROUPS if not groups.get(name)
    ]
    problems += [
        f"group {name!r} has {len(groups[name])} hosts ({', '.join(groups[name])}), and {reason}: leave one."
        for name, reason in SINGLE.items()
        if len(groups.get(name, [])) > 1
    ]
    return problems


def worker_problems(names: Mapping[str, object]) -> list[str]:
    """Return the problems of the workers' names, given by host: each ends the flow runs of its name that it lacks."""
    by_name: dict[str, list[str]] = {}
    for host, name in names.items():
        by_name.setdefault(str(name), []).append(host)
    return [
        f"prefect_worker_name is {name!r} on {', '.join(hosts)}, whose workers would end each other's flow runs: give "
        "each host another, or leave the variable out."
        for name, hosts in sorted(by_name.items())
        if len(hosts) > 1
    ]


def service_problems(services: object, groups: Mapping[str, list[str]], own: Iterable[str] = ()) -> list[str]:
    """Return what is wrong with `other_services` beyond the types of its values, which the argument specs check.

    groups: name -> hosts, as Ansible's magic variable; own: units of the platform.
    """
    entries = mappings(services)
    problems = []
    for service in entries:
        problems += [
            f"other_services: {service.get('unit')} listens on {address}: write it as 127.0.0.1:9187."
            for address in service.get("listens") or []
            if not LISTENS.fullmatch(str(address))
        ]
        unit, group = service.get("unit"), service.get("group")
        if isinstance(group, str) and group not in groups:
            near = difflib.get_close_matches(str(group), groups, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "name a group of the inventory, or all."
            problems.append(
                f"other_services: {unit} runs on group {group!r}, which the inventory does not have: {hint}"
            )
        if service.get("follows") and group not in GROUPS[1:]:
            problems.append(
                f"other_services: {unit} follows the {service['follows']}, which only {' and '.join(GROUPS[1:])} have: "
                "name one of these groups, or leave `follows` out."
            )
        if service.get("follows") and service.get("kind") == "task":
            problems.append(f"other_services: {unit} is a task, which ends and follows nothing: leave `follows` out.")
        if service.get("follows") and not service.get("renewal"):
            problems.append(
                f"other_services: {unit} follows the {service['follows']}: say by `renewal` how it is renewed."
            )
    units = [*own, *(service.get("unit") for service in entries if service.get("unit"))]
    problems += [
        f"other_services: {unit} is listed twice." for unit in sorted({str(u) for u in units if units.count(u) > 1})
    ]
    return problems


def name_problems(names: Iterable[str], known: set[str], roles: Iterable[str]) -> list[str]:
    """Return the variables that have a role's prefix but are not in its argument specs, and so have no effect.

    names: those of all variables; known: those of the roles' argument specs; roles: the roles' names.
    """
    prefixes = tuple(f"{role}_" for role in roles)
    problems = []
    for name in sorted(name for name in names if name.startswith(prefixes) and name not in known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "docs/variables.md lists those that there are."
        problems.append(f"{name} is no variable of any role: {hint} If it is yours, name it otherwise.")
    return problems


def wired_problems(names: Iterable[str], wiring: Mapping[str, object], known: Iterable[str]) -> list[str]:
    """Return the variables of an inventory that have no effect, because the wiring makes them of others.

    names: those that the inventory sets; wiring: name -> template, of the wiring's file; known: those that an inventory
    may set.
    """
    problems = []
    for name in sorted(set(names) & wiring.keys()):
        made_of = sorted(set(re.findall(r"\b[a-z][a-z0-9_]+\b", str(wiring[name]))) & set(known))
        hint = f"set {' or '.join(made_of)} instead, of which it is made" if made_of else "the platform itself sets it"
        problems.append(f"{name} has no effect in an inventory: {hint}.")
    return problems


def rights_problems(rights: object, version: str) -> list[str]:
    """Return that PostgreSQL's version lacks a right that flows shall have; an empty version is not known."""
    if not isinstance(rights, list) or "maintain" not in rights or not version.isdecimal() or int(version) >= MAINTAIN:
        return []
    return [
        f"database_flow_rights: PostgreSQL {version} has no right to maintain tables, which is new in {MAINTAIN}: "
        "write [own], with which flows act as the owner."
    ]


def host_problems(facts: Mapping[str, Any], limits: Mapping[str, int]) -> list[str]:
    """Return the problems of a host.

    facts: those of the survey; limits: least `memory`, `disk` and, where a release is installed already, `deploy_disk`,
    in MB.
    """
    problems = []
    disk = "deploy_disk" if facts["has_release"] else "disk"
    system = (facts["distribution"], facts["distribution_major_version"])
    python = "{major}.{minor}".format(**facts["python"]["version"])
    if system not in PYTHONS:
        problems.append(
            f"{' '.join(system)} is not supported: use Debian 12 or 13, or Ubuntu 24.04 (written for, untested)."
        )
    elif python != PYTHONS[system]:
        problems.append(
            f"/usr/bin/python3 is Python {python}, and {' '.join(system)} brings {PYTHONS[system]}: complete the "
            "upgrade of the system, or remove what has replaced the distribution's Python."
        )
    if facts["service_mgr"] != "systemd":
        problems.append(f"the host runs {facts['service_mgr']!r} as PID 1: the services need systemd.")
    if facts["memtotal_mb"] < limits["memory"]:
        problems.append(
            f"{facts['memtotal_mb']} MB of memory are less than {limits['memory']} MB: give the host more, "
            "or lower preflight_minimum_memory_mb."
        )
    problems += [
        f"{free} MB free on the file system of {path} are less than {limits[disk]} MB: free some, "
        f"or lower preflight_minimum_{disk}_mb."
        for path, free in facts["free_mb"].items()
        if free < limits[disk]
    ]
    return problems


def clock_problems(host: float, before: float, after: float) -> list[str]:
    """Return that a host's clock differs from the controller's.

    host: seconds since the epoch; before, after: the same on the controller, before and after it asked the host.
    """
    difference = host - after if host > after else min(host - before, 0)
    if abs(difference) <= CLOCK_SECONDS:
        return []
    side = "ahead of" if difference > 0 else "behind"
    return [
        f"the host's clock is {abs(round(difference))} s {side} the clock of the machine that runs Ansible: set the "
        "one that is wrong; systemd-timesyncd or chrony keeps it right."
    ]


def reach_problems(needed: Mapping[str, str], unresolved: Iterable[str], silent: Iterable[str]) -> list[str]:
    """Return the names that the host cannot resolve, and the proxies that do not answer it.

    needed: variable -> name or address; unresolved, silent: what REACH found.
    """
    problems = []
    for variable, name in needed.items():
        if name in unresolved:
            problems.append(
                f"{variable} names {name}, which the host cannot resolve: correct the variable, or the host's DNS "
                "or /etc/hosts."
            )
        elif name in silent:
            problems.append(
                f"{variable} names {name}, where nothing answers the host: correct it, or open the way to it."
            )
    return problems


def unreachable(error: str, advice: str) -> dict[str, str]:
    """Return what to say of a host where no command can be run: a message, and the error where it explains more."""
    if re.search(r"(?i)incorrect (\w+ )?password|duplicate become password|waiting for privilege escal", error):
        return {
            "msg": "sudo on the host refuses the password that you gave: give that of the account that you log in with."
        }
    if re.search(r"(?i)(sudo|become)[^\n]*password|password is required", error):
        return {
            "msg": "sudo on the host asks for a password. To be asked for it, add OPTIONS=--ask-become-pass to the "
            "command of `make`, or --ask-become-pass (-K) to that of ansible-playbook."
        }
    return {"msg": f"The host cannot be reached: {advice}", "stderr": error}


def file_problems(files: Mapping[str, object]) -> list[str]:
    """Return the files of the controller that cannot be read: name of the variable -> path."""
    problems = []
    for name, path in files.items():
        try:
            with Path(str(path or "")).expanduser().open("rb"):
                continue
        except (OSError, RuntimeError) as error:
            why = getattr(error, "strerror", None) or error
        problems.append(
            f"{name}: {path} cannot be read ({why}): correct the path, a file on the machine that runs Ansible."
        )
    return problems


def url_problems(url: object) -> list[str]:
    """Return the problems of prefect_api_url; None (no value) is reported elsewhere."""
    try:
        parts = urlsplit(str(url))
        sound = re.fullmatch(r"https://[^/@\s]+/api", str(url)) and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if url is None or sound:
        return []
    return [f"prefect_api_url is {url}: it must be https://<name>/api, or https://<name>:<port>/api."]


def host_of(url: object, *, with_port: bool = False) -> str:
    """Return the host of a URL, with its port if asked; empty if it has none."""
    try:
        parts = urlsplit(str(url))
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        return ""
    return (f"{parts.hostname}:{port}" if with_port and port else parts.hostname) or ""


def key_problems(key: object) -> list[str]:
    """Return the problems of prefect_encryption_key; None (no value) is reported elsewhere."""
    if key is None or (str(key).isascii() and len(str(key)) == 32):
        return []
    return ["prefect_encryption_key must be of 32 ASCII characters, as the cipher takes them."]


def password_problems(name: str, password: object) -> list[str]:
    """Return that a password has characters that programs read differently; None (no value) is reported elsewhere."""
    if password is None or (str(password) and str(password).isascii() and str(password).isprintable()):
        return []
    return [f"{name} must be of printable ASCII characters, and have at least one: programs encode others differently."]


def address_problems(name: str, address: object) -> list[str]:
    """Return that an address is an IPv6 literal, which the URLs of PostgreSQL and Prefect cannot take as it is."""
    try:
        ipaddress.IPv6Address(str(address).strip("[]"))
    except ValueError:
        return []
    return [f"{name} names {address}: give that IPv6 address a name, in DNS or /etc/hosts, and write the name."]


def source_problems(repository: object, version: object) -> list[str]:
    """Return the problems of a git repository as source, and of the commit to use; an empty repository is none."""
    if not repository:
        return []
    problems = []
    # What git takes for a path or for ssh (host:path), or names of protocols.
    if (protocol := re.match(r"([A-Za-z0-9+.-]+)::?//|([A-Za-z0-9+.-]+)::", str(repository))) and (
        protocol[1] or protocol[2]
    ) not in ("https", "ssh", "file"):
        problems.append(
            f"release_git_repository names the protocol {protocol[1] or protocol[2]}: use https, ssh or a path, as "
            "others do not authenticate the server, or run programs."
        )
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", str(version or "")):
        problems.append(
            f"release_git_version is {version or 'empty'}: write the full id of a commit, because tags and branches "
            "can be moved. `git ls-remote <repository>` lists those of tags and branches."
        )
    return problems


def passphrase_problems(passphrase: object, *, needed: bool) -> list[str]:
    """Return that backup_passphrase is missing, or that pgBackRest's configuration cannot hold it."""
    if not needed or re.fullmatch(r"[!-~]{12,}", str(passphrase or "")):
        return []
    return [
        "backup_passphrase, which encrypts the backups, must be of at least 12 printable ASCII characters without "
        "spaces: copy its line from inventory/single-host.example/group_vars/all/secrets.yml to your secrets.yml, or "
        "turn backups off by `backup_repositories: []`."
    ]


def network_problems(name: str, networks: object) -> list[str]:
    """Return the entries of a list that are no networks in CIDR notation; what is no list is reported elsewhere.

    pg_hba.conf would take what follows an address without a prefix length for its mask.
    """
    problems = []
    for network in networks if isinstance(networks, list) else []:
        try:
            if "/" not in str(network):
                raise ValueError(f"{network} has no prefix length")
            ipaddress.ip_network(str(network))
        except ValueError as error:
            problems.append(f"{name}: {error}: write a network in CIDR notation, such as 10.1.0.0/24 or 2001:db8::/64.")
    return problems


def port_problems(name: str, port: object) -> list[str]:
    """Return that a number is no TCP port; what is no number is reported elsewhere."""
    if not str(port).isdecimal() or 0 < int(str(port)) < 65536:
        return []
    return [f"{name} is {port}: a TCP port is between 1 and 65535."]


def limit_problems(name: str, limits: object) -> list[str]:
    """Return the entries of a mapping of flows to limits that the flows would refuse; None (no value) has none."""
    if limits is not None and not isinstance(limits, Mapping):
        return [f"{name} must map flows to limits, such as {{all: 10%, observation: 5}}."]
    problems = []
    for flow, limit in (limits or {}).items():
        if not re.fullmatch("[a-z][a-z0-9_]*", str(flow)):
            problems.append(f"{name}: {flow} is no flow: write its name as in AVAILABLE_FLOWS, or all.")
        if not re.fullmatch(r"[0-9]+|(100|[0-9]{1,2}(\.[0-9]+)?)%", str(limit)):
            problems.append(
                f"{name}: the limit of {flow} is {limit}: write a number of rows, such as 5, or a percentage up to "
                "100, such as 10%."
            )
    return problems


def checked(what: str, check: Callable[..., list[str]], *arguments: object) -> list[str]:
    """Return what a check finds; where it fails itself, say so and lose no other problem."""
    try:
        return check(*arguments)
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        return [f"{what} could not be checked ({type(error).__name__}: {error}): correct the other problems first."]


def read_names(roles: Path) -> set[str]:
    """Return the names of the options of all entry points of all roles; -e may set those that a playbook passes on."""
    texts = (path.read_text(encoding="utf-8") for path in roles.glob("*/meta/argument_specs.yml"))
    entries = [entry for text in texts for entry in yaml.safe_load(text)["argument_specs"].values()]
    return {name for entry in entries for name in entry.get("options", {})}


def read_specs(roles: Path) -> dict[str, dict[str, Any]]:
    """Return the options that an inventory may set, by "role" or "role (inventory)"; those of INVENTORY first.

    Options of further entry points are set by the tasks that include them, not by an inventory.
    """
    specs: dict[str, dict[str, Any]] = {}
    for path in sorted(roles.glob("*/meta/argument_specs.yml")):
        role = path.parent.parent.name
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]
        if "inventory" in entries:
            specs[f"{role} (inventory)"] = entries["inventory"]["options"]
        if role not in INTERNAL:
            specs[role] = entries["main"].get("options", {})
    # The operator's variables come first: a role's variable that is derived from one repeats its errors.
    return dict(sorted(specs.items(), key=lambda item: item[0] != INVENTORY))


class ActionModule(ActionBase):  # type: ignore[misc] # ansible has no type hints
    """Fail with the list of all problems found; set the host's facts.

    Takes `roles`, the directory whose argument specs are checked, `unreachable_advice`, and `other_problems`, which
    roles found themselves.
    """

    _requires_connection = True
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run as an Ansible action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        names, proxies = self.needed(variables)
        before = time.time()
        try:
            shell = self.survey(names, proxies, variables)
        except AnsibleError as error:
            # The connection was refused, or the program to connect with is missing.
            shell = {"rc": 255, "stdout": "", "stderr": str(error)}
        after = time.time()
        if shell["rc"] == NO_PYTHON:
            return {**result, "failed": True, "msg": "The host has no /usr/bin/python3: `apt-get install python3`."}
        survey = read_survey(shell["stdout"])
        # The Docker connection reports a missing container as a failed command.
        if survey is None:
            return {**result, "failed": True, **unreachable(shell["stderr"], self._task.args["unreachable_advice"])}
        facts = survey["facts"]
        result["ansible_facts"] = {f"ansible_{name}": found for name, found in facts.items()}

        groups = variables["groups"]
        specs = read_specs(Path(self._task.args["roles"]))
        known = read_names(Path(self._task.args["roles"]))
        own = [service["unit"] for service in variables.get("__platform_services") or []]
        credentials, authorities = (
            self.value("credential_files", variables),
            self.value("extra_ca_certificates", variables),
        )
        files = dict(credentials) if isinstance(credentials, Mapping) else {}
        files = {f"{name} of credential_files": path for name, path in files.items()}
        if isinstance(authorities, list):
            files |= {f"entry {number} of extra_ca_certificates": path for number, path in enumerate(authorities, 1)}
        if (lock := self.value("release_lock", variables)) and not self.value("release_archive", variables):
            files["release_lock"] = lock
        problems = [
            *checked("The groups", group_problems, groups, self.value("preflight_other_groups", variables) or []),
            *worker_problems(self.worker_names(variables)),
            *name_problems(variables, known, {role.split()[0] for role in specs}),
            *self.variable_problems(specs, variables),
            *checked("other_services", service_problems, self.value("other_services", variables), groups, own),
            *checked("Files", file_problems, files),
            *checked("prefect_api_url", url_problems, self.value("prefect_api_url", variables)),
            *key_problems(self.value("prefect_encryption_key", variables)),
            *source_problems(*(self.value(f"release_git_{name}", variables) for name in ("repository", "version"))),
            *port_problems("database_port", self.value("database_port", variables)),
            *wired_problems(self.set_names(variables), self.wiring(), specs[INVENTORY]),
            *rights_problems(
                self.value("database_flow_rights", variables),
                self.versions(variables).get(f"{facts['distribution']} {facts['distribution_major_version']}", ""),
            ),
            *address_problems("database_address", self.value("database_address", variables)),
            *address_problems("prefect_api_url", host_of(self.value("prefect_api_url", variables))),
            *passphrase_problems(
                self.value("backup_passphrase", variables), needed=bool(self.value("backup_enabled", variables))
            ),
        ]
        for name in specs[INVENTORY]:
            if name.endswith("_password"):
                problems += password_problems(name, self.value(name, variables))
        problems += network_problems("database_clients", self.value("database_clients", variables))
        problems += reach_problems(names | proxies, facts["unresolved_names"], facts["silent_addresses"])
        problems += limit_problems(
            "prefect_worker_rejected_limits", self.value("prefect_worker_rejected_limits", variables)
        )
        problems += self._task.args["other_problems"]
        limits = {
            name: self.number(f"preflight_minimum_{name}_mb", variables) for name in ("memory", "disk", "deploy_disk")
        }
        problems += host_problems(facts, limits) + clock_problems(facts["time"], before, after) + survey["problems"]
        if self._task.check_mode and not facts["has_python3_apt"]:
            problems.append("check mode needs the package python3-apt on the host: `apt-get install python3-apt`.")
        if self._task.check_mode and not facts["package_lists"]:
            problems.append("check mode needs the lists of packages on the host: `apt-get update`.")

        if problems:
            result["failed"] = True
            result["msg"] = f"{len(problems)} problem(s), nothing was changed:\n" + "\n".join(
                f"- {problem}" for problem in problems
            )
        return result

    def value(self, name: str, variables: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a variable
        """Return a variable's value; None if it has none or cannot be templated, which variable_problems reports."""
        try:
            return self._templar.template(variables.get(name))
        except AnsibleError:
            return None

    def worker_names(self, variables: Mapping[str, Any]) -> dict[str, object]:
        """Return the names of the workers by host, but for those that depend on facts of a host."""
        names: dict[str, object] = {}
        for host in variables["groups"].get("prefect_worker", []):
            with contextlib.suppress(AnsibleError):
                names[host] = variables["hostvars"][host].get("prefect_worker_name", host)
        return names

    def survey(
        self, names: Mapping[str, str], proxies: Mapping[str, str], variables: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Run the survey on the host; return what the command printed.

        Not a module call: the command module does nothing in check mode, and a host without Python gets a clear answer.
        """
        roles = Path(self._task.args["roles"])
        rules = mappings(self.value("firewall_rules", variables))
        firewall = yaml.safe_load((roles / "firewall/defaults/main.yml").read_text(encoding="utf-8"))
        ssh = self.value("firewall_ssh_ports", variables) or firewall["firewall_ssh_ports"]
        ssh = [*(ssh if isinstance(ssh, list) else []), self.value("ansible_port", variables)]
        asked = {
            "names": list(names.values()),
            "addresses": list(proxies.values()),
            "services": [
                {
                    "unit": str(service.get("unit")),
                    "listens": [each for each in service.get("listens") or [] if LISTENS.fullmatch(str(each))],
                    "own": "role" not in service,
                }
                for service in mappings(self.value("__host_services", variables))
            ],
            "accounts": self.value("base_accounts", variables) or [],
            "postgresql": self.versions(variables),
            "port": self.number("database_port", variables),
            "open_ports": [f"tcp/{port}" for port in ssh if port]
            + [f"{rule.get('protocol', 'tcp')}/{rule.get('port')}" for rule in rules],
            "closed_ports": self.value("preflight_closed_ports", variables) or [],
        }
        command = (
            f"test -x /usr/bin/python3 || exit {NO_PYTHON}; exec /usr/bin/python3 - {shlex.quote(json.dumps(asked))}"
        )
        program = (roles / "preflight/files/survey.py").read_bytes()
        answer: dict[str, Any] = self._low_level_execute_command(f"/bin/sh -c {shlex.quote(command)}", in_data=program)
        return answer

    def versions(self, variables: Mapping[str, Any]) -> dict[str, str]:
        """Return the version of PostgreSQL by the system, such as "Debian 13"; none where the host does not run it."""
        if "database" not in variables["group_names"] or self.value("database_administrator", variables):
            return {}
        path = Path(self._task.args["roles"]) / "postgresql/vars/main.yml"
        versions = yaml.safe_load(path.read_text(encoding="utf-8"))["__postgresql_distribution_versions"]
        version = self.number("postgresql_version", variables)
        return {system: str(version or default) for system, default in versions.items()}

    def wiring(self) -> dict[str, object]:
        """Return the variables of roles that the platform makes of an operator's."""
        path = Path(self._task.args["roles"]).parent / "playbooks/group_vars/all/wiring.yml"
        wiring: dict[str, object] = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {name: value for name, value in wiring.items() if not name.startswith("__")}

    def set_names(self, variables: Mapping[str, Any]) -> set[str]:
        """Return the names of the variables that the inventory sets for the host, in its files and beside them."""
        hostvars = variables["hostvars"]
        inventory, loader = hostvars._inventory, hostvars._loader
        host = inventory.get_host(variables["inventory_hostname"])
        entities = [*host.get_groups(), host]
        beside = get_vars_from_inventory_sources(loader, inventory._sources, entities, "task")
        return {*beside, *(name for entity in entities for name in entity.vars)}

    def needed(self, variables: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
        """Return the names that the host must resolve, and the proxies (name:port) that must answer it, by variable."""
        names = {}
        # A host of the database alone asks neither the API nor the database.
        if any(group in variables["group_names"] for group in GROUPS[1:]):
            names["prefect_api_url"] = host_of(self.value("prefect_api_url", variables))
            names["database_address"] = str(self.value("database_address", variables) or "")
        proxies = {name: host_of(self.value(name, variables), with_port=True) for name in ("http_proxy", "https_proxy")}
        # An IPv6 literal is a problem of its own, not a name.
        names = {key: name for key, name in names.items() if name and not address_problems(key, name)}
        return names, {key: name for key, name in proxies.items() if name}

    def number(self, name: str, variables: Mapping[str, Any]) -> int:
        """Return a variable's value as a number; 0 if it is none, which variable_problems reports."""
        value = str(self.value(name, variables))
        return int(value) if value.isdecimal() else 0

    def variable_problems(self, specs: Mapping[str, dict[str, Any]], variables: Mapping[str, Any]) -> list[str]:
        """Return the problems of an inventory's variables: missing, of a wrong type, or not templatable."""
        problems = []
        untemplatable: set[str] = set()
        told: set[str] = set()
        for role, options in specs.items():
            values = {}
            for name in options:
                try:
                    value = self._templar.template(variables.get(name))
                except AnsibleError as error:
                    untemplatable.add(name)
                    # A wired variable repeats the problem of the operator's variable that it is derived from.
                    if str(error) not in told and not any(own in str(error) for own in specs[INVENTORY]):
                        problems.append(f"{name} (role {role}): {error}")
                    told.add(str(error))
                else:
                    # A variable without a value counts as not set.
                    if value is not None:
                        values[name] = value
            spec = {name: dict(option) for name, option in options.items() if name not in untemplatable}
            errors = ArgumentSpecValidator(spec).validate(values).error_messages
            problems += [
                f"{error} (role {role}; `ansible-doc -t role {role.split()[0]}` describes it)" for error in errors
            ]
        return problems
