"""The check of a folder of sheets: what it counts, what it misses, and its exit code; it needs no database."""

import shutil
from pathlib import Path

import pytest
from openpyxl import Workbook

from ca_biositing.pipeline.check import main
from ca_biositing.pipeline.flows import datasets
from run_prefect_flow import AVAILABLE_FLOWS

SAMPLE = Path(__file__).parents[2] / "data/sample"
SHEET = "Aim 1-Feedstock Collection and Processing Data-BioCirV"
HEADER = "Sample_name,Exper_id,Parameter,Unit,Value,Replicate\n"


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

    assert code == 0
    assert lines[0] == SHEET
    assert "  01-BasicSampleInfo        60 rows, for field_sample, primary_product" in lines
    assert "  03.1-Proximate           336 rows, for observation" in lines
    assert "  observation, 03.1-Proximate: 4 of 336" in lines
    assert "    row 63, 'n.d.': Value is not a number; type digits with a decimal point and nothing else" in lines
    assert "    row 25: Value is empty" in lines
    assert "    row 32: Primary_crop is empty" in lines
    assert lines[-1].startswith("Every flow could run.")


def test_a_workbook_is_checked_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A worksheet that no flow reads is listed, and so is a sheet."""
    book = Workbook(write_only=True)
    book.create_sheet("Budget").append(["Item"])
    book.save(folder / "Other.xlsx")
    (folder / SHEET / "Notes.csv").write_text("Note\n", encoding="utf-8")

    code, lines = check(capsys, folder)

    assert code == 0
    assert lines[lines.index("Other") + 1] == "  Budget is read by no flow that could run"
    assert "  Notes              is read by no flow that could run" in lines


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
    assert lines[-1].startswith(f"{flows} could not run: {reason}")
    assert any(line.startswith("  field_sample, 01-BasicSampleInfo: 1 of 60") for line in lines) == (
        "field_sample" not in flows
    )


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, (line,) = check(capsys, tmp_path / "nowhere")

    assert code == 1
    assert line.startswith(f"The source folder {tmp_path / 'nowhere'} is not there.")


def test_many_rejected_rows_are_counted_and_the_first_are_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"S,E,P,,{'' if number % 2 else 1},\n" for number in range(60_000))
    (folder / SHEET / "03.1-Proximate.csv").write_text(HEADER + rows, encoding="utf-8")

    _, lines = check(capsys, folder)

    start = lines.index("  observation, 03.1-Proximate: 30,000 of 60,000")
    assert lines[start + 1 : start + 21] == [f"    row {2 * number + 3}: Value is empty" for number in range(20)]
    assert lines[start + 21] == "    and 29,980 more"


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
    assert check(capsys, folder, **environment)[0] == 0


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ("observation=4", "observation could not run: 5 of 410 rows would be rejected, more than the limit of 4 (ETL_"),
        ("all=1%", "analysis_type could not run: 2 of 24 rows would be rejected, more than the limit of 1%"),
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
    assert check(capsys, folder, **environment)[0] == 0
    allowed = {**environment, "ETL_REJECTED_LIMITS": "observation=5"}
    assert check(capsys, folder, "--as-flows", **allowed)[0] == 0


def test_sheets_that_are_to_be_moved_are_judged_at_their_future_place(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / SHEET / "03.0-Experiments.csv").unlink()
    code, lines = check(capsys, "--as-flows", "--at", "/srv/later", folder, ETL_SOURCE_DIRECTORY="/srv/later")
    assert code == 1
    assert lines[-1].startswith("analysis_type, experiment could not run: ")
    assert not any(str(folder) in line for line in lines)


def test_flows_that_read_these_sheets_are_no_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(capsys, folder, "--as-flows", ETL_SOURCE_DIRECTORY=f"{folder}/.")[0] == 0


def test_the_kind_that_flows_read_is_the_one_that_is_checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / f"{SHEET}.xlsx").touch()
    assert check(capsys, folder, ETL_SOURCE="csv")[0] == 0
    code, lines = check(capsys, folder, ETL_SOURCE="xls")
    assert code == 1
    assert "ETL_SOURCE is 'xls'" in lines[-1]
