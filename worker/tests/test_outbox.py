"""Files of an outbox that are no files of events, and a disk that is full."""

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest
from biocirv_worker import outbox
from prefect.events import Event, Resource
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_HOME, temporary_settings


def event_of_a_task_run() -> Event:
    """Return an event that the outbox keeps."""
    resource_ = Resource({"prefect.resource.id": f"prefect.task-run.{uuid4()}"})
    return Event(event="prefect.task-run.Completed", resource=resource_)


class Server:
    """Fake of Prefect's client: it has no task runs, takes events, and records those that it took."""

    def __init__(self) -> None:
        self.events: list[str] = []

    async def read_task_runs(self, **_: Any) -> list[Any]:  # noqa: ANN401 - Prefect's
        """Return none."""
        return []

    async def request(self, method: str, path: str, json: list[dict[str, Any]]) -> None:
        """Take events."""
        assert (method, path) == ("POST", "/events")
        self.events += [event["resource"]["prefect.resource.id"] for event in json]


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let the kernel write no file beyond a size in bytes, as when a disk is full: part of a line fits."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_no_file_of_events_is_moved_aside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A FIFO and a folder, too; what can be read is delivered before, and each is logged once."""
    monkeypatch.setattr(outbox, "_RECORD_SECONDS", 0)
    directory, server = tmp_path / "outbox", Server()
    directory.mkdir()
    kept = event_of_a_task_run()
    line = kept.model_dump_json()
    (directory / "half.jsonl").write_text(f"{line[:100]}{line}\n{line}\n", encoding="utf-8")
    (directory / "empty-object.jsonl").write_text("{}\n", encoding="utf-8")
    (directory / "folder.jsonl").mkdir()
    os.mkfifo(directory / "fifo.jsonl")
    names = {"half.jsonl", "empty-object.jsonl", "folder.jsonl", "fifo.jsonl"}

    async def look() -> None:
        outboxes = outbox.Outboxes()
        for _ in range(2):
            await outboxes.deliver(server)  # type: ignore[arg-type] # it stands in
        assert {path.name for path in directory.iterdir()} == {"aside", "half.jsonl"}
        # Its event is too old for another attempt.
        os.utime(directory / "half.jsonl", (0, time.time() - 2 * outbox._MAX_AGE_SECONDS))
        for _ in range(3):
            await outboxes.deliver(server)  # type: ignore[arg-type]

    with temporary_settings({PREFECT_HOME: str(tmp_path)}):
        anyio.run(look)

    assert server.events == [kept.resource.id]
    assert [path.name for path in directory.iterdir()] == ["aside"]
    assert {path.name for path in (directory / "aside").iterdir()} == names
    said = [record.getMessage() for record in caplog.records if "cannot be delivered" in record.getMessage()]
    assert len(said) == len(names)
    assert any("line 1 is no event of a task run" in message for message in said)


def test_a_full_disk_fails_no_flow_run_and_leaves_no_half_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Event] = []
    monkeypatch.setattr(EventsWorker, "send", lambda _, item: sent.append(item))
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(uuid4()))
    events = [event_of_a_task_run() for _ in range(4)]
    with temporary_settings({PREFECT_HOME: str(tmp_path)}):
        outbox.keep_events()
        EventsWorker.send(None, events[0])  # type: ignore[arg-type] # nothing is asked of the queue
        (path,) = (tmp_path / "outbox").iterdir()
        with full_disk(path.stat().st_size + 100):
            for event in events[1:3]:
                EventsWorker.send(None, event)  # type: ignore[arg-type]
        EventsWorker.send(None, events[3])  # type: ignore[arg-type]

    assert sent == events
    with path.open("rb") as lines:
        assert outbox._read(lines) == ([events[0], events[3]], "")
    assert len([record for record in caplog.records if "only if the server is there" in record.getMessage()]) == 1


def test_a_flow_run_goes_on_without_an_outbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file is where its folder should be."""
    (tmp_path / "outbox").touch()
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(uuid4()))
    with temporary_settings({PREFECT_HOME: str(tmp_path)}):
        outbox.keep_events()


def refuse_the_newest(unlink: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return a function that removes any file but the newest."""

    def remove(path: Path) -> None:
        if path.name == "newest.jsonl":
            raise PermissionError(path)
        unlink(path)

    return remove


def test_what_is_aside_does_not_grow_without_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is too old and the oldest of too much are removed, and each is named; a link's target stays."""
    aside = tmp_path / "outbox/aside"
    (aside / "oldest").mkdir(parents=True)
    (aside / "oldest/file").write_bytes(b"x" * 5_000)
    (tmp_path / "target").touch()
    for name, size in (("older", 3_000), ("newer", 4_000), ("newest", 2_000)):
        # Two moves within the resolution of the file system's times, some milliseconds, would have no order.
        time.sleep(0.02)
        (tmp_path / name).write_bytes(b"x" * size)
        (tmp_path / name).rename(aside / f"{name}.jsonl")

    async def deliver() -> None:
        await outbox.Outboxes().deliver(Server())  # type: ignore[arg-type] # it stands in

    def left() -> set[str]:
        return {path.name for path in aside.iterdir()}

    with temporary_settings({PREFECT_HOME: str(tmp_path)}):
        anyio.run(deliver)
        assert left() == {"oldest", "older.jsonl", "newer.jsonl", "newest.jsonl"}
        assert caplog.records == []
        monkeypatch.setattr(outbox, "_ASIDE_BYTES", 6_500)
        anyio.run(deliver)
        assert left() == {"newer.jsonl", "newest.jsonl"}
        # One that cannot be removed holds up no other.
        with monkeypatch.context() as patch:
            patch.setattr(outbox, "_ASIDE_BYTES", 0)
            patch.setattr(Path, "unlink", refuse_the_newest(Path.unlink))
            anyio.run(deliver)
            assert left() == {"newest.jsonl"}
        (aside / "link").symlink_to(tmp_path / "target")
        monkeypatch.setattr(outbox, "_ASIDE_SECONDS", -1)
        anyio.run(deliver)

    assert left() == set()
    assert (tmp_path / "target").exists()
    removed = [record.getMessage() for record in caplog.records]
    assert len(removed) == 6
    assert [message for message in removed if f"{aside}/newest.jsonl cannot be removed: PermissionError" in message]
    assert any(f"Removed: {aside}/older.jsonl, 3 kB" in message for message in removed)
