"""Limits of rejected rows, as the flows read them and as preflight checks them."""

from collections.abc import Callable
from types import ModuleType

import pytest

from ca_biositing.datamodels.database import SettingsError
from ca_biositing.pipeline.etl.rejection_limits import VARIABLE, check_limits, limit_from_environment

FLOWS = ("observation", "experiment")


@pytest.fixture(scope="module")
def preflight(load_plugin: Callable[[str], ModuleType]) -> ModuleType:
    """Return the action plugin as a module."""
    return load_plugin("preflight/action_plugins/preflight.py")


@pytest.mark.parametrize(
    ("limit", "read", "most"),
    [
        ("0", 100, 0),
        ("5", 100, 5),
        ("10%", 50, 5),
        ("10%", 59, 5),
        ("0.5%", 1000, 5),
        ("0%", 1000, 0),
        ("100%", 7, 7),
    ],
)
def test_a_run_may_reject_as_many_rows_as_its_limit(limit: str, read: int, most: int) -> None:
    found = limit_from_environment("observation", {VARIABLE: f"observation={limit}"})
    assert found is not None
    assert str(found) == limit
    assert not found.is_exceeded(read, most)
    assert found.is_exceeded(read, most + 1)


def test_a_flow_s_own_limit_takes_precedence() -> None:
    environment = {VARIABLE: " observation=5 ,all=10%"}
    assert str(limit_from_environment("observation", environment)) == "5"
    assert str(limit_from_environment("experiment", environment)) == "10%"
    check_limits(FLOWS, environment)


@pytest.mark.parametrize("environment", [{}, {VARIABLE: ""}, {VARIABLE: " "}, {VARIABLE: "experiment=5"}])
def test_without_a_limit_there_is_none(environment: dict[str, str]) -> None:
    assert limit_from_environment("observation", environment) is None
    check_limits(FLOWS, environment)


@pytest.mark.parametrize(
    ("flow", "limit"),
    [
        ("observation", "ten"),
        ("observation", "0.1"),
        ("observation", "-1"),
        ("observation", "101%"),
        ("observation", "100.5%"),
        ("observation", "%"),
        ("observation", ""),
        ("observation", "5 %"),
        ("observation", "\N{ARABIC-INDIC DIGIT FIVE}"),
        ("Observation", "5"),
        ("", "5"),
    ],
)
def test_what_is_no_limit_is_refused(preflight: ModuleType, flow: str, limit: str) -> None:
    """Preflight and the flows refuse the same values."""
    with pytest.raises(SettingsError, match=f"^{VARIABLE} is 'all=1, {flow}={limit}': '{flow}={limit}' is no limit"):
        limit_from_environment("experiment", {VARIABLE: f"all=1, {flow}={limit}"})
    (problem,) = preflight.limit_problems("limits", {"all": 1, flow: limit})
    assert problem.startswith("limits: ")


@pytest.mark.parametrize("text", ["observation", "observation=1 experiment=2", "observation=1,", "all=1,all=2"])
def test_a_malformed_list_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=f"^{VARIABLE} is '{text}'"):
        limit_from_environment("observation", {VARIABLE: text})


def test_a_limit_of_no_flow_is_refused() -> None:
    with pytest.raises(SettingsError) as error:
        check_limits(FLOWS, {VARIABLE: "observations=5"})
    assert "names 'observations', which is no flow." in str(error.value)
    assert "Did you mean 'observation'?" in str(error.value)


def test_preflight_accepts_what_the_flows_do(preflight: ModuleType) -> None:
    assert preflight.limit_problems("limits", {"all": "10%", "observation": 5, "field_sample": "0.5%"}) == []
    assert preflight.limit_problems("limits", {}) == preflight.limit_problems("limits", None) == []


def test_preflight_says_what_to_write(preflight: ModuleType) -> None:
    problems = preflight.limit_problems("limits", {"All": 0.1})
    assert [problem.partition(": ")[2].partition(":")[0] for problem in problems] == [
        "All is no flow",
        "the limit of All is 0.1",
    ]
    assert "a percentage up to 100, such as 10%" in problems[1]
    (problem,) = preflight.limit_problems("limits", "observation=5")
    assert problem.startswith("limits must map flows to limits, such as {all: 10%, observation: 5}")
