"""The argument specs and the defaults of a role agree."""

import itertools
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from scripts import variables

ROOT = Path(__file__).parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())


def load(role: str, path: str) -> Any:  # noqa: ANN401 - YAML
    """Return a role's YAML file, empty where there is none."""
    file = ROOT / "roles" / role / path
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}


def options(role: str) -> dict[str, dict[str, Any]]:
    """Return the options of a role's main entry point."""
    main: dict[str, dict[str, Any]] = load(role, "meta/argument_specs.yml")["argument_specs"]["main"].get("options", {})
    return main


@pytest.mark.parametrize("role", ROLES)
def test_argument_specs_equal_defaults(role: str) -> None:
    specified = {name: option.get("default") for name, option in options(role).items() if not option.get("required")}
    assert specified == (load(role, "defaults/main.yml") or {})


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_described_and_named_after_its_role(role: str) -> None:
    for name, option in options(role).items():
        assert name.startswith(f"{role}_")
        assert option.get("description"), name


@pytest.mark.parametrize("role", ROLES)
def test_every_default_says_why(role: str) -> None:
    lines = (ROOT / "roles" / role / "defaults/main.yml").read_text(encoding="utf-8").splitlines()
    for before, line in itertools.pairwise(lines):
        if line[:1].isalpha() and not before[:1].isalpha():
            assert before.startswith("#"), f"{role}: no comment above {line!r}"


def test_the_page_of_variables_is_the_specs() -> None:
    assert variables.PAGE.read_text(encoding="utf-8") == variables.page(), "run `make variables`"


# Variables that neither an inventory nor the wiring sets: Ansible's own, and facts of the deployed release.
FACTS = {
    "ansible_inventory_sources",
    "group_names",
    "groups",
    "hostvars",
    "inventory_hostname",
    "lookup",
    "query",
    "playbook_dir",
    "postgresql_cluster",
    "release_id",
    "release_manifest",
}


def names(value: object) -> set[str]:
    """Return the variables that a value of the wiring refers to, at any depth."""
    if isinstance(value, dict):
        return names([*value, *value.values()])
    if isinstance(value, list):
        return set().union(*map(names, value))
    tree = jinja2.Environment(autoescape=True).parse(str(value))
    loaded = {node.name for node in tree.find_all(jinja2.nodes.Name) if node.ctx == "load"}
    return loaded - {node.name for node in tree.find_all(jinja2.nodes.Name) if node.ctx == "store"}


def test_wiring_holds_mappings_only() -> None:
    """Each value refers to variables that are set elsewhere: a default here would override an inventory."""
    wiring: dict[str, Any] = {}
    for path in (ROOT / "playbooks/group_vars/all").iterdir():
        wiring |= yaml.safe_load(path.read_text(encoding="utf-8"))
    roles_variables = {name for role in ROLES for name in options(role)}
    given = set(load("preflight", "meta/argument_specs.yml")["argument_specs"]["inventory"]["options"]) | FACTS
    private = {name for name in wiring if name.startswith("__")}
    assert wiring.keys() - private <= roles_variables

    def origins(value: object) -> set[str]:
        return set().union(*(origins(wiring[name]) if name in wiring else {name} for name in names(value)))

    for name, value in wiring.items():
        unknown = origins(value) - given - roles_variables
        assert not unknown, f"{name} refers to variables that are never set: {unknown}"
        assert name in private or names(value), f"{name} does not refer to any variable"


def test_the_examples_of_the_page_of_variables_are_valid() -> None:
    options = variables.options_of_inventories()
    for topic, own in variables.by_topic():
        example = yaml.safe_load(topic["example"])
        assert example.keys() & own.keys(), topic["title"]
        spec = {name: options[name] for name in example}
        assert not ArgumentSpecValidator(spec).validate(example).error_messages, topic["title"]
