"""The problems that preflight finds in an inventory and on a host."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

WELL = {"database": ["db"], "prefect_server": ["app"], "prefect_worker": ["app", "w2"], "all": ["db", "app", "w2"]}
FACTS = {
    "distribution": "Debian",
    "distribution_major_version": "13",
    "python": {"version": {"major": 3, "minor": 13}},
    "service_mgr": "systemd",
    "memtotal_mb": 2048,
    "free_mb": {"/opt": 9000, "/var": 9000},
    "has_release": False,
}
LIMITS = {"memory": 1024, "disk": 3072, "deploy_disk": 1024}


@pytest.fixture(scope="module")
def preflight(load_plugin: Callable[[str], ModuleType]) -> ModuleType:
    """Return the action plugin as a module."""
    return load_plugin("preflight/action_plugins/preflight.py")


def test_nothing_is_wrong_with_what_is_right(preflight: ModuleType) -> None:
    assert preflight.group_problems({**WELL, "california": ["db"]}, ["california"]) == []
    assert preflight.host_problems(FACTS, LIMITS) == []


def test_the_survey_s_answer_is_found_behind_a_login_banner(preflight: ModuleType) -> None:
    assert preflight.read_survey('Welcome!\n\nbiocirv-survey {"facts": {}, "problems": []}\n') == {
        "facts": {},
        "problems": [],
    }
    assert preflight.read_survey("Error: No such container") is None


def test_two_workers_of_one_name_are_told(preflight: ModuleType) -> None:
    assert preflight.worker_problems({"w1": "w1", "w2": "w2"}) == []
    (problem,) = preflight.worker_problems({"w1": "worker", "w2": "w2", "w3": "worker"})
    assert "prefect_worker_name is 'worker' on w1, w3, whose workers would end each other's flow runs" in problem


def test_a_misspelt_group_is_told_with_the_right_one(preflight: ModuleType) -> None:
    (problem,) = preflight.group_problems({**WELL, "prefect_workers": ["w3"]}, [])
    assert "'prefect_workers'" in problem
    assert "'prefect_worker'" in problem


@pytest.mark.parametrize(
    "url",
    [
        "http://prefect.example/api",
        "https://prefect.example",
        "https://:443/api",
        "https://h h/api",
        "https://me:pw@h/api",
        "https://prefect.example:99999/api",
    ],
)
def test_an_address_that_nobody_can_reach_is_told(preflight: ModuleType, url: str) -> None:
    (problem,) = preflight.url_problems(url)
    assert problem.startswith(f"prefect_api_url is {url}: it must be https://<name>/api")


def test_what_is_well_is_not_told(preflight: ModuleType) -> None:
    assert preflight.url_problems("https://prefect.example:8443/api") == preflight.url_problems(None) == []
    assert preflight.key_problems("k" * 32) == preflight.key_problems(None) == []
    assert preflight.port_problems("database_port", 5432) == preflight.port_problems("database_port", "five") == []
    assert preflight.network_problems("database_clients", ["10.1.0.0/24", "::1/128"]) == []


@pytest.mark.parametrize(
    "repository",
    ["https://git.example/it.git", "ssh://git@git.example/it", "git@git.example:it.git", "/srv/it", "file:///srv/it"],
)
def test_a_source_of_a_whole_commit_is_well(preflight: ModuleType, repository: str) -> None:
    assert preflight.source_problems("", "") == preflight.source_problems(repository, "0123456789" * 4) == []


@pytest.mark.parametrize("repository", ["ext::sh -c id", "http://git.example/it", "git://git.example/it", "ext://sh"])
def test_a_source_by_another_protocol_is_told(preflight: ModuleType, repository: str) -> None:
    (problem,) = preflight.source_problems(repository, "0123456789" * 4)
    assert problem.startswith(f"release_git_repository names the protocol {repository.partition(':')[0]}: use https")


@pytest.mark.parametrize("version", ["", None, "main", "v1", "0123456", "HEAD"])
def test_a_source_that_others_can_move_is_told(preflight: ModuleType, version: str | None) -> None:
    (problem,) = preflight.source_problems("https://git.example/it.git", version)
    assert problem.startswith(f"release_git_version is {version or 'empty'}: write the full id of a commit")


def test_a_key_a_port_and_a_network_that_cannot_be_are_told(preflight: ModuleType) -> None:
    (problem,) = preflight.key_problems("short")
    assert problem.startswith("prefect_encryption_key must be of 32")
    assert "short" not in problem
    (problem,) = preflight.port_problems("database_port", 99999)
    assert problem == "database_port is 99999: a TCP port is between 1 and 65535."
    (problem,) = preflight.network_problems("database_clients", ["everyone"])
    assert problem.startswith("database_clients: everyone has no prefix length")
    (problem,) = preflight.network_problems("database_clients", ["10.1.0.7/24"])
    assert problem.startswith("database_clients: 10.1.0.7/24 has host bits set")


def test_a_check_that_fails_itself_loses_no_other_problem(preflight: ModuleType) -> None:
    """It meets types that the argument specs refuse, in the same report."""
    (problem,) = preflight.checked("The groups", preflight.group_problems, WELL, 5)
    assert problem.startswith("The groups could not be checked (TypeError:")
    assert preflight.service_problems([{"group": ["database"]}, {"group": "all"}], WELL) == []


def test_a_variable_that_no_role_has_is_told_with_the_right_one(preflight: ModuleType) -> None:
    known = {"prefect_worker_limit", "release_keep"}
    names = ["prefect_worker_limits", "release_xyzzy_plugh", "prefect_worker_limit", "__release_keep", "worker_limits"]
    first, second = preflight.name_problems(names, known, ["prefect_worker", "release"])
    assert "prefect_worker_limits is no variable of any role: did you mean prefect_worker_limit?" in first
    assert "release_xyzzy_plugh is no variable of any role: docs/variables.md lists" in second


def test_empty_groups_and_a_second_primary_are_told(preflight: ModuleType) -> None:
    problems = preflight.group_problems({"database": ["a", "b"], "prefect_server": []}, [])
    assert [
        name for name in ("prefect_server", "prefect_worker") if any(f"'{name}' has no host" in p for p in problems)
    ] == [
        "prefect_server",
        "prefect_worker",
    ]
    assert any("one primary" in problem for problem in problems)


def test_two_servers_are_refused(preflight: ModuleType) -> None:
    """Each would run Prefect's scheduler and automations on the same database, so that runs are scheduled twice."""
    assert preflight.group_problems(WELL, []) == []
    (problem,) = preflight.group_problems({**WELL, "prefect_server": ["s1", "s2"]}, [])
    assert "'prefect_server' has 2 hosts (s1, s2)" in problem
    assert "leave one" in problem


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"distribution_major_version": "11"}, "Debian 11 is not supported"),
        ({"distribution": "Fedora", "distribution_major_version": "40"}, "Fedora 40 is not supported"),
        ({"service_mgr": "sysvinit"}, "need systemd"),
        ({"memtotal_mb": 512}, "512 MB of memory"),
        ({"free_mb": {"/opt": 100, "/var": 9000}}, "100 MB free on the file system of /opt"),
        ({"free_mb": {"/opt": 9000, "/var": 100}}, "100 MB free on the file system of /var"),
        ({"free_mb": {"/var": 3000}}, "lower preflight_minimum_disk_mb"),
        ({"free_mb": {"/var": 1000}, "has_release": True}, "lower preflight_minimum_deploy_disk_mb"),
        ({"python": {"version": {"major": 3, "minor": 11}}}, "is Python 3.11, and Debian 13 brings 3.13"),
    ],
)
def test_each_shortcoming_of_a_host_is_one_problem(preflight: ModuleType, facts: dict[str, Any], words: str) -> None:
    (problem,) = preflight.host_problems({**FACTS, **facts}, LIMITS)
    assert words in problem


def test_a_deploy_needs_less_space_than_the_first_converge(preflight: ModuleType) -> None:
    assert preflight.host_problems({**FACTS, "free_mb": {"/opt": 2000}, "has_release": True}, LIMITS) == []


@pytest.mark.parametrize(
    ("host", "words"), [(995, ""), (1010, ""), (1049, ""), (1060, "40 s ahead of"), (971, ""), (960, "40 s behind")]
)
def test_a_clock_is_compared_with_the_controller_s(preflight: ModuleType, host: float, words: str) -> None:
    """The host was asked between 1000 and 1020."""
    problems = preflight.clock_problems(host, 1000, 1020)
    assert [words in problem for problem in problems] == ([True] if words else [])


@pytest.mark.parametrize(
    ("password", "is_well"), [("s3cret:/@ %", True), ("pässword", False), ("a\nb", False), ("", False)]
)
def test_a_password_that_programs_read_differently_is_told(
    preflight: ModuleType, password: str, *, is_well: bool
) -> None:
    problems = preflight.password_problems("prefect_api_password", password)
    assert (problems == []) == is_well
    assert not any(password and password in problem for problem in problems)


@pytest.mark.parametrize(
    ("address", "is_well"), [("::1", False), ("[2001:db8::7]", False), ("db.example", True), ("127.0.0.1", True)]
)
def test_an_ipv6_literal_is_told(preflight: ModuleType, address: str, *, is_well: bool) -> None:
    assert (preflight.address_problems("database_address", address) == []) == is_well


def test_a_name_or_a_proxy_that_the_host_does_not_reach_is_told(preflight: ModuleType) -> None:
    needed = {"prefect_api_url": "prefect.example", "http_proxy": "proxy:3128", "database_address": "127.0.0.1"}
    unresolved, silent = preflight.reach_problems(needed, ["prefect.example"], ["proxy:3128"])
    assert unresolved.startswith("prefect_api_url names prefect.example, which the host cannot resolve: ")
    assert silent.startswith("http_proxy names proxy:3128, where nothing answers the host: ")
    assert preflight.reach_problems(needed, [], []) == []


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://proxy.example:3128", "proxy.example:3128"),
        ("http://me:pw@proxy.example/", "proxy.example:80"),
        ("https://[2001:db8::1]:8443", "2001:db8::1:8443"),
        ("", ""),
        (None, ""),
        ("http://[broken", ""),
    ],
)
def test_a_proxy_s_address_is_taken_from_its_url(preflight: ModuleType, url: str | None, host: str) -> None:
    assert preflight.host_of(url, with_port=True) == host


def test_a_sudo_that_asks_is_told_from_a_host_that_is_away(preflight: ModuleType) -> None:
    for error in ("Missing sudo password", "sudo: a password is required"):
        assert "OPTIONS=--ask-become-pass" in preflight.unreachable(error, "Is it on?")["msg"]
    asked_twice = "Sorry, try again.\nsudo: no password was provided\nsudo: 1 incorrect password attempt"
    for error in ("Incorrect sudo password", "timeout waiting for privilege escalation password prompt:", asked_twice):
        assert "refuses the password" in preflight.unreachable(error, "Is it on?")["msg"]
    away = preflight.unreachable("ssh: connect to host h port 22: No route to host", "Is it on?")
    assert away["msg"] == "The host cannot be reached: Is it on?"


def test_a_file_that_cannot_be_read_is_told(preflight: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text("{}", encoding="utf-8")
    paths = [str(tmp_path / "key.json"), "/nowhere/key.json", str(tmp_path), None, "~nobody-of-this-name/key"]
    problems = preflight.file_problems({f"{number} of credential_files": path for number, path in enumerate(paths)})
    assert [problem.split(":")[0] for problem in problems] == [
        f"{number} of credential_files" for number in (1, 2, 3, 4)
    ]
    assert problems[0].startswith("1 of credential_files: /nowhere/key.json cannot be read (No such file or directory)")


def test_an_operator_s_variable_is_told_and_not_those_made_of_it(preflight: ModuleType) -> None:
    specs = preflight.read_specs(Path(__file__).parents[2] / "roles")
    assert next(iter(specs)) == preflight.INVENTORY
    own = trust_as_template("{{ nowhere }}")
    wired = trust_as_template("{{ database_port }}")
    variables = {"database_port": own, "backup_port": wired, "postgresql_port": wired}
    action = preflight.ActionModule.__new__(preflight.ActionModule)
    action._templar = Templar(loader=DataLoader(), variables=variables)
    problems = [problem for problem in action.variable_problems(specs, variables) if "nowhere" in problem]
    (problem,) = problems
    assert problem.startswith("database_port (role preflight (inventory)): ")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"group": "prefect_workers"}, "did you mean 'prefect_worker'?"),
        ({"group": "elsewhere"}, "name a group of the inventory, or all"),
        ({"listens": ["9187"]}, "listens on 9187: write it as"),
        ({"follows": "release", "group": "prefect_server"}, "follows the release: say by `renewal`"),
        ({"follows": "release", "renewal": "restarted"}, "only prefect_server and prefect_worker have"),
    ],
)
def test_a_further_service_that_could_not_run_is_told(preflight: ModuleType, entry: dict[str, Any], words: str) -> None:
    service = {"unit": "exporter.service", "group": "all", "kind": "service"}
    assert preflight.service_problems([service], WELL) == []
    (problem,) = preflight.service_problems([service | entry], WELL)
    assert problem.startswith("other_services: exporter.service ")
    assert words in problem


def test_a_service_is_listed_once(preflight: ModuleType) -> None:
    service = {"unit": "exporter.service", "group": "all", "kind": "service"}
    assert preflight.service_problems([service, service], WELL) == ["other_services: exporter.service is listed twice."]
    told = preflight.service_problems([service], WELL, ["exporter.service"])
    assert told == ["other_services: exporter.service is listed twice."]
    # Their types are the argument specs' business.
    assert preflight.service_problems(["exporter"], WELL) == preflight.service_problems(None, WELL) == []


def test_what_a_playbook_passes_on_is_a_known_name(preflight: ModuleType) -> None:
    names = preflight.read_names(Path(__file__).parents[2] / "roles")
    assert {"release_archive_file", "backup_restore_file", "prefect_worker_limit", "prefect_api_url"} <= names


def test_a_variable_that_the_wiring_sets_is_told_with_those_that_it_is_made_of(preflight: ModuleType) -> None:
    wiring = {"postgresql_port": "{{ database_port }}", "backup_databases": "{{ database_databases }}"}
    names = ["postgresql_port", "backup_databases", "database_port"]
    made, own = preflight.wired_problems(names, wiring, ["database_port", "http_proxy"])
    assert own == "postgresql_port has no effect in an inventory: set database_port instead, of which it is made."
    assert made == "backup_databases has no effect in an inventory: the platform itself sets it."


@pytest.mark.parametrize(
    ("rights", "version", "is_well"),
    [
        (["maintain"], "17", True),
        (["maintain"], "15", False),
        (["own"], "15", True),
        ([], "15", True),
        (None, "", True),
    ],
)
def test_a_right_that_postgresql_lacks_is_told(
    preflight: ModuleType, rights: list[str] | None, version: str, *, is_well: bool
) -> None:
    assert (preflight.rights_problems(rights, version) == []) == is_well


@pytest.mark.thorough
def test_an_inventory_that_sets_what_has_no_effect_is_refused(preflight: ModuleType, tmp_path: Path) -> None:
    """In the inventory's file as in group_vars beside it; the wiring's own values are none of the inventory's."""
    (tmp_path / "hosts.yml").write_text("all: {hosts: {one: {ansible_connection: local, postgresql_port: 1}}}")
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/all.yml").write_text("release_network_environment: {}\ndatabase_port: 5432\n")
    loader = DataLoader()
    inventory = InventoryManager(loader=loader, sources=[str(tmp_path / "hosts.yml")])
    variables = VariableManager(loader=loader, inventory=inventory)
    action = preflight.ActionModule.__new__(preflight.ActionModule)
    names = action.set_names({"hostvars": HostVars(inventory, variables, loader), "inventory_hostname": "one"})
    assert names >= {"postgresql_port", "release_network_environment", "database_port"}
    assert "backup_port" not in names


def test_backups_need_a_passphrase_that_their_configuration_can_hold(preflight: ModuleType) -> None:
    assert preflight.passphrase_problems(None, needed=False) == []
    assert preflight.passphrase_problems("p" * 32, needed=True) == []
    for unfit in (None, "", "short", "two words of it", "line\nbreak-in-it"):
        (problem,) = preflight.passphrase_problems(unfit, needed=True)
        assert problem.startswith("backup_passphrase, which encrypts the backups, must be of at least 12 ")
