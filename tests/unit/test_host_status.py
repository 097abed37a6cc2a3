"""The module that asks a host for its state: a part that fails hides no other."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def host_status(load_plugin: Callable[[str], ModuleType]) -> ModuleType:
    """Return the module as a Python module."""
    return load_plugin("status/library/host_status.py")


def test_a_part_that_fails_hides_no_other(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Neither systemd nor the journal answer here; the schema's program prints what is no JSON."""
    environment = tmp_path / "unit.env"
    environment.write_text("PGDATABASE=it\n")
    done = run_module(
        "status/library/host_status.py",
        units=["nosuch.service"],
        errors="FATAL",
        disks=[str(tmp_path), str(tmp_path), "/nowhere"],
        environment_file=str(environment),
        schema_program="/bin/pwd",
        schema_record=str(environment),
    )
    (disk,) = done["answers"]["disks"]
    assert 0 <= disk["used_percent"] <= 100
    assert "JSONDecodeError" in done["failures"]["schema"]


def test_tables_that_are_gone_are_told_at_the_same_revision(host_status: ModuleType, tmp_path: Path) -> None:
    record, environment, program = tmp_path / "record", tmp_path / "unit.env", tmp_path / "program"
    environment.write_text("PGDATABASE=it\n")
    record.write_text(json.dumps({"revisions": ["2"], "tables": ["one", "two"]}))
    program.write_text("""#!/bin/sh\necho '{"revisions": ["2"], "tables": ["two", "more"]}'\n""")
    program.chmod(0o755)

    def missing() -> list[str]:
        found: dict[str, list[str]] = host_status.schema(str(environment), str(program), str(record))
        assert found["revisions"] == ["2"]
        return found["missing_tables"]

    assert missing() == ["one"]
    record.write_text(json.dumps({"revisions": ["1"], "tables": ["one", "two"]}))
    assert missing() == []
    record.unlink()
    assert missing() == []
