"""200 worksheets, each with one kind of error that people and exports introduce."""

import csv
import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from sqlalchemy import Engine, insert, text

from ca_biositing.datamodels.models import Experiment, FieldSample
from ca_biositing.pipeline.flows.observation import OBSERVATIONS, observation_flow

HEADER = [*OBSERVATIONS.columns]
ROWS = 12
SEEDS = range(10)
Break = Callable[[list[list[str]], random.Random], bytes]


def encode(rows: list[list[str]], encoding: str = "utf-8") -> bytes:
    """Return rows as csv."""
    text_ = io.StringIO(newline="")
    csv.writer(text_).writerows(rows)
    return text_.getvalue().encode(encoding)


def put(rows: list[list[str]], chance: random.Random, column: str, value: str) -> bytes:
    """Return the worksheet with a value in one to three cells of a column."""
    for row in chance.sample(rows[1:], chance.randint(1, 3)):
        row[HEADER.index(column)] = value
    return encode(rows)


def without_a_column(rows: list[list[str]], chance: random.Random) -> bytes:
    for column in sorted(chance.sample(range(len(HEADER)), chance.randint(1, 3)), reverse=True):
        for row in rows:
            del row[column]
    return encode(rows)


def merged_header(rows: list[list[str]], chance: random.Random) -> bytes:
    start = chance.randrange(len(HEADER) - 1)
    rows[0][start + 1 :] = [""] * (len(HEADER) - start - 1)
    return encode(rows)


def header_twice(rows: list[list[str]], chance: random.Random) -> bytes:
    rows[0][chance.randrange(3)] = HEADER[chance.randrange(3, len(HEADER))]
    return encode(rows)


def title_above_the_header(rows: list[list[str]], chance: random.Random) -> bytes:
    return encode([[f"Measurements {chance.random()}", "", ""], *rows])


def duplicates(rows: list[list[str]], chance: random.Random) -> bytes:
    same, *others = chance.sample(rows[1:], 3)
    rows += [same, *([*row[:4], "99", row[5]] for row in others)]
    return encode(rows)


def wrong_types(rows: list[list[str]], chance: random.Random) -> bytes:
    put(rows, chance, "Replicate", chance.choice(["first", "1.5", "-1", "0", "2024-01-01"]))
    return put(rows, chance, "Value", chance.choice(["n.d.", "<0.1", "12,5", "1 000", "yes", "5.1%", "NaN", "inf"]))


def huge_cell(rows: list[list[str]], chance: random.Random) -> bytes:
    return put(rows, chance, chance.choice(HEADER), chance.choice("ab9 ") + "9" * 10 * 1024 * 1024)


def latin_1(rows: list[list[str]], chance: random.Random) -> bytes:
    put(rows, chance, chance.choice(["Parameter", "Unit"]), "\N{DEGREE SIGN}C ñ")
    return encode(rows, "latin-1")


def mixed_encodings(rows: list[list[str]], chance: random.Random) -> bytes:
    put(rows, chance, "Unit", "µg/g")
    lines = encode(rows).splitlines(keepends=True)
    line = chance.randrange(1, len(lines))
    lines[line] = lines[line].decode().replace("%", "µ").encode("latin-1")
    return b"".join(lines)


def utf_16(rows: list[list[str]], chance: random.Random) -> bytes:
    return encode(rows, chance.choice(["utf-16", "utf-16-le", "utf-16-be"]))


def empty(_rows: list[list[str]], chance: random.Random) -> bytes:
    return chance.choice([b"", b"\xef\xbb\xbf"])


def blank_lines(_rows: list[list[str]], chance: random.Random) -> bytes:
    return b"\r\n" * chance.randint(1, 5)


def header_only(rows: list[list[str]], chance: random.Random) -> bytes:
    return encode(rows[:1]) + b"\r\n,,,\r\n" * chance.randint(0, 3)


def formula_errors(rows: list[list[str]], chance: random.Random) -> bytes:
    error = chance.choice(["#REF!", "#N/A", "#VALUE!", "#DIV/0!", "#NAME?", "#NULL!", "#NUM!"])
    return put(rows, chance, chance.choice(HEADER), error)


def open_quote(rows: list[list[str]], chance: random.Random) -> bytes:
    lines = encode(rows).splitlines(keepends=True)
    line = chance.randrange(1, len(lines))
    lines[line] = b'"' + lines[line]
    return b"".join(lines)


def unquoted_comma(rows: list[list[str]], chance: random.Random) -> bytes:
    lines = encode(rows).splitlines(keepends=True)
    line = chance.randrange(1, len(lines))
    lines[line] = lines[line].replace(b"Ash", b"Ash, total")
    return b"".join(lines)


def cut_off(rows: list[list[str]], chance: random.Random) -> bytes:
    content = encode(rows)
    return content[: chance.randrange(len(encode(rows[:1])), len(content))]


def other_delimiter(rows: list[list[str]], chance: random.Random) -> bytes:
    return encode(rows).replace(b",", chance.choice([b";", b"\t"]))


def nobody_knows(rows: list[list[str]], chance: random.Random) -> bytes:
    return put(rows, chance, chance.choice(["Sample_name", "Exper_id"]), chance.choice(["BIO-404", "S 1", ""]))


def control_characters(rows: list[list[str]], chance: random.Random) -> bytes:
    return put(rows, chance, chance.choice(HEADER), f"a{chance.choice(chr(0) + chr(7) + chr(27))}b")


# The kind of error, and the final state of the flow run; None if the state depends on the random choice.
BREAKS: dict[Break, str | None] = {
    without_a_column: "Failed",
    merged_header: "Failed",
    header_twice: "Failed",
    title_above_the_header: "Failed",
    duplicates: "Completed",
    wrong_types: "Completed",
    huge_cell: "Completed",
    latin_1: "Completed",
    mixed_encodings: "Completed",
    utf_16: "Failed",
    empty: "Failed",
    blank_lines: "Failed",
    header_only: "Completed",
    formula_errors: "Completed",
    open_quote: "Failed",
    unquoted_comma: "Completed",
    cut_off: None,
    other_delimiter: "Failed",
    nobody_knows: "Completed",
    control_characters: "Completed",
}


def worksheet(chance: random.Random) -> list[list[str]]:
    """Return a valid worksheet."""
    rows = [["S1", "E1", f"Ash {number}", "%", f"{chance.random():.2f}", "1"] for number in range(ROWS)]
    return [list(HEADER), *rows]


@pytest.fixture
def folder(migrated_database: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the worksheet, whose sample and experiment are in the database."""
    with migrated_database.begin() as connection:
        names = {"name": "S1", "name_key": "s1", "residue": "Ash", "residue_key": "ash", "provider_code": "P"}
        connection.execute(insert(FieldSample).values(names))
        connection.execute(insert(Experiment).values(name="E1", name_key="e1"))
    monkeypatch.setenv("ETL_SOURCE_DIRECTORY", str(tmp_path))
    folder = tmp_path / OBSERVATIONS.sheet
    folder.mkdir()
    return folder


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.__name__)
def test_every_row_is_accounted_for(
    broken: Break, folder: Path, migrated_database: Engine, prefect: SyncPrefectClient
) -> None:
    """Each row is loaded, or rejected with a reason; or the run is Failed with a readable message."""
    expected = BREAKS[broken]
    for seed in SEEDS:
        chance = random.Random(seed)  # noqa: S311 - no secret
        content = broken(worksheet(chance), chance)
        (folder / "03.1-Broken.csv").write_bytes(content)

        state = observation_flow(return_state=True)

        assert state.state_details.flow_run_id
        run = prefect.read_flow_run(state.state_details.flow_run_id)
        assert run.state
        message = run.state.message or ""
        assert run.state_name in (("Completed", "Failed") if expected is None else (expected,)), message
        assert message
        assert "Traceback" not in message
        assert "Error" not in message
        assert len(message) < 1_000
        with migrated_database.begin() as connection:
            accounts = connection.execute(
                text(
                    "SELECT status, message, read, inserted, updated, unchanged, rejected,"
                    " (SELECT count(*) FROM observation) AS loaded,"
                    " (SELECT count(*) FROM rejected_row WHERE etl_run_id = etl_run.id) AS listed,"
                    " (SELECT count(*) FROM rejected_row WHERE reason = '' OR length(reason) > 1000) AS speechless"
                    " FROM etl_run WHERE flow_run_id = :id"
                ),
                {"id": run.id},
            ).one()
            connection.execute(text("TRUNCATE observation"))
        assert accounts.speechless == 0
        assert accounts.loaded == accounts.inserted
        assert accounts.listed == accounts.rejected
        if run.state_name == "Failed":
            assert (accounts.status, accounts.read, accounts.loaded) == ("failed", 0, 0)
            assert accounts.message == message
            assert "03.1-Broken" in message
        else:
            assert accounts.status == "completed"
            # A last row without a line end is rejected, or named, because nobody can know whether it was cut off.
            if content.endswith(b"\n"):
                assert accounts.message is None
            else:
                assert accounts.rejected or accounts.message
            assert accounts.read == accounts.inserted + accounts.updated + accounts.unchanged + accounts.rejected
            # The error is detected.
            assert accounts.rejected > 0 or expected is None or broken is header_only
            assert accounts.read >= ROWS or expected is None or broken is header_only
