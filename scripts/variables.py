"""Write docs/variables.md: every variable that an inventory may set, as the roles' argument specs describe them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/variables.md"
# Other roles hand them all that they need.
TOOLS = ("managed_files", "systemd_unit")
HEAD = """# Variables

Made by `make variables` from each role's `meta/argument_specs.yml`. A converge checks every value before it changes
anything, and a name that begins like a role's and is none is an error that suggests the right one. They stand in an
inventory's `group_vars/`; those that every inventory must set are in `inventory/local`, with values for one host.
"""


def page() -> str:
    """Return the page's text."""
    wired = yaml.safe_load((ROOT / "playbooks/group_vars/all/wiring.yml").read_text(encoding="utf-8"))
    lines = [HEAD, "## What every inventory sets", ""]
    lines += table(specs("preflight")["inventory"]["options"])
    for role in sorted(path.name for path in (ROOT / "roles").iterdir()):
        main = specs(role)["main"]
        options = {name: option for name, option in main.get("options", {}).items() if name not in wired}
        if options and role not in TOOLS:
            lines += ["", f"## {role}", "", f"{main['short_description']}.", "", *table(options)]
    return "\n".join(lines) + "\n"


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
