"""A temporary PostgreSQL in a container."""

import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import docker

from tests import limits

# The image's command, with options.
START = [
    "sh",
    "-c",
    'exec pg_ctlcluster --foreground $(pg_lsclusters --no-header | cut -d " " -f 1,2) start "$@"',
    "start",
]


@contextmanager
def throw_away_postgresql(**settings: str) -> Iterator[str]:
    """Start a PostgreSQL, published on loopback; yield the URL of its superuser, and remove it at the end.

    ``settings`` are its own, in addition to the image's.

    Raises:
        RuntimeError: it did not start, or Docker did not publish it.
        docker.errors.DockerException: there is no Docker engine, or no image `biocirv-postgresql:test`.

    """
    client = docker.from_env()
    options = [word for name, value in settings.items() for word in ("-o", f"-c {name}={shlex.quote(value)}")]
    container = client.containers.run(
        "biocirv-postgresql:test",
        [*START, *options] if options else None,
        detach=True,
        remove=True,
        ports={"5432/tcp": ("127.0.0.1", 0)},
    )
    try:
        password = secrets.token_hex(16)
        command = ["psql", "--command", f"ALTER ROLE postgres PASSWORD '{password}'"]
        try:
            limits.wait_until(lambda: container.exec_run(command, user="postgres").exit_code == 0, "PostgreSQL starts")
        except AssertionError as error:
            raise RuntimeError(f"{error}. Its log: {container.logs().decode()}") from None
        container.reload()
        ports = container.ports["5432/tcp"]
        if not ports:
            raise RuntimeError("Docker published no port of PostgreSQL")
        yield f"postgresql://postgres:{password}@127.0.0.1:{ports[0]['HostPort']}/postgres"
    finally:
        container.stop()
