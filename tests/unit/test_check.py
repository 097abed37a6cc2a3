"""The check of a folder of sheets: what it counts, what it misses, and its exit code; it needs no database."""

import csv
import datetime as dt
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook, load_workbook
from openpyxl.cell import Cell

from ca_biositing.pipeline.check import main
from ca_biositing.pipeline.flows import datasets
from run_prefect_flow import AVAILABLE_FLOWS
from tests.unit.google_api import Spreadsheet, google_api

SAMPLE = Path(__file__).parents[2] / "data/sample"
SHEET = "Aim 1-Feedstock Collection and Processing Data-BioCirV"
HEADER = "Sample_name,Exper_id,Parameter,Unit,Value,Replicate\n"


SAMPLES, EXPERIMENTS, ULTIMATE = "01-BasicSampleInfo", "03.0-Experiments", "03.1-Ultimate"
Place = tuple[str, int, str]
# By worksheet, row and column: what stands there instead. A pair is a value and its number format.
MISTAKES: dict[Place, object] = {
    (SAMPLES, 3, "Sample_name"): dt.date(2026, 3, 1),
    (SAMPLES, 7, "Sample_name"): True,
    (SAMPLES, 11, "Resource"): None,
    (SAMPLES, 12, "Provider_code"): "1-Mar",
    (SAMPLES, 15, "Primary_crop"): (0.5, "# ?/?"),
    (SAMPLES, 16, "Primary_crop"): "#BEZUG!",
    (SAMPLES, 20, "County"): "=A2&B2",
    (SAMPLES, 21, "County"): "Loading...",
    (SAMPLES, 24, "Collection_date"): "31/10/2024",
    (SAMPLES, 25, "Collection_date"): "last week",
    (SAMPLES, 26, "Collection_date"): "7.9.2023",
    (SAMPLES, 30, "Sample_amount_kg"): -3,
    (SAMPLES, 31, "Sample_amount_kg"): "12,5",
    (SAMPLES, 32, "Sample_amount_kg"): (0.125, "0.0%"),
    (SAMPLES, 33, "Sample_amount_kg"): "12 kg",
    (SAMPLES, 34, "Sample_amount_kg"): dt.date(2024, 3, 4),
    (EXPERIMENTS, 4, "Exper_start_date"): "2024-02-30",
    (EXPERIMENTS, 5, "Exper_start_date"): 45596,
    (EXPERIMENTS, 6, "Analyst"): "Err:502",
    (ULTIMATE, 10, "Sample_name"): "BIO-9999",
    (ULTIMATE, 11, "Sample_name"): "BIO-0O8",
    (ULTIMATE, 12, "Sample_name"): None,
    (ULTIMATE, 20, "Exper_id"): "EXP-99",
    (ULTIMATE, 21, "Exper_id"): "#N/A",
    (ULTIMATE, 30, "Parameter"): None,
    (ULTIMATE, 31, "Parameter"): "Farmer\x92s ash",
    (ULTIMATE, 40, "Value"): "n.d.",
    (ULTIMATE, 41, "Value"): "<0.1",
    (ULTIMATE, 42, "Value"): None,
    (ULTIMATE, 43, "Value"): "1,234.5",
    (ULTIMATE, 44, "Value"): "=E2*2",
    (ULTIMATE, 45, "Value"): (1234, "0\\.00"),
    (ULTIMATE, 46, "Value"): "1 000",
    (ULTIMATE, 47, "Value"): "#DIV/0!",
    (ULTIMATE, 50, "Replicate"): 0,
    (ULTIMATE, 51, "Replicate"): 1.5,
    (ULTIMATE, 52, "Replicate"): "first",
    (ULTIMATE, 60, "Unit"): False,
    (ULTIMATE, 70, "Unit"): "########",
    (ULTIMATE, 71, "Unit"): 123456789012,
}


def worksheets(mistakes: Mapping[Place, object]) -> dict[str, list[list[Any]]]:
    """Return 500 rows of samples, experiments and measurements, with mistakes in them."""
    samples: list[list[object]] = [
        [f"BIO-{n:03}", "Hulls", ["Almond", "Rice"][n % 2], f"P{n}", "Yolo", dt.date(2024, 10, 1), n] for n in range(60)
    ]
    experiments: list[list[object]] = [[f"EXP-{n}", "Ultimate", dt.date(2024, 11, 1), "kim"] for n in range(40)]
    values: list[list[object]] = [
        # Of samples and experiments without a mistake.
        [f"BIO-{40 + n % 20:03}", f"EXP-{10 + n % 30}", f"Ash {n}", "%", n / 4, 1]
        for n in range(400)
    ]
    content: dict[str, list[list[Any]]] = {
        SAMPLES: [
            [
                "Sample_name",
                "Resource",
                "Primary_crop",
                "Provider_code",
                "County",
                "Collection_date",
                "Sample_amount_kg",
            ],
            *samples,
        ],
        EXPERIMENTS: [["Exper_id", "Analysis_type", "Exper_start_date", "Analyst"], *experiments],
        ULTIMATE: [["Sample_name", "Exper_id", "Parameter", "Unit", "Value", "Replicate"], *values],
    }
    for (worksheet, row, column), value in mistakes.items():
        content[worksheet][row - 1][content[worksheet][0].index(column)] = value
    return content


def write_workbook(path: Path, mistakes: Mapping[Place, object]) -> None:
    """Write the worksheets as a workbook."""
    book = Workbook()
    book.remove(book.worksheets[0])
    for name, rows in worksheets(mistakes).items():
        page = book.create_sheet(name)
        for number, cells in enumerate(rows, start=1):
            for column, cell in enumerate(cells, start=1):
                value, look = cell if isinstance(cell, tuple) else (cell, None)
                # openpyxl refuses what other programs write.
                target = page.cell(number, column)
                assert isinstance(target, Cell)
                if isinstance(value, str) and "\x92" in value:
                    target._value, target.data_type = value, "s"  # type: ignore[attr-defined]
                else:
                    target.value = value
                if look:
                    target.number_format = look
    book.save(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the sample sheets; no database can be reached."""
    for name in ("DATABASE_URL", "POSTGRES_HOST"):
        monkeypatch.delenv(name, raising=False)
    return shutil.copytree(SAMPLE, tmp_path / "sheets")


def check(capsys: pytest.CaptureFixture[str], *arguments: object, **environment: str) -> tuple[int, list[str]]:
    """Return the exit code and the lines of the command."""
    code = main([str(argument) for argument in arguments], environment)
    return code, capsys.readouterr().out.splitlines()


def test_the_datasets_are_those_that_the_master_flow_loads() -> None:
    assert sorted(dataset.name for dataset in datasets()) == sorted(AVAILABLE_FLOWS)


def test_rows_are_counted_and_bad_cells_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row is counted by the number that a spreadsheet shows; flows can run although rows are rejected."""
    code, lines = check(capsys, folder)

    assert code == 1
    assert lines[0] == SHEET
    assert "  01-BasicSampleInfo        60 rows, for field_sample, primary_product" in lines
    assert "  03.1-Proximate           336 rows, for observation" in lines
    assert "  observation, 03.1-Proximate: 4 of 336" in lines
    assert any(line.startswith("    row 63, 'n.d.': Value is not a number; type digits") for line in lines)
    assert "    row 25: Value is empty" in lines
    assert "    Remove a row that is empty there because it is a total or a note" in lines
    assert "  observation                          410       402         1         7" in lines
    assert any("row 42: the row has the same Sample_name" in line and "as row 47 of" in line for line in lines)
    assert lines[-1].startswith("Every flow could run.")


def test_a_cell_does_not_control_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / SHEET / "03.1-Proximate.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("n.d.", "n\x1b]0;d\x07\x9b2J\u202e."), encoding="utf-8")

    _, lines = check(capsys, folder)

    (line,) = [line for line in lines if "row 63" in line]
    assert line.isprintable()
    assert "\\x1b]0;d\\x07\\x9b2J\\u202e" in line


def test_a_workbook_is_checked_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A worksheet that no flow reads is listed, and so is a sheet."""
    book = Workbook(write_only=True)
    book.create_sheet("Budget").append(["Item"])
    book.save(folder / "Other.xlsx")
    (folder / SHEET / "Notes.csv").write_text("Note\n", encoding="utf-8")

    code, lines = check(capsys, folder)

    assert code == 1
    assert lines[lines.index("Other") + 1] == "  Budget is not read; see below"
    assert "  Notes              is not read; see below" in lines
    assert lines[-3:-1] == [
        f"Not read: worksheet 'Notes' of sheet '{SHEET}': no flow reads a worksheet of that name",
        "Not read: worksheet 'Budget' of sheet 'Other': no flow reads a sheet of that name",
    ]


@pytest.mark.parametrize("what", ["worksheet", "sheet", "other columns"])
def test_a_worksheet_that_is_named_wrong_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """It has the columns of a flow, beside the right worksheets or in another workbook."""
    write_workbook(tmp_path / f"{SHEET}.xlsx", {})
    book = Workbook()
    page = book.worksheets[0]
    if what == "sheet":
        page.title = ULTIMATE
        path = tmp_path / "Field data 2026.xlsx"
        place = f"worksheet '{ULTIMATE}' of sheet 'Field data 2026'"
    else:
        book = load_workbook(tmp_path / f"{SHEET}.xlsx")
        page = book.create_sheet("03.2 Ultimate")
        path = tmp_path / f"{SHEET}.xlsx"
        place = f"worksheet '03.2 Ultimate' of sheet '{SHEET}'"
    page.append(HEADER.strip().split(",") if what != "other columns" else ["Sample_name", "Remark"])
    book.save(path)

    code, lines = check(capsys, tmp_path)

    (line,) = [line for line in lines if line.startswith("Not read: ")]
    assert line.startswith(f"Not read: {place}: ")
    advice = (
        f"which reads sheet '{SHEET}'; move the worksheet" if what == "sheet" else "rename it to '03.2-Ultimate', or"
    )
    assert ("it has the columns of observation" in line and advice in line) == (code == 1)
    assert code == (what != "other columns")
    assert lines[-1] == "Every row of the other worksheets would be loaded."
    assert check(capsys, tmp_path, "--as-flows", ETL_SOURCE_DIRECTORY=str(tmp_path))[0] == 0
    said = json.loads("\n".join(check(capsys, tmp_path, "--format", "json")[1]))
    assert [each["is_misnamed"] for each in said["unread"]] == [code == 1]
    assert "the worksheet is not read" in check(capsys, tmp_path, "--format", "csv")[1][-1]


def test_rows_of_flows_that_refer_to_one_that_could_not_run_are_not_said_to_be_right(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / SHEET / "03.0-Experiments.csv").unlink()
    lines = check(capsys, folder)[1]
    assert any(line.startswith("References to experiment were not checked, because") for line in lines)


@pytest.mark.parametrize(
    ("break_it", "flows", "reason"),
    [
        ("column", "observation", "Column 'Value' is missing in worksheet '03.2-Ultimate'"),
        ("worksheet", "analysis_type, experiment", "Worksheet '03.0-Experiments' of sheet"),
        ("sheet", ", ".join(sorted(AVAILABLE_FLOWS)), f"Sheet '{SHEET}' is missing: there is neither a folder"),
        ("twice", ", ".join(sorted(AVAILABLE_FLOWS)), f"Sheet '{SHEET}' is there twice"),
    ],
)
def test_what_keeps_flows_from_running_sets_the_exit_code(
    folder: Path, capsys: pytest.CaptureFixture[str], break_it: str, flows: str, reason: str
) -> None:
    """Each reason is there once, with all flows that it stops; the others are checked all the same."""
    if break_it == "column":
        path = folder / SHEET / "03.2-Ultimate.csv"
        path.write_text(path.read_text(encoding="utf-8").replace("Value", "Amount", 1), encoding="utf-8")
    elif break_it == "worksheet":
        (folder / SHEET / "03.0-Experiments.csv").unlink()
    elif break_it == "sheet":
        (folder / SHEET).rename(folder / "Lab")
    else:
        (folder / f"{SHEET}.xlsx").touch()

    code, lines = check(capsys, folder)

    assert code == 1
    assert len([line for line in lines if reason in line and "could not run" in line]) == 1
    assert any(line.startswith(f"{flows} could not run: {reason}") for line in lines)
    assert any(line.startswith("  field_sample, 01-BasicSampleInfo: 1 of 60") for line in lines) == (
        "field_sample" not in flows
    )


def test_what_is_to_be_renamed_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / SHEET / "03.2-Ultimate.csv").unlink()
    (folder / SHEET / "03.1-Proximate.csv").rename(folder / SHEET / "03.1 Proximate.csv")
    path = folder / SHEET / "01-BasicSampleInfo.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("Sample_name", "Sample_Name", 1), encoding="utf-8")

    text = "\n".join(check(capsys, folder)[1])

    assert "Rename 'Sample_Name' to 'Sample_name' in the header, row 1" in text
    assert f"Sheet '{SHEET}' has no worksheet such as '03.1-name', with any text for 'name' (the pattern is " in text
    assert "03.1 Proximate'. Rename '03.1 Proximate' to '03.1-Proximate', and so on" in text
    assert f"Not read: worksheet '03.1 Proximate' of sheet '{SHEET}': it has the columns of observation" in text


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, (line,) = check(capsys, tmp_path / "nowhere")

    assert code == 1
    assert line == f"There is no file or folder {tmp_path / 'nowhere'}. Correct the path"


def test_a_file_of_another_kind_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.xls").touch()
    code, (line,) = check(capsys, tmp_path / "old.xls")
    assert code == 1
    assert line.endswith("Save it as Excel Workbook (.xlsx), or name the folder")


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (HEADER.replace(",", ";"), "or export this one with commas"),
        (f"Measurements of 2026\n\n{HEADER}", "Row 3 looks like the header: delete the rows above it"),
        ("Notes\nnone\n", "Name the column so in the header, row 1"),
        ("", "Export it again as CSV UTF-8"),
    ],
    ids=["semicolons", "title", "notes", "empty"],
)
def test_a_worksheet_without_the_header_is_told_what_to_do(
    folder: Path, capsys: pytest.CaptureFixture[str], content: str, advice: str
) -> None:
    """As it matches a pattern, it may also be no data."""
    (folder / SHEET / "03.3-Notes.csv").write_text(content, encoding="utf-8")
    lines = check(capsys, folder)[1]
    (line,) = [line for line in lines if line.startswith("observation could not run: ")]
    assert line.endswith(f"{advice}, or delete or rename the worksheet if it holds nothing to be loaded")


def test_csv_is_for_spreadsheet_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a byte order mark, by which Excel knows UTF-8; they calculate nothing of it."""
    write_workbook(tmp_path / f"{SHEET}.xlsx", {(SAMPLES, 20, "County"): "=A2&B2"})
    header, line = check(capsys, tmp_path, "--format", "csv")[1]
    assert header.startswith("\ufeffflow,")
    assert ",20,County,'=A2&B2," in line


def test_many_rejected_rows_are_counted_and_the_first_are_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (folder / SHEET / "03.0-Experiments.csv").open(encoding="utf-8-sig", newline="") as file:
        experiment = next(csv.DictReader(file))["Exper_id"]
    rows = "".join(f"BIO-AH-001,{experiment},P,,{'' if number % 2 else 1},\n" for number in range(60_000))
    (folder / SHEET / "03.1-Proximate.csv").write_text(HEADER + rows, encoding="utf-8")

    _, lines = check(capsys, folder)

    start = lines.index("  observation, 03.1-Proximate: 30,000 of 60,000")
    assert lines[start + 1 : start + 21] == [f"    row {2 * number + 3}: Value is empty" for number in range(20)]
    assert lines[start + 22] == "    and 29,980 more, which --format csv lists: Value is empty"


def test_references_are_looked_for_in_the_worksheets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name whose own row is rejected is not there; a similar one is suggested."""
    path = folder / SHEET / "03.2-Ultimate.csv"
    rows = "BIO-AH-01,EXP,C,%,1,\nbio-rs-004,EXP-001,C,%,1,\nBI0-rs-004,EXP-001,C,%,1,\n"
    path.write_text(HEADER + rows, encoding="utf-8")

    _, lines = check(capsys, folder)

    for line in [
        "    row 2, 'BIO-AH-01': Sample_name is not in column Sample_name of worksheet 01-BasicSampleInfo, where "
        "it must be entered first; did you mean 'BIO-AH-001'?",
        "    row 2, 'EXP': Exper_id is not in column Exper_id of worksheet 03.0-Experiments, where it must be entered "
        "first",
        "    row 3, 'bio-rs-004': Sample_name is in row 46 of worksheet 01-BasicSampleInfo, but that row is rejected: "
        "correct that one first",
        "    row 4, 'BI0-rs-004': Sample_name is not in column Sample_name of worksheet 01-BasicSampleInfo, where it "
        "must be entered first; did you mean 'BIO-RS-004' in row 46 of worksheet 01-BasicSampleInfo, which is "
        "rejected too?",
    ]:
        assert line in lines


def test_rows_that_only_refer_to_a_rejected_one_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its correction mends them all; a name whose cell is a formula without a result is no name."""
    samples = folder / SHEET / "01-BasicSampleInfo.csv"
    text = samples.read_text(encoding="utf-8").replace("BIO-AH-002,", '="BIO-"&"AH-002",')
    samples.write_text(text, encoding="utf-8")
    path = folder / SHEET / "03.2-Ultimate.csv"
    rows = "".join(f"BIO-RS-004,EXP-001,C{number},%,1,\n" for number in range(5))
    path.write_text(HEADER + rows + "BIO-AH-002,EXP-001,C,%,1,\n", encoding="utf-8")

    _, lines = check(capsys, folder)

    start = lines.index("  observation, 03.2-Ultimate: 6 of 6")
    assert lines[start + 1].endswith("that row is rejected: correct that one first (also for 4 more here)")
    assert lines[start + 2].startswith("    row 7, 'BIO-AH-002': Sample_name is not in column")
    assert "rejected too" not in lines[start + 2]
    (said,) = (line for line in lines if line.startswith("Rows of the worksheets that would be rejected: "))
    assert re.search(r": [0-9]+, of which [0-9]+ only refer to rejected ones$", said)


@pytest.mark.parametrize("form", ["csv", "json"])
def test_programs_can_read_it(folder: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    (folder / SHEET / "03.0-Experiments.csv").unlink()
    code, lines = check(capsys, folder, "--format", form)
    assert code == 1
    if form == "csv":
        rows = list(csv.DictReader([lines[0].removeprefix("\ufeff"), *lines[1:]]))
        (failed,) = (row for row in rows if not row["row"])
        assert failed["flow"] == "analysis_type, experiment"
        assert failed["reason"].startswith("Worksheet '03.0-Experiments' of sheet")
    else:
        said = json.loads("\n".join(lines))
        rows = said["rejected"]
        assert said["failures"][0]["flows"] == ["analysis_type", "experiment"]
        assert {"flow": "primary_product", "read": 57, "loaded": 11, "repeated": 46, "rejected": 0} in said[
            "accounting"
        ]
    (row,) = (row for row in rows if str(row["row"]) == "63")
    assert (row["worksheet"], row["column"], row["value"]) == ("03.1-Proximate", "Value", "n.d.")
    assert row["reason"].startswith(
        "is not a number; type digits with a decimal point and nothing else, or remove the row"
    )


def test_sheets_without_a_mistake_are_said_to_be_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One workbook, under a name that flows do not read."""
    write_workbook(tmp_path / "Field data.xlsx", {})
    code, lines = check(capsys, tmp_path / "Field data.xlsx")
    assert code == 0
    assert lines[-1] == "Every row would be loaded."
    assert f"Flows read this workbook only under its sheet's name: rename 'Field data.xlsx' to '{SHEET}.xlsx'." in lines


def test_a_google_sheet_is_checked_by_its_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with google_api() as api:
        (tmp_path / "key.json").write_text(json.dumps(api.credentials), encoding="utf-8")
        api.spreadsheets = [
            Spreadsheet("1-x_Y", "Any title", worksheets({("01-BasicSampleInfo", 3, "County"): "#REF!"}))
        ]
        address = "https://docs.google.com/spreadsheets/d/1-x_Y/edit#gid=0"
        environment = {"CREDENTIALS_PATH": str(tmp_path / "key.json"), "ETL_GOOGLE_API_URL": api.url}
        code, lines = check(capsys, address, **environment)
    assert code == 1
    assert "    row 3, '#REF!': County is the error of a formula; mend the formula, or type the value" in lines


def test_every_mistake_of_a_messy_workbook_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """500 rows, 40 mistakes of 19 kinds: each with worksheet, row, column, value and reason, and no other row."""
    write_workbook(tmp_path / f"{SHEET}.xlsx", MISTAKES)
    code, lines = check(capsys, tmp_path, "--format", "json")
    assert code == 1
    found = {(each["worksheet"], each["row"], each["column"]) for each in json.loads("\n".join(lines))["rejected"]}
    assert found == {*MISTAKES}


@pytest.mark.parametrize(
    ("environment", "instead"),
    [
        ({"ETL_SOURCE": "google"}, "Google Sheets, as ETL_SOURCE says"),
        ({}, "nothing, because ETL_SOURCE_DIRECTORY is not set"),
        ({"ETL_SOURCE_DIRECTORY": "/srv/others"}, "/srv/others, as ETL_SOURCE_DIRECTORY says"),
    ],
    ids=["google", "unset", "another"],
)
def test_flows_that_read_other_sheets_are_an_error_where_asked(
    folder: Path, capsys: pytest.CaptureFixture[str], environment: dict[str, str], instead: str
) -> None:
    code, lines = check(capsys, folder, "--as-flows", **environment)
    assert code == 1
    assert lines[-1].startswith(f"Flows do not read these sheets, but {instead}.")
    assert check(capsys, folder, **environment)[1][-1].startswith("Every flow could run.")


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ("observation=4", "observation could not run: 7 of 410 rows would be rejected, more than the limit of 4 (ETL_"),
        ("all=1%", "field_sample could not run: 1 of 60 rows would be rejected, more than the limit of 1%"),
        ("observation=few", "ETL_REJECTED_LIMITS is 'observation=few'"),
        ("observations=5", "ETL_REJECTED_LIMITS names 'observations', which is no flow"),
    ],
)
def test_limits_of_rejected_rows_are_those_of_flows(
    folder: Path, capsys: pytest.CaptureFixture[str], limits: str, says: str
) -> None:
    """A flow that rejects more rows than its limit loads nothing; without --as-flows no limit applies."""
    environment = {"ETL_SOURCE_DIRECTORY": str(folder), "ETL_REJECTED_LIMITS": limits}
    code, lines = check(capsys, folder, "--as-flows", **environment)
    assert code == 1
    assert any(line.startswith(says) for line in lines), lines
    assert check(capsys, folder, **environment)[1][-1].startswith("Every flow could run.")
    allowed = {**environment, "ETL_REJECTED_LIMITS": "observation=7"}
    assert check(capsys, folder, "--as-flows", **allowed)[0] == 0


def test_sheets_that_are_to_be_moved_are_judged_at_their_future_place(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / SHEET / "03.0-Experiments.csv").unlink()
    code, lines = check(capsys, "--as-flows", "--at", "/srv/later", folder, ETL_SOURCE_DIRECTORY="/srv/later")
    assert code == 1
    assert any(line.startswith("analysis_type, experiment could not run: ") for line in lines)
    assert not any(str(folder) in line for line in lines)


def test_flows_that_read_these_sheets_are_no_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(capsys, folder, "--as-flows", ETL_SOURCE_DIRECTORY=f"{folder}/.")[0] == 0


def test_the_kind_that_flows_read_is_the_one_that_is_checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / f"{SHEET}.xlsx").touch()
    assert check(capsys, folder, ETL_SOURCE="csv")[1][-1].startswith("Every flow could run.")
    code, lines = check(capsys, folder, ETL_SOURCE="xls")
    assert code == 1
    assert "ETL_SOURCE is 'xls'" in lines[-1]


def test_notes_on_worksheets_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They make no error: the rows are loaded."""
    write_workbook(tmp_path / f"{SHEET}.xlsx", {})
    book = load_workbook(tmp_path / f"{SHEET}.xlsx")
    book[SAMPLES].row_dimensions[7].hidden = True
    book[SAMPLES].column_dimensions["E"].hidden = True
    copied = book.copy_worksheet(book[ULTIMATE])
    copied.title, copied.sheet_state = "Old ultimate", "hidden"
    book.save(tmp_path / f"{SHEET}.xlsx")

    code, lines = check(capsys, tmp_path)

    note = "hidden, and read like the rest: row 7; column County"
    assert lines[lines.index(f"    {note}") - 1].startswith(f"  {SAMPLES}")
    (line,) = [line for line in lines if line.startswith("Not read: worksheet 'Old ultimate'")]
    assert "rename it to '03.1-Old ultimate', or delete it" in line
    assert line.endswith("it is hidden")
    assert code == 1
    said = json.loads("\n".join(check(capsys, tmp_path, "--format", "json")[1]))
    assert f"worksheet '{SAMPLES}' of sheet '{SHEET}': {note}" in said["notes"]


@pytest.mark.parametrize("copy", ["03.1-Ultimate (2)", "03.1-Ultimate copy", "03.1-Ultimate - Copy (3)"])
def test_a_worksheet_and_its_copy_are_ambiguous(folder: Path, capsys: pytest.CaptureFixture[str], copy: str) -> None:
    """Both match the pattern, and what was corrected in one of them only would be loaded twice."""
    path = folder / SHEET / "03.2-Ultimate.csv"
    path.rename(folder / SHEET / "03.1-Ultimate.csv")
    shutil.copy(folder / SHEET / "03.1-Ultimate.csv", folder / SHEET / f"{copy}.csv")

    code, lines = check(capsys, folder)

    assert code == 1
    (line,) = [line for line in lines if line.startswith("observation could not run: ")]
    assert (
        f"copies of worksheets, by their names: '{copy}' of '03.1-Ultimate'. Of each pair, delete the one that" in line
    )
    (folder / SHEET / f"{copy}.csv").rename(folder / SHEET / "03.1-Ultimate 2024.csv")
    assert check(capsys, folder)[1][-1].startswith("Every flow could run.")


def test_copies_that_are_not_read_are_named_as_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There the advice to rename them would lead to a name that is taken."""
    write_workbook(tmp_path / f"{SHEET}.xlsx", {})
    book = load_workbook(tmp_path / f"{SHEET}.xlsx")
    for title in (f"{SAMPLES} (2)", f"Copy of {ULTIMATE}"):
        book.copy_worksheet(book[title.removeprefix("Copy of ").removesuffix(" (2)")]).title = title
    book.save(tmp_path / f"{SHEET}.xlsx")
    write_workbook(tmp_path / f"{SHEET} (1).xlsx", {})

    code, lines = check(capsys, tmp_path)

    assert code == 1
    unread = [line for line in lines if line.startswith("Not read: ")]
    assert len(unread) == 5
    for worksheet in (SAMPLES, ULTIMATE):
        assert (
            sum(f"but is a copy of '{worksheet}', by its name; delete the one that does" in line for line in unread)
            == 1
        )
    assert (
        sum(f"but the sheet is a copy of '{SHEET}', by its name; delete the one that" in line for line in unread) == 3
    )


def test_the_column_that_differs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_workbook(tmp_path / f"{SHEET}.xlsx", {(SAMPLES, 3, "Sample_name"): "BIO-000", (SAMPLES, 3, "County"): "Kern"})
    lines = check(capsys, tmp_path)[1]
    assert (
        "    row 3: the row has the same Sample_name as row 2 of worksheet 01-BasicSampleInfo, "
        "but another Primary_crop, Provider_code, County, Sample_amount_kg; keep one of them"
    ) in [line.replace("Resource, ", "") for line in lines]


def test_a_workbook_of_another_kind_is_named_where_the_sheet_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"{SHEET}.xls").touch()
    lines = check(capsys, tmp_path)[1]
    (line,) = [line for line in lines if "is missing" in line]
    assert f"Flows do not read '{SHEET}.xls' there: save a workbook as Excel Workbook (.xlsx)" in line


def test_files_that_are_no_worksheets_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A worksheet in a format that flows do not read would otherwise be left out without a word."""
    (folder / SHEET / "03.2-Ultimate.txt").touch()
    (folder / "Field data.xls").touch()
    (folder / "03.3-Ash.csv").touch()
    (folder / ".gitignore").touch()

    _, lines = check(capsys, folder)

    assert (
        f"Not read: 03.3-Ash.csv, {SHEET}/03.2-Ultimate.txt, Field data.xls. "
        "Flows read <sheet>.xlsx, <sheet>.xlsm and <sheet>/<worksheet>.csv."
    ) in lines
