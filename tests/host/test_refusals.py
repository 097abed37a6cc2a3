"""Requests that API and PostgreSQL refuse; the scenario secure tries more, from another host."""

import pytest
from testinfra.host import Host

from tests.host.conftest import CURL

# Calls the API without the login, which CURL takes from the environment.
ANONYMOUS = CURL.replace("--config - ", "").replace("--fail", "--output /dev/null --write-out '%{http_code}'")


@pytest.mark.parametrize("login", ["", "--user biocirv:wrong", "--user admin:pass"])
def test_the_api_wants_the_password(server: Host, login: str) -> None:
    ask = f'{login} --json {{}} "$PREFECT_API_URL/flow_runs/count"'
    assert server.check_output(f"{ANONYMOUS} {ask}") == "401"
    assert server.check_output(f'{CURL} --json {{}} "$PREFECT_API_URL/flow_runs/count"').isdigit()


def test_the_api_speaks_tls_1_3_alone(server: Host) -> None:
    refused = server.run(f'{CURL} --tls-max 1.2 "$PREFECT_API_URL/health"')
    assert refused.rc != 0
    assert "alert protocol version" in refused.stderr


def test_postgresql_wants_tls(server: Host) -> None:
    """A connection without TLS is refused for every login."""
    login = "set -a; . /etc/biocirv/biocirv-migrations.env; psql --tuples-only --no-align --command 'SELECT 1'"
    refused = server.run(f"{login} 'sslmode=disable'")
    assert refused.rc != 0
    assert "no encryption" in refused.stderr
    assert server.check_output(login) == "1"
