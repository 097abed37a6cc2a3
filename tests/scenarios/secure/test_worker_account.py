"""What a flow, that is untrusted code, can access: tried in a service with the worker's account and sandbox."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from testinfra.backend.base import CommandResult

from tests import limits
from tests.source import copy_source

if TYPE_CHECKING:
    from tests.host.conftest import Inventory
    from tests.scenarios.secure.conftest import Platform

PROBE = "/run/systemd/system/worker-probe.service"
# Properties that only the worker's own process needs: how it is started, and its runtime files.
OWN = re.compile(r"^(Exec|Restart|RuntimeDirectory|Type=|EnvironmentFile=/etc|\[Install|WantedBy)")
Try = Callable[[str], CommandResult]


@pytest.fixture(scope="module")
def attempt(platform: "Platform") -> Iterator[Try]:
    """Return a function that runs a shell command where flows run: the worker's own unit, with another command."""
    lines = platform.host.check_output("systemctl cat prefect-worker").splitlines()
    unit = [line for line in lines if not OWN.match(line)]
    unit += ["[Service]", "Type=oneshot", "ExecStart=/bin/sh /run/worker-probe"]
    unit += ["StandardOutput=file:/run/worker-probe.out", "StandardError=inherit", ""]
    platform.copy(platform.name, PROBE, "\n".join(unit))
    platform.host.check_output("systemctl daemon-reload")

    def run(command: str) -> CommandResult:
        platform.copy(platform.name, "/run/worker-probe", f'{{ {command}\n}} 2>&1\necho "exit $?"\n')
        # root sets the file's mode, the worker reads it.
        platform.host.check_output("chmod 644 /run/worker-probe && rm -f /run/worker-probe.out")
        started = platform.host.run("systemctl start worker-probe")
        assert started.rc == 0, platform.host.run("journalctl --unit worker-probe --lines 20").stdout
        output = platform.host.file("/run/worker-probe.out").content_string
        said, _, code = output.rstrip("\n").rpartition("exit ")
        return CommandResult(platform.host.backend, int(code), b"", said.encode(), b"")

    yield run
    platform.host.run(f"rm -f {PROBE} /run/worker-probe /run/worker-probe.out; systemctl daemon-reload")


def test_the_probe_is_where_flows_are(platform: "Platform", attempt: Try) -> None:
    """It has the worker's account and sandbox, and can read what flows need."""
    names = "User,ProtectSystem,ProtectProc,PrivateTmp,NoNewPrivileges,CapabilityBoundingSet,SystemCallFilter,UMask"
    shown = [
        set(platform.host.check_output(f"systemctl show --property={names} {unit}").splitlines())
        for unit in ("prefect-worker", "worker-probe")
    ]
    assert shown[0] == shown[1]
    assert attempt("id --user --name").stdout.strip() == "prefect-worker"
    assert attempt("cat /opt/biocirv/current/manifest.json /etc/biocirv/tls/ca.crt").rc == 0
    assert attempt("touch $HOME/probe /var/lib/prefect-worker/probe; rm /var/lib/prefect-worker/probe").rc == 0


@pytest.mark.parametrize(
    "path",
    [
        "/etc/biocirv/prefect-server.env",
        "/etc/biocirv/prefect-server-schema.env",
        "/etc/biocirv/biocirv-migrations.env",
        "/etc/biocirv/biocirv-deployments.env",
        "/etc/biocirv/nginx.env",
        # The worker's own environment file: systemd reads it, and flows have part of it in their environment.
        "/etc/biocirv/prefect-worker.env",
        "/etc/biocirv/tls/reverse_proxy.key",
        "/etc/biocirv/postgresql-access.sql",
        "/etc/postgresql/*/main/biocirv.key",
        "/etc/postgresql/*/main/pg_hba.conf",
        "/etc/postgresql/*/main/conf.d/biocirv.conf",
        "/etc/shadow",
        "/root/.bashrc",
    ],
)
def test_files_of_others_are_not_read(platform: "Platform", attempt: Try, path: str) -> None:
    assert platform.host.run(f"cat {path}").rc == 0, f"{path} does not exist"
    # The host's shell expands *, as the worker may not even list the directory.
    found = platform.host.check_output(f"ls {path}")
    refused = attempt(f"cat {shlex.quote(found)}")
    assert refused.rc == 1
    assert refused.stdout.strip().endswith(("Permission denied", "No such file or directory")), refused.stdout


@pytest.mark.parametrize(
    "path",
    [
        "/var/lib/postgresql/*/main",
        "/var/lib/prefect-server",
        "/var/lib/biocirv",
        "/var/lib/reverse-proxy",
        # Index URLs of a build, which may contain a password.
        "/opt/biocirv/cache",
        "/root",
    ],
)
def test_directories_of_others_are_not_listed(platform: "Platform", attempt: Try, path: str) -> None:
    found = platform.host.check_output(f"ls -d {path}")
    refused = attempt(f"ls {found}")
    assert refused.rc == 2
    assert "Permission denied" in refused.stdout


@pytest.mark.parametrize(
    "path",
    [
        "/opt/biocirv/releases/probe",
        "/opt/biocirv/build/probe",
        "/opt/biocirv/current/app/probe",
        "/opt/biocirv/probe",
        "/srv/biocirv/sheets/probe",
    ],
)
def test_neither_releases_nor_sheets_are_written_to(attempt: Try, path: str) -> None:
    """Not even the release that is active, or one that is being built."""
    refused = attempt(f"echo x > {path}")
    assert refused.rc != 0
    assert "Read-only file system" in refused.stdout


def test_what_a_release_is_built_of_is_roots_alone(
    inventory: "Inventory", platform: "Platform", attempt: Try, tmp_path: Path
) -> None:
    """The file with the index URLs of a build, which remains after a failed build, is readable only by root."""
    source = copy_source(tmp_path / "source")
    with (source / "requirements/application.txt").open("a", encoding="utf-8") as lock:
        lock.write("not a requirement\n")

    failed = inventory.playbook("playbooks/deploy.yml", "--extra-vars", f"release_source={source}")

    assert failed.returncode != 0
    assert "could not be built" in failed.stdout, failed.stdout
    left = platform.host.check_output("ls /opt/biocirv/build/*.json").split()
    assert left
    for path in left:
        assert platform.host.file(path).mode == 0o600
        assert "Permission denied" in attempt(f"cat {path}").stdout


@pytest.mark.parametrize("directory", ["tmp", "var/tmp"])
def test_temporary_files_have_a_limit(platform: "Platform", attempt: Try, directory: str) -> None:
    """They fill memory of the flow runs, as much as `prefect_worker_tmp_max` allows, and not the host's disk."""
    path = f"/{directory}"
    free = attempt(f"df --output=avail --block-size=1 {path} | tail -n 1")
    assert 0 < int(free.stdout) < int(platform.host.check_output("free --bytes | awk '/Mem/ {print $2}'")) / 50
    refused = attempt(f"head --bytes={int(free.stdout) + 1} /dev/zero >{path}/probe")
    assert refused.rc != 0
    assert "No space left on device" in refused.stdout
    assert platform.host.run(f"ls {path}/probe").rc != 0


def test_processes_of_others_are_invisible(platform: "Platform", attempt: Try) -> None:
    """They are invisible by process id too."""
    for unit, pid in platform.processes().items():
        if unit == "prefect-worker.service":
            continue
        asked = ("environ", "cmdline", "status", "cwd/", "root/")
        refused = attempt(f"cd /proc; cat {' '.join(f'{pid}/{name}' for name in asked)}")
        assert refused.rc == 1
        assert refused.stdout.count("No such file or directory") == len(refused.stdout.splitlines()) == len(asked)
    owners = attempt("stat --format %U /proc/[0-9]*")
    assert set(owners.stdout.split()) == {"prefect-worker"}


def test_the_journal_is_not_read(platform: "Platform", attempt: Try) -> None:
    assert platform.host.check_output("journalctl --lines 1 --output cat --unit prefect-server")
    refused = attempt("journalctl --lines 1 --output cat --unit prefect-server")
    assert "not seeing messages from other users" in refused.stdout or "No journal files were opened" in refused.stdout
    assert "insufficient permissions" in refused.stdout or "-- No entries --" in refused.stdout
    journal = platform.host.run("find /var/log/journal /run/log/journal -name system.journal").stdout
    assert "Permission denied" in attempt(f"cat {journal.split()[0]}").stdout


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/usr/bin/setpriv --reuid prefect-server true", "Operation not permitted"),
        ("sudo --non-interactive true", "no new privileges"),
        ("unshare --user --map-root-user true", "Operation not permitted"),
        ("mount -t tmpfs none /tmp", "permission denied|Operation not permitted|must be superuser"),
        ("kill -0 1", "Operation not permitted|No such process"),
        ("systemctl restart prefect-server", "Interactive authentication required|Access denied|Failed to connect"),
        ("/usr/sbin/runuser --user postgres -- true", "may not be used by non-root users"),
        ("psql --host /run/postgresql --username postgres postgres", "Peer authentication failed|no pg_hba.conf entry"),
        ("psql --host /run/postgresql --username biocirv_user biocirv_db", "no pg_hba.conf entry"),
    ],
)
def test_no_way_leads_to_another_account(attempt: Try, command: str, words: str) -> None:
    refused = attempt(command)
    assert refused.rc != 0
    assert re.search(words, refused.stdout), refused.stdout


# A process of a flow run is one of the worker's unit.
BECOME_THE_SERVICE = """
import os, socket
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.connect("/run/systemd/notify")
manager.send(f"MAINPID={os.getpid()}\\nSTATUS=taken".encode())
# Until systemd has dealt with it: of a process that has ended it would not know whose it was.
receiver, sender = os.pipe()
socket.send_fds(manager, [b"BARRIER=1"], [sender])
os.close(sender)
os.read(receiver, 1)
"""


def test_no_flow_becomes_the_service(platform: "Platform") -> None:
    """A notification to systemd counts only if it is of the main process, or of a reload's own."""
    main = platform.processes()["prefect-worker.service"]
    group = platform.host.check_output("systemctl show --property=ControlGroup --value prefect-worker")
    mount = platform.host.check_output("findmnt --types cgroup2 --noheadings --output TARGET | head -n 1")
    enter = f"cd {mount}{group}; cd worker 2>/dev/null; echo $$ >cgroup.procs; cd /"
    become = "exec setpriv --reuid=prefect-worker --regid=prefect-worker --clear-groups python3 -c"
    platform.host.check_output(f"sh -c {shlex.quote(f'{enter}; {become} {shlex.quote(BECOME_THE_SERVICE)}')}")

    shown = platform.host.check_output("systemctl show --property=MainPID,StatusText prefect-worker")
    assert f"MainPID={main}" in shown.splitlines()
    assert "taken" not in shown


def test_no_flow_writes_to_the_worker_s_memory(platform: "Platform", attempt: Try) -> None:
    """Nor to that of the launcher, whose forks the later flow runs are: they are closed, although of one account."""
    pids = platform.host.check_output("pgrep --full '[b]iocirv_worker'").split()
    assert len(pids) >= 2
    for pid in pids:
        refused = attempt(f'ls /proc/{pid}/mem && python3 -c \'open("/proc/{pid}/mem", "r+b")\'')
        assert refused.rc != 0
        assert re.search("Permission denied|No such file or directory", refused.stdout), refused.stdout


def test_a_flow_asks_systemd_for_nothing(platform: "Platform", attempt: Try) -> None:
    """Where polkit is installed, an account may let processes of its own outlive its sessions, without a sandbox."""
    platform.host.check_output("test -S /run/dbus/system_bus_socket")
    manager = "org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager"
    refused = attempt(f"ls /run/dbus; busctl call {manager} SetUserLinger ubb $(id --user) true false")
    assert refused.rc != 0
    assert "Permission denied" in refused.stdout, refused.stdout
    assert platform.host.run("ls /var/lib/systemd/linger").stdout == ""


def test_shared_memory_is_the_flows_own(platform: "Platform", attempt: Try) -> None:
    """All that the host has would keep PostgreSQL from starting, and fail its parallel queries."""
    made = attempt(
        "ipcmk --shmem 4096 && ipcmk --semaphore 1 && head --bytes=1M /dev/zero >/dev/shm/probe && ls /dev/shm"
    )
    assert made.rc == 0, made.stdout
    assert made.stdout.split()[-1] == "probe"
    assert "prefect-worker" not in platform.host.check_output("ipcs")
    assert platform.host.run("ls /dev/shm/probe").rc != 0


IO_URING = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
parameters = ctypes.create_string_buffer(120)
# io_uring_setup(2), the same number on all of Linux's newer platforms.
descriptor = libc.syscall(425, 4, parameters)
print(os.strerror(ctypes.get_errno()) if descriptor < 0 else "it has a ring")
"""


def test_no_socket_is_made_past_the_filter(attempt: Try) -> None:
    assert attempt(f"python3 -c {shlex.quote(IO_URING)}").stdout.strip() == "Operation not permitted"


def test_what_a_flow_leaves_is_not_run_by_the_next_worker(platform: "Platform", attempt: Try) -> None:
    """Neither as a module in the working directory, nor as a setting of Prefect, nor as a package of the account."""
    mark = "/var/lib/prefect-worker/was-run"
    code = f"open('{mark}', 'a').write(__file__ + '\\n')"
    logging = f"handlers: {{x: {{(): builtins.open, file: {mark}, mode: a}}}}"
    site = "$(python3 -m site --user-site)"
    left = [
        *(f'echo "{code}" >$HOME/{name}.py' for name in ("anyio", "argparse", "sitecustomize")),
        f'mkdir -p $HOME/biocirv_worker {site}; echo "{code}" >$HOME/biocirv_worker/__init__.py',
        f'echo "import sys; {code.replace("__file__", repr("pth"))}" >{site}/x.pth',
        f'printf "version: 1\\n{logging}\\nroot: {{handlers: [x]}}\\n" >$HOME/logging.yml',
        'printf \'active = "x"\\n[profiles.x]\\nPREFECT_LOGGING_LEVEL = "DEBUG"\\n\' >$HOME/profiles.toml',
    ]
    made = attempt("; ".join(left))
    assert made.rc == 0, made.stdout
    try:
        platform.host.check_output("systemctl reload prefect-worker")
        platform.host.check_output("systemctl restart prefect-worker")
        found = platform.host.run(f"cat {mark}")
        assert found.rc == 1, found.stdout
    finally:
        names = "anyio.py argparse.py sitecustomize.py biocirv_worker logging.yml profiles.toml was-run .local"
        attempt(f"cd $HOME && rm -rf {names}")
        platform.host.check_output("systemctl restart prefect-worker")


def test_a_flow_does_not_hide_changes_from_converges(platform: "Platform", attempt: Try) -> None:
    """Converges compare the age of these files with that of the configuration."""
    marks = platform.host.check_output("ls -d /run/biocirv/prefect-worker.*").split()
    assert len(marks) == 2
    for mark in marks:
        refused = attempt(f"touch -d 2099-01-01 {mark}")
        assert refused.rc != 0
        assert re.search("Permission denied|Read-only file system", refused.stdout), refused.stdout


def test_the_worker_leaves_the_unit_s_cgroup_to_flow_runs(platform: "Platform") -> None:
    """Only where it holds no processes can those in it have limits."""
    shown = platform.host.check_output(
        "systemctl show --property=ControlGroup,MainPID,Delegate,NotifyAccess prefect-worker"
    )
    unit = dict(line.split("=", 1) for line in shown.splitlines())
    mount = platform.host.check_output("findmnt --types cgroup2 --noheadings --output TARGET | head -n 1")
    group = f"{mount}{unit['ControlGroup']}"
    assert (unit["Delegate"], unit["NotifyAccess"]) == ("yes", "exec")
    assert unit["MainPID"] in platform.host.check_output(f"cat {group}/worker/cgroup.procs").split()
    assert platform.host.check_output(f"cat {group}/cgroup.procs") == ""
    journal = "journalctl --unit prefect-worker --output cat --since -1h"
    assert "have no cgroups of their own" not in platform.host.check_output(journal)


def test_an_operator_s_shell_has_the_sandbox(platform: "Platform", attempt: Try) -> None:
    """It obeys what flows have left in their home directory."""
    made = attempt("echo 'grep --extended-regexp \"NoNewPrivs|Seccomp:\" /proc/self/status' >$HOME/.bashrc")
    assert made.rc == 0, made.stdout
    try:
        shell = platform.host.run("/opt/biocirv/bin/in-unit --pipe prefect-worker / bash -i -c true")
        assert re.findall(r"(\w+):\s+(\d)", shell.stdout) == [("NoNewPrivs", "1"), ("Seccomp", "2")], shell
    finally:
        attempt("rm $HOME/.bashrc")


def test_the_metadata_of_a_cloud_is_not_for_services(platform: "Platform") -> None:
    """Whoever asks at this address has the credentials of the host."""
    serve = "systemd-run --quiet --collect --unit=metadata python3 -m http.server --bind 169.254.169.254 80"
    ask = "curl --silent --show-error --noproxy '*' --max-time 10 --output /dev/null http://169.254.169.254/"
    platform.host.check_output("ip address add 169.254.169.254/32 dev lo")
    try:
        platform.host.check_output(serve)
        limits.wait_until(lambda: platform.host.run(ask).rc == 0, "it answers root", limits.ANSWER)
        for account in ("prefect-worker", "prefect-server", "biocirv", "biocirv-build"):
            refused = platform.host.run(f"runuser --user {account} -- {ask}")
            assert refused.rc == 7, (account, refused)
    finally:
        platform.host.run("systemctl stop metadata; ip address del 169.254.169.254/32 dev lo")
