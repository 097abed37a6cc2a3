"""The platform's list of services, from which both tests and playbooks derive theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

LIST = Path(__file__).parents[1] / "playbooks/group_vars/all/services.yml"
SERVICES: list[dict[str, Any]] = yaml.safe_load(LIST.read_text(encoding="utf-8"))["__platform_services"]
# Options of journalctl that select all services.
JOURNAL = " ".join(f"--unit '{service['unit']}'" for service in SERVICES)


def units(*kinds: str, **wanted: str) -> list[str]:
    """Return the names, without suffix, of the units of these kinds (default: all) with the given attributes.

    Without services that run only where an inventory wants them.
    """
    return [
        service["unit"].removesuffix(".service")
        for service in SERVICES
        if (not kinds or service["kind"] in kinds)
        and wanted.items() <= service.items()
        and not (service["kind"] == "service" and "wanted" in service)
    ]


def entry(unit: str) -> dict[str, Any]:
    """Return the entry of a unit, given its name without suffix."""
    return next(service for service in SERVICES if service["unit"].removesuffix(".service") == unit)
