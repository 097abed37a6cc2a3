"""Commands on hosts run with the account of the service."""

import pytest

from scripts import on_host
from tests.services import SERVICES


def test_a_unit_s_account_is_that_of_the_list_of_services() -> None:
    listed = on_host.services({"other_services": [{"unit": "exporter.service", "account": "exporter"}]})
    assert listed[:-1] == SERVICES
    assert on_host.account_of("biocirv-migrations", listed) == "biocirv"
    assert on_host.account_of("exporter", listed) == "exporter"


def test_a_unit_without_an_account_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(SystemExit, match=r"No service 'nosuch' .* choose one of .*prefect-worker"):
        on_host.account_of("nosuch", on_host.services({}))
