"""The wiring in playbooks/group_vars, as Ansible templates it for the hosts of an inventory."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PLAY = """
- hosts: all
  gather_facts: false
  connection: local
  vars_files: [{wiring}, {worker}/defaults/main.yml, {worker}/vars/main.yml]
  tasks:
    - ansible.builtin.debug:
        msg: "{{{{ {{'upstream': reverse_proxy_upstream_port, 'written': tls_acme_webroot,
                      'limits': __prefect_worker_variables.ETL_REJECTED_LIMITS}} | to_json }}}}"
"""


@pytest.fixture
def wired(tmp_path: Path) -> Any:  # noqa: ANN401 - a function
    """Return a function that templates the local inventory's wiring, with variables that override the inventory."""
    play = tmp_path / "play.yml"
    wiring, worker = ROOT / "playbooks/group_vars/all/wiring.yml", ROOT / "roles/prefect_worker"
    play.write_text(PLAY.format(wiring=wiring, worker=worker), encoding="utf-8")

    def template(**variables: object) -> dict[str, Any]:
        done = subprocess.run(
            ["ansible-playbook", "--inventory", "inventory/local", play, "--extra-vars", json.dumps(variables)],
            cwd=ROOT,
            env={
                **os.environ,
                "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
                "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        found: dict[str, Any] = json.loads(
            json.loads("{" + done.stdout.partition("=> {")[2].partition("\n}")[0] + "}")["msg"]
        )
        return found

    return template


def test_the_proxy_asks_the_server_at_the_server_s_port(wired: Any) -> None:  # noqa: ANN401 - a function
    """A port that an inventory sets is used too."""
    assert wired()["upstream"] == 4200
    assert wired(prefect_server_port=4300)["upstream"] == 4300


def test_the_proxy_serves_the_directory_that_acme_answers_are_written_to(wired: Any) -> None:  # noqa: ANN401 - a function
    defaults = yaml.safe_load((ROOT / "roles/reverse_proxy/defaults/main.yml").read_text(encoding="utf-8"))
    assert wired()["written"] == defaults["reverse_proxy_challenge_directory"]
    assert wired(reverse_proxy_challenge_directory="/srv/acme")["written"] == "/srv/acme"


def test_flows_get_the_limits_of_rejected_rows(wired: Any) -> None:  # noqa: ANN401 - a function
    assert wired()["limits"] == ""
    limits = {"observation": 5, "all": "10%"}
    assert wired(prefect_worker_rejected_limits=limits)["limits"] == "all=10%, observation=5"
