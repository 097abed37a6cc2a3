"""What a test's flows and hooks tell it: a JSON file for each note, in a directory that their parameter names."""

import json
import os
from pathlib import Path
from uuid import uuid4


def note(directory: str, kind: str, **content: object) -> None:
    """Note what happened, and in which process."""
    path = Path(directory, f"{kind}-{uuid4()}")
    path.write_text(json.dumps({"pid": os.getpid(), "ppid": os.getppid(), **content}), encoding="utf-8")
    # Whoever reads it finds it whole.
    path.rename(f"{path}.json")


def read_notes(directory: Path, kind: str) -> list[dict[str, object]]:
    """Return all notes of a kind."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in directory.glob(f"{kind}-*.json")]
