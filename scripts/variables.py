"""Write docs/variables.md: every variable that an inventory may set, as the roles' argument specs describe them."""

from __future__ import annotations

import json
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/variables.md"
TOPICS = Path(__file__).with_suffix(".yml")
# Other roles and playbooks give them all that they need.
TOOLS = ("managed_files", "packages", "systemd_unit", "activation")
HEAD = """# Variables

`make variables` writes this page from each role's `meta/argument_specs.yml`. Set variables in an inventory's
`group_vars/`. Those without a default must be set; `inventory/local` and the examples show values for one host. A
converge checks every value before it changes anything, and refuses a misspelt variable of a role, with the name that
was probably meant.
"""


def page() -> str:
    """Return the page's text."""
    lines = [HEAD]
    for topic, options in by_topic():
        lines += [f"## {topic['title']}", "", topic["about"], "", "```yaml", topic["example"].rstrip(), "```", ""]
        lines += [*table(options), ""]
    return "\n".join(lines)


def by_topic() -> list[tuple[dict[str, Any], dict[str, dict[str, Any]]]]:
    """Return each topic with the options that belong to it, by their names.

    Raises ValueError where an option belongs to none, or a topic has none.
    """
    topics: list[dict[str, Any]] = yaml.safe_load(TOPICS.read_text(encoding="utf-8"))
    found: list[tuple[dict[str, Any], dict[str, dict[str, Any]]]] = [(topic, {}) for topic in topics]
    for name, option in options_of_inventories().items():
        for topic, options in found:
            if any(fnmatchcase(name, pattern) for pattern in topic["variables"]):
                options[name] = option
                break
        else:
            raise ValueError(f"{name} belongs to no topic of {TOPICS.name}: add it to one.")
    if empty := [topic["title"] for topic, options in found if not options]:
        raise ValueError(f"No variable belongs to {', '.join(empty)} of {TOPICS.name}.")
    return found


def options_of_inventories() -> dict[str, dict[str, Any]]:
    """Return the options that an inventory may set: those that it must, and those of roles that are not wired."""
    wired: dict[str, Any] = {}
    for path in (ROOT / "playbooks/group_vars/all").iterdir():
        wired |= yaml.safe_load(path.read_text(encoding="utf-8"))
    options: dict[str, dict[str, Any]] = dict(specs("preflight")["inventory"]["options"])
    for role in sorted(path.name for path in (ROOT / "roles").iterdir()):
        if role not in TOOLS:
            own = specs(role)["main"].get("options", {})
            options |= {name: option for name, option in own.items() if name not in wired and name not in options}
    return options


def specs(role: str) -> dict[str, Any]:
    """Return a role's entry points."""
    text = (ROOT / "roles" / role / "meta/argument_specs.yml").read_text(encoding="utf-8")
    entries: dict[str, Any] = yaml.safe_load(text)["argument_specs"]
    return entries


def table(options: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Return the lines of a table of options, by their names."""
    yield "| variable | type | default | what |"
    yield "|---|---|---|---|"
    for name, option in sorted(options.items()):
        kind = f"{option['type']} of {option['elements']}" if "elements" in option else option["type"]
        default = "" if "default" not in option else f"`{json.dumps(option['default'], ensure_ascii=False)}`"
        choices = f" One of: {', '.join(map(str, option['choices']))}." if "choices" in option else ""
        what = " ".join([option["description"]] if isinstance(option["description"], str) else option["description"])
        yield f"| `{name}` | {kind} | {default} | {what.replace('|', chr(92) + '|')}{choices} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"Wrote {PAGE.relative_to(ROOT)}\n")
