"""What `make history` and `make orphaned-rows` print; what they find, tests/integration/test_provenance.py shows."""

import pytest
from sqlalchemy import create_engine

from ca_biositing.pipeline import provenance


def test_what_a_flow_wrote_does_not_control_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(provenance, "engine_from_environment", lambda: create_engine("sqlite://"))
    monkeypatch.setattr(provenance, "_orphans", lambda *_: iter(["note: \x1b]0;title\x07", "note: \u202eback"]))

    assert provenance.main(["orphans"]) == 0

    assert capsys.readouterr().out == "note: \\x1b]0;title\\x07\nnote: \\u202eback\n"
