"""Whether the worker runs with a Prefect is said without a server, in words."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from biocirv_worker import trial, worker


def test_it_runs_with_this_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A Prefect without an executor that the worker knows is one with which it runs less well."""
    monkeypatch.setattr(trial, "_try", lambda: None)
    monkeypatch.setattr(worker, "run_by_executor", None)
    assert trial.main() == 0
    assert "A cancellation is noticed within some seconds" in capsys.readouterr().out


@pytest.mark.parametrize("version", ["3.3.7", "2.20.27", "0.15.13"])
def test_an_older_one_is_refused_with_the_least_that_can_serve(
    version: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not tried."""
    monkeypatch.setattr(trial, "version", lambda _: version)
    monkeypatch.setattr(trial, "_try", lambda: pytest.fail("It is tried"))
    assert trial.main() == 1
    assert capsys.readouterr().err == "It needs Prefect 3.4.0 or newer.\n"


def test_one_whose_interfaces_are_gone_is_refused_with_the_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def try_it() -> None:
        raise AttributeError("type object 'EventsWorker'\nhas no attribute 'send'")

    monkeypatch.setattr(trial, "_try", try_it)
    assert trial.main() == 1
    said = "AttributeError: type object 'EventsWorker' has no attribute 'send'\n"
    assert capsys.readouterr().err == f"It runs with Prefect from 3.4.0 on, but not with what is installed here: {said}"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("", ""),
        ("from prefect.events.worker import EventsWorker; del EventsWorker.send", "'send'"),
        ("from prefect.utilities import services; del services.start_client_metrics_server", "cannot import name"),
    ],
)
def test_what_flow_runs_need_is_tried(spoil: str, said: str, tmp_path: Path) -> None:
    """In a process of its own, because a trial changes Prefect."""
    program = f"{spoil}\nimport sys; from biocirv_worker.trial import main; sys.exit(main())"
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path), "PYTHONPATH": str(Path(trial.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == bool(said), done.stderr
    assert said in done.stderr.splitlines()[-1] if said else not done.stderr.count("It runs with")
    assert list(tmp_path.glob("outbox")) == []
