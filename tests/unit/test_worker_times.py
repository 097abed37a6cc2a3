"""The times in the worker, the roles and the docs are equal and consistent."""

from pathlib import Path
from typing import Any

import yaml
from biocirv_worker import crashes, times, worker

ROOT = Path(__file__).parents[2]


class Loader(yaml.SafeLoader):
    """Loads Ansible's YAML, in which some strings carry the tag !unsafe."""


def _text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> object:
    return loader.construct_scalar(node)


Loader.add_constructor("!unsafe", _text)


def role_vars(role: str) -> dict[str, Any]:
    """Return a role's vars, not templated."""
    text = (ROOT / f"roles/{role}/vars/main.yml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.load(text, Loader)  # noqa: S506 - a safe loader
    return found


def test_a_process_without_contact_ends_before_the_server_considers_it_crashed() -> None:
    assert worker.CONTACT_SECONDS == times.CONTACT < times.SILENCE - times.HEARTBEAT
    assert crashes.DELAY.total_seconds() == times.SUCCESSOR > 60


def test_the_roles_have_the_worker_s_times() -> None:
    variables = role_vars("prefect_worker")["__prefect_worker_variables"]
    assert variables["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == str(times.HEARTBEAT)
    automation = role_vars("prefect_deployments")["__prefect_deployments_crash"]
    assert automation["trigger"]["within"] == times.SILENCE
    said = f"No heartbeat for {times.SILENCE} seconds"
    assert said in automation["description"]
    assert said in automation["actions"][0]["message"]


def test_the_docs_have_them_too() -> None:
    operate, trouble = (
        (ROOT / f"docs/{page}.md").read_text(encoding="utf-8") for page in ("operate", "troubleshooting")
    )
    assert f"no contact to the API for {times.CONTACT} s" in operate
    assert f"silent for {times.SILENCE} s" in operate
    assert f"heard of it for {times.SILENCE} seconds" in trouble
