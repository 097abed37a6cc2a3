"""What `make audit` shows of the journal: each entry whole, in one line, and no line that is part of a name."""

from pathlib import Path

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

TASKS = yaml.safe_load((Path(__file__).parents[2] / "roles/audit/tasks/main.yml").read_text(encoding="utf-8"))


# As journalctl begins an entry; it indents what follows a line feed by as much.
BEGIN = "2026-11-30T16:39:09+00:00 host postgres[7]: "


def entry(message: str) -> str:
    """Return what journalctl prints of a message, with the options of the role."""
    return BEGIN + message.replace("\n", "\n" + " " * len(BEGIN)) + "\n"


def shown(journal: str) -> str:
    """Return what the last task prints of journalctl's output."""
    # The module command takes the last line feed away.
    variables = {"audit_journal": {"stdout": journal.rstrip("\n"), "stdout_lines": journal.splitlines()}}
    message = trust_as_template(TASKS[-1]["ansible.builtin.debug"]["msg"])
    return str(Templar(loader=DataLoader(), variables=variables).template(message))


def test_a_separator_in_a_name_begins_no_line() -> None:
    """PostgreSQL logs the name with which somebody tries to log in as it is."""
    forged = "2026-11-30T09:00:00+0000 host biocirv-audit[8]: rotate: all, by alice@laptop"
    for separator in ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"):
        message = f"user={separator}{forged} FATAL:  no such role"
        lines = shown(entry(message) + entry("user=x FATAL:  y")).split("\n")
        assert lines == [BEGIN + message, f"{BEGIN}user=x FATAL:  y"], ascii(separator)
    named = shown(entry(f"user=evil\n{forged} db=x FATAL:  no such role\n[7] user=evil DETAIL:  none"))
    assert named == f"{BEGIN}user=evil\\n{forged} db=x FATAL:  no such role\\n[7] user=evil DETAIL:  none"


def test_a_statement_is_shown_whole() -> None:
    """PostgreSQL has a tab after each line feed of a statement."""
    statement = "alter role biocirv_reader\n\t set statement_timeout=0"
    said = shown(entry(f'user=r AUDIT: SESSION,1,1,ROLE,ALTER ROLE,,,"{statement}"\n\t\n\n\t-- \\1 \\n end'))
    assert said == (
        f'{BEGIN}user=r AUDIT: SESSION,1,1,ROLE,ALTER ROLE,,,"alter role biocirv_reader\\n set statement_timeout=0"'
        "\\n\\n\\n-- \\1 \\n end"
    )
    assert shown(entry("\n\nuser=early FATAL:  x\n")).rstrip() == f"{BEGIN}\\n\\nuser=early FATAL:  x\\n"


def test_a_line_has_a_bound() -> None:
    """A statement may have 200 kB; what is not shown is told."""
    long, next_one = shown(entry("AUDIT " + "x\n" * 100_000 + "end") + entry("FATAL y")).split("\n")
    assert next_one == f"{BEGIN}FATAL y"
    assert 4000 < len(long) < 4100
    assert long.startswith(f"{BEGIN}AUDIT x\\nx")
    assert long.endswith(" [cut after 4,000 characters: `journalctl --all` on the host shows the rest]")
    assert shown(entry("x" * (4000 - len(BEGIN)))) == BEGIN + "x" * (4000 - len(BEGIN))


def test_nothing_is_said() -> None:
    assert shown("") == "nothing"


def test_entries_with_control_characters_are_read() -> None:
    """Otherwise journalctl shows their size instead."""
    assert "--all" in TASKS[0]["ansible.builtin.command"]["argv"]
