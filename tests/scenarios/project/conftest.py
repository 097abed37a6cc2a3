"""The fixtures of tests/host, for tests that only this scenario runs."""

from tests.host.conftest import container, database, inventory, server, worker

__all__ = ["container", "database", "inventory", "server", "worker"]
