"""The playbooks: check mode predicts the changes, and all input errors are reported before anything is changed."""

import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

from tests.host.conftest import CURL, recap
from tests.limits import wait_until

if TYPE_CHECKING:
    from tests.host.conftest import Api, Inventory

# Deployments that a converge did not register.
OTHERS: dict[str, dict[str, str]] = {"by-hand": {}, "of-another-project": {"version": "1.0"}}


def test_check_mode_on_a_live_host_reports_no_change(inventory: "Inventory") -> None:
    done = inventory.playbook("site.yml", "--check", "--diff")
    assert recap(done.stdout) == (0, 0, 0), done.stdout


def test_bad_input_is_one_report_and_changes_nothing(inventory: "Inventory", server: Host, tmp_path: Path) -> None:
    unknown = tmp_path / "more.yml"
    unknown.write_text("prefect_workers: {hosts: {}}\n", encoding="utf-8")
    marker = f"/root/marker-{uuid.uuid4().hex}"
    server.check_output("touch %s", marker)
    refused = inventory.playbook(
        "site.yml",
        "--inventory",
        str(unknown),
        "--extra-vars",
        '{"preflight_minimum_memory_mb": 99999999, "preflight_minimum_deploy_disk_mb": 99999999,'
        ' "postgresql_version": 14, "prefect_server_port": "http", "prefect_worker_limit": [8],'
        ' "prefect_worker_limits": 8, "biocirv_reader_password": "Schlüssel", "prefect_encryption_key": "short",'
        ' "prefect_api_url": "https://[fd00::1]/api",'
        ' "database_port": "{{ nowhere }}"}',
    )
    assert refused.returncode != 0
    report = re.search(r"msg: \|-\n(.*?)\n\n", refused.stdout, re.DOTALL)
    assert report, refused.stdout
    text = " ".join(report[1].split())
    for words in (
        "nothing was changed",
        "did you mean 'prefect_worker'",
        "MB of memory",
        "file system of /opt",
        "file system of /var",
        "database_port",
        "prefect_server_port",
        "prefect_worker_limit",
        "did you mean prefect_worker_limit?",
        "postgresql_version",
        "biocirv_reader_password must be of printable ASCII characters",
        "prefect_encryption_key must be of 32 ASCII characters",
        "prefect_api_url names fd00::1: give that IPv6 address a name",
    ):
        assert words in text, f"{words!r} is not in: {text}"
    assert "cannot resolve" not in text
    assert recap(refused.stdout)[0] == 0
    assert server.check_output("find /etc /opt/biocirv -newer %s -type f", marker) == ""
    server.check_output("rm %s", marker)


def test_a_name_that_a_host_cannot_resolve_is_refused(inventory: "Inventory") -> None:
    refused = inventory.playbook("site.yml", "--extra-vars", "prefect_api_url=https://nosuch.invalid/api")
    assert refused.returncode != 0
    assert "prefect_api_url names nosuch.invalid, which the host cannot resolve" in " ".join(refused.stdout.split())
    assert recap(refused.stdout)[0] == 0


# Holds the locks of apt and dpkg, as unattended-upgrades does, for 90 s from when Ansible comes to apt.
HOLD_LOCKS = """
import fcntl, subprocess, time
paths = "/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock"
files = [open(path, "w") for path in paths]
for file in files:
    fcntl.lockf(file, fcntl.LOCK_EX)
follow = ["journalctl", "--follow", "--lines=0", "--identifier=ansible-ansible.builtin.apt"]
with subprocess.Popen(follow, stdout=subprocess.PIPE) as journal:
    journal.stdout.readline()
    # Longer than the minute for which Ansible's apt waits unless it is told to wait longer.
    time.sleep(90)
    journal.kill()
"""


@pytest.mark.thorough
@pytest.mark.disruptive
def test_apt_is_waited_for_while_another_program_uses_it(inventory: "Inventory", database: Host) -> None:
    database.check_output("apt-get remove --yes zstd")
    database.check_output("systemd-run --quiet --collect --unit=hold-apt python3 -c %s", HOLD_LOCKS)
    try:
        install = "apt-get install --yes zstd"
        wait_until(lambda: "Could not get lock" in database.run(install).stderr, "apt is refused the locks", poll=1)
        done = inventory.playbook("site.yml", "--tags", "base")
        assert done.returncode == 0, done.stdout
        assert database.run("dpkg --status zstd").rc == 0
        assert database.run("systemctl is-active hold-apt").stdout.strip() == "inactive"
    finally:
        database.run("systemctl stop hold-apt; apt-get install --yes zstd")


@pytest.fixture
def stranger(server: Host) -> Iterator[int]:
    """Run a web server that is none of the platform's, as if the firewall had not been applied yet; return its port."""
    rules, port = "/etc/biocirv/firewall.nft", 8443
    server.check_output("systemd-run --quiet --unit=stranger python3 -m http.server %s --directory /srv", str(port))
    server.check_output("mv %s %s.aside", rules, rules)
    yield port
    server.check_output("mv %s.aside %s; systemctl stop stranger", rules, rules)


@pytest.mark.thorough
@pytest.mark.disruptive
def test_a_program_in_the_way_is_refused(inventory: "Inventory", stranger: int) -> None:
    url = inventory.value("prefect_api_url").replace("/api", f":{stranger}/api")
    taken = inventory.playbook("playbooks/preflight.yml", "--extra-vars", f"prefect_api_url={url}")
    assert taken.returncode != 0
    said = " ".join(taken.stdout.split())
    assert re.search(rf"tcp/{stranger} \([^)]+\) listens where nginx.service will \(\*:{stranger}\)", said), said

    closed = inventory.playbook("playbooks/preflight.yml")
    assert closed.returncode != 0
    assert f"preflight_closed_ports: [tcp/{stranger}]" in " ".join(closed.stdout.split())
    allowed = inventory.playbook(
        "playbooks/preflight.yml", "--extra-vars", f'{{"preflight_closed_ports": ["tcp/{stranger}"]}}'
    )
    assert allowed.returncode == 0, allowed.stdout


# For each tag of site.yml: the group whose host is damaged, the damage, and a command that shows the repair.
PSQL = 'runuser --user postgres -- psql -Atc "{}"'
PARTS = {
    "base": ("database", "timedatectl set-timezone Asia/Tokyo", "timedatectl show --property=Timezone --value"),
    "database": (
        "database",
        PSQL.format(
            "ALTER ROLE biocirv_monitor CONNECTION LIMIT 2; ALTER ROLE biocirv_monitor SET search_path = pg_temp"
        ),
        PSQL.format("SELECT rolconnlimit, rolconfig FROM pg_roles WHERE rolname = 'biocirv_monitor'"),
    ),
    "proxy": ("prefect_server", "echo '# harmed' >> /etc/biocirv/nginx.conf", "tail -n 1 /etc/biocirv/nginx.conf"),
    "deploy": ("prefect_worker", "ln -sfn releases/none /opt/biocirv/candidate", "readlink /opt/biocirv/candidate"),
    "firewall": ("database", "nft delete table inet biocirv", "nft list table inet biocirv | grep -c accept"),
}


@pytest.mark.thorough
@pytest.mark.disruptive
def test_a_tag_converges_its_part_alone(inventory: "Inventory") -> None:
    """A tag works alone, without facts from an earlier play."""

    def look() -> dict[str, str]:
        return {tag: inventory.host(group).run(shows).stdout for tag, (group, _, shows) in PARTS.items()}

    well = look()
    for group, harm, _ in PARTS.values():
        inventory.host(group).check_output(harm)
    expected = look()
    assert all(expected[tag] != well[tag] for tag in PARTS)
    for tag in PARTS:
        done = inventory.playbook("site.yml", "--tags", tag)
        assert done.returncode == 0, done.stdout
        expected[tag] = well[tag]
        assert look() == expected, done.stdout


@pytest.mark.thorough
@pytest.mark.disruptive
def test_a_converge_without_the_database_fails_and_says_so(inventory: "Inventory", database: Host) -> None:
    """An unreachable database is an error; it is not taken for an empty one or waited for indefinitely."""
    database.check_output("systemctl stop 'postgresql@*'")
    try:
        failed = inventory.playbook("site.yml", "--tags", "deploy", "--extra-vars", "migrations_patience_seconds=4")
    finally:
        database.check_output("systemctl start postgresql")
    assert failed.returncode != 0
    said = " ".join(failed.stdout.split())
    assert "The database does not answer: " in said, failed.stdout
    assert "Connection refused" in said
    assert "`make check-db-health" in said


@pytest.mark.thorough
@pytest.mark.disruptive
def test_postgresql_is_not_restarted_for_a_question_that_fails(inventory: "Inventory", database: Host) -> None:
    """The query fails because psql is missing, not because of the server."""
    client = database.check_output("ls /usr/lib/postgresql/*/bin/psql")
    started = "head -3 /var/lib/postgresql/*/main/postmaster.pid | tail -1"
    before = database.check_output(started)
    database.check_output(f"mv {client} {client}.away")
    try:
        failed = inventory.playbook("site.yml", "--tags", "database")
    finally:
        database.check_output(f"mv {client}.away {client}")
    assert failed.returncode != 0
    assert client in failed.stdout
    assert database.check_output(started) == before


@pytest.mark.thorough
@pytest.mark.disruptive
def test_postgresql_that_runs_without_its_sandbox_is_restarted(inventory: "Inventory", database: Host) -> None:
    """As after a move to another major version, which starts the new server before its drop-in is there."""
    drop_in = database.check_output("ls /etc/systemd/system/postgresql@*.service.d/biocirv.conf")
    is_confined = "grep --count 'NoNewPrivs:.1' /proc/$(head -1 /var/lib/postgresql/*/main/postmaster.pid)/status"
    database.check_output(f"rm {drop_in} && systemctl daemon-reload && systemctl restart 'postgresql@*'")
    assert database.run(is_confined).stdout.strip() == "0"
    converged = inventory.playbook("site.yml", "--tags", "database")
    assert converged.returncode == 0, converged.stdout
    assert database.run(is_confined).stdout.strip() == "1"


def revision(database: Host, name: str) -> str:
    """Return the revision that a database records."""
    psql = "runuser --user postgres -- psql -Atc 'SELECT version_num FROM alembic_version' %s"
    return str(database.check_output(psql, name))


def pretend(database: Host, name: str, revision: str) -> None:
    """Change the revision that a database records."""
    change = f"UPDATE alembic_version SET version_num = '{revision}'"  # noqa: S608 - the tests' own words
    database.check_output("runuser --user postgres -- psql -c %s %s", change, name)


@pytest.mark.disruptive
@pytest.mark.thorough
def test_postgresql_and_nginx_get_further_settings(inventory: "Inventory", database: Host, server: Host) -> None:
    """Settings that are invalid, or that have a variable of their own, are refused before they are written."""

    def converge(**variables: object) -> str:
        tags = ("--tags", "database,proxy")
        return " ".join(inventory.playbook("site.yml", *tags, "--extra-vars", json.dumps(variables)).stdout.split())

    show = "runuser --user postgres -- psql -Atc 'SHOW work_mem'"
    written = "cat /etc/postgresql/*/main/conf.d/biocirv.conf"
    before = database.check_output(show), database.check_output(written)
    refused = converge(postgresql_settings={"wrok_mem": "16MB"})
    assert "postgresql_settings: " in refused
    assert 'unrecognized configuration parameter "wrok_mem"' in refused, refused
    refused = converge(reverse_proxy_server_lines=["ad_header X-Test yes;"])
    assert 'unknown directive "ad_header"' in refused, refused
    assert server.run("grep ad_header /etc/biocirv/nginx.conf").stdout == ""
    assert "postgresql_settings: port cannot be set there" in converge(postgresql_settings={"port": 1})
    assert (database.check_output(show), database.check_output(written)) == before

    said = converge(
        postgresql_settings={"work_mem": "16MB"}, reverse_proxy_server_lines=["add_header X-Test yes always;"]
    )
    assert "failed=0" in said, said
    assert database.check_output(show) == "16MB"
    headers = f'{CURL} --output /dev/null --dump-header - "$PREFECT_API_URL/health"'
    assert "x-test: yes" in server.check_output(headers).lower()

    said = converge()
    assert "failed=0" in said, said
    assert database.check_output(show) == before[0]
    assert "x-test" not in server.check_output(headers).lower()


@pytest.mark.disruptive
@pytest.mark.thorough
def test_check_mode_shows_what_is_pending(inventory: "Inventory", database: Host) -> None:
    """Pending migrations, upgrades of Prefect's schema and registrations are reported, and not applied."""
    check = ("site.yml", "--check", "--tags", "deploy")
    pending = {"biocirv_db": "biocirv-migrations", "prefect_db": "prefect-server-schema"}
    well = {name: revision(database, name) for name in pending}
    for name, unit in pending.items():
        pretend(database, name, "older")
        try:
            foreseen = inventory.playbook(*check)
            assert revision(database, name) == "older"
        finally:
            pretend(database, name, well[name])
        assert f"{unit}.service would run" in foreseen.stdout, foreseen.stdout
        # The revision that is found, and the run of the unit.
        assert recap(foreseen.stdout) == (2, 0, 0)
    variables = json.dumps({"deployment_environment": {"ETL_SCHEDULE_ACTIVE": "false", "NEW": "1"}})
    foreseen = inventory.playbook(*check, "--extra-vars", variables)
    assert "biocirv-deployments.service would run" in foreseen.stdout, foreseen.stdout
    assert recap(inventory.playbook(*check).stdout) == (0, 0, 0)


@pytest.mark.disruptive
@pytest.mark.thorough
def test_a_unit_that_does_not_get_ready_is_not_waited_for_for_ever(inventory: "Inventory", worker: Host) -> None:
    """A new worker cannot reach its server: the converge fails, and the old worker continues."""
    server = worker.check_output("systemctl show --property=MainPID --value prefect-worker")
    variables = json.dumps({"systemd_unit_ready_seconds": 15, "prefect_worker_api_url": "https://127.0.0.1:4/api"})
    failed = inventory.playbook("site.yml", "--tags", "deploy", "--extra-vars", variables)
    assert failed.returncode != 0
    said = " ".join(failed.stdout.split())
    assert "prefect-worker.service is not ready on" in said, failed.stdout
    assert worker.check_output("systemctl show --property=MainPID --value prefect-worker") == server
    mended = inventory.playbook("site.yml", "--tags", "deploy")
    assert mended.returncode == 0, mended.stdout
    assert worker.check_output("systemctl is-active prefect-worker") == "active"


@pytest.mark.disruptive
@pytest.mark.thorough
def test_a_deployment_that_the_inventory_no_longer_names_is_removed(inventory: "Inventory", api: "Api") -> None:
    """It is removed with its schedule; deployments that were registered by hand are kept."""
    master = api.ask("/deployments/name/Master%20ETL%20Flow/master-etl-deployment")
    copied = ("flow_id", "entrypoint", "pull_steps", "work_pool_name")
    common = {"enforce_parameter_schema": False, **{key: master[key] for key in copied}}
    dropped = api.ask("/deployments/", {**common, "name": "dropped", "version": master["version"]})
    others = [api.ask("/deployments/", {**common, "name": name, **more}) for name, more in OTHERS.items()]

    def names() -> set[str]:
        return {deployment["name"] for deployment in api.ask("/deployments/filter", {})}

    assert {"dropped", *OTHERS} <= names()
    foreseen = inventory.playbook("site.yml", "--tags", "deploy", "--check")
    assert recap(foreseen.stdout) == (1, 0, 0), foreseen.stdout
    assert dropped["name"] in names()
    for changes in (1, 0):
        done = inventory.playbook("site.yml", "--tags", "deploy")
        assert recap(done.stdout) == (changes, 0, 0), done.stdout
        assert names() >= {"master-etl-deployment", *OTHERS}
        assert "dropped" not in names()
    for other in others:
        api.delete(f"/deployments/{other['id']}")


def test_a_missing_variable_is_named(inventory: "Inventory") -> None:
    refused = inventory.playbook("playbooks/preflight.yml", "--extra-vars", '{"prefect_work_pool": null}')
    assert refused.returncode != 0
    assert "prefect_work_pool" in refused.stdout


@pytest.mark.disruptive
def test_an_unsupported_system_is_refused(inventory: "Inventory", server: Host) -> None:
    """The facts of the host come from a changed /etc/os-release."""
    server.check_output("cp --no-dereference /etc/os-release /root/os-release")
    server.check_output(
        "rm /etc/os-release && mv /etc/debian_version /root/"
        " && printf 'ID=fedora\\nNAME=Fedora\\nVERSION_ID=40\\n' > /etc/os-release"
    )
    try:
        refused = inventory.playbook("playbooks/preflight.yml")
    finally:
        server.check_output("mv /root/os-release /etc/os-release && mv /root/debian_version /etc/")
    assert refused.returncode != 0
    assert "is not supported" in refused.stdout, refused.stdout


@pytest.mark.disruptive
def test_a_host_without_python_is_refused(inventory: "Inventory", server: Host) -> None:
    """Ansible itself would only say that a module failed."""
    # The check of the scheduler is a program in Python, whose failure restarts the server.
    server.check_output("systemctl stop prefect-schedules.timer && mv /usr/bin/python3 /usr/bin/python3.aside")
    try:
        refused = inventory.playbook("site.yml")
    finally:
        server.check_output("mv /usr/bin/python3.aside /usr/bin/python3 && systemctl start prefect-schedules.timer")
    assert refused.returncode != 0
    assert "The host has no /usr/bin/python3: `apt-get install python3`" in refused.stdout, refused.stdout
    assert recap(refused.stdout)[0] == 0


def test_an_unreachable_host_gets_advice(inventory: "Inventory") -> None:
    refused = inventory.playbook("site.yml", "--extra-vars", "ansible_host=not-there")
    assert refused.returncode != 0
    assert "UNREACHABLE" not in refused.stdout
    assert "make up" in refused.stdout


@pytest.mark.thorough
def test_a_proxy_reaches_apt_and_the_services(inventory: "Inventory") -> None:
    """The test uses check mode, as what answers at the address is no proxy; where nothing does, it is refused."""
    proxy = "http://127.0.0.1:3128"
    options = ("site.yml", "--check", "--diff", "--extra-vars", f'{{"https_proxy": "{proxy}", "no_proxy": "lan.test"}}')
    refused = inventory.playbook(*options)
    assert refused.returncode != 0
    said = " ".join(refused.stdout.split())
    assert "https_proxy names 127.0.0.1:3128, where nothing answers the host" in said, refused.stdout
    hosts = [inventory.host_named(name) for name in inventory.all_names()]
    try:
        for host in hosts:
            host.check_output("systemd-run --quiet --unit=stand-in-proxy python3 -m http.server 3128 --bind 127.0.0.1")
            host.check_output("timeout 60 bash -c 'until </dev/tcp/127.0.0.1/3128; do sleep 0.1; done' 2>/dev/null")
        done = inventory.playbook(*options)
    finally:
        for host in hosts:
            host.run("systemctl stop stand-in-proxy")
    assert done.returncode == 0, done.stdout
    assert f'+Acquire::https::Proxy "{proxy}";' in done.stdout
    assert '+Acquire::http::Proxy::lan.test "DIRECT";' in done.stdout
    # The environment files of server, schema and worker change too; their content is not shown, as it is secret.
    assert ":3128" not in re.sub(r"(?m)^\+Acquire.*$", "", done.stdout)
    assert recap(done.stdout)[0] >= 4


@pytest.mark.usefixtures("container")
def test_a_machine_without_docker_gets_advice(inventory: "Inventory", tmp_path: Path) -> None:
    for program in ("env", "sh"):
        (tmp_path / program).symlink_to(str(shutil.which(program)))
    refused = inventory.playbook("site.yml", PATH=str(tmp_path))
    assert refused.returncode != 0
    assert "make up" in refused.stdout


STAND_IN = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        with open("/run/told", "ab") as file:
            file.write(self.rfile.read(int(self.headers["Content-Length"])) + b"\\n")
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", 8099), Handler).serve_forever()
"""


@pytest.fixture
def told(server: Host) -> Iterator[Callable[[], list[str]]]:
    """Return a function that waits for messages to a fake chat webhook, and returns their texts."""
    server.check_output("systemd-run --unit=told --collect python3 -c %s", STAND_IN)

    def texts() -> list[str]:
        wait_until(lambda: server.run("grep --quiet '}$' /run/told").rc == 0, "the webhook is called")
        return [json.loads(line)["text"] for line in server.check_output("cat /run/told").splitlines()]

    yield texts
    server.check_output("systemctl stop told && rm -f /run/told")


@pytest.mark.thorough
@pytest.mark.disruptive
def test_a_google_key_is_the_worker_s_alone_and_a_failure_is_told(
    inventory: "Inventory", worker: Host, api: "Api", told: Callable[[], list[str]], tmp_path: Path
) -> None:
    """Flows can read the key, no output shows it; a failure is notified; dropping the variables removes both."""
    secret = f"key-{uuid.uuid4().hex}"
    key = tmp_path / "key.json"
    key.write_text(f'{{"type": "service_account", "private_key": "{secret}"}}\n', encoding="utf-8")
    path = "/etc/biocirv/credentials/key.json"
    variables = {
        "credential_files": {"CREDENTIALS_PATH": str(key)},
        "flow_environment": {"ETL_SOURCE": "google"},
        "prefect_deployments_failure_webhook": f"http://127.0.0.1:8099/{secret}",
    }

    options = ("--tags", "deploy", "--diff", "--extra-vars", json.dumps(variables))
    foreseen = inventory.playbook("site.yml", "--check", *options)
    assert "The webhook for failures would be written" in foreseen.stdout, foreseen.stdout
    done = inventory.playbook("site.yml", *options)

    assert done.returncode == 0, done.stdout
    assert secret not in foreseen.stdout + done.stdout
    assert (worker.file(path).mode, worker.file(path).user) == (0o400, "prefect-worker")
    failed = inventory.playbook("playbooks/run_etl.yml")
    reason = r"key\.json \(CREDENTIALS_PATH\) is incomplete: it lacks .*client_email"
    assert re.search(reason, failed.stdout), failed.stdout
    assert secret not in failed.stdout
    (text,) = told()
    assert re.match(r"Master ETL Flow \(\S+\) Failed: 5 of 5 flows failed\.", text)
    assert re.search(reason, text)

    foreseen = inventory.playbook("site.yml", "--tags", "deploy", "--check")
    assert "The webhook for failures would be removed" in foreseen.stdout, foreseen.stdout
    again = inventory.playbook("site.yml", "--tags", "deploy")

    assert again.returncode == 0, again.stdout
    assert not worker.file(path).exists
    automations = api.ask("/automations/filter", {})
    assert [automation["name"] for automation in automations] == ["Flow runs without heartbeats are Crashed"]
    assert api.ask("/block_documents/filter", {}) == []
