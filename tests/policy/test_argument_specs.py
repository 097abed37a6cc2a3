"""A role's variables stand in its defaults and in its argument specs, and say the same in both."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

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


def test_wiring_holds_mappings_only() -> None:
    """No default where it would override an inventory: every value is made of variables."""
    wiring = yaml.safe_load((ROOT / "playbooks/group_vars/all.yml").read_text(encoding="utf-8"))
    roles_variables = {name for role in ROLES for name in options(role)}
    for name, value in wiring.items():
        if not name.startswith("__"):
            assert name in roles_variables, f"no role knows {name}"
            assert "{{" in str(value), f"{name} is no mapping"
