"""Action that finds everything about a host and its inventory that would stop a converge, and changes nothing."""

from __future__ import annotations

import difflib
import ipaddress
import re
import shlex
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

SUPPORTED = {("Debian", "12"), ("Debian", "13"), ("Ubuntu", "24")}
GROUPS = ("database", "prefect_server", "prefect_worker")
# Groups that have one host, and why.
SINGLE = {
    "database": "there is one primary",
    "prefect_server": "without Redis each of them would schedule every run and fire every automation",
}

# A provided certificate with less left than this is a problem: nothing but its owner renews it. Days.
LEAST_DAYS = 14

# Roles that other roles include, with arguments of theirs: no inventory sets their variables.
INTERNAL = ("managed_files", "systemd_unit")

# The entry point whose variables an inventory must set.
INVENTORY = "base (inventory)"

# What the roles ask of a host's facts; more would take longer.
FACTS = ["!all", "!min", "distribution", "platform", "python", "service_mgr"]

# One remote command for what facts do not tell: `df` sees an overlay root, which the mounts fact leaves out. What a
# host is known to have, no role need ask for, which would take half a second each time.
PROBE = """
awk '/^MemTotal/ {print "memory", int($2 / 1024)}' /proc/meminfo
df -Pm /opt /var | awk 'NR == 2 {print "/opt", $4} NR == 3 {print "/var", $4}'
/usr/bin/python3 -c 'import apt' 2>/dev/null && echo python3-apt 1 || echo python3-apt 0
ls /var/lib/apt/lists/*Packages* >/dev/null 2>&1 && echo lists 1 || echo lists 0
dpkg-query --show --showformat '${db:Status-Status} ${Package}\n' | sed -n 's/^installed /package /p'
getent passwd | awk -F: '{print "account", $1 ":" $6 ":" $7}'
ls /etc/postgresql/*/main/postgresql.conf 2>/dev/null | awk -F/ '{print "cluster", $4}'
readlink /etc/localtime | sed -n 's,.*/zoneinfo/,timezone ,p'
"""
# Those lines of which there may be any number, as facts.
LISTS = {
    "package": "installed_packages",
    "account": "accounts",
    "cluster": "postgresql_clusters",
    "timezone": "timezones",
}


def read_probe(lines: Iterable[str]) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Return what PROBE printed: its numbers by their names, and what a host has, by the names of the facts."""
    numbers: dict[str, int] = {}
    lists: dict[str, list[str]] = {fact: [] for fact in LISTS.values()}
    # On a slow host, what ssh and sudo print to log in leaves an empty line before them.
    for name, value in (line.split(maxsplit=1) for line in lines if line.strip()):
        if name in LISTS:
            lists[LISTS[name]].append(value)
        else:
            numbers[name] = int(value)
    return numbers, lists


def group_problems(groups: Mapping[str, list[str]], own: Iterable[str]) -> list[str]:
    """Return what is wrong with the groups of an inventory.

    groups: name -> hosts, as Ansible's magic variable; own: names that the operator declared as theirs.
    """
    problems = []
    known = {*GROUPS, *own, "all", "ungrouped"}
    for name in sorted(set(groups) - known):
        near = difflib.get_close_matches(name, GROUPS, n=1)
        hint = f"did you mean {near[0]!r}? If not" if near else "if it is yours"
        problems.append(
            f"group {name!r} of the inventory is not one of {', '.join(GROUPS)}: {hint}, add it to base_other_groups."
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


def name_problems(names: Iterable[str], known: set[str], roles: Iterable[str]) -> list[str]:
    """Return which variables are named as a role's, and are none: what they say would have no effect.

    names: those of all variables; known: those of the roles' argument specs; roles: the roles' names.
    """
    prefixes = tuple(f"{role}_" for role in roles)
    problems = []
    for name in sorted(name for name in names if name.startswith(prefixes) and name not in known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "docs/variables.md lists those that there are."
        problems.append(f"{name} is no variable of any role: {hint} If it is yours, name it otherwise.")
    return problems


def host_problems(facts: Mapping[str, Any], probe: Mapping[str, int], limits: Mapping[str, int]) -> list[str]:
    """Return what is wrong with a host.

    facts: Ansible's, without prefix; probe: what PROBE printed, in MB; limits: least `memory` and `disk`, in MB.
    """
    problems = []
    system = (facts.get("distribution", "unknown"), str(facts.get("distribution_major_version", "")))
    if system not in SUPPORTED:
        problems.append(
            f"{' '.join(system)} is not supported: use Debian 12 or 13, or Ubuntu 24.04 (written for, untested)."
        )
    if facts.get("service_mgr") != "systemd":
        problems.append(f"the host runs {facts.get('service_mgr')!r} as PID 1: the services need systemd.")
    if probe.get("memory", 0) < limits["memory"]:
        problems.append(
            f"{probe.get('memory', 0)} MB of memory are less than {limits['memory']} MB: give the host more, "
            "or lower base_minimum_memory_mb."
        )
    problems += [
        f"{probe.get(path, 0)} MB free on the file system of {path} are less than {limits['disk']} MB: free some, "
        "or lower base_minimum_disk_mb."
        for path in ("/opt", "/var")
        if probe.get(path, 0) < limits["disk"]
    ]
    return problems


def file_problems(files: Mapping[str, str]) -> list[str]:
    """Return which files of the controller cannot be read: name of whatever asks for one -> path."""
    return [
        f"{name}: {path} is not there, or is no file: correct the path, which is one of the machine that runs Ansible."
        for name, path in files.items()
        if not Path(path).expanduser().is_file()
    ]


def value_problems(url: object, encryption_key: object) -> list[str]:
    """Return what is wrong with prefect_api_url and prefect_encryption_key; None, no value, is told elsewhere."""
    problems = []
    if url is not None and not re.fullmatch(r"https://[^/]+/api", str(url)):
        problems.append(f"prefect_api_url is {url}: it must be https://<name>/api, or https://<name>:<port>/api.")
    if encryption_key is not None and len(str(encryption_key).encode()) != 32:
        problems.append("prefect_encryption_key must be of 32 ASCII characters, as the cipher takes them.")
    return problems


def certificate_problems(
    directory: Path, host: str, names: Iterable[str] | None, mode: str, now: datetime
) -> list[str]:
    """Return what is wrong with the files of the controller that a host's TLS needs.

    names: names and addresses that the certificate must hold, None for any; mode: tls_mode; now: with a time zone.
    """
    authority, key = directory / "ca.crt", directory / "ca.key"
    if host in ("ca", "acme-account"):
        return [f"no host can be named {host!r}: {host}.key in {directory} is another key's file. Rename the host."]
    if mode != "provided":
        # A new key would be another authority, while hosts and people go on trusting this one.
        if authority.exists() and not key.exists():
            return [f"{authority} is there without {key}: restore the key, or remove {directory} for a new authority."]
        return []

    problems: list[str] = []
    authorities = read_certificates(authority, problems)
    own_key = read_public_key(directory / f"{host}.key", problems)
    own = directory / f"{host}.crt"
    chain = read_certificates(own, problems)
    for path, certificates in ((authority, authorities), (own, chain)):
        for certificate in certificates:
            problems += period_problems(path, certificate, now)
    if not chain:
        return problems
    if own_key and own_key != public_key(chain[0]):
        problems.append(
            f"{directory / f'{host}.key'} is not the key of {own}: put the one there that the certificate was asked "
            "for with. The host's own certificate is the first of its file."
        )
    if missing := sorted(name for name in names or () if not holds(chain[0], name)):
        problems.append(f"{own} does not hold {', '.join(missing)}: get one with all of tls_names.")
    roots = [certificate for certificate in authorities if certificate.subject == certificate.issuer]
    between = [certificate for certificate in authorities if certificate not in roots]
    if authorities and not verifies(chain[0], chain[1:] + between, roots):
        problems.append(
            f"{own} does not verify against {authority} (issuer: {chain[0].issuer.rfc4514_string()}): put the root "
            f"it goes back to into ca.crt, and the authorities between the two into {own.name}, after the host's own."
        )
    return problems


def read_certificates(path: Path, problems: list[str]) -> list[x509.Certificate]:
    """Return a PEM file's certificates; where there is none, add why to the problems."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        problems.append(f"{path} cannot be read ({error.strerror}): put it there, as tls_mode is 'provided'.")
    except ValueError:
        problems.append(f"{path} is not a certificate in PEM format: replace it, or convert it with openssl.")
    return []


def read_public_key(path: Path, problems: list[str]) -> bytes | None:
    """Return the public half of a PEM file's private key; where there is none, add why to the problems."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        problems.append(f"{path} cannot be read ({error.strerror}): put it there, as tls_mode is 'provided'.")
    except TypeError:
        problems.append(f"{path} has a passphrase, which services that start alone cannot give: take it away.")
    except (ValueError, UnsupportedAlgorithm):
        problems.append(f"{path} is not a private key in PEM format: replace it, or convert it with openssl.")
    else:
        return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return None


def public_key(certificate: x509.Certificate) -> bytes:
    """Return a certificate's public key."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def period_problems(path: Path, certificate: x509.Certificate, now: datetime) -> list[str]:
    """Return what is wrong with the time for which a certificate is valid."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    what = f"{path} ({certificate.subject.rfc4514_string()})"
    if now < begin:
        return [f"{what} is not valid before {begin:%Y-%m-%d %H:%M} UTC: wait, or correct this machine's clock."]
    if now > end:
        return [f"{what} expired on {end:%Y-%m-%d}: replace it."]
    if end - now < timedelta(days=LEAST_DAYS):
        return [f"{what} ends on {end:%Y-%m-%d}, in less than {LEAST_DAYS} days: replace it."]
    return []


def holds(certificate: x509.Certificate, name: str) -> bool:
    """Return whether clients take a certificate for one of this name or address."""
    try:
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    try:
        return ipaddress.ip_address(name) in held.get_values_for_type(x509.IPAddress)
    except ValueError:
        own = (name if name.isascii() else name.encode("idna").decode()).lower()
        # A wildcard stands for one label, the first.
        wildcard = f"*.{own.partition('.')[2]}"
        return not {own, wildcard}.isdisjoint(value.lower() for value in held.get_values_for_type(x509.DNSName))


def verifies(leaf: x509.Certificate, between: list[x509.Certificate], authorities: list[x509.Certificate]) -> bool:
    """Return whether a chain of signatures leads from a certificate to an authority.

    Only authorities may issue; a certificate that is trusted as it is needs none. cryptography's own verifier asks for
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
    # Each once, so that it ends.
    return any(
        issued(leaf, issuer) and verifies(issuer, between[:index] + between[index + 1 :], authorities)
        for index, issuer in enumerate(between)
    )


def read_specs(roles: Path) -> dict[str, dict[str, Any]]:
    """Return the options of every role's entry points, as "role" or "role (entry point)" -> options; INVENTORY first."""
    specs: dict[str, dict[str, Any]] = {}
    for path in sorted(roles.glob("*/meta/argument_specs.yml")):
        role = path.parent.parent.name
        if role in INTERNAL:
            continue
        for entry, spec in yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"].items():
            specs[role if entry == "main" else f"{role} ({entry})"] = spec.get("options", {})
    # First what an operator writes: a role's variable that is made of it repeats its errors.
    return dict(sorted(specs.items(), key=lambda item: item[0] != INVENTORY))


class ActionModule(ActionBase):  # type: ignore[misc] # ansible carries no types
    """Fails with the list of all problems found; sets the host's facts.

    Takes `roles`, the directory whose argument specs are checked, and `unreachable_advice`.
    """

    _requires_connection = True
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run as an Ansible action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        try:
            # Not through a module: the command module does nothing in check mode.
            shell = self._low_level_execute_command(f"/bin/sh -c {shlex.quote(PROBE)}")
        except AnsibleError as error:
            # A connection refused, or no program to make one with.
            shell = {"rc": 255, "stderr": str(error)}
        # The Docker connection reports a container that is not there as a command that failed.
        if shell["rc"] != 0:
            advice = self._task.args["unreachable_advice"]
            return {**result, "failed": True, "msg": f"The host cannot be reached: {advice}", "stderr": shell["stderr"]}
        probe, lists = read_probe(shell["stdout_lines"])

        facts = self._execute_module(
            module_name="ansible.legacy.setup", module_args={"gather_subset": FACTS}, task_vars=variables
        )["ansible_facts"]
        facts |= {"ansible_memtotal_mb": probe["memory"], "ansible_package_lists": bool(probe["lists"])}
        facts |= {f"ansible_{name}": found for name, found in lists.items()}
        result["ansible_facts"] = facts

        problems = group_problems(variables["groups"], variables.get("base_other_groups") or [])
        specs = read_specs(Path(self._task.args["roles"]))
        problems += name_problems(
            variables, {name for options in specs.values() for name in options}, {role.split()[0] for role in specs}
        )
        problems += self.variable_problems(specs, variables)
        credentials = self.value("credential_files", variables)
        if isinstance(credentials, Mapping):
            problems += file_problems({f"{name} of credential_files": path for name, path in credentials.items()})
        problems += value_problems(
            self.value("prefect_api_url", variables), self.value("prefect_encryption_key", variables)
        )
        directory, names = self.value("tls_directory", variables), self.value("tls_names", variables)
        mode = self.value("tls_mode", variables) or "internal"
        if directory:
            problems += certificate_problems(
                Path(directory).expanduser(),
                variables["inventory_hostname"],
                [str(name) for name in names] if isinstance(names, list) else None,
                mode,
                datetime.now(UTC),
            )
        if mode == "acme" and variables["inventory_hostname"] in variables["groups"].get("prefect_server", []):
            problems += [
                f"{name} is not set: tls_mode acme needs it (`ansible-doc -t role tls` describes it)."
                for name in ("tls_acme_directory", "tls_acme_names")
                if not self.value(name, variables)
            ]
        limits = {
            "memory": int(self._templar.template(variables["base_minimum_memory_mb"])),
            "disk": int(self._templar.template(variables["base_minimum_disk_mb"])),
        }
        problems += host_problems(
            {name.removeprefix("ansible_"): value for name, value in facts.items()}, probe, limits
        )
        if self._task.check_mode and not probe.get("python3-apt"):
            problems.append("check mode needs the package python3-apt on the host: `apt-get install python3-apt`.")
        if self._task.check_mode and not probe.get("lists"):
            problems.append("check mode needs the lists of packages on the host: `apt-get update`.")

        if problems:
            result["failed"] = True
            result["msg"] = f"{len(problems)} problem(s), nothing was changed:\n" + "\n".join(
                f"- {problem}" for problem in problems
            )
        return result

    def value(self, name: str, variables: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a variable
        """Return a variable's value; None where it has none, or cannot be templated, which variable_problems tells."""
        try:
            return self._templar.template(variables.get(name))
        except AnsibleError:
            return None

    def variable_problems(self, specs: Mapping[str, dict[str, Any]], variables: Mapping[str, Any]) -> list[str]:
        """Return what is wrong with the variables of an inventory: missing, of a wrong type, or not templatable."""
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
                    # A wired variable repeats the problem of the operator's variable that it is made of.
                    if str(error) not in told and not any(own in str(error) for own in specs[INVENTORY]):
                        problems.append(f"{name} (role {role}): {error}")
                    told.add(str(error))
                else:
                    # A variable without a value is one that is not set.
                    if value is not None:
                        values[name] = value
            spec = {name: dict(option) for name, option in options.items() if name not in untemplatable}
            errors = ArgumentSpecValidator(spec).validate(values).error_messages
            problems += [
                f"{error} (role {role}; `ansible-doc -t role {role.split()[0]}` describes it)" for error in errors
            ]
        return problems
