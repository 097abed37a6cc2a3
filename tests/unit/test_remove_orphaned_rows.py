"""The playbook of `make remove-orphaned-rows`, without hosts: what it runs, says and records."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.playbooks import ROOT, ansible, messages, stand_ins, this_machine

# Answers in place of the ETL's program, which tests/integration/test_provenance.py runs; it notes how it was called.
IN_UNIT = """
echo "$*" >>{log}
case "$*" in
*"remove observation 77"*) echo "77: no such row of observation" >&2; exit 1;;
*"remove experiment all"*) echo "0 rows of experiment: ";;
*) echo "2 rows of observation: 12, 15"; echo "  id  Sample_name"; echo "  12  S1"; echo "  15  S2";;
esac
"""

Remove = Callable[..., tuple[int, str]]


@pytest.fixture
def remove(tmp_path: Path) -> Remove:
    """Return a function that runs the playbook, and returns its exit code and its messages."""
    path = stand_ins(
        tmp_path,
        in_unit=IN_UNIT.format(log=tmp_path / "calls"),
        logger=f"cat >{tmp_path}/journal\n",
    )
    inventory = this_machine(tmp_path, "prefect_server")
    given = {
        "ansible_become": False,
        "__migrations_in_unit": str(tmp_path / "bin/in-unit"),
        "database_address": "database.example",
        "database_port": 5432,
        "alternate_logins": [],
        "biocirv_migrations_password": "secret",
        "migration_environment": {},
        "orphaned_rows_table": "observation",
        "orphaned_rows": "12,15",
        "orphaned_rows_confirmed": True,
    }

    def run(*options: str, **variables: object) -> tuple[int, str]:
        play = ROOT / "playbooks/remove_orphaned_rows.yml"
        done = ansible(play, inventory, {**given, **variables}, *options, PATH=path)
        return done.returncode, "\n".join(messages(done))

    return run


def calls(directory: Path) -> list[str]:
    """Return the arguments of the program's runs."""
    path = directory / "calls"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line.partition("pipeline.provenance ")[2] for line in lines]


def test_what_is_removed_is_said_and_recorded(remove: Remove, tmp_path: Path) -> None:
    code, said = remove()

    assert code == 0, said
    assert calls(tmp_path) == ["remove observation 12,15", "remove observation 12,15 --yes"]
    assert "Removed from biocirv_db on database.example:\n2 rows of observation: 12, 15\n  id  Sample_name\n" in said
    journal = (tmp_path / "journal").read_text(encoding="utf-8")
    assert "MESSAGE=remove orphaned rows: biocirv_db lost 2 rows of observation: 12, 15, by " in journal
    (shown,) = (line for line in (ROOT / "roles/audit/tasks/main.yml").read_text().splitlines() if "--grep=" in line)
    assert "|remove orphaned rows|" in shown


@pytest.mark.parametrize(
    ("options", "variables", "says", "runs"),
    [
        (
            [],
            {"orphaned_rows_confirmed": False},
            "`make remove-orphaned-rows TABLE=observation ROWS=12,15 CONFIRM=1",
            1,
        ),
        ([], {"orphaned_rows": "77"}, "77: no such row of observation", 1),
        ([], {"orphaned_rows_table": "experiment", "orphaned_rows": "all"}, "Nothing was changed.", 1),
        (["--check"], {}, "has no check mode, and nothing was changed", 0),
    ],
    ids=["unconfirmed", "refused", "nothing", "check mode"],
)
def test_nothing_is_removed(
    remove: Remove, tmp_path: Path, options: list[str], variables: dict[str, object], says: str, runs: int
) -> None:
    _, said = remove(*options, **variables)

    assert says in said
    assert len(calls(tmp_path)) == runs
    assert not any("--yes" in call for call in calls(tmp_path))
    assert not (tmp_path / "journal").exists()
