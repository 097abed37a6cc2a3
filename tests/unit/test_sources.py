"""Reading a column from a folder of csv files, and what is said when it cannot be read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ca_biositing.pipeline.etl.extract import extract_column
from ca_biositing.pipeline.sources import CsvFolder, ExtractError, source_from_environment

WriteWorksheet = Callable[[bytes], Path]


@pytest.fixture
def write_worksheet(tmp_path: Path) -> WriteWorksheet:
    """Return a function that writes the bytes of worksheet ``Samples`` of sheet ``Lab``."""

    def write(content: bytes) -> Path:
        path = tmp_path / "Lab" / "Samples.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    return write


def read_crops(folder: Path) -> list[str]:
    """Return the column that all of these tests ask for."""
    return list(extract_column(CsvFolder(folder), "Lab", "Samples", "Crop"))


@pytest.mark.parametrize(
    "content",
    [
        "Name,Crop\na,Ma\u00eds\nb,\n".encode(),
        "Name,Crop\r\na,Ma\u00eds\r\nb,\r\n".encode(),
        "Name,Crop\na,Ma\u00eds\nb,\n".encode("utf-8-sig"),
        'Name,Notes, Crop\u00a0\na,"x, y\nz",Ma\u00eds\nb\n'.encode(),
        "Name,Crop\na,Ma\u00eds,,\nb,\n".encode(),
    ],
    ids=[
        "plain",
        "crlf",
        "byte-order-mark",
        "stray-space-in-header-and-short-row",
        "empty-cells-beyond-header",
    ],
)
def test_a_column_has_one_text_per_row(tmp_path: Path, write_worksheet: WriteWorksheet, content: bytes) -> None:
    """However the file was exported."""
    write_worksheet(content)

    assert read_crops(tmp_path) == ["Ma\u00eds", ""]


def test_rows_are_numbered_as_a_spreadsheet_shows_them(tmp_path: Path, write_worksheet: WriteWorksheet) -> None:
    """A cell with line breaks is still one row, and so is a line without anything."""
    write_worksheet(b'Name,Crop\n"a\nb",Rice\n\nc,Corn\n')

    rows = CsvFolder(tmp_path).read("Lab", "Samples").rows

    assert [(row.number, list(row.cells)) for row in rows] == [
        (2, ["a\nb", "Rice"]),
        (3, []),
        (4, ["c", "Corn"]),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"Name,crops\na,Rice\n", ["Column 'Crop' is missing", "'crops'", "Did you mean 'crops'?", "row 1"]),
        (b"Name,Year\na,2024\n", ["Column 'Crop' is missing", "Present: 'Name', 'Year'."]),
        (b"Crop,Crop\na,Rice\n", ["Column 'Crop'", "2 times"]),
        (b"Name,Crop\na,Rice\nb,Ma\xefs\n", ["not UTF-8", "byte 0xef", "line 3"]),
        ("Name,Crop\na,Rice\n".encode("utf-16-le"), ["NUL"]),
        ("Name,Crop\na,Rice\n".encode("utf-16"), ["not UTF-8", "byte 0xff", "line 1"]),
        (b'Name,Crop\na,"Rice\n', ["not well-formed CSV"]),
        (b"Name,Crop\na,Rice, wild\n", ["3 cells in row 2", "2 columns", "double quotes"]),
        (b"", ["is empty"]),
    ],
    ids=[
        "near",
        "missing",
        "twice",
        "latin-1",
        "utf-16-le",
        "utf-16",
        "open-quote",
        "unquoted-comma",
        "empty",
    ],
)
def test_what_cannot_be_read_says_what_and_where(
    tmp_path: Path, write_worksheet: WriteWorksheet, content: bytes, says: list[str]
) -> None:
    """The message names sheet, worksheet and file, and what is wrong there."""
    path = write_worksheet(content)

    with pytest.raises(ExtractError) as caught:
        read_crops(tmp_path)

    for part in [*says, "sheet 'Lab'", "orksheet 'Samples'", str(path)]:
        assert part in str(caught.value)


def test_a_missing_worksheet_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    """A near miss is suggested."""
    (tmp_path / "Lab").mkdir()
    (tmp_path / "Lab" / "samples 2024.csv").touch()

    with pytest.raises(ExtractError) as caught:
        read_crops(tmp_path)

    for part in ["Worksheet 'Samples' of sheet 'Lab' is missing", str(tmp_path / "Lab" / "Samples.csv")]:
        assert part in str(caught.value)
    assert "Did you mean 'samples 2024'?" in str(caught.value)


def test_a_missing_sheet_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    """The message says which folder to make, and what to put there."""
    (tmp_path / "Field").mkdir()

    with pytest.raises(ExtractError) as caught:
        read_crops(tmp_path)

    for part in ["Sheet 'Lab' is missing", str(tmp_path / "Lab"), "Present: 'Field'.", "'Samples'"]:
        assert part in str(caught.value)


def test_a_missing_source_folder_is_named(tmp_path: Path) -> None:
    """The message names the folder, and the variable that points to it."""
    with pytest.raises(ExtractError) as caught:
        read_crops(tmp_path / "nowhere")

    for part in [str(tmp_path / "nowhere"), "'Lab'", "ETL_SOURCE_DIRECTORY"]:
        assert part in str(caught.value)


def test_a_folder_in_place_of_a_worksheet_cannot_be_read(tmp_path: Path) -> None:
    """Whatever the operating system says becomes the same kind of error."""
    (tmp_path / "Lab" / "Samples.csv").mkdir(parents=True)

    with pytest.raises(ExtractError, match=r"Worksheet 'Samples' of sheet 'Lab' cannot be read: .*Is a directory"):
        read_crops(tmp_path)


def test_an_unset_source_directory_is_named() -> None:
    """An empty variable is as good as none."""
    with pytest.raises(ExtractError, match="ETL_SOURCE_DIRECTORY is not set"):
        source_from_environment({"ETL_SOURCE_DIRECTORY": ""})
