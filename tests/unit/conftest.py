"""Ansible plugins are files, not packages: tests load them by their path."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROLES = Path(__file__).parents[2] / "roles"


@pytest.fixture(scope="session")
def load_plugin() -> Callable[[str], ModuleType]:
    """Return a function that loads a plugin, given its path below roles/."""

    def load(path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(Path(path).stem, ROLES / path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
