"""The program that frees slots of concurrency limits: which leases count."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def test_only_leases_hold_slots(
    load_plugin: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that a power cut left empty is none; each limit of a lease has all of its slots taken."""
    free_slots = load_plugin("prefect_server/files/free_slots.py")
    leases: dict[str, object] = {
        "a-1": {"resource_ids": ["one"], "metadata": {"slots": 1}},
        "a-2": {"resource_ids": ["one", "two"], "metadata": {"slots": 2, "holder": {"type": "flow_run", "id": "x"}}},
        "no-metadata": {"resource_ids": ["one"], "metadata": None},
        "no-object": [],
    }
    for name, lease in leases.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(lease), encoding="utf-8")
    (tmp_path / "cut-off.json").touch()
    (tmp_path / "expirations.json").write_text("{}", encoding="utf-8")
    (tmp_path / "expirations.lock").touch()

    assert free_slots.held_slots(tmp_path) == {"one": 3, "two": 2}
    assert capsys.readouterr().err.count(" is no lease: ") == 3
    assert free_slots.held_slots(tmp_path / "lost") == {}
