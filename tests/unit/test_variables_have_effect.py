"""Every variable that docs/variables.md names, set in an inventory's group_vars, changes what the roles do.

Ansible reads an inventory that sets all of them, and renders what depends on each: the fields and conditions of tasks,
and the templates and units that they write. A variable that no rendered text shows is named.
"""

import ast
import importlib.util
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible._internal._templating._engine import TemplateEngine
from ansible._internal._templating._marker_behaviors import ReplacingMarkerBehavior
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import add_all_plugin_dirs, init_plugin_loader
from ansible.template import trust_as_template
from ansible.vars.manager import VariableManager
from ansible.vars.plugins import _prime_vars_loader

ROOT = Path(__file__).parents[2]
ROLES = ROOT / "roles"
PAGE = ROOT / "docs/variables.md"
HOST = "biocirv"
CONDITIONS = ("when", "that", "until", "failed_when", "changed_when", "loop", "var")
# Values of variables whose types do not say what they hold.
VALUES: dict[str, Any] = {
    "alternate_logins": ["biocirv_user"],
    "backup_repositories": [{"path": "/srv/changed"}],
    "database_clients": ["192.0.2.0/24"],
    "database_flow_rights": ["own"],
    "database_owner_attributes": ["CREATEROLE"],
    "firewall_other_rules": [{"port": 9100, "networks": ["192.0.2.0/24"]}],
    "other_services": [
        {"unit": "changed.service", "group": "all", "kind": "service", "renewal": "restarted", "role": "changed"}
    ],
    "prefect_api_clients": ["192.0.2.0/24"],
    "prefect_api_url": "https://changed.example/api",
    "prefect_deployments_failure_webhook": "https://changed.example/hook",
    "release_python": "conda",
    # Where secrets are generated.
    "secrets_directory": "{{ inventory_dir }}/changed",
    "release_lock": str(ROOT / "requirements/builder.txt"),
    "release_builder_requirements": str(ROOT / "requirements/dev.txt"),
    "extra_ca_certificates": [str(ROOT / "requirements/builder.txt")],
    "credential_files": {"CHANGED": str(ROOT / "requirements/builder.txt")},
    "prefect_worker_rejected_limits": {"all": "7%"},
    "prefect_worker_source": str(ROOT / "worker/tests"),
    "prefect_deployments_program": str(ROOT / "run_prefect_flow.py"),
}
# What else an inventory sets where a variable has an effect.
COMPANIONS = {
    "backup_wal_waiting": {"backup_wal_directory": "/srv/changed"},
    "no_proxy": {"http_proxy": "http://proxy.example:3128"},
}
# What modules and tasks have found.
REGISTERED = {
    "release_id": "0123456789ab",
    "release_packed": {"archive": "/srv/archive", "digest": "0", "revision": "", "secrets": []},
}
FACTS: dict[str, Any] = {
    "accounts": [],
    "architecture": "x86_64",
    "distribution": "Debian",
    "distribution_major_version": "13",
    "installed_packages": [],
    "memtotal_mb": 8192,
    "python": {"version": {"major": 3, "minor": 13}},
    "timezone": "Etc/UTC",
    "user_id": "root",
}


def documented() -> dict[str, dict[str, Any]]:
    """Return the options that the page lists, by their names."""
    spec = importlib.util.spec_from_file_location("variables", ROOT / "scripts/variables.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options: dict[str, dict[str, Any]] = module.options_of_inventories()
    assert sorted(re.findall(r"(?m)^\| `(\w+)` \|", PAGE.read_text("utf-8"))) == sorted(options)
    return options


OPTIONS = documented()


@pytest.mark.parametrize(
    "page", sorted({*(ROOT / "docs").glob("*.md"), ROOT / "README.md"} - {PAGE}), ids=lambda page: page.name
)
def test_no_page_names_a_variable_that_the_wiring_overrides(page: Path) -> None:
    """An inventory that set it would set it in vain."""
    wiring: dict[str, Any] = yaml.safe_load((ROOT / "playbooks/group_vars/all/wiring.yml").read_text("utf-8"))
    # An expression uses a variable, and does not set it.
    text = re.sub(r"\{\{.*?\}\}", "", page.read_text("utf-8"))
    assert not wiring.keys() & set(re.findall(r"\b[a-z]\w+", text))


def other(name: str) -> Any:  # noqa: ANN401 - a variable's value
    """Return a valid value of a variable that is not its default."""
    option = OPTIONS[name]
    default = option.get("default")
    if name in VALUES:
        return VALUES[name]
    if "choices" in option:
        return [choice for choice in option["choices"] if choice != default][-1]
    of_types: dict[str, Any] = {
        "bool": not default,
        "dict": {"CHANGED": "changed"},
        "float": 7.25,
        "int": 7654,
        "list": ["changed"],
        "path": "/srv/changed",
        "str": "changed",
    }
    return of_types[option["type"]]


@pytest.fixture(scope="module")
def inventories(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a host's variables as Ansible reads them: of the local inventory, and of a copy that sets every one."""
    init_plugin_loader()
    _prime_vars_loader()
    for role in ROLES.iterdir():
        add_all_plugin_dirs(str(role))
    local, copy = (tmp_path_factory.mktemp("inventories") / name for name in ("local", "copy"))
    for inventory in (local, copy):
        shutil.copytree(ROOT / "inventory/local", inventory, ignore=shutil.ignore_patterns(".secrets"))
    # Of several files, the last one counts.
    values = yaml.safe_dump({name: other(name) for name in OPTIONS})
    (copy / "group_vars/all/zz.yml").write_text(values, encoding="utf-8")
    return variables_of(local), variables_of(copy)


def variables_of(inventory: Path) -> dict[str, Any]:
    """Return the variables that a play of playbooks/ has for the host: those of the inventory and of the wiring."""
    loader = DataLoader()
    loader.set_basedir(str(ROOT / "playbooks"))
    manager = InventoryManager(loader, sources=[str(inventory)])
    host = manager.get_host(HOST)
    assert host
    variables = VariableManager(loader, manager)
    # As playbooks do, which also read the variables beside them.
    variables.safe_basedir = True
    found: dict[str, Any] = variables.get_vars(host=host)
    return found


def read(path: Path) -> dict[str, Any]:
    """Return the variables in a file of a role, as templates; none where it has no such file."""
    found: dict[str, Any] = DataLoader().load_from_file(str(path), trusted_as_template=True) if path.exists() else {}
    return found or {}


@cache
def leaves(role: str) -> list[str]:
    """Return the templates in a role's tasks, or in the playbooks (no role)."""
    files = sorted((ROLES / role / "tasks").glob("*.yml")) if role else sorted((ROOT / "playbooks").glob("*.yml"))
    return [text for path in files for text in strings(yaml.safe_load(path.read_text("utf-8")))]


def strings(value: object, key: str = "") -> Iterator[str]:
    """Return the templates in a value, and conditions as templates."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from strings(name)
            yield from strings(each, str(name))
    elif isinstance(value, list):
        for each in value:
            yield from strings(each, key)
    elif isinstance(value, str) and ("{{" in value or "{%" in value):
        yield value
    elif isinstance(value, str) and key in CONDITIONS:
        yield f"{{{{ ({value}) }}}}"


@cache
def templates(role: str) -> dict[str, str]:
    """Return the templates that a role's tasks and variables look up, by their names."""
    return {path.name: path.read_text("utf-8") for path in (ROLES / role / "templates").glob("*")} if role else {}


@cache
def literals(plugin: Path) -> tuple[set[str], list[tuple[str, str]]]:
    """Return a plugin's strings and fields, and what is before and after the only field of its formatted ones."""
    nodes = list(ast.walk(ast.parse(plugin.read_text("utf-8"))))
    formatted = [node.values for node in nodes if isinstance(node, ast.JoinedStr)]
    texts = [
        [getattr(value, "value", "") if isinstance(value, ast.Constant) else None for value in values]
        for values in formatted
    ]
    around = [
        ("".join(filter(None, text[: text.index(None)])), "".join(filter(None, text[text.index(None) :])))
        for text in texts
        if text.count(None) == 1
    ]
    named = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    # Fields of a class, from which names are made.
    named |= {node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    return named, around


def read_by_plugins(role: str, name: str) -> bool:
    """Return whether an action plugin of a role names a variable."""
    for plugin in (ROLES / role / "action_plugins").glob("*.py") if role else ():
        strings_of, around = literals(plugin)
        if name in strings_of or any(
            begin
            and name.startswith(begin)
            and name.endswith(end)
            and name[len(begin) : len(name) - len(end)] in strings_of
            for begin, end in around
        ):
            return True
    return False


def mentions(text: str, names: set[str]) -> bool:
    """Return whether a template names one of some variables or templates."""
    return not names.isdisjoint([*re.findall(r"\w+", text), *re.findall(r"[\w.-]+", text)])


def dependents(name: str, definitions: dict[str, Any]) -> set[str]:
    """Return a variable, and all variables and templates that are made of it."""
    found: set[str] = {name}
    while more := {key for key, value in definitions.items() if key not in found and mentions(str(value), found)}:
        found |= more
    return found


def render(text: str, role: str, variables: dict[str, Any]) -> str:
    """Return what a template of a role says; what is registered or undefined is replaced by an error."""
    places = {
        "ansible_facts": FACTS,
        "ansible_search_path": [str(ROLES / role)] if role else [str(ROOT / "playbooks")],
        "ansible_check_mode": False,
        "group_names": ["database", "prefect_server", "prefect_worker"],
        "groups": {name: [HOST] for name in ("all", "database", "prefect_server", "prefect_worker")},
        "inventory_hostname": HOST,
        "playbook_dir": str(ROOT / "playbooks"),
        "role_name": role,
        "role_path": str(ROLES / role),
    }
    engine = TemplateEngine(
        DataLoader(), variables={**variables, **REGISTERED, **places}, marker_behavior=ReplacingMarkerBehavior()
    )
    try:
        return str(engine.template(trust_as_template(text)))
    except Exception as error:  # noqa: BLE001 - of any module
        # The same with both values, unless one of them causes it.
        return f"{type(error).__name__}"


@pytest.fixture(scope="module")
def roles() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return the defaults and the vars of each role; the playbooks have none."""
    names = sorted(path.name for path in ROLES.iterdir())
    return {"": ({}, {})} | {
        name: (read(ROLES / name / "defaults/main.yml"), read(ROLES / name / "vars/main.yml")) for name in names
    }


@pytest.mark.parametrize("name", OPTIONS)
def test_a_variable_of_an_inventory_has_an_effect(
    name: str,
    inventories: tuple[dict[str, Any], dict[str, Any]],
    roles: dict[str, tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    before, after = inventories
    assert after[name] == other(name), f"{name}: the wiring or another file overrides what an inventory sets"
    tried = []
    for role, (defaults, own) in roles.items():
        variables = {**defaults, **before, **COMPANIONS.get(name, {}), **own}
        named = dependents(name, variables | templates(role))
        texts = [text for text in leaves(role) if mentions(text, named)]
        texts += [f"{{{{ {each} }}}}" for each in named if read_by_plugins(role, each)]
        if any(render(text, role, variables) != render(text, role, {**variables, name: after[name]}) for text in texts):
            return
        tried += [f"{role}: {text[:100]}" for text in texts]
    pytest.fail(f"{name} changes none of these: " + "\n".join(tried))
