"""No secret leaks, neither on the host nor in the output of a converge."""

import re
import shlex
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.host.conftest import Inventory
    from tests.scenarios.secure.conftest import Needles, Platform

# Files that the test changes, so that a converge has to write them; all but the .conf files hold secrets.
DRIFT = "changed by hand"
DRIFTED = (
    "/etc/biocirv/*.env",
    "/etc/biocirv/nginx.conf",
    "/etc/biocirv/postgresql-access.sql",
    "/etc/biocirv/tls/reverse_proxy.key",
    "/etc/postgresql/*/main/biocirv.key",
    "/etc/postgresql/*/main/conf.d/biocirv.conf",
    "/etc/postgresql/*/main/pg_hba.conf",
)
NEEDLES = "/root/needles"
# Records all command lines, 50 times a second, until it is stopped.
SAMPLER = """
import pathlib, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
seen = set()
while signal.sigtimedwait([signal.SIGTERM], 0.02) is None:
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            seen.add((process / "cmdline").read_bytes())
        except OSError:
            pass
pathlib.Path("/root/sampled").write_bytes(b"\\n".join(seen))
"""
# Commands that show what the host exposes: each has output, and none of it may contain a secret.
PLACES = {
    "command lines": "cat /proc/[0-9]*/cmdline",
    "processes, as anybody sees them": "runuser --user nobody -- ps auxeww",
    "environments, as anybody sees them": "runuser --user nobody -- sh -c 'cat /proc/[0-9]*/environ; ls /proc'",
    "journal": "journalctl --output=export",
    "unit files": "systemctl cat '*'",
    "properties of units": "systemctl show '*'",
    "what anybody may read below /etc, /opt and /var": (
        "find /etc /opt /var -type f -perm -o=r -print0 | xargs --null cat"
    ),
    "names of files": "find / -xdev -not -path '/proc/*'",
}


@pytest.fixture
def needles(platform: "Platform") -> Iterator["Needles"]:
    """Return every secret with its name; during the search the host has them in a file, one per line."""
    found = platform.needles()
    platform.copy(platform.name, NEEDLES, found.lines)
    yield found
    platform.host.check_output(f"rm -f {NEEDLES} /root/sampled")


def search(platform: "Platform", needles: "Needles", command: str) -> tuple[int, set[str]]:
    """Run a command on the host; return the size of its output, and the secrets in it."""
    done = platform.host.run(
        f"rm -f /root/all && mkfifo /root/all && {{ wc --bytes < /root/all >&2 & }};"
        f" ({command}) 2>/dev/null | tee /root/all"
        f" | grep --text --only-matching --fixed-strings --file={NEEDLES} | sort --unique; wait; rm /root/all"
    )
    return int(done.stderr), needles.within(done.stdout)


def test_every_secret_is_searched_for(platform: "Platform", needles: "Needles") -> None:
    """The search works: it finds each secret in the files where it belongs."""
    names = {path.name for path in platform.secrets.rglob("*") if path.suffix == ".key" or "_" in path.name}
    assert needles.names >= names - {"alternate_logins"}
    where = "cat /etc/biocirv/*.env /etc/biocirv/tls/reverse_proxy.key"
    found = search(platform, needles, where)[1]
    assert found >= {
        "biocirv_db_password",
        "biocirv_migrations_password",
        "prefect_db_password",
        "prefect_api_password",
        "the encryption key in base64",
        f"{platform.name}.key",
    }
    # These are for operators, or only for the controller.
    assert found & {"ca.key", "biocirv_reader_password", "biocirv_monitor_password"} == set()


@pytest.mark.parametrize("place", PLACES)
def test_no_secret_lies_about(
    platform: "Platform", needles: "Needles", note: Callable[[str], None], place: str
) -> None:
    size, found = search(platform, needles, PLACES[place])
    note(f"searched for {len(needles.names)} secrets: {place}, {size / 1e3:.0f} kB")
    assert size > 500
    assert found == set()


def test_no_secret_is_in_what_a_converge_says_or_runs(
    inventory: "Inventory", platform: "Platform", needles: "Needles", note: Callable[[str], None]
) -> None:
    """The converge runs with -vvv and --diff, and writes every file, including those with secrets."""
    files = " ".join(DRIFTED)
    platform.host.check_output(f"for file in {files}; do echo '# {DRIFT}' >> $file; done")
    sampler = ["systemd-run", "--quiet", "--collect", "--unit=sampler", "python3", "-c", SAMPLER]
    platform.host.check_output(" ".join(map(shlex.quote, sampler)))
    try:
        done = inventory.playbook("site.yml", "-vvv", "--diff")
    finally:
        platform.host.check_output("systemctl stop sampler")
    assert done.returncode == 0, done.stdout
    assert platform.host.run(f"grep --files-with-matches '{DRIFT}' {files}").stdout == ""

    said = done.stdout + done.stderr
    # Differences are shown, except for files with secrets, of which only the names are shown.
    shown = re.findall(rf"(?m)^-# {DRIFT}", said)
    assert len(shown) == len([file for file in DRIFTED if file.endswith(".conf")])
    for file in platform.host.check_output(f"ls {files}").split():
        assert file in said
    assert needles.within(said) == set()
    size, found = search(platform, needles, "cat /root/sampled")
    lines = platform.host.check_output("tr '\\0' ' ' < /root/sampled").splitlines()
    note(f"searched in what a converge said, {len(said) / 1e6:.1f} MB, and in {len(lines)} command lines meanwhile")
    assert size > 1000
    assert found == set()
    # The record includes commands of the converge, and the start of services.
    assert any("psql --no-psqlrc" in line for line in lines)
    assert any("prefect server start" in line for line in lines)
    # Ansible's modules log their arguments to the journal.
    assert search(platform, needles, PLACES["journal"])[1] == set()


def test_on_the_controller_they_are_the_operators_alone(platform: "Platform") -> None:
    for path in [platform.secrets, *platform.secrets.rglob("*")]:
        if path.suffix != ".crt":
            assert path.stat().st_mode & 0o077 == 0, path
