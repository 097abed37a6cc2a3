"""The fixtures of tests/host, for tests that only this scenario runs."""

from tests.host.conftest import container, database, inventory, pytest_configure, server, worker

__all__ = ["container", "database", "inventory", "pytest_configure", "server", "worker"]
