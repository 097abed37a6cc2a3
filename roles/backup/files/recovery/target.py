"""Which moment is meant, and which backup leads there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from .host import RecoveryError, shown
from .repository import Backup, Histories, Segment, gaps, line_bounds, line_to

LATEST = "latest"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,50}")
# What begins like this is meant as a time.
TIME = re.compile(r"\d")


@dataclass(frozen=True)
class Target:
    """What is to be restored: the state after the last commit, at a time, or at a restore point."""

    # A time with zone; of a restore point, when it was made; None: after the last commit.
    time: datetime | None
    # Name of the restore point; empty: none.
    point: str = ""

    def __str__(self) -> str:
        """Return what people are told."""
        if self.time is None:
            return "the last commit that is archived"
        return f"restore point {self.point}, {shown(self.time)}" if self.point else shown(self.time)


@dataclass(frozen=True)
class Route:
    """A backup, the timeline to follow from it, and the segment in which the target is."""

    backup: Backup
    timeline: int
    end: Segment


def read_target(text: str, points: dict[str, datetime]) -> Target:
    """Return what TO= means: latest, the name of a restore point, or a time in ISO 8601 with its zone.

    points: times by the names of the restore points that there are.

    Raises:
        RecoveryError: it is none of these.

    """
    text = text.strip()
    if text == LATEST:
        return Target(None)
    if not TIME.match(text):
        if text in points:
            return Target(points[text], text)
        known = ", ".join(points) or "none"
        raise RecoveryError(
            f"There is no restore point {text!r}; those that there are: {known}. Name one of them, latest, or a time "
            "such as 2026-11-29T10:00:00Z."
        )
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise RecoveryError(
            f"{text} is no time: write it as 2026-11-29T10:00:00Z, or with an offset, as 2026-11-29T11:00:00+01:00."
        ) from None
    if moment.tzinfo is None:
        here = moment.astimezone()
        raise RecoveryError(
            f"{text} has no time zone. Write {moment:%Y-%m-%dT%H:%M:%S}Z if it is in UTC, or "
            f"{here.isoformat(timespec='seconds')} if it is the host's own time ({here:%Z})."
        )
    return Target(moment.astimezone(UTC))


def check_name(name: str, points: dict[str, datetime]) -> None:
    """Raise RecoveryError unless a restore point can have this name."""
    if not NAME.fullmatch(name) or name == LATEST:
        raise RecoveryError(
            f"{name!r} cannot be the name of a restore point: begin with a letter, go on with letters, digits, "
            "dots, hyphens and underscores, at most 51 in all, and not latest."
        )
    if name in points:
        raise RecoveryError(f"The restore point {name} was made at {shown(points[name])}: choose another name.")


def find_route(
    target: Target, backups: list[Backup], segments: list[Segment], histories: Histories, now: datetime
) -> Route:
    """Return the way to a target.

    backups: those of one repository, oldest first; segments: its archive by number; histories: of its timelines.

    Raises:
        RecoveryError: there is none; the message names the nearest that there is.

    """
    # A page with a wrong checksum is better than nothing.
    sound = [backup for backup in backups if not backup.faulty] or backups
    if not sound:
        raise RecoveryError("There is no backup yet: `make base-backup` makes one.")
    if target.time and target.time > now:
        raise RecoveryError(f"{shown(target.time)} is in the future; it is {shown(now)}.")
    first = sound[0]
    if target.time and target.time < first.earliest:
        raise RecoveryError(
            f"{shown(target.time)} is before the first backup had ended. The nearest is {_to(first.earliest)}."
        )
    archived = [segment for segment in segments if segment.number >= first.first]
    if not archived:
        raise RecoveryError(f"The archive has no WAL of the backup {first.label}: `make status` says why.")
    # What was committed at a time is in the segment that was archived next.
    later = [segment for segment in archived if target.time is None or segment.archived >= target.time]
    if not later:
        until = max(segment.archived for segment in archived)
        raise RecoveryError(
            f"What was committed until {shown(target.time or now)} is not archived; the archive ends at "
            f"{shown(until)}. The nearest is TO=latest."
        )
    end = max(archived, key=_timewise) if target.time is None else min(later, key=_timewise)
    bounds, line = line_bounds(end, histories), line_to(end, archived, histories)
    ways = [
        backup
        for backup in sound
        if not (target.time and backup.earliest > target.time)
        and backup.timeline in bounds
        and bounds[backup.timeline][0] <= backup.first <= backup.last <= bounds[backup.timeline][1]
    ]
    for backup in reversed(ways):
        if not gaps(line, backup.first):
            return Route(backup, end.timeline, end)
    raise RecoveryError(_gap(target, end, ways or sound, sound, line))


def _timewise(segment: Segment) -> tuple[datetime, int]:
    return segment.archived, segment.number


def _gap(target: Target, end: Segment, ways: list[Backup], backups: list[Backup], line: list[Segment]) -> str:
    """Return what is said of a target that no backup leads to without a gap."""
    missing = gaps(line, ways[-1].first)
    if not missing:
        return f"No backup leads to {target}: the archive continues none of them until {shown(end.archived)}."
    one, two = missing[0]
    # Recovery stops at a time only where it finds a later commit: the last segment before the gap has some.
    before = max((each.archived for each in line if ways[-1].last <= each.number < one.number), default=None)
    after = next((backup for backup in backups if backup.first >= two.number), None)
    nearest = [f"before it {_to(before)}"] if before else []
    nearest += [f"after it {_to(after.earliest)}"] if after else []
    near = f"The nearest is {', '.join(nearest)}." if nearest else "`make base-backup` begins anew after it."
    return f"The archive has a gap between {shown(one.archived)} and {shown(two.archived)}. {near}"


def _to(moment: datetime) -> str:
    """Return a time as TO= takes it."""
    return f"TO={moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
