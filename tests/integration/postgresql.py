"""A PostgreSQL of one's own, in a container that is thrown away."""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

import docker

START_SECONDS = 60


@contextmanager
def throw_away_postgresql() -> Iterator[str]:
    """Start a PostgreSQL, published on loopback; return the URL of its superuser. It is gone at the end.

    Raises:
        RuntimeError: it did not start, or Docker did not publish it.
        docker.errors.DockerException: there is no Docker engine, or no image `biocirv-postgresql:test`.

    """
    client = docker.from_env()
    container = client.containers.run(
        "biocirv-postgresql:test", detach=True, remove=True, ports={"5432/tcp": ("127.0.0.1", 0)}
    )
    try:
        password = secrets.token_hex(16)
        command = ["psql", "--command", f"ALTER ROLE postgres PASSWORD '{password}'"]
        deadline = time.monotonic() + START_SECONDS
        while (answer := container.exec_run(command, user="postgres")).exit_code != 0:
            if time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {answer.output!r} {container.logs()!r}")
            time.sleep(0.2)
        container.reload()
        ports = container.ports["5432/tcp"]
        if not ports:
            raise RuntimeError("Docker published no port of PostgreSQL")
        yield f"postgresql://postgres:{password}@127.0.0.1:{ports[0]['HostPort']}/postgres"
    finally:
        container.stop()
