"""What concerns one thing is logged once, and holds up no other; an outage of the API concerns them all."""

import os
from pathlib import Path

import httpx
import pytest
from biocirv_worker.asides import Asides
from biocirv_worker.systemd import Peers


def refusal(status: int) -> httpx.HTTPStatusError:
    """Return the error of an answer."""
    request = httpx.Request("POST", "http://server/api")
    return httpx.HTTPStatusError("refused", request=request, response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("gone"), TimeoutError(), *map(refusal, (401, 403, 429, 500, 503))]
)
def test_an_outage_is_no_fault_of_the_thing(error: Exception) -> None:
    asides = Asides()
    with pytest.raises(type(error)), asides.each("thing", "It was not done"):
        raise error
    assert "thing" not in asides


@pytest.mark.parametrize(
    "error", [*map(refusal, (404, 409, 422)), KeyError("env"), OSError("no space"), RuntimeError()]
)
def test_any_other_error_is_logged_once_until_it_is_over(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    asides = Asides()
    for _ in range(3):
        with asides.each("thing", "It was not done"):
            raise error
        assert "thing" in asides
    assert len(caplog.records) == 1
    with asides.each("thing", "It was not done"):
        pass
    assert "thing" not in asides


def test_files_of_no_worker_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Opening a FIFO would wait for ever; a file without a lock was left by a worker that was killed."""
    peers = Peers(tmp_path)
    (tmp_path / "worker-x").touch()
    (tmp_path / "worker-99999998").mkdir()
    os.mkfifo(tmp_path / "worker-99999999")
    (tmp_path / "worker-99999997").touch()

    assert [peers.others() for _ in range(2)] == [{}, {}]

    assert len(caplog.records) == 3
    assert not (tmp_path / "worker-99999997").exists()
