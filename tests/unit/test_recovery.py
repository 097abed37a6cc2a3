"""What a restoration's target means, which backup leads there, and what pgBackRest's listings say."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from roles.backup.files.recovery import __main__ as program
from roles.backup.files.recovery import receiver, repository
from roles.backup.files.recovery.__main__ import advice, differences, has_failed_since, read_points
from roles.backup.files.recovery.aside import restore_options, why_it_ended
from roles.backup.files.recovery.drill import Counted, compare, read_verification
from roles.backup.files.recovery.host import MOUNTED, WANTED, RecoveryError, mount_point
from roles.backup.files.recovery.receiver import received, remove_archived, restore_option
from roles.backup.files.recovery.repository import (
    Backup,
    Repositories,
    Repository,
    Segment,
    gaps,
    number_of,
    read_archive,
    read_history,
    read_info,
)
from roles.backup.files.recovery.target import Target, check_name, find_route, read_target

ROOT = Path(__file__).parents[2]
BEGIN = datetime(2026, 11, 29, 10, tzinfo=UTC)
INFO: dict[str, Any] = {
    "archive": [{"database": {"id": 1, "repo-key": 1}, "id": "17-1", "max": "0" * 24, "min": "0" * 24}],
    "backup": [
        {
            "archive": {"start": "000000010000000000000010", "stop": "000000010000000000000011"},
            "database": {"id": 1, "repo-key": 1},
            "error": False,
            "info": {"delta": 2098248, "repository": {"delta": 72376}, "size": 43618562},
            "label": "20261130-051935F_20261130-052256I",
            "timestamp": {"start": 1796016176, "stop": 1796016177},
            "type": "incr",
        },
        {
            "archive": {"start": "00000001000000000000000A", "stop": "00000001000000000000000A"},
            "database": {"id": 1, "repo-key": 1},
            "error": True,
            "info": {"delta": 43601340, "repository": {"delta": 5022320}, "size": 43601340},
            "label": "20261130-051935F",
            "timestamp": {"start": 1796015975, "stop": 1796015996},
            "type": "full",
        },
    ],
    "db": [{"id": 1, "repo-key": 1, "system-id": 7713825342188855850, "version": "17"}],
    "name": "biocirv",
    "repo": [
        {"key": 1, "status": {"code": 0, "message": "ok"}},
        {"key": 2, "status": {"code": 99, "message": "[FormatError] key\n  is wrong"}},
    ],
}


def minutes(number: float) -> datetime:
    return BEGIN + timedelta(minutes=number)


def backup(label: str, finished: float, first: int, timeline: int = 1, *, faulty: bool = False) -> Backup:
    """Return a backup that needs the WAL from a segment on, and ended `finished` minutes after the beginning."""
    end = minutes(finished)
    return Backup(label, 1, "full", end, end, 1000, 100, first, timeline, first, faulty)


def archive(*numbers: int, timeline: int = 1, begin: float = 0) -> list[Segment]:
    """Return segments, of which number n was archived n minutes after the beginning."""
    return [Segment(number, timeline, minutes(begin + number)) for number in numbers]


def test_info_tells_of_backups_oldest_first_and_of_repositories() -> None:
    repositories, backups = read_info(json.dumps([{**INFO, "name": "other", "repo": []}, INFO]), "biocirv")
    assert [(each.number, each.code, each.message, each.usable, each.system) for each in repositories] == [
        (1, 0, "ok", True, "7713825342188855850"),
        (2, 99, "[FormatError] key is wrong", False, ""),
    ]
    assert [(each.label[-1], each.kind, each.first, each.last, each.timeline, each.faulty) for each in backups] == [
        ("F", "full", 10, 10, 1, True),
        ("I", "incr", 16, 17, 1, False),
    ]
    assert backups[0].finished == datetime(2026, 11, 30, 5, 19, 56, tzinfo=UTC)
    assert (backups[1].size, backups[1].stored) == (43618562, 72376)


def test_after_an_upgrade_only_what_is_of_the_new_cluster_counts() -> None:
    """A backup of the old version restores nothing of the new one, and its segments have the same numbers."""
    new = {"id": 2, "repo-key": 1, "system-id": 7713825342188855999, "version": "18"}
    (repository, _), backups = read_info(json.dumps([{**INFO, "db": [*INFO["db"], new]}]), "biocirv")
    assert (repository.system, backups) == ("7713825342188855999", [])

    digest = "a" * 40
    file = {"type": "file", "time": 1796015975}
    old = {f"17-1/0000000100000000/00000001000000000000000{number}-{digest}.zst": file for number in (3, 4, 5)}
    own = {f"18-2/0000000100000000/000000010000000000000002-{digest}.zst": file}
    assert [each.number for each in read_archive(json.dumps({**old, **own}))] == [2]


def test_restore_points_are_noted_with_the_newest_backup_of_each_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a listing says of them is what was noted; what a repository has noted is not noted again."""
    repositories = Repositories(SimpleNamespace(stanza="biocirv"))  # type: ignore[arg-type] # all that is read
    noted: list[tuple[str, ...]] = []
    monkeypatch.setattr(repositories, "pgbackrest", lambda *arguments: noted.append(arguments))
    newest = {**INFO["backup"][0], "annotation": {"restore-point.one": minutes(1).isoformat(), "by": "hand"}}
    _, backups = read_info(json.dumps([{**INFO, "backup": [newest, INFO["backup"][1]]}]), "biocirv")
    assert [each.points for each in backups] == [{}, {"one": minutes(1)}]

    repositories.note_points({"one": minutes(1), "two": minutes(2)}, [*backups, replace(backups[0], repository=2)])
    repositories.note_points({"one": minutes(1)}, backups)

    two = f"--annotation=restore-point.two={minutes(2).isoformat()}"
    assert sorted(noted) == [
        ("annotate", "--repo=1", f"--set={newest['label']}", two),
        (
            "annotate",
            "--repo=2",
            f"--set={backups[0].label}",
            f"--annotation=restore-point.one={minutes(1).isoformat()}",
            two,
        ),
    ]


def test_restore_points_outlive_their_host_and_end_with_the_backups_that_lead_there(tmp_path: Path) -> None:
    own: Any = SimpleNamespace(state=str(tmp_path))
    backups = [replace(backup("F", 2, 1), points={"old": minutes(1), "noted": minutes(3)})]
    assert read_points(own, backups) == {"noted": minutes(3)}
    (tmp_path / "points.json").write_text(json.dumps({"new": minutes(4).isoformat()}))
    assert list(read_points(own, backups)) == ["noted", "new"]
    assert read_points(own, []) == {}


def test_info_of_an_unknown_stanza_is_an_error() -> None:
    with pytest.raises(RecoveryError, match="know no stanza biocirv"):
        read_info("[]", "biocirv")


def test_only_segments_of_the_archive_are_read() -> None:
    digest = "a" * 40
    found = read_archive(
        json.dumps(
            {
                "17-1": {"type": "path"},
                f"17-1/0000000200000001/0000000200000001000000FF-{digest}.zst": {"type": "file", "time": 1796015975},
                f"17-1/0000000100000000/000000010000000000000003-{digest}": {"type": "file", "time": 1796015975},
                "17-1/0000000100000000/00000001000000000000000A.00000028.backup": {"type": "file", "time": 1},
                f"17-1/0000000100000000/000000010000000000000004.partial-{digest}.zst": {"type": "file", "time": 1},
                "archive.info": {"type": "file", "time": 1},
            }
        )
    )
    assert [(each.number, each.timeline) for each in found] == [(3, 1), (511, 2)]
    assert [number_of(each.name) for each in found] == [(3, 1), (511, 2)]
    # The time is rounded down in the listing: what a segment holds was committed before the next second.
    assert found[0].archived == datetime.fromtimestamp(1796015976, UTC)


def test_gaps_are_between_numbers_and_not_between_timelines() -> None:
    segments = sorted([*archive(1, 2, 3, 6), *archive(3, 4, timeline=2)])
    assert [(one.number, two.number) for one, two in gaps(segments, 1)] == [(4, 6)]
    assert gaps(segments, 6) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latest", None),
        ("2026-11-29T10:00:00Z", BEGIN),
        (" 2026-11-29 11:00+01:00 ", BEGIN),
        ("2026-11-29T10:00:00.5Z", BEGIN + timedelta(seconds=0.5)),
    ],
)
def test_a_time_has_its_zone(text: str, expected: datetime | None) -> None:
    assert read_target(text, {}) == Target(expected)


def test_a_restore_point_is_known_by_its_name() -> None:
    target = read_target("before-cleanup", {"before-cleanup": BEGIN})
    assert target == Target(BEGIN, "before-cleanup")
    assert str(target).startswith("restore point before-cleanup, 2026-11-29 10:00:00 UTC")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2026-11-29T10:00:00", "has no time zone. Write 2026-11-29T10:00:00Z if it is in UTC, or 2026-11-29T10:00:00"),
        ("2026-11-29", "has no time zone. Write 2026-11-29T00:00:00Z"),
        ("10:00", "10:00 is no time: write it as 2026-11-29T10:00:00Z"),
        ("2026-11-31T10:00:00Z", "is no time"),
        ("yesterday", "There is no restore point 'yesterday'; those that there are: one, two."),
        ("", "There is no restore point ''"),
    ],
)
def test_what_is_neither_is_refused(text: str, said: str) -> None:
    with pytest.raises(RecoveryError) as refused:
        read_target(text, {"one": BEGIN, "two": BEGIN})
    assert said in str(refused.value)


@pytest.mark.parametrize("name", ["", "latest", "2026", "two words", "a;b", "x" * 52, "one"])
def test_a_restore_point_is_not_named_so(name: str) -> None:
    with pytest.raises(RecoveryError):
        check_name(name, {"one": BEGIN})


def test_the_newest_backup_before_the_target_leads_there() -> None:
    backups = [backup("a", 2, 2), backup("b", 5, 5), backup("c", 8, 8)]
    route = find_route(Target(minutes(6.5)), backups, archive(*range(2, 12)), {}, minutes(20))
    assert (route.backup.label, route.timeline, route.end.number) == ("b", 1, 7)
    assert find_route(Target(None), backups, archive(*range(2, 12)), {}, minutes(20)).backup.label == "c"
    faulty = [backup("a", 2, 2), backup("b", 5, 5, faulty=True)]
    assert find_route(Target(None), faulty, archive(*range(2, 12)), {}, minutes(20)).backup.label == "a"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (minutes(1), "is before the first backup had ended. The nearest is TO=2026-11-29T10:02:01Z."),
        (minutes(2), "is before the first backup had ended."),
        (minutes(30), "is in the future; it is 2026-11-29 10:20:00 UTC"),
        (minutes(15), "is not archived; the archive ends at 2026-11-29 10:11:00 UTC. The nearest is TO=latest."),
    ],
)
def test_a_time_that_cannot_be_restored_is_refused_with_the_nearest(target: datetime, said: str) -> None:
    backups = [backup("a", 2, 2), backup("b", 5, 5)]
    with pytest.raises(RecoveryError) as refused:
        find_route(Target(target), backups, archive(*range(2, 12)), {}, minutes(20))
    assert said in str(refused.value)


def test_without_a_backup_nothing_is_restored() -> None:
    with pytest.raises(RecoveryError, match="`make base-backup` makes one"):
        find_route(Target(None), [], archive(2, 3), {}, minutes(20))


def test_a_faulty_backup_is_better_than_none() -> None:
    assert (
        find_route(Target(None), [backup("a", 2, 2, faulty=True)], archive(2, 3), {}, minutes(20)).backup.label == "a"
    )


def test_a_gap_is_refused_with_what_is_on_both_sides() -> None:
    """Segment 6 is missing: what was committed after segment 5 was archived can only be restored from backup b."""
    backups, segments = [backup("a", 2, 2), backup("b", 9, 9)], archive(2, 3, 4, 5, 7, 8, 9, 10)
    assert find_route(Target(minutes(4.5)), backups, segments, {}, minutes(20)).backup.label == "a"
    assert find_route(Target(minutes(9.5)), backups, segments, {}, minutes(20)).backup.label == "b"
    for target in (minutes(5.5), minutes(8)):
        with pytest.raises(RecoveryError) as refused:
            find_route(Target(target), backups, segments, {}, minutes(20))
        assert "has a gap between 2026-11-29 10:05:00 UTC" in str(refused.value)
        assert "before it TO=2026-11-29T10:04:00Z, after it TO=2026-11-29T10:09:01Z" in str(refused.value)


def test_latest_does_not_end_at_a_gap_without_a_word() -> None:
    with pytest.raises(RecoveryError, match="has a gap"):
        find_route(Target(None), [backup("a", 2, 2)], archive(2, 3, 5), {}, minutes(20))


def test_after_a_restoration_the_abandoned_stretch_has_its_own_timeline() -> None:
    """In minute 10 the cluster was put back to minute 5: until then timeline 1 went on; timeline 2 follows."""
    backups = [backup("a", 2, 2), backup("b", 8, 8), backup("c", 12, 7, timeline=2)]
    segments = sorted([*archive(*range(2, 11)), *archive(6, 7, 8, 9, timeline=2, begin=5)])
    histories = {2: [(1, 6)]}
    assert find_route(Target(minutes(9.5)), backups, segments, histories, minutes(20)).timeline == 1
    assert find_route(Target(minutes(9.5)), backups, segments, histories, minutes(20)).backup.label == "b"
    later = find_route(Target(minutes(11.5)), backups, segments, histories, minutes(20))
    assert (later.backup.label, later.timeline) == ("a", 2)
    assert find_route(Target(None), backups, segments, histories, minutes(20)).backup.label == "c"


def test_a_segment_of_an_abandoned_timeline_fills_no_gap() -> None:
    """Timeline 3 branched off timeline 1 in segment 4; 7 is missing on it, and is there on timelines 1 and 2."""
    backups = [backup("a", 2, 2), backup("b", 9, 7, timeline=2)]
    segments = sorted(
        [*archive(*range(2, 9)), *archive(5, 6, 7, timeline=2, begin=4), *archive(4, 5, 6, 8, timeline=3, begin=10)]
    )
    histories = {2: [(1, 5)], 3: [(1, 4)]}
    with pytest.raises(RecoveryError, match="has a gap between 2026-11-29 10:16:00 UTC and 2026-11-29 10:18:00 UTC"):
        find_route(Target(None), backups, segments, histories, minutes(30))
    assert find_route(Target(minutes(15.5)), backups, segments, histories, minutes(30)).backup.label == "a"


def test_a_history_names_the_segments_in_which_timelines_begin() -> None:
    text = '1\t0/3F0C8E50\tat restore point "loaded"\n3\t1/2000028\tno recovery target specified\n'
    assert read_history(text) == [(1, 0x3F), (3, 0x102)]


def test_pgbackrest_gets_the_target_in_utc() -> None:
    route = find_route(Target(None), [backup("a", 2, 2)], archive(2, 3), {}, minutes(20))
    common = ["--repo=1", "--set=a", "--target-timeline=current"]
    east = datetime.fromisoformat("2026-11-29T11:00:00+01:00")
    assert restore_options(Target(None), route) == [*common, "--type=default"]
    assert restore_options(Target(east), route) == [
        *common,
        "--type=time",
        "--target=2026-11-29 10:00:00.000000+00",
        "--target-action=promote",
    ]
    assert restore_options(Target(east, "named"), route)[3:5] == ["--type=name", "--target=named"]


def test_a_timeline_that_began_after_the_backup_is_named() -> None:
    segments = sorted([*archive(2, 3, 4), *archive(5, 6, timeline=2, begin=4)])
    route = find_route(Target(None), [backup("a", 2, 2)], segments, {2: [(1, 5)]}, minutes(30))
    assert restore_options(Target(None), route)[2] == "--target-timeline=2"


def test_a_recovery_that_ends_early_says_when() -> None:
    log = (
        "LOG:  redo done\nLOG:  last completed transaction was at log time 2026-11-29 10:04:58.1+00\n"
        "FATAL:  recovery ended before configured recovery target was reached\n"
    )
    assert "the last one is of 2026-11-29 10:04:58.1+00" in why_it_ended(log)
    assert why_it_ended("FATAL:  no room\n") == "The copy cannot be started: no room."
    answer = "FATAL:  the database system is in recovery mode\n"
    assert why_it_ended(f"PANIC:  no checkpoint\n{answer}") == "The copy cannot be started: no checkpoint."
    assert "it says nothing" in why_it_ended("")


@pytest.mark.parametrize(
    ("restored", "writes", "alike"),
    [
        ("5", (0, 0), True),
        ("4", (0, 0), False),
        ("6", (0, 0), False),
        (None, (0, 0), False),
        # Rows came and went between the two counts.
        ("7", (2, 2), True),
        ("3", (2, 2), True),
        ("8", (2, 2), False),
    ],
)
def test_a_table_is_alike_if_the_living_one_can_have_had_its_rows(
    restored: str | None, writes: tuple[int, int], alike: bool
) -> None:
    earlier = {"db": (["r"], {"t": "5", "new": "0"}, {"t": (10, 3)})}
    later = {"db": (["r"], {"t": "5"}, {"t": (10 + writes[0], 3 + writes[1])})}
    rows = {} if restored is None else {"t": restored}
    tables, problems = compare(earlier, {"db": (["r"], rows, {})}, later)
    assert [(table["table"], table["alike"]) for table in tables] == [("t", alike)]
    assert bool(problems) is not alike
    if problems:
        assert problems[0].startswith("The table t of db ")


def test_another_revision_and_a_missing_database_are_problems() -> None:
    counted: Counted = {"db": (["r"], {"t": "5"}, {}), "other": ([], {}, {})}
    _, problems = compare(counted, {"db": (["q"], {"t": "5"}, {})}, counted)
    assert problems == [
        "db was restored at revision ['q'] instead of ['r'].",
        "The database other was not restored.",
    ]


def test_tables_differ_by_rows_or_content() -> None:
    found = differences({"a": "1 77", "b": "2 5", "gone": "3 1"}, {"a": "1 77", "b": "2 6", "new": "0 0"})
    assert found == [
        {"table": "a", "then": 1, "now": 1, "same": True},
        {"table": "b", "then": 2, "now": 2, "same": False},
        {"table": "gone", "then": 3, "now": None, "same": False},
        {"table": "new", "then": None, "now": 0, "same": False},
    ]


def test_what_a_wrong_passphrase_makes_of_a_repository_is_read() -> None:
    """Control characters are in the output as they are."""
    message = "[FormatError] invalid\tbytes"
    text = json.dumps([{**INFO, "repo": [{"key": 1, "status": {"code": 99, "message": f"{message} X"}}]}])
    (repository,), _ = read_info(text.replace("X", "\x01\x7f"), "biocirv")
    assert (repository.message, repository.usable) == ("[FormatError] invalid bytes", False)
    assert "backup_passphrase" in advice(repository)


VERIFIED = """\
stanza: biocirv
status: error
  archiveId: 17-1, total WAL checked: 62, total valid WAL: 61
    missing: 0, checksum invalid: 1, size invalid: 0, other: 0
  backup: 20261130-110309F, status: invalid, total files checked: 963, total valid files: 960
    checksum invalid: 3
"""


def test_the_verification_is_read() -> None:
    assert read_verification("", "expire --set=") == []
    assert read_verification("stanza: biocirv\nstatus: ok\n", "expire --set=") == []
    assert read_verification("stanza: biocirv\nstatus: error\n", "expire --set=") != []
    archive, backup = read_verification(VERIFIED, "expire --set=")
    assert archive.startswith("The archive is damaged: missing: 0, checksum invalid: 1")
    assert backup.startswith("The backup 20261130-110309F is damaged: checksum invalid: 3. ")
    assert "`expire --set=20261130-110309F`" in backup


def test_what_there_is_is_shown() -> None:
    """A repository with backups, of which one is faulty, a gap, several restore points, and a drill that failed."""
    moments = {"since": "2026-11-29T10:00:00+00:00", "until": "2026-11-30T10:00:00+00:00"}
    gap = {"after": "A", "from": "2026-11-29T12:00:00+00:00", "until": "2026-11-29T13:00:00+00:00", "end": ""}
    backup = {"repository": 1, "type": "incr", "finished": "2026-11-29T10:00:00+00:00", "bytes": 1, "stored_bytes": 1}
    points = [{"name": name, "time": "2026-11-29T11:00:00+00:00"} for name in ("before", "after")]
    drill = {"finished": "2026-11-29T14:00:00+00:00", "succeeded": False, "problems": ["no room"], "proven": ""}
    state = {
        "repositories": [
            {"number": 1, "place": "/b", "same_disk": True, "usable": True, "message": "ok", "gaps": [gap], **moments},
            {
                "number": 2,
                "place": "s3",
                "same_disk": False,
                "usable": False,
                "message": "no key",
                "gaps": [],
                "since": "",
            },
        ],
        "backups": [{**backup, "faulty": False}, {**backup, "faulty": True}],
        "archiver": {"failing": True},
        "restore_points": points,
        "drill": drill,
    }
    templar = Templar(loader=DataLoader(), variables={"state": state, "inventory_hostname": "db"})
    text = (ROOT / "roles/backup/templates/backups.txt.j2").read_text(encoding="utf-8")
    lines = str(templar.template(trust_as_template(text))).splitlines()
    assert lines[0].startswith("Repository 1  /b on db, on the disk of the database: it survives a mistake")
    assert [line.endswith("FAULTY: see the journal of biocirv-base-backup") for line in lines[1:3]] == [False, True]
    assert "Any second can be restored from 2026-11-29 10:00:00 UTC until 2026-11-30 10:00:00 UTC" in lines[3]
    assert "except from 2026-11-29 12:00:00 until 2026-11-29 13:00:00 UTC" in lines[4]
    assert "cannot be used: no key" in "".join(lines)
    shown = [line for line in lines if line.endswith("2026-11-29 11:00:00 UTC")]
    assert shown == [
        "Restore points before  2026-11-29 11:00:00 UTC",
        "               after  2026-11-29 11:00:00 UTC",
    ]
    assert "failed: no room" in "".join(lines)
    assert "Proven last    never" in lines


@pytest.mark.parametrize(
    ("path", "mounted", "wanted"),
    [
        ("/mnt/my backups/biocirv", "/", "/mnt/my backups"),
        ("/srv/biocirv", "/srv", ""),
        ("/var/lib/pgbackrest", "/", ""),
    ],
)
def test_a_directory_is_on_the_file_system_that_is_mounted_closest(
    path: str, mounted: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mountinfo").write_text(
        "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 8:2 / /srv rw - ext4 /dev/b rw\n3 1 8:3 / /sr rw - ext4 /dev/c rw\n"
    )
    (tmp_path / "fstab").write_text(
        "# A comment\n/dev/a / ext4\n\n/dev/d /mnt/my\\040backups ext4 nofail\n/dev/e none swap\n"
    )
    tables = {MOUNTED: tmp_path / "mountinfo", WANTED: tmp_path / "fstab"}
    monkeypatch.setattr("roles.backup.files.recovery.host.Path", lambda name: tables.get(name, Path(name)))
    assert (mount_point(path), mount_point(path, WANTED)) == (mounted, wanted)


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        (1, "missing stanza path", "make start-services"),
        (99, "[CryptoError] unable to flush", "another backup_passphrase"),
        (99, "[CryptoError] unable to verify certificate presented by 's3:443'", "storage-ca-file"),
        (99, "[HostConnectError] unable to connect to 's3:443'", "the host reaches it"),
    ],
)
def test_what_to_do_about_a_repository_follows_from_what_it_says(code: int, message: str, expected: str) -> None:
    assert expected in advice(Repository(1, code, message, ""))


def test_after_a_failed_drill_a_full_backup_is_due_once() -> None:
    drilled = {"succeeded": False, "finished": minutes(5).isoformat()}
    assert has_failed_since(drilled, minutes(4))
    assert not has_failed_since(drilled, minutes(6))
    assert not has_failed_since({**drilled, "succeeded": True}, minutes(4))
    assert not has_failed_since({}, minutes(4))


@pytest.mark.parametrize(("missing", "created"), [(["directory /var/lib/biocirv-recovery"], 0), (["stanza"], 1)])
def test_a_stanza_is_created_only_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: list[str], created: int
) -> None:
    """On a host that was made anew, the repository has that of the lost cluster, which is restored later."""
    commands: list[str] = []
    repositories = SimpleNamespace(pgbackrest=lambda command, _lock: f"{commands.append(command)}")  # type: ignore[func-returns-value]
    monkeypatch.setattr(program, "lacks", lambda _own: missing)
    monkeypatch.setattr(program, "Repositories", lambda _own: repositories)
    own: Any = SimpleNamespace(state=str(tmp_path), wal_directory="/srv/wal", directories=[])
    program.prepare(own)
    assert commands == ["stanza-create"] * created


def test_what_was_received_and_is_not_archived_is_restored(tmp_path: Path) -> None:
    names = [f"00000001000000000000000{number}" for number in "123"]
    for name in (*names[:2], f"{names[2]}.partial", "00000001.history"):
        (tmp_path / name).touch()
    assert received(tmp_path) == names
    living = SimpleNamespace(archiver=lambda: {"archived": names[0]})
    remove_archived(tmp_path, living)  # type: ignore[arg-type]
    assert received(tmp_path) == names[1:]
    own = SimpleNamespace(wal_directory=str(tmp_path), stanza="biocirv")
    (option,) = restore_option(own)  # type: ignore[arg-type]
    assert option.startswith("--recovery-option=restore_command=pgbackrest --stanza=biocirv archive-get %f")
    assert option.index(f'cp "{tmp_path}/%f" "%p"') < option.index(f'cp "{tmp_path}/%f.partial" "%p"')
    assert restore_option(SimpleNamespace(wal_directory="")) == []  # type: ignore[arg-type]


def test_a_repository_that_was_begun_after_a_restoration_lacks_that_timeline_s_history(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only that is no problem: another failure is one of the repository."""
    repositories = Repositories(SimpleNamespace(stanza="biocirv"))  # type: ignore[arg-type] # all that is read
    answers = {
        "archive/biocirv": json.dumps({"17-1/00000003.history": {}, "17-1/00000005.history": {}}),
        "archive/biocirv/17-1/00000003.history": "2\t0/5000000\tno recovery target specified\n",
    }

    def run(*command: str, timeout: float) -> str:
        if command[-1] not in answers:
            raise RecoveryError(f"it failed after {timeout}")
        return answers[command[-1]]

    monkeypatch.setattr(repository, "run", run)
    segments = [Segment(number, timeline, BEGIN) for number, timeline in ((4, 2), (5, 3))]

    assert repositories.histories(1, segments) == {3: [(2, 5)]}
    with pytest.raises(RecoveryError, match="it failed"):
        repositories.histories(1, [*segments, Segment(6, 5, BEGIN)])


@pytest.mark.parametrize(
    ("slot", "systems", "reason"),
    [
        ("", [""], "No repository answers"),
        ("", ["2"], "hold another cluster"),
        ("", ["", "1"], None),
        # It goes on while every repository is away.
        ("reserved", [""], None),
    ],
)
def test_wal_of_a_lost_cluster_is_kept_until_it_is_known_whose_the_new_one_is(
    monkeypatch: pytest.MonkeyPatch, slot: str, systems: list[str], reason: str | None
) -> None:
    class BegunError(Exception):
        """The WAL that was received may be removed from here on."""

    def begin(*_arguments: object) -> None:
        raise BegunError

    living = SimpleNamespace(answers=lambda: True, slot=lambda _name: slot, archiver=lambda: {"system": "1"})
    states = [Repository(number, 0, "ok", system) for number, system in enumerate(systems, start=1)]
    monkeypatch.setattr(receiver, "Cluster", lambda _port: living)
    monkeypatch.setattr(receiver, "Repositories", lambda _settings: SimpleNamespace(info=lambda: (states, [])))
    monkeypatch.setattr(receiver, "_begin", begin)
    with pytest.raises(RecoveryError if reason else BegunError, match=reason):
        receiver._receive_until_it_ends(SimpleNamespace(port=5432, wal_directory="/srv/wal"))  # type: ignore[arg-type]
