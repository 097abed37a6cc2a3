"""The fixtures of tests/host, for tests that only this scenario runs."""

from tests.host.conftest import api, container, database, inventory, server, worker

__all__ = ["api", "container", "database", "inventory", "server", "worker"]
