"""Reading Excel workbooks, and the error messages."""

import datetime as dt
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openpyxl import Workbook
from openpyxl.chart import BarChart

from ca_biositing.pipeline.sources import ExtractError, source_from_environment
from ca_biositing.pipeline.sources.cells import number_text
from ca_biositing.pipeline.sources.workbook import WorkbookFolder

PAGE = "xl/worksheets/sheet1.xml"


@pytest.fixture
def source(tmp_path: Path) -> WorkbookFolder:
    """Return the source that reads the test's folder."""
    return WorkbookFolder(tmp_path)


def write(folder: Path, *rows: Sequence[object]) -> Path:
    """Write sheet Lab with these rows in worksheet Samples, behind a chart sheet."""
    workbook = Workbook()
    page = workbook.active
    assert page
    page.title = "Samples"
    for row in rows:
        page.append(list(row))
    workbook.create_chartsheet("Chart", 0).add_chart(BarChart())
    workbook.save(folder / "Lab.xlsx")
    return folder / "Lab.xlsx"


def edit(path: Path, old: str, new: str, part: str = PAGE) -> None:
    """Replace text in a part of a workbook."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    assert old.encode() in parts[part]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content.replace(old.encode(), new.encode()) if name == part else content)


def read(source: WorkbookFolder) -> list[list[str]]:
    """Return the header and the rows of the worksheet that all of these tests ask for."""
    with source.open("Lab", "Samples") as opened:
        return [list(opened.header), *map(list, opened.rows)]


def refusal(read: Callable[[], object], *parts: str) -> None:
    """Check that the error message contains these parts."""
    with pytest.raises(ExtractError) as caught:
        read()
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (" Rice\u00a0", " Rice\u00a0"),
        (True, "TRUE"),
        (False, "FALSE"),
        (18, "18"),
        (18.0, "18"),
        (-0.0, "0"),
        (0.1 + 0.2, "0.3"),
        (1 / 3, "0.333333333333333"),
        (1e-05, "0.00001"),
        (-2.5e-07, "-0.00000025"),
        (123456789012345, "123456789012345"),
        (1234567890123456789, "1234567890123460000"),
        (1e15, "1000000000000000"),
        (dt.datetime(2023, 9, 7), "2023-09-07"),
        (dt.date(2023, 9, 7), "2023-09-07"),
        (dt.datetime(2023, 9, 7, 10, 30), "2023-09-07T10:30:00"),
        (dt.time(10, 30), "10:30:00"),
        (dt.timedelta(hours=26), "26:00:00"),
    ],
    ids=str,
)
def test_a_cell_is_text(source: WorkbookFolder, tmp_path: Path, value: object, text: str) -> None:
    write(tmp_path, ["Value"], [value, "end"])
    assert read(source)[1] == [text, "end"]


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63))
def test_a_number_keeps_15_digits_and_has_no_exponent(number: float) -> None:
    text = number_text(number)

    assert float(text) == float(format(number, ".15g"))
    assert set(text) <= set("-.0123456789")


def test_what_a_formula_gave_is_read(source: WorkbookFolder, tmp_path: Path) -> None:
    """The saved result is read, even if it is an error."""
    path = write(tmp_path, ["Sum", "Error", "Never calculated", "Empty text"], ["=1+1", "=A9", "=1+1", '=""'])
    edit(path, 'fullCalcOnLoad="1"', "", "xl/workbook.xml")
    edit(path, '<c r="A2"><f>1+1</f><v />', '<c r="A2"><f>1+1</f><v>2</v>')
    edit(path, '<c r="B2"><f>A9</f><v />', '<c r="B2" t="e"><f>A9</f><v>#REF!</v>')
    edit(path, '<c r="D2"><f>""</f><v />', '<c r="D2" t="str"><f>""</f><v></v>')

    assert read(source)[1] == ["2", "#REF!", "=1+1"]


def test_a_control_character_is_itself(source: WorkbookFolder, tmp_path: Path) -> None:
    """Excel escapes it in its own way."""
    write(tmp_path, ["Notes"], ["a_x000D_\nb_x005F_x000D_ \U0001f33e _xD83C__xDF3E_ _xD83C_"])

    assert read(source)[1] == ["a\r\nb_x000D_ \U0001f33e \U0001f33e \ufffd"]


def test_rows_are_where_a_spreadsheet_shows_them(source: WorkbookFolder, tmp_path: Path) -> None:
    """Blank rows and cells beyond the header are kept; formatted empty cells after the last row are not."""
    path = write(tmp_path, ["Name", "Crop", None, ""], ["a"], [], [None, ""], ["b", None, None, "beyond", None])
    edit(path, "</sheetData>", '<row r="99999"><c r="ZZ99999" s="0" /></row></sheetData>')

    assert read(source) == [["Name", "Crop"], ["a"], [], [], ["b", "", "", "beyond"]]


@pytest.mark.parametrize("stated", ["A1", "A1:A2", "A1:XFD1048576"])
def test_a_size_that_is_not_true(source: WorkbookFolder, tmp_path: Path, stated: str) -> None:
    """Exporters may state any size: no row and no column is lost."""
    path = write(tmp_path, ["Name", "Crop"], ["a", "Rice"], ["b", "Corn"])
    edit(path, '<dimension ref="A1:B3" />', f'<dimension ref="{stated}" />')

    assert read(source) == [["Name", "Crop"], ["a", "Rice"], ["b", "Corn"]]


def test_progress_is_the_share_of_the_part(source: WorkbookFolder, tmp_path: Path) -> None:
    write(tmp_path, ["Name"], *([f"a{number}"] for number in range(50_000)))

    with source.open("Lab", "Samples") as opened:
        said = [opened.progress(), *(opened.progress() for _ in opened.rows), opened.progress()]

    assert said == sorted(said)
    assert said[0] < 0.3
    assert 0.3 < said[25_000] < 0.7
    assert said[-1] == 1.0


def test_the_file_is_closed(source: WorkbookFolder, tmp_path: Path) -> None:
    """It is closed even if not all rows were read."""
    write(tmp_path, ["Name"], ["a"], ["b"])
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))

    with source.open("Lab", "Samples") as opened:
        next(opened.rows)

    assert len(list(descriptors.iterdir())) == before


def test_an_error_of_the_reader_stays_what_it_is(source: WorkbookFolder, tmp_path: Path) -> None:
    """It is not reported as a damaged file."""
    write(tmp_path, ["Name"], ["a"])

    with pytest.raises(ZeroDivisionError), source.open("Lab", "Samples"):
        raise ZeroDivisionError


def test_worksheets_are_named(source: WorkbookFolder, tmp_path: Path) -> None:
    """A chart does not count as a worksheet."""
    write(tmp_path, ["Name"])

    assert source.worksheets("Lab") == ["Samples"]


def test_the_environment_names_it(tmp_path: Path) -> None:
    write(tmp_path, ["Name"])

    source = source_from_environment({"ETL_SOURCE": "xlsx", "ETL_SOURCE_DIRECTORY": str(tmp_path)})

    assert source.worksheets("Lab") == ["Samples"]


@pytest.mark.parametrize("worksheet", ["samples", "Chart"])
def test_a_worksheet_that_is_missing(source: WorkbookFolder, tmp_path: Path, worksheet: str) -> None:
    path = write(tmp_path, ["Name"])

    with pytest.raises(ExtractError) as caught, source.open("Lab", worksheet):
        pass

    for part in [f"Worksheet '{worksheet}' of sheet 'Lab' is missing", str(path), "Present: 'Samples'."]:
        assert part in str(caught.value)


def test_a_sheet_that_is_missing(source: WorkbookFolder, tmp_path: Path) -> None:
    """Excel's lock file of an open workbook does not count as a sheet."""
    (tmp_path / "lab.xlsx").touch()
    (tmp_path / "~$lab.xlsx").touch()

    refusal(
        lambda: read(source),
        f"Sheet 'Lab' is missing: there is no file {tmp_path / 'Lab.xlsx'}. Present: 'lab'. Did you mean 'lab'?",
        "Put the sheet there as an Excel workbook",
    )


def test_a_source_folder_that_is_missing(tmp_path: Path) -> None:
    refusal(lambda: read(WorkbookFolder(tmp_path / "nowhere")), str(tmp_path / "nowhere"), "ETL_SOURCE_DIRECTORY")


def test_a_folder_in_place_of_a_workbook(source: WorkbookFolder, tmp_path: Path) -> None:
    (tmp_path / "Lab.xlsx").mkdir()

    refusal(lambda: read(source), "Sheet 'Lab'", str(tmp_path / "Lab.xlsx"), "cannot be read: Is a directory", "right")


@pytest.mark.parametrize("rows", [[], [[None, ""], ["a"]]], ids=["nothing", "blank"])
def test_a_worksheet_without_a_header(source: WorkbookFolder, tmp_path: Path, rows: list[list[object]]) -> None:
    path = write(tmp_path, *rows)

    refusal(lambda: read(source), f"Worksheet 'Samples' of sheet 'Lab' ({path}) has no header: row 1 is empty")


def test_rows_that_begin_later_have_no_header(source: WorkbookFolder, tmp_path: Path) -> None:
    write(tmp_path, [], [], ["Name"], ["a"])

    refusal(lambda: read(source), "has no header: row 1 is empty")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"Name,Crop\n", "no Excel workbook, whatever its name says"),
        (b"<html><table>", "no Excel workbook, whatever its name says"),
        (b"", "no Excel workbook, whatever its name says"),
        (bytes.fromhex("D0CF11E0A1B11AE1") + bytes(1000), "old .xls workbook or protected by a password"),
        (b"PK\x03\x04 and nothing more", "is damaged, or no Excel workbook (BadZipFile: "),
    ],
    ids=["csv", "html", "empty", "ole", "cut-zip"],
)
def test_what_is_no_workbook(source: WorkbookFolder, tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "Lab.xlsx").write_bytes(content)

    refusal(lambda: read(source), f"Sheet 'Lab' ({tmp_path / 'Lab.xlsx'}) is", says, ".xlsx")


def test_a_zip_file_of_something_else(source: WorkbookFolder, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path / "folder")
    Path(archive).rename(tmp_path / "Lab.xlsx")

    refusal(lambda: read(source), "is damaged, or no Excel workbook (DamagedError: it has no part xl/workbook.xml)")


def test_a_worksheet_that_is_damaged(source: WorkbookFolder, tmp_path: Path) -> None:
    """The message says from which row on it is damaged."""
    path = write(tmp_path, ["Name"], ["a"], ["b"])
    edit(path, '<row r="3">', '<row r="3"><wrong>')

    refusal(lambda: read(source), f"Worksheet 'Samples' of sheet 'Lab' ({path}) is damaged after row 2 (ExpatError: ")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    part=st.integers(0, 99), at=st.floats(0, 1, exclude_max=True), byte=st.none() | st.binary(min_size=1, max_size=1)
)
def test_any_damage_is_said_or_harmless(
    source: WorkbookFolder, tmp_path: Path, part: int, at: float, byte: bytes | None
) -> None:
    """A byte is changed anywhere in the archive or in one of its parts, or the archive is truncated."""
    path = write(tmp_path, ["Name", "Date"], ["a", dt.date(2023, 9, 7)], ["b", 1.5])
    with zipfile.ZipFile(path) as archive:
        parts = {"": path.read_bytes()} | {name: archive.read(name) for name in archive.namelist()}
    damaged = sorted(parts)[part % len(parts)]
    index = int(at * len(parts[damaged]))
    parts[damaged] = parts[damaged][:index] + (byte + parts[damaged][index + 1 :] if byte else b"")
    path.write_bytes(parts.pop(""))
    if damaged:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content)

    with suppress(ExtractError):
        read(source)


# Reads the worksheet, and prints the error and how many MB of memory it took further.
MEASURE = """
import resource, sys
from pathlib import Path
from ca_biositing.pipeline.sources import ExtractError
from ca_biositing.pipeline.sources.workbook import WorkbookFolder
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = used()
try:
    with WorkbookFolder(Path(sys.argv[1])).open("Lab", "Samples") as opened:
        print(sum(1 for _ in opened.rows))
except ExtractError as error:
    print(error)
print(used() - before)
"""
SHARED = "xl/sharedStrings.xml"
CELL = '<row r="3"><c r="A3" t="inlineStr"><is><t>'


@pytest.mark.parametrize(
    ("part", "begin", "repeated", "megabytes", "says"),
    [
        (
            SHARED,
            '<sst xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><si><t>',
            "A",
            300,
            "expands to",
        ),
        (
            SHARED,
            '<sst xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><si><t>',
            "A",
            100,
            "more than any cell",
        ),
        (PAGE, CELL, "A", 100, "a cell of row 3 has more than 1000000 characters"),
        (PAGE, '<row r="3" s="', "A", 300, "times its size"),
    ],
    ids=["shared-strings", "shared-string", "cell", "attribute"],
)
def test_what_expands_without_end_is_refused_in_little_memory(
    tmp_path: Path, part: str, begin: str, repeated: str, megabytes: int, says: str
) -> None:
    """A workbook of 400 kB would take a gigabyte."""
    path = write(tmp_path, ["Name"], ["a"])
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    related = '<Relationship Type="http://x/sharedStrings" Target="sharedStrings.xml" Id="shared" /></Relationships>'
    if part == SHARED:
        rels = parts["xl/_rels/workbook.xml.rels"]
        parts["xl/_rels/workbook.xml.rels"] = rels.replace(b"</Relationships>", related.encode())
    head = parts[part].partition(b"</sheetData>")[0] if part == PAGE else b""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            if name != part:
                archive.writestr(name, content)
        with archive.open(part, "w", force_zip64=True) as file:
            file.write(head + begin.encode())
            for _ in range(megabytes):
                file.write(repeated.encode() * 2**20)
            file.write(b"</t></si></sst>" if part == SHARED else b"")
    assert path.stat().st_size < 2**20

    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)

    said, taken = done.stdout.rsplit("\n", 2)[:2]
    assert says in said
    assert int(taken) < 600, f"{taken} MB"
