"""Notes of flows and hooks for their test: JSON files in a directory that is passed as a parameter."""

import json
import os
from pathlib import Path
from uuid import uuid4


def note(directory: str, kind: str, **content: object) -> None:
    """Write a note about what happened, and in which process."""
    path = Path(directory, f"{kind}-{uuid4()}")
    path.write_text(json.dumps({"pid": os.getpid(), "ppid": os.getppid(), **content}), encoding="utf-8")
    # Rename, so that a reader never sees a partial file.
    path.rename(f"{path}.json")


def read_notes(directory: Path, kind: str) -> list[dict[str, object]]:
    """Return all notes of a kind."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in directory.glob(f"{kind}-*.json")]
