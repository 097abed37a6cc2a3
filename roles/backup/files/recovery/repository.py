"""What the repositories hold: backups, and the archive of WAL, as pgBackRest lists them."""

from __future__ import annotations

import itertools
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from .host import RecoveryError, Settings, SilentError, run

if TYPE_CHECKING:
    from collections.abc import Iterable

# An archived segment: timeline, and the two halves of its position, in hexadecimal; its digest; its compression.
SEGMENT = re.compile(r"/([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})-[0-9a-f]{40}(?:\.\w+)?$")
# The name of a segment in PostgreSQL's own words; it archives other files, too.
NAME = re.compile(r"[0-9A-F]{24}")
# Segments of 16 MB, of which 256 have the same first half.
PER_FILE = 256
SEGMENT_BYTES = 2**24
# Of each timeline but the first, those before it: timeline, and number of the segment in which the next one begins.
Histories = dict[int, list[tuple[int, int]]]
# Where the archive of a cluster is: version of PostgreSQL, and number of the cluster.
CLUSTER = re.compile(r"[0-9.]+-([0-9]+)/")
# The name of a file with a timeline's history, in the archive.
HISTORY_FILE = re.compile(r"/([0-9A-F]{8})\.history$")
# A line of a timeline's history: a timeline before it, and the position at which it was left.
HISTORY = re.compile(r"(?m)^(\d+)\t([0-9A-F]+)/([0-9A-F]+)\t")
# A restore point in the annotations of a backup: its name follows this, its time is the value.
POINT = "restore-point."
# Status codes of `pgbackrest info` of a repository that can be used: backups, or none yet.
USABLE = (0, 2)
# Of one that holds nothing of this cluster yet.
UNPREPARED = (1, 3)
# Seconds to wait for a repository that is asked for what it holds, and for each answer of its storage: for so long
# pgBackRest tries again before it says what is wrong with a certificate, and longer where nothing listens.
SECONDS, IO_SECONDS = 15, 5


@dataclass(frozen=True, order=True)
class Segment:
    """A segment of WAL: its number, counted from the first possible one, and its timeline."""

    number: int
    timeline: int
    # By when it was put into the repository, rounded up to seconds. What it holds was committed before.
    archived: datetime

    @property
    def name(self) -> str:
        """Return its name, as PostgreSQL writes it."""
        return f"{self.timeline:08X}{self.number // PER_FILE:08X}{self.number % PER_FILE:08X}"


@dataclass(frozen=True)
class Backup:
    """A backup that ended."""

    label: str
    repository: int
    kind: str
    started: datetime
    finished: datetime
    # Bytes of the cluster, and what the backup added to the repository.
    size: int
    stored: int
    # Number and timeline of the first segment that it needs, and number of the last one that it needs in any case.
    first: int
    timeline: int
    last: int
    # Pages with wrong checksums were found, or parts are missing.
    faulty: bool
    # Restore points that are noted with it: their times by their names.
    points: dict[str, datetime] = field(default_factory=dict)

    @property
    def earliest(self) -> datetime:
        """Return the earliest time that can be restored from it: its end was noted in whole seconds."""
        return self.finished + timedelta(seconds=1)


@dataclass(frozen=True)
class Repository:
    """The state of a repository."""

    number: int
    # pgBackRest's status: 0 is well, 2 has no backup yet; others cannot be used. The message says why.
    code: int
    message: str
    # PostgreSQL's identifier of the cluster that it holds; empty: none yet.
    system: str

    @property
    def usable(self) -> bool:
        """Return whether backups can be made into it."""
        return self.code in USABLE


def number_of(name: str) -> tuple[int, int]:
    """Return number and timeline of a segment, given its name of 24 hexadecimal digits."""
    return int(name[8:16], 16) * PER_FILE + int(name[16:24], 16), int(name[:8], 16)


def read_info(text: str, stanza: str) -> tuple[list[Repository], list[Backup]]:
    """Return repositories and backups, oldest first, from the output of `pgbackrest info --output=json`.

    Raises:
        RecoveryError: the output does not tell of the stanza.

    """
    # With a wrong passphrase, a message holds control characters: what it makes of the repository's files.
    found = next((each for each in json.loads(text or "[]", strict=False) if each["name"] == stanza), None)
    if found is None:
        raise RecoveryError(f"The repositories know no stanza {stanza}: converge the host.")
    # After an upgrade of PostgreSQL, the last of several clusters counts.
    present = {each["repo-key"]: each for each in found["db"]}
    repositories = [
        Repository(
            each["key"],
            each["status"]["code"],
            " ".join(word for word in each["status"]["message"].split() if word.isprintable()),
            str(present[each["key"]]["system-id"]) if each["key"] in present else "",
        )
        for each in found["repo"]
    ]
    ids = {(number, each["id"]) for number, each in present.items()}
    of_present = (each for each in found["backup"] if (each["database"]["repo-key"], each["database"]["id"]) in ids)
    backups = [_read_backup(each) for each in of_present]
    return repositories, sorted(backups, key=lambda backup: backup.finished)


def _read_backup(found: dict[str, Any]) -> Backup:
    first, timeline = number_of(found["archive"]["start"])
    sizes = found["info"]
    return Backup(
        label=found["label"],
        repository=found["database"]["repo-key"],
        kind=found["type"],
        started=datetime.fromtimestamp(found["timestamp"]["start"], UTC),
        finished=datetime.fromtimestamp(found["timestamp"]["stop"], UTC),
        size=sizes["size"],
        stored=sizes["repository"]["delta"],
        first=first,
        timeline=timeline,
        last=number_of(found["archive"]["stop"])[0],
        faulty=bool(found.get("error")),
        points={
            name.removeprefix(POINT): datetime.fromisoformat(moment)
            for name, moment in (found.get("annotation") or {}).items()
            if name.startswith(POINT)
        },
    )


def read_archive(text: str) -> list[Segment]:
    """Return the segments of an archive by number, from the output of `pgbackrest repo-ls --recurse --output=json`."""
    segments = []
    listed = json.loads(text or "{}")
    for name in _of_last_cluster(listed):
        found = listed[name]
        if match := SEGMENT.search(f"/{name}"):
            number, timeline = number_of("".join(match.groups()))
            segments.append(Segment(number, timeline, datetime.fromtimestamp(found["time"] + 1, UTC)))
    return sorted(segments)


def _of_last_cluster(names: Iterable[str]) -> list[str]:
    """Return the paths below `17-2`, where there are also such below `15-1`, of the cluster before an upgrade."""
    numbered = [(int(match[1]), name) for name in names if (match := CLUSTER.match(name))]
    last = max(numbered, default=(0, ""))[0]
    return [name for number, name in numbered if number == last]


def read_history(text: str) -> list[tuple[int, int]]:
    """Return the timelines before one, each with the number of the segment in which the next begins."""
    return [
        (int(timeline), int(high, 16) * PER_FILE + int(low, 16) // SEGMENT_BYTES)
        for timeline, high, low in HISTORY.findall(text)
    ]


def line_to(end: Segment, segments: list[Segment], histories: Histories) -> list[Segment]:
    """Return the segments that recovery replays until a segment: those of its timeline and of those before it."""
    bounds = line_bounds(end, histories)
    return [
        each
        for each in segments
        if each.timeline in bounds and bounds[each.timeline][0] <= each.number <= bounds[each.timeline][1]
    ]


def line_bounds(end: Segment, histories: Histories) -> dict[int, tuple[int, int]]:
    """Return the first and the last number of the segments that recovery replays until a segment, by timeline."""
    bounds, begin = {}, 0
    for timeline, switch in [*histories.get(end.timeline, []), (end.timeline, end.number)]:
        bounds[timeline] = (begin, switch)
        begin = switch
    return bounds


def gaps(segments: list[Segment], begin: int) -> list[tuple[Segment, Segment]]:
    """Return the pairs of segments, from number `begin` on, between which at least one is missing."""
    kept = [segment for segment in segments if segment.number >= begin]
    return [(one, two) for one, two in itertools.pairwise(kept) if two.number > one.number + 1]


class Repositories:
    """The repositories of this host, asked by pgBackRest."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def pgbackrest(self, *arguments: str, env: dict[str, str] | None = None, timeout: float | None = None) -> str:
        """Run pgBackRest with this host's stanza and return its output."""
        return run("pgbackrest", f"--stanza={self._settings.stanza}", *arguments, env=env, timeout=timeout)

    def info(self, *numbers: int) -> tuple[list[Repository], list[Backup]]:
        """Return the state of repositories, all or those with these numbers, and their backups, oldest first."""
        numbers = numbers or tuple(range(1, len(self._settings.repositories) + 1))
        with ThreadPoolExecutor(len(numbers)) as pool:
            answers = [*pool.map(self._info, numbers)]
        backups = sorted((each for _, found in answers for each in found), key=lambda backup: backup.finished)
        return [each for states, _ in answers for each in states], backups

    def _info(self, number: int) -> tuple[list[Repository], list[Backup]]:
        # One that is there and does not answer: pgBackRest would try each of its files for as long as it waits for one.
        try:
            options = ("--output=json", f"--repo={number}", f"--io-timeout={IO_SECONDS}")
            text = self.pgbackrest("info", *options, timeout=SECONDS)
        except SilentError:
            return [Repository(number, 99, f"it gave no answer within {SECONDS} s", "")], []
        return read_info(text, self._settings.stanza)

    def damaged_files(self, backup: Backup) -> list[str]:
        """Return the files, below the data directory, in which a backup found pages with wrong checksums."""
        text = self.pgbackrest("info", "--output=json", f"--set={backup.label}", f"--repo={backup.repository}")
        return [name for found in json.loads(text) for each in found["backup"] for name in each.get("error-list") or []]

    def note_points(self, points: dict[str, datetime], backups: list[Backup]) -> None:
        """Note restore points with the newest backup of each repository that has not noted them."""
        for number in {backup.repository for backup in backups}:
            own = [backup for backup in backups if backup.repository == number]
            missing = points.keys() - {name for backup in own for name in backup.points}
            notes = [f"--annotation={POINT}{name}={points[name].isoformat()}" for name in sorted(missing)]
            if notes:
                self.pgbackrest("annotate", f"--repo={number}", f"--set={own[-1].label}", *notes)

    def segments(self, repository: int) -> list[Segment]:
        """Return the archived segments of a repository by number."""
        path = f"archive/{self._settings.stanza}"
        # Not the stanza's own option: this command is of the repository.
        text = run("pgbackrest", "repo-ls", f"--repo={repository}", "--recurse", "--output=json", path, timeout=60)
        return read_archive(text)

    def histories(self, repository: int, segments: list[Segment]) -> Histories:
        """Return the histories of the timelines of segments, as far as the repository has them.

        It lacks that of the timeline on which the cluster was when the repository was begun. Not by archive-get, which
        needs the cluster's own files: its disk may be lost.
        """
        timelines = {each.timeline for each in segments} - {1}
        if not timelines:
            return {}
        own, path = f"--repo={repository}", f"archive/{self._settings.stanza}"
        filter_ = f"--filter={HISTORY_FILE.pattern}"
        listed = json.loads(run("pgbackrest", "repo-ls", own, "--recurse", "--output=json", filter_, path, timeout=60))
        return {
            int(match[1], 16): read_history(run("pgbackrest", "repo-get", own, f"{path}/{name}", timeout=60))
            for name in _of_last_cluster(listed)
            if (match := HISTORY_FILE.search(name)) and int(match[1], 16) in timelines
        }
