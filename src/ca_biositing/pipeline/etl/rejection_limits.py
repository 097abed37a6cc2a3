"""Limits of rejected rows: beyond its limit, a flow's run fails and loads nothing."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from ca_biositing.datamodels.database import SettingsError
from ca_biositing.pipeline.sources import alternatives

VARIABLE = "ETL_REJECTED_LIMITS"
# Stands for each flow that has no limit of its own.
_ALL = "all"
# Preflight checks the inventory's variable in the same way.
_ENTRY = re.compile(r"\s*([a-z][a-z0-9_]*)\s*=\s*(?:([0-9]+)|(100|[0-9]{1,2}(?:\.[0-9]+)?)%)\s*")


@dataclass(frozen=True)
class Limit:
    """The most rows of a run that may be rejected: a number of rows, or a percentage of the rows read."""

    amount: Decimal
    is_percentage: bool

    def is_exceeded(self, read: int, rejected: int) -> bool:
        """Return whether so many rejected rows, of so many read, are too many."""
        return rejected > (self.amount * read / 100 if self.is_percentage else self.amount)

    def __str__(self) -> str:
        """Return the limit as the setting has it: ``5`` or ``10%``."""
        return f"{self.amount}{'%' if self.is_percentage else ''}"


def limit_from_environment(flow: str, environment: Mapping[str, str] = os.environ) -> Limit | None:
    """Return a flow's limit, that of ``all`` if it has none of its own, or None.

    ``ETL_REJECTED_LIMITS`` is a list such as ``observation=5, all=10%``.

    Raises:
        SettingsError: the variable has another format.

    """
    limits = _limits(environment)
    return limits.get(flow, limits.get(_ALL))


def check_limits(flows: Iterable[str], environment: Mapping[str, str] = os.environ) -> None:
    """Check the variable, and that it names only flows that exist.

    Raises:
        SettingsError: it has another format, or names another flow.

    """
    known = [*flows, _ALL]
    for flow in _limits(environment):
        if flow not in known:
            raise SettingsError(
                f"{VARIABLE} names '{flow}', which is no flow. {alternatives('flow', flow, known)} Correct the name"
            )


def _limits(environment: Mapping[str, str]) -> Mapping[str, Limit]:
    limits: dict[str, Limit] = {}
    text = environment.get(VARIABLE) or ""
    for entry in text.split(",") if text.strip() else []:
        match = _ENTRY.fullmatch(entry)
        if match is None or match[1] in limits:
            raise SettingsError(
                f"{VARIABLE} is '{text}': '{entry.strip()}' is no limit, or the second one of its flow. Name each flow "
                "once, with a number of rows or a percentage up to 100, as in 'observation=5, all=10%'"
            )
        flow, number, percentage = match.groups()
        limits[flow] = Limit(Decimal(number or percentage), is_percentage=number is None)
    return limits
