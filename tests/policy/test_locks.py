"""Locks have hashes and no addresses, and agree with pyproject.toml and each other."""

import re
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def pins(lock: Path) -> dict[str, str]:
    """Return package -> version."""
    return dict(re.findall(r"(?m)^([a-z0-9._-]+)==([^\s;\\]+)", lock.read_text(encoding="utf-8")))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_package_is_hashed_and_no_address_is_named(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    assert pins(lock)
    assert not re.search(r"://|--(extra-)?index-url|--find-links", text)
    for entry in re.split(r"(?m)^(?=[a-z0-9])", text):
        if "==" in entry.split("\n", 1)[0]:
            assert "--hash=sha256:" in entry, entry


def test_tests_run_what_is_deployed() -> None:
    developed = pins(ROOT / "requirements/dev.txt")
    for name in ("application", "builder", "controller"):
        for package, version in pins(ROOT / f"requirements/{name}.txt").items():
            assert developed.get(package) == version, f"{name}: {package}"


def test_the_collections_that_are_used_are_those_that_ansible_carries() -> None:
    """They come with Ansible's package; another version would be fetched from elsewhere, without a hash."""
    wanted = yaml.safe_load((ROOT / "requirements.yml").read_text(encoding="utf-8"))["collections"]
    folders = ("inventory", "molecule", "playbooks", "roles", "containers")
    files = [path for name in folders for path in (ROOT / name).rglob("*.yml")] + [*(ROOT / "benchmarks").glob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in files]
    used = {found for text in texts for found in re.findall(r"\b((?:ansible|community)\.\w+)\.\w+", text)}
    assert used - {"ansible.builtin"} == {collection["name"] for collection in wanted}

    carried = Path(str(distribution("ansible").locate_file("ansible_collections")))
    for collection in wanted:
        manifest = (carried / collection["name"].replace(".", "/") / "MANIFEST.json").read_text(encoding="utf-8")
        assert f'"version": "{collection["version"]}"' in manifest, collection
