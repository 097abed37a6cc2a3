"""What is shared by forks is read from the application's source, none of which runs."""

from pathlib import Path

import pytest
from biocirv_worker import preload
from biocirv_worker.imports import Import, shared_imports


def application(directory: Path, **files: str) -> set[str]:
    """Return the modules that flow runs of an application with these files share; each is an entrypoint."""
    for name, text in files.items():
        (directory / f"{name}.py").write_text(text, encoding="utf-8")
    entrypoints = "".join(f"  - entrypoint: {name}.py:flow\n" for name in files if name != "own")
    (directory / "prefect.yaml").write_text(f"deployments:\n{entrypoints}", encoding="utf-8")
    return {each.module for each in shared_imports(directory)[0]}


def test_libraries_are_shared_and_the_application_is_not(tmp_path: Path) -> None:
    """Also those that its modules import, and in the way in which they do."""
    found = application(
        tmp_path,
        one="import own\nimport prefect\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import httpx\n",
        own="import yaml\nfrom pydantic import BaseModel\n\nraise SystemExit\n",
    )
    assert found == {"yaml", "pydantic", "prefect", "typing"}


def test_a_library_is_left_to_flow_runs_where_other_code_runs_first(tmp_path: Path) -> None:
    """Such code sets variables that the library reads when it is imported. So it is shared by no entrypoint."""
    assert application(
        tmp_path,
        one="import os\nimport prefect\nos.environ['A'] = '1'\nimport yaml\n",
        two="import os\nimport prefect\nimport yaml\n",
    ) == {"os", "prefect"}


def test_code_after_which_no_library_is_imported_does_not_matter(tmp_path: Path) -> None:
    """Neither one that was imported before."""
    assert application(
        tmp_path,
        one="import os\nos.environ['A'] = '1'\nimport own\nfrom os import path\n",
        two="import os\nimport yaml\n",
        own="print()",
    ) == {"os", "yaml"}


@pytest.mark.parametrize(
    "text", ["this is no Python", "import missing", "from . import missing", "import os.path.missing", "\0"]
)
def test_what_cannot_be_imported_is_left_to_its_flow_runs(tmp_path: Path, text: str) -> None:
    assert "yaml" in application(tmp_path, one=text, two="import yaml")


@pytest.mark.parametrize("text", ["", "deployments: 3", "deployments: [{}]", ": :", "- a"])
def test_without_deployments_nothing_is_shared(tmp_path: Path, text: str) -> None:
    (tmp_path / "prefect.yaml").write_text(text, encoding="utf-8")
    assert shared_imports(tmp_path) == ([], [])


def test_a_library_that_waits_or_fails_is_left_to_flow_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preload, "_IMPORT_SECONDS", 0.5)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in {
        "lib_waits": "import time\ntime.sleep(3600)",
        "lib_fails": "raise RuntimeError",
        "lib_exits": "raise SystemExit",
        "lib_thread": "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()",
        "lib_good": "",
    }.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    names = ("lib_waits", "lib_fails", "lib_exits", "lib_thread", "lib_good")
    assert preload._import([Import(name) for name in names]) == ({"lib_good"}, set(names) - {"lib_good"})
