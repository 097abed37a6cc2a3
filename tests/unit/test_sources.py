"""Reading a folder of csv files, the error messages, and that all sources read the same."""

import csv
import datetime as dt
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openpyxl import Workbook

from ca_biositing.pipeline.sources import ExtractError, Source, source_from_environment
from ca_biositing.pipeline.sources.csv_folder import CsvFolder
from ca_biositing.pipeline.sources.folder import Folder
from tests.unit.google_api import Spreadsheet, google_api

WriteWorksheet = Callable[[bytes], Path]

# Cells as people type them, and the text that every source must read.
TABLE: list[list[tuple[object, str]]] = [
    [("Name", "Name"), (" Crop\u00a0", " Crop\u00a0"), ("Moisture %", "Moisture %"), ("Date", "Date"), ("Dry", "Dry")],
    [("a", "a"), ("Maïs 🌽", "Maïs 🌽"), (18, "18"), (dt.date(2023, 9, 7), "2023-09-07"), (True, "TRUE")],
    [("b, c", "b, c"), ('"Rice"\nwild', '"Rice"\nwild'), (12.345678901234567, "12.3456789012346"), ("", ""), ("", "")],
    [("", "")] * 5,
    [("007", "007"), (" ", " "), (0.00001, "0.00001"), ("#REF!", "#REF!"), (False, "FALSE"), ("", ""), ("x", "x")],
    [("1+1", "1+1"), ("_", "_"), (-40.0, "-40"), ("9/7/2023", "9/7/2023"), (1e15, "1000000000000000")],
]


@pytest.fixture
def write_worksheet(tmp_path: Path) -> WriteWorksheet:
    """Return a function that writes the bytes of worksheet ``Samples`` of sheet ``Lab``."""

    def write(content: bytes) -> Path:
        path = tmp_path / "Lab" / "Samples.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    return write


def read(folder: Path) -> list[list[str]]:
    """Return the header and the rows of the worksheet that all of these tests ask for."""
    with CsvFolder(folder).open("Lab", "Samples") as opened:
        return [list(opened.header), *map(list, opened.rows)]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("Name,Crop\na,Maïs\n".encode(), [["a", "Maïs"]]),
        (b"Name,Crop\r\na,Rice\r\n", [["a", "Rice"]]),
        ("Name,Crop\na,Rice\n".encode("utf-8-sig"), [["a", "Rice"]]),
        (b'Name,Crop\n"a\nb","Rice, ""wild"""\n\nc,Corn', [["a\nb", 'Rice, "wild"'], [], ["c", "Corn"]]),
        (b"Name,Crop\na\nb,Rice,,x\n", [["a"], ["b", "Rice", "", "x"]]),
        (b"Name,Crop\na,Ma\xefs\n", [["a", "Ma\udcefs"]]),
        (b"Name,Crop\n", []),
    ],
    ids=["plain", "crlf", "byte-order-mark", "quoted", "short-and-long", "latin-1", "header-only"],
)
def test_rows_are_as_they_were_written(
    tmp_path: Path, write_worksheet: WriteWorksheet, content: bytes, rows: list[list[str]]
) -> None:
    """A row with line breaks in a cell is one row, and so is an empty line."""
    write_worksheet(content)

    assert read(tmp_path) == [["Name", "Crop"], *rows]


def test_a_cell_may_be_long(tmp_path: Path, write_worksheet: WriteWorksheet) -> None:
    write_worksheet(b'Notes\n"' + b"x" * 10_000_000 + b'"\n')

    assert [len(cell) for row in read(tmp_path) for cell in row] == [5, 10_000_000]


def test_progress_is_the_share_of_the_file(tmp_path: Path, write_worksheet: WriteWorksheet) -> None:
    write_worksheet(b"Name\n" + b"a\n" * 100_000)

    with CsvFolder(tmp_path).open("Lab", "Samples") as worksheet:
        progress = [worksheet.progress(), *(worksheet.progress() for _ in worksheet.rows)]

    assert progress == sorted(progress)
    assert progress[0] < 0.1
    assert 0.4 < progress[50_000] < 0.6
    assert progress[-1] == 1.0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("Name,Crop\na,Rice\n".encode("utf-16-le"), ["NUL", "UTF-16"]),
        ("Name,Crop\na,Rice\n".encode("utf-16"), ["NUL", "UTF-16"]),
        (b'Name,Crop\na,"Rice\n', ["not well-formed CSV", "line 2"]),
        (b'Name,Crop\na,Rice\nb,"Oat\nc,Corn\nd,Rice\n', ["not well-formed CSV", "begins in line 3"]),
        (b'Name,Crop\n"a\na",Rice\nb,"Oat\nc,Corn\n"d",Rice\n', ["not well-formed CSV", "begins in line 4"]),
        (b'Name,Crop\na,"Rice" wild\n', ["not well-formed CSV", "line 2"]),
        (b"", ["is empty"]),
    ],
    ids=["utf-16-le", "utf-16", "open-quote", "earlier", "two", "text-after-quote", "empty"],
)
def test_what_cannot_be_read_says_what_and_where(
    tmp_path: Path, write_worksheet: WriteWorksheet, content: bytes, says: list[str]
) -> None:
    path = write_worksheet(content)

    with pytest.raises(ExtractError) as caught:
        read(tmp_path)

    for part in [*says, f"Worksheet 'Samples' of sheet 'Lab' ({path})", "again as CSV UTF-8"]:
        assert part in str(caught.value)


def test_worksheets_are_named(tmp_path: Path, write_worksheet: WriteWorksheet) -> None:
    """Other files do not count as worksheets."""
    write_worksheet(b"Name\n").with_name("Notes.txt").touch()
    (tmp_path / "Lab" / "Analyses.csv").touch()

    assert CsvFolder(tmp_path).worksheets("Lab") == ["Analyses", "Samples"]


def test_a_missing_worksheet_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    """The message suggests a similar name."""
    (tmp_path / "Lab").mkdir()
    (tmp_path / "Lab" / "samples 2024.csv").touch()

    with pytest.raises(ExtractError) as caught:
        read(tmp_path)

    for part in ["Worksheet 'Samples' of sheet 'Lab' is missing", str(tmp_path / "Lab" / "Samples.csv")]:
        assert part in str(caught.value)
    assert "Did you mean 'samples 2024'?" in str(caught.value)


def test_a_missing_sheet_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    """The message says which folder to make, and what to put there."""
    (tmp_path / "Field").mkdir()

    with pytest.raises(ExtractError) as caught:
        read(tmp_path)

    for part in ["Sheet 'Lab' is missing", str(tmp_path / "Lab"), "Present: 'Field'.", "<worksheet>.csv"]:
        assert part in str(caught.value)


def test_a_missing_source_folder_is_named(tmp_path: Path) -> None:
    """The message names the folder, and the variable that points to it."""
    with pytest.raises(ExtractError) as caught:
        read(tmp_path / "nowhere")

    for part in [str(tmp_path / "nowhere"), "ETL_SOURCE_DIRECTORY"]:
        assert part in str(caught.value)


def test_a_folder_in_place_of_a_worksheet_cannot_be_read(tmp_path: Path) -> None:
    """An error of the operating system is reported as the same kind of error."""
    (tmp_path / "Lab" / "Samples.csv").mkdir(parents=True)

    with pytest.raises(ExtractError, match=r"Worksheet 'Samples' of sheet 'Lab' .* cannot be read: Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (
            {},
            "is not set: set it to the folder that holds <sheet>/<worksheet>.csv or <sheet>.xlsx. Nothing was loaded.",
        ),
        ({}, "`make up SHEETS=folder` sets it for the local container; for hosts, set it in flow_environment of the"),
        ({"ETL_SOURCE": "", "ETL_SOURCE_DIRECTORY": ""}, "ETL_SOURCE_DIRECTORY is not set"),
        ({"ETL_SOURCE": "csv"}, "ETL_SOURCE_DIRECTORY is not set: set it to the folder that holds <sheet>/<worksheet>"),
        ({"ETL_SOURCE": "xlsx"}, "ETL_SOURCE_DIRECTORY is not set: set it to the folder that holds <sheet>.xlsx"),
        ({"ETL_SOURCE": "google", "ETL_SOURCE_DIRECTORY": "data"}, "CREDENTIALS_PATH is not set"),
        ({"ETL_SOURCE": "xls"}, "ETL_SOURCE is 'xls', which is no source. Present: 'csv', 'google', 'xlsx'. Did you"),
    ],
    ids=["nothing", "how-to-set-it", "empty", "csv", "xlsx", "google", "unknown"],
)
def test_what_the_environment_lacks_is_named(environment: dict[str, str], says: str) -> None:
    """An empty variable counts as missing."""
    with pytest.raises(ExtractError) as caught:
        source_from_environment(environment)

    assert says in str(caught.value)


def workbook(path: Path, *worksheets: str) -> None:
    """Write a workbook of worksheets that have a header only."""
    book = Workbook(write_only=True)
    for name in worksheets:
        book.create_sheet(name).append(["Name"])
    book.save(path)


def from_folder(folder: Path) -> Source:
    """Return the source of an environment that names the folder and no kind of source."""
    return source_from_environment({"ETL_SOURCE_DIRECTORY": str(folder)})


def test_each_sheet_of_a_folder_is_read_as_what_it_is(tmp_path: Path, write_worksheet: WriteWorksheet) -> None:
    """A folder without csv files beside a workbook does not make the sheet ambiguous."""
    write_worksheet(b"Name\na\n")
    workbook(tmp_path / "Field.xlsx", "Plots")
    (tmp_path / "Field").mkdir()
    (tmp_path / "Field" / "photo.jpg").touch()
    source = from_folder(tmp_path)

    assert source.worksheets("Lab") == ["Samples"]
    assert source.worksheets("Field") == ["Plots"]
    with source.open("Lab", "Samples") as worksheet:
        assert [*worksheet.rows] == [["a"]]
    with source.open("Field", "Plots") as worksheet:
        assert worksheet.header == ["Name"]


def test_sheets_of_a_folder_are_named(tmp_path: Path, write_worksheet: WriteWorksheet) -> None:
    """Files that are no sheets do not count, and neither do hidden ones."""
    write_worksheet(b"Name\n")
    for name in ("Field.xlsx", "~$Field.xlsx", ".Field.xlsx", "Notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / ".git").mkdir()

    assert Folder(tmp_path).sheets() == ["Field", "Lab"]


def test_a_sheet_that_is_there_twice_is_refused_with_both_paths(
    tmp_path: Path, write_worksheet: WriteWorksheet
) -> None:
    """Reading either would be a guess; a kind that the environment names settles it."""
    path = write_worksheet(b"Name\n")
    workbook(tmp_path / "Lab.xlsx", "Plots")

    with pytest.raises(ExtractError) as caught:
        from_folder(tmp_path).worksheets("Lab")

    for part in ["Sheet 'Lab' is there twice", str(path.parent), str(tmp_path / "Lab.xlsx"), "ETL_SOURCE"]:
        assert part in str(caught.value)
    for kind, worksheets in {"csv": ["Samples"], "xlsx": ["Plots"]}.items():
        environment = {"ETL_SOURCE": kind, "ETL_SOURCE_DIRECTORY": str(tmp_path)}
        assert source_from_environment(environment).worksheets("Lab") == worksheets


def test_a_sheet_that_a_folder_lacks_is_named_with_those_of_both_kinds(tmp_path: Path) -> None:
    """The message says which paths were looked at, and the commands that put sheets there."""
    (tmp_path / "Field").mkdir()
    (tmp_path / "Labs.xlsx").touch()

    with pytest.raises(ExtractError) as caught:
        from_folder(tmp_path).worksheets("Lab")

    message = str(caught.value)
    for part in ["Sheet 'Lab' is missing", f"{tmp_path / 'Lab'} ", str(tmp_path / "Lab.xlsx"), "'Field', 'Labs'."]:
        assert part in message
    assert "Did you mean 'Labs'?" in message
    assert "`make sheets SHEETS=folder`" in message
    assert "`make up SHEETS=folder`" in message


def test_an_empty_folder_is_said_to_be_empty(tmp_path: Path) -> None:
    with pytest.raises(ExtractError, match=r"There is no sheet at all\. Put the sheet there: `make sheets SHEETS="):
        from_folder(tmp_path).worksheets("Lab")


@pytest.mark.parametrize("kind", ["", "csv"])
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, kind: str) -> None:
    environment = {"ETL_SOURCE": kind, "ETL_SOURCE_DIRECTORY": str(tmp_path / "nowhere")}

    with pytest.raises(ExtractError, match=r"The source folder \S+/nowhere is not there\. Create it, or set ETL_"):
        source_from_environment(environment).worksheets("Lab")


@pytest.mark.parametrize("kind", ["", "csv", "xlsx"])
def test_a_folder_that_may_not_be_read_is_not_taken_for_an_empty_one(tmp_path: Path, kind: str) -> None:
    """As a home directory for a flow on a host: the message says so."""
    source = source_from_environment({"ETL_SOURCE": kind, "ETL_SOURCE_DIRECTORY": str(tmp_path / "home/sheets")})
    (tmp_path / "home/sheets/Lab").mkdir(parents=True)
    workbook(tmp_path / "home/sheets/Lab.xlsx" if kind == "xlsx" else tmp_path / "home/sheets/Field.xlsx", "Plots")

    with as_nobody(tmp_path / "home"), pytest.raises(ExtractError) as caught:
        source.worksheets("Lab")

    assert "cannot be read: Permission denied. Give the account that runs the flow the right" in str(caught.value)
    assert "flows read no home directory" in str(caught.value)


@contextmanager
def as_nobody(closed: Path) -> Iterator[None]:
    """Close a folder to this account; root, which may read everything, becomes another account meanwhile."""
    closed.chmod(0)
    effective = os.geteuid()
    if effective == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(effective)
        closed.chmod(0o700)


@pytest.mark.parametrize("source", ["csv", "xlsx", "google"])
def test_all_sources_read_the_same(tmp_path: Path, source: str) -> None:
    """The rows of a table do not depend on the kind of source."""
    cells = [[cell for cell, _ in row] for row in TABLE]
    texts = [[text for _, text in row] for row in TABLE]

    with (tmp_path / "key.json").open("w") as key, google_api() as api:
        json.dump(api.credentials, key)
        key.flush()
        api.spreadsheets = [Spreadsheet("1lab", "Lab", {"Samples": cells})]
        workbook = Workbook(write_only=True)
        page = workbook.create_sheet("Samples")
        for row in cells:
            page.append(row)
        workbook.save(tmp_path / "Lab.xlsx")
        (tmp_path / "Lab").mkdir()
        with (tmp_path / "Lab" / "Samples.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(texts)

        opened = source_from_environment(
            {
                "ETL_SOURCE": source,
                "ETL_SOURCE_DIRECTORY": str(tmp_path),
                "CREDENTIALS_PATH": str(tmp_path / "key.json"),
                "ETL_GOOGLE_API_URL": api.url,
            }
        )
        with opened.open("Lab", "Samples") as worksheet:
            rows = [worksheet.header, *worksheet.rows]
            assert [[*row, *[""] * (len(TABLE[0]) - len(row))] for row in rows] == texts
            assert worksheet.progress() == 1.0
        assert opened.worksheets("Lab") == ["Samples"]


@pytest.mark.parametrize(
    ("kind", "name", "worksheets"),
    [
        ("", "Lab/B.CSV", ["A", "B"]),
        ("csv", "Lab/B.Csv", ["A", "B"]),
        ("", "Field.XLSX", ["Plots"]),
        ("xlsx", "Field.Xlsm", ["Plots"]),
    ],
)
def test_a_suffix_may_be_in_capitals(tmp_path: Path, kind: str, name: str, worksheets: list[str]) -> None:
    (tmp_path / "Lab").mkdir()
    (tmp_path / "Lab/A.csv").write_text("Name\n", encoding="utf-8")
    if name.startswith("Field"):
        workbook(tmp_path / "new.xlsx", "Plots")
        (tmp_path / "new.xlsx").rename(tmp_path / name)
    else:
        (tmp_path / name).write_text("Name\na\n", encoding="utf-8")
    source = source_from_environment({"ETL_SOURCE": kind, "ETL_SOURCE_DIRECTORY": str(tmp_path)})
    sheet = Path(name).parent.name or Path(name).stem

    assert source.worksheets(sheet) == worksheets
    with source.open(sheet, worksheets[-1]) as opened:
        assert opened.header == ["Name"]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["Lab.xlsx", "Lab.XLSX"], "Sheet 'Lab' is there twice, as {0}/Lab.XLSX and as {0}/Lab.xlsx. Remove one"),
        (["Lab.xlsx", "Lab.xlsm"], "Sheet 'Lab' is there twice, as {0}/Lab.xlsm and as {0}/Lab.xlsx. Remove one"),
        (["Lab/A.csv", "Lab/A.CSV"], "Worksheet 'A' is there twice, as {0}/Lab/A.CSV and as {0}/Lab/A.csv. Remove one"),
    ],
)
def test_files_of_one_name_are_refused(tmp_path: Path, names: list[str], says: str) -> None:
    (tmp_path / "Lab").mkdir()
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ExtractError) as caught:
        from_folder(tmp_path).worksheets("Lab")
    assert says.format(tmp_path) in str(caught.value)
