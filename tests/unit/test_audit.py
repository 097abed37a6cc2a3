"""What `make audit` shows of the journal: each entry by its first line, and no line that is part of a name."""

from pathlib import Path

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

TASKS = yaml.safe_load((Path(__file__).parents[2] / "roles/audit/tasks/main.yml").read_text(encoding="utf-8"))


def shown(journal: str) -> str:
    """Return what the last task prints of journalctl's output."""
    variables = {"audit_journal": {"stdout": journal, "stdout_lines": journal.splitlines()}}
    message = trust_as_template(TASKS[-1]["ansible.builtin.debug"]["msg"])
    return str(Templar(loader=DataLoader(), variables=variables).template(message))


def test_a_separator_in_a_name_begins_no_line() -> None:
    """PostgreSQL logs the name with which somebody tries to log in as it is."""
    forged = "2026-11-30T09:00:00+0000 host biocirv-audit[8]: rotate: all, by alice@laptop"
    for separator in ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"):
        entry = f"2026-11-30T16:39:09+0000 host postgres[7]: user={separator}{forged} FATAL:  no such role"
        assert shown(f"{entry}\n    DETAIL\n").rstrip() == entry, ascii(separator)


def test_nothing_is_said() -> None:
    assert shown("") == "nothing"


def test_entries_with_control_characters_are_read() -> None:
    """Otherwise journalctl shows their size instead."""
    assert "--all" in TASKS[0]["ansible.builtin.command"]["argv"]
