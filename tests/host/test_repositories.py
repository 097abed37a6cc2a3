"""Repositories in an object store, by SFTP, on another disk; what endangers them is found, and stops nothing."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import docker
import pytest
import requests
import trustme
from testinfra.host import Host

from tests.host.conftest import ROOT
from tests.host.test_base_backups import RECOVERY, backed_up, converge_database, psql, state
from tests.limits import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.conftest import Inventory

__all__ = ["backed_up"]

pytestmark = [pytest.mark.thorough, pytest.mark.disruptive, pytest.mark.usefixtures("backed_up")]

DIRECTORY = "/var/lib/pgbackrest"
STORE = "store.backups.test"
BUCKET = "backups"
# Away from the repository whose backups the other tests need.
SFTP_HOME = "/home/backups"


def converge(inventory: Inventory, repositories: list[dict[str, Any]], **variables: object) -> int:
    """Converge the database's host with other repositories; return the number of changes."""
    return converge_database(inventory, backup_repositories=repositories, **variables)


def commit(database: Host) -> str:
    """Commit something, and return the segment of WAL that is archived next."""
    table = "CREATE TABLE meanwhile (id integer); DROP TABLE meanwhile"
    return psql(database, f"{table}; SELECT pg_walfile_name(pg_switch_wal())")


def unused_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def store(
    inventory: Inventory, database: Host, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, Any], dict[str, str], subprocess.Popen[bytes]]]:
    """Run an object store on this machine, whose certificate is issued by an authority of its own.

    Yield the repository's options, the files that it needs, and the store's process.
    """
    if not inventory.is_container("database"):
        pytest.skip("the store runs on this machine, which only a container is sure to reach")
    directory = tmp_path_factory.mktemp("store")
    authority = trustme.CA()
    certificate = authority.issue_cert(STORE, "127.0.0.1")
    authority.cert_pem.write_to_path(directory / "ca.crt")
    certificate.private_key_pem.write_to_path(directory / "key")
    for part in certificate.cert_chain_pems:
        part.write_to_path(directory / "crt", append=True)
    port = unused_port()
    command = [sys.executable, "tests/host/object_store.py", str(port), str(directory / "crt"), str(directory / "key")]
    networks = docker.from_env().containers.get(inventory.name("database")).attrs["NetworkSettings"]["Networks"]
    gateway = next(network["Gateway"] for network in networks.values())
    database.check_output("grep -q %s /etc/hosts || echo %s %s >> /etc/hosts", STORE, gateway, STORE)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        address = f"https://127.0.0.1:{port}/{BUCKET}"

        def has_bucket() -> bool:
            try:
                return requests.put(address, timeout=5, verify=str(directory / "ca.crt")).ok
            except requests.ConnectionError:
                return False

        wait_until(has_bucket, "the store has a bucket")
        options = {
            "type": "s3",
            "path": "/biocirv",
            "s3-bucket": BUCKET,
            "s3-endpoint": STORE,
            "s3-region": "west",
            "s3-key": "key",
            "s3-key-secret": "secret",
            "s3-uri-style": "path",
            "storage-port": port,
            "storage-ca-file": "/etc/pgbackrest/store.crt",
        }
        yield options, {"store.crt": str(directory / "ca.crt")}, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def sftp(
    inventory: Inventory, database: Host, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, Any], dict[str, str]] | None]:
    """Run sshd on the host, with an account for backups; None where pgBackRest has no SFTP."""
    if not inventory.is_container("database"):
        pytest.skip("it installs an sshd, which belongs to whoever runs the host; a container is the test's own")
    if database.system_info.release.startswith("12"):
        yield None
        return
    directory = tmp_path_factory.mktemp("sftp")
    proxy = " ".join(f"{name}={inventory.value(name)}" for name in ("http_proxy", "https_proxy", "no_proxy"))
    install = "DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends openssh-server"
    database.check_output(f"env {proxy} sh -c 'apt-get update && {install}'")
    database.check_output(f"useradd --create-home --home-dir {SFTP_HOME} backups && systemctl start ssh")
    try:
        database.check_output(
            f"ssh-keygen -q -t ecdsa -m PEM -N '' -f /root/sftp && install -D -o backups -m 600 /root/sftp.pub"
            f" {SFTP_HOME}/.ssh/authorized_keys && chown backups {SFTP_HOME}/.ssh"
        )
        (directory / "key").write_text(database.check_output("cat /root/sftp") + "\n")
        (directory / "hosts").write_text(f"127.0.0.1 {database.check_output('cat /etc/ssh/ssh_host_ecdsa_key.pub')}\n")
        options = {
            "type": "sftp",
            "path": f"{SFTP_HOME}/biocirv",
            "sftp-host": "127.0.0.1",
            "sftp-host-user": "backups",
            "sftp-host-key-hash-type": "sha256",
            "sftp-private-key-file": "/etc/pgbackrest/sftp.key",
            "sftp-known-host": "/etc/pgbackrest/known_hosts",
        }
        yield options, {"sftp.key": str(directory / "key"), "known_hosts": str(directory / "hosts")}
    finally:
        database.check_output(
            "systemctl stop ssh; userdel --remove backups; rm -f /root/sftp*;"
            " DEBIAN_FRONTEND=noninteractive apt-get purge --yes --quiet openssh-server"
        )


def exercised(database: Host, repositories: list[dict[str, Any]]) -> None:
    """Wait until each repository has a backup and all WAL, and restore from the first one, as the drill does."""

    def is_complete() -> bool:
        found = state(database)
        having = {backup["repository"] for backup in found["backups"]}
        whole = all(gap["end"] for repository in found["repositories"] for gap in repository["gaps"])
        return len(having) == len(repositories) and whole and not found["backup_runs"]

    wait_until(is_complete, "each repository has a backup", 300)
    database.check_output("systemctl start biocirv-restore-drill")
    assert state(database)["drill"]["problems"] == []


def test_repositories_are_added_changed_and_removed(
    inventory: Inventory,
    database: Host,
    store: tuple[dict[str, Any], dict[str, str], subprocess.Popen[bytes]],
    sftp: tuple[dict[str, Any], dict[str, str]] | None,
) -> None:
    """Each is prepared, backed up to, and restored from; one that comes back lacks WAL, and begins anew."""
    elsewhere, files, process = store
    repositories = [{"path": DIRECTORY}, elsewhere, *([sftp[0]] if sftp else [])]
    files = {**files, **(sftp[1] if sftp else {})}
    try:
        assert converge(inventory, repositories, backup_repository_files=files) > 0
        exercised(database, repositories)
        assert converge(inventory, repositories, backup_repository_files=files) == 0
        assert inventory.status()["problems"] == []

        # Other authorities have not issued the store's certificate, and another host has no such key.
        asked = f"runuser -u postgres -- env %s {RECOVERY} state"
        setting = "PGBACKREST_REPO2_STORAGE_CA_FILE=/etc/ssl/certs/ca-certificates.crt"
        untrusted = json.loads(database.check_output(asked, setting))["repositories"]
        assert [repository["usable"] for repository in untrusted][:2] == [True, False]
        assert "certificate" in untrusted[1]["message"]
        if sftp:
            database.check_output("sed 's/127.0.0.1/127.0.0.2/' /etc/pgbackrest/known_hosts > /tmp/other_hosts")
            unknown = json.loads(database.check_output(asked, "PGBACKREST_REPO3_SFTP_KNOWN_HOST=/tmp/other_hosts"))
            assert [repository["usable"] for repository in unknown["repositories"]] == [True, True, False]

        # A store that is there and does not answer: the platform goes on, and the state is told all the same.
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        commit(database)
        problems = inventory.status()["problems"]
        print(f"make status took {time.monotonic() - began:.0f} s")
        process.send_signal(signal.SIGCONT)
        silent = f"The backup repository s3 {BUCKET} /biocirv cannot be used: it gave no answer"
        assert any(problem.startswith(silent) for problem in problems), problems

        for repository in repositories[1:]:
            assert converge(inventory, [repository], backup_repository_files=files) > 0
            exercised(database, [repository])
    finally:
        process.send_signal(signal.SIGCONT)
        converge(inventory, repositories[:1])
    exercised(database, repositories[:1])
    assert database.run("ls /etc/pgbackrest").stdout.split() == ["pgbackrest.conf"]
    assert inventory.status()["problems"] == []


def test_a_repository_that_is_away_holds_up_no_other(inventory: Inventory, database: Host) -> None:
    """The other one gets WAL and base backups, and it is said which of them failed."""
    second = "/var/lib/second"
    repositories: list[dict[str, Any]] = [{"path": DIRECTORY}, {"path": second}]
    try:
        converge(inventory, repositories)
        exercised(database, repositories)
        # What is missing of the time in which another test did without the first one stays missing.
        gaps = state(database)["repositories"][0]["gaps"]
        before = len([backup for backup in state(database)["backups"] if backup["repository"] == 1])
        database.check_output(f"mv {second} {second}.away")
        commit(database)
        later = commit(database)
        archived = f"ls {DIRECTORY}/archive/biocirv/*/*/{later}-*"
        wait_until(lambda: database.run(archived).rc == 0, "what was committed later is in the other one")
        assert database.run("systemctl start biocirv-base-backup").rc != 0
        found = state(database)
        assert found["archiver"]["failing"]
        assert len([backup for backup in found["backups"] if backup["repository"] == 1]) > before
        assert [*found["backup_errors"]] == [second]
        problems = inventory.status()["problems"]
        assert any(problem.startswith(f"The last base backup in {second} failed: ") for problem in problems), problems
        assert any(problem.startswith(f"The backup repository {second} cannot be used") for problem in problems)

        database.check_output(f"mv {second}.away {second}")
        commit(database)
        wait_until(lambda: not state(database)["archiver"]["waiting"], "all WAL is archived", 180)
        database.check_output("systemctl start biocirv-base-backup")
        assert [repository["gaps"] for repository in state(database)["repositories"]] == [gaps, []]
        assert inventory.status()["problems"] == []
    finally:
        database.run(f"mv {second}.away {second}")
        converge(inventory, repositories[:1])
        database.run(f"rm -r {second}")


def test_a_disk_that_is_not_mounted_is_not_written_to(inventory: Inventory, database: Host) -> None:
    """Its mount point stays empty, archiving waits, and a converge says so instead of beginning anew in it."""
    disk = [{"path": "/mnt/backups/biocirv"}]
    database.check_output("mkdir -p /mnt/backups /var/disk && mount --bind /var/disk /mnt/backups")
    try:
        converge(inventory, disk)
        exercised(database, disk)
        database.check_output("umount /mnt/backups")
        commit(database)
        wait_until(lambda: state(database)["archiver"]["failing"], "archiving has failed")
        assert database.run("systemctl start biocirv-base-backup").rc != 0
        wanted = json.dumps({"backup_repositories": disk})
        refused = inventory.answer("site.yml", "--tags", "database", "--extra-vars", wanted)
        assert refused.returncode != 0
        assert "is not mounted at /mnt/backups: mount it" in refused.stdout + refused.stderr
        assert any("is not mounted at /mnt/backups" in problem for problem in inventory.status()["problems"])
        assert database.check_output("ls -A /mnt/backups") == ""
        database.check_output("mount --bind /var/disk /mnt/backups")
        commit(database)
        wait_until(lambda: not state(database)["archiver"]["waiting"], "all WAL is archived")
        assert state(database)["repositories"][0]["gaps"] == []
    finally:
        converge(inventory, [{"path": DIRECTORY}])
        database.run("umount /mnt/backups; rm -r /var/disk /mnt/backups")
    exercised(database, [{"path": DIRECTORY}])


@contextmanager
def small_disk(database: Host) -> Iterator[None]:
    """Put the repository on a disk of its own, and back at the end."""
    database.check_output(
        f"mkdir /mnt/small && mount -t tmpfs -o size=300m tmpfs /mnt/small && cp -a {DIRECTORY}/. /mnt/small"
        f" && chown postgres: /mnt/small && mount --bind /mnt/small {DIRECTORY}"
    )
    try:
        yield
    finally:
        database.check_output(
            f"rm -f {DIRECTORY}/fill; umount {DIRECTORY} && cp -a /mnt/small/. {DIRECTORY}"
            " && umount /mnt/small && rmdir /mnt/small"
        )


def test_a_full_repository_stops_nothing(inventory: Inventory, database: Host) -> None:
    """Rows are written, what was archived before can be restored, and with room again all WAL is archived."""
    gaps = state(database)["repositories"][0]["gaps"]
    moment = psql(database, "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
    database.check_output(f"{RECOVERY} point full-{int(time.time())}")
    with small_disk(database):
        # To the last byte: dd with large blocks leaves some.
        database.run(f"for size in 1M 1; do dd if=/dev/zero bs=$size >> {DIRECTORY}/fill; done")
        psql(database, "CREATE TABLE meanwhile AS SELECT generate_series(1, 100000) AS id; SELECT pg_switch_wal()")
        wait_until(lambda: state(database)["archiver"]["failing"], "archiving has failed")
        assert database.run("systemctl start biocirv-base-backup").rc != 0
        problems = inventory.status()["problems"]
        assert any("/var/lib/pgbackrest" in problem and "full" in problem for problem in problems), problems
        assert any(problem.startswith(f"The last base backup in {DIRECTORY} failed: ") for problem in problems)
        assert json.loads(database.check_output(f"{RECOVERY} find %s", moment))["backup"]
        assert psql(database, "SELECT count(*) FROM meanwhile") == "100000"

        database.check_output(f"rm {DIRECTORY}/fill")
        wait_until(lambda: not state(database)["archiver"]["waiting"], "all WAL is archived", 180)
        database.check_output("systemctl start biocirv-base-backup")
        assert inventory.status()["problems"] == []
        assert state(database)["repositories"][0]["gaps"] == gaps
    psql(database, "DROP TABLE meanwhile")
    database.check_output("systemctl start biocirv-base-backup")


def test_a_wrong_passphrase_is_said(inventory: Inventory, database: Host) -> None:
    configuration = "/etc/pgbackrest/pgbackrest.conf"
    database.check_output(
        f"cp -a {configuration} /root/ && sed -i 's/cipher-pass=.*/cipher-pass=wrong/' {configuration}"
    )
    try:
        commit(database)
        wait_until(lambda: state(database)["archiver"]["failing"], "archiving has failed")
        problems = inventory.status()["problems"]
    finally:
        database.check_output(f"mv /root/pgbackrest.conf {configuration}")
    assert any("backup_passphrase: put that one back" in problem for problem in problems), problems
    commit(database)
    wait_until(lambda: not state(database)["archiver"]["waiting"], "all WAL is archived", 180)


def test_a_gap_in_the_archive_is_said_and_closed_by_a_backup(inventory: Inventory, database: Host) -> None:
    for each in ("one", "two", "three"):
        database.check_output(f"{RECOVERY} point gap-{each}-{int(time.time())}")
    database.check_output(f"ls {DIRECTORY}/archive/biocirv/*/*/*.zst | tail -2 | head -1 | xargs rm")
    problems = inventory.status()["problems"]
    assert any("lacks WAL after" in problem and "`make base-backup" in problem for problem in problems), problems
    refused = database.run(f"{RECOVERY} find latest")
    assert refused.rc != 0
    assert "The archive has a gap between" in refused.stderr
    assert inventory.answer("playbooks/base_backup.yml").returncode == 0
    assert inventory.status()["problems"] == []
    database.check_output(f"{RECOVERY} find latest")


def test_a_limit_of_what_waits_would_lose_wal_without_a_word(inventory: Inventory, database: Host) -> None:
    """Why `archive-push-queue-max` stays unset: PostgreSQL and pgBackRest call WAL archived that was dropped.

    The platform's own listing of the archive finds it all the same, and a base backup begins anew.
    """
    configuration = "/etc/pgbackrest/pgbackrest.conf"
    database.check_output(f"cp -a {configuration} /root/")
    # Less than a segment: each one is dropped, as if the repository had been away until so much waited.
    database.check_output(f"sed -i 's/^lock-path=/archive-push-queue-max=1MB\\n&/' {configuration}")
    try:
        dropped = commit(database)
        wait_until(lambda: state(database)["archiver"]["archived"] == dropped, "PostgreSQL calls it archived")
    finally:
        database.check_output(f"mv /root/pgbackrest.conf {configuration}")
    assert not state(database)["archiver"]["failing"]
    assert database.run(f"ls {DIRECTORY}/archive/biocirv/*/*/{dropped}-*").rc != 0
    database.check_output("runuser -u postgres -- pgbackrest --stanza=biocirv check")
    message = "runuser -u postgres -- pgbackrest --stanza=biocirv info --output=json"
    assert json.loads(database.check_output(message))[0]["status"]["message"] == "ok"

    assert any("lacks WAL after" in problem for problem in inventory.status()["problems"])
    assert database.run(f"{RECOVERY} find latest").rc != 0
    database.check_output("systemctl start biocirv-base-backup")
    assert inventory.status()["problems"] == []


def test_a_damaged_backup_is_found_by_the_drill_and_replaced(inventory: Inventory, database: Host) -> None:
    """The drill fails, and the backup after it is a full one; the damaged one is removed by hand."""
    whole = f"{DIRECTORY}/backup/biocirv"
    database.check_output(
        f"for file in $(find {whole}/*F/ -name '*.zst' -o -path '*/bundle/*' -type f); do"
        " printf damage | dd of=$file bs=1 seek=40 conv=notrunc status=none; done"
    )
    assert database.run("systemctl start biocirv-restore-drill").rc != 0
    problems = inventory.status()["problems"]
    assert any(problem.startswith("The last drill, ") and "`make base-backup" in problem for problem in problems), (
        problems
    )
    database.check_output("systemctl start biocirv-base-backup")
    assert state(database)["backups"][-1]["type"] == "full"

    # The drill names what removes each one that is damaged.
    assert database.run("systemctl start biocirv-restore-drill").rc != 0
    for problem in state(database)["drill"]["problems"]:
        expire = re.search(r"`(pgbackrest \S+ \S+ expire --set=\S+F)` as postgres", problem)
        assert expire, problem
        database.check_output(f"runuser -u postgres -- {expire[1]}")
    exercised(database, [{"path": DIRECTORY}])
    assert inventory.status()["problems"] == []
