"""Commands of the pages that need no host run as they stand."""

import shutil
from pathlib import Path

from tests.docs import ROOT, Checkout, commands_beginning


def test_inventory_and_options_are_named_once_in_a_shell(tmp_path: Path) -> None:
    named = commands_beginning("docs/install.md", "export INVENTORY=")
    said = Checkout(tmp_path).run(f"{named}make --dry-run status logs; echo $ANSIBLE_INVENTORY")
    assert ".venv/bin/ansible-playbook --inventory inventory/mine --ask-become-pass playbooks/status.yml" in said
    assert "scripts/on_host.py --inventory inventory/mine " in said
    assert said.endswith("inventory/mine\n")


def test_sheets_are_checked_without_a_platform(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "data/sample", tmp_path / "home/my-sheets")
    checkout = Checkout(tmp_path / "platform", HOME=str(tmp_path / "home"))
    # Rows of the sample are rejected.
    said = checkout.run(commands_beginning("docs/sheets.md", "make .venv/dev"), accepted=1)
    assert "is not a number" in said
