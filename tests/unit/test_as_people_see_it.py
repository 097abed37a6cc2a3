"""A cell is loaded as people see it, or its row is rejected in words: from files as programs write them."""

import csv
import datetime as dt
import io
import json
import re
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from openpyxl import Workbook
from openpyxl.cell import Cell as OpenpyxlCell
from openpyxl.cell.rich_text import CellRichText, TextBlock
from openpyxl.cell.text import InlineFont
from openpyxl.formatting.rule import FormulaRule
from openpyxl.styles import Font
from xlsxwriter import Workbook as XlsxWriterWorkbook

from ca_biositing.datamodels.models import FieldSample
from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.extract import frames
from ca_biositing.pipeline.etl.fields import Code, Date, Name, Number, Text
from ca_biositing.pipeline.etl.transform import clean, is_blank
from ca_biositing.pipeline.etl.validate import Validator
from ca_biositing.pipeline.sources import ExtractError, Source
from ca_biositing.pipeline.sources.csv_folder import CsvFolder
from ca_biositing.pipeline.sources.google_sheets import GoogleSheets
from ca_biositing.pipeline.sources.workbook import WorkbookFile
from tests.unit.google_api import GoogleApi, Spreadsheet, google_api

SAMPLES = Dataset(
    name="samples",
    sheet="Lab",
    worksheets="Samples",
    columns={
        "Name": Name("name"),
        "Residue": Name("residue"),
        "Code": Code("provider_code"),
        "County": Text("county"),
        "Date": Date("collection_date"),
        "Amount": Number("amount_kg", minimum=Decimal(0)),
    },
    model=FieldSample,
)
HEADER = [*SAMPLES.columns]
PAGE = "xl/worksheets/sheet1.xml"
GOOD = ["S1", "Husk", "P1", "Yolo", "2024-10-31", 5]
FORMULA = (
    "is a formula whose result is not in the file; "
    "open the file in Excel, LibreOffice or Google Sheets and save it there, or type the value"
)
MERGED = "is a part of a merged cell; unmerge it and fill in each row"
ERROR = "is the error of a formula; mend the formula, or type the value"
LOADING = "was not calculated yet; open the sheet, wait until it shows the value, and load it again"
CONVERTED = (
    "looks like what a spreadsheet makes of texts such as MAR-1, 3-1-26, 5E10 or true; format the column as text, and "
    "type what the label says; if that is just this, put an underscore in it, such as 1_Mar"
)
TRUTH_VALUE = (
    "which a spreadsheet made of what was typed, or a checkbox; "
    "format the column as text, and type what is meant in another way, such as T or T_RUE"
)
STRUCK = (
    "is struck out, wholly or in part; remove the strikethrough if it counts, "
    "otherwise delete what is struck out, and the row if nothing is left that it needs"
)
RAISED = (
    "has a superscript or subscript beside a digit, which are read as one number; "
    "write it without, such as 1000 or 10^3 for 10³, and delete the number of a footnote"
)
AS_TEXT = "format the column as text, and type it again"
DATE = f"Name is the date or time 2026-03-01, which a spreadsheet made of what was typed; {AS_TEXT}"
SPLIT = (
    "the row is a part of one that a line break in a cell has split; "
    "put double quotes around that cell, or export the worksheet again"
)
CUT = (
    "the row is the last of the file and has no line end, as in a file that was cut off; "
    "export the worksheet again, or end the line if it is whole"
)

Loaded = tuple[list[tuple[object, ...]], dict[int, str]]


def load(source: Source, dataset: Dataset = SAMPLES) -> Loaded:
    """Return what a load would load, without keys and references, and why it rejects other rows, by their number."""
    rows: list[tuple[object, ...]] = []
    rejected: dict[int, str] = {}
    validator = Validator(dataset, None)
    for name in dataset.worksheets_in(source):
        with source.open(dataset.sheet, name) as worksheet:
            for frame in frames(worksheet, [*dataset.columns]):
                validated = validator.validate(frame)
                columns = [column for column in validated.records.columns[1:] if not column.endswith("_key")]
                rows += validated.records.select(columns).rows()
                rejected |= {row["row_number"]: row["reason"] for row in validated.rejected.iter_rows(named=True)}
    return rows, rejected


def row(**cells: object) -> list[object]:
    """Return a good row with some other cells."""
    return [cells.get(name, value) for name, value in zip(HEADER, GOOD, strict=True)]


def openpyxl_file(
    path: Path, *rows: Sequence[object], change: Callable[[Workbook], None] = lambda _: None
) -> WorkbookFile:
    """Write the worksheet with openpyxl; a pair is a value and its number format."""
    book = Workbook()
    page = book.worksheets[0]
    page.title = "Samples"
    for number, cells in enumerate([HEADER, *rows], start=1):
        for column, cell in enumerate(cells, start=1):
            value, look = cell if isinstance(cell, tuple) else (cell, None)
            target = page.cell(number, column, value)
            assert isinstance(target, OpenpyxlCell)
            if look:
                target.number_format = look
    change(book)
    book.save(path / "Lab.xlsx")
    return WorkbookFile(path / "Lab.xlsx")


def edit(
    path: Path, changes: Mapping[str, Callable[[bytes], bytes]], names: Callable[[str], str] = lambda n: n
) -> None:
    """Change parts of a workbook, and their names."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            changed = changes[name](content) if name in changes else content
            assert name not in changes or changed != content
            archive.writestr(names(name), changed)


def csv_file(path: Path, content: bytes | str) -> CsvFolder:
    """Write the worksheet as csv."""
    (path / "Lab").mkdir()
    (path / "Lab/Samples.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return CsvFolder(path)


@contextmanager
def google_sheet(path: Path, *rows: Sequence[object], **options: object) -> Iterator[GoogleSheets]:
    """Serve the worksheet as a Google Sheet."""
    with google_api() as api:
        api.spreadsheets = [Spreadsheet("1lab", "Lab", {"Samples": [HEADER, *rows]}, **options)]  # type: ignore[arg-type]
        (path / "key.json").write_text(json.dumps(api.credentials), encoding="utf-8")
        yield GoogleSheets(path / "key.json", api.url, retries=2, backoff=0.001)


def number(value: float, shown: str, form: str = "NUMBER") -> dict[str, object]:
    """Return a number with a format, as Google's API tells it."""
    return {
        "effectiveValue": {"numberValue": value},
        "formattedValue": shown,
        "effectiveFormat": {"numberFormat": {"type": form}},
    }


# 1. Formulas whose result is not in the file.


def test_a_formula_that_openpyxl_wrote_has_no_result(tmp_path: Path) -> None:
    source = openpyxl_file(tmp_path, GOOD, row(Name="S2", County='="Yo"&"lo"', Amount="=1+1"))
    assert load(source) == (
        [("S1", "Husk", "P1", "Yolo", dt.date(2024, 10, 31), "5")],
        {3: f"County {FORMULA}; Amount {FORMULA}"},
    )


def test_the_zero_that_xlsxwriter_writes_beside_a_formula_is_no_result(tmp_path: Path) -> None:
    book = XlsxWriterWorkbook(str(tmp_path / "Lab.xlsx"))
    page = book.add_worksheet("Samples")
    page.write_row(0, 0, HEADER)
    page.write_row(1, 0, GOOD)
    page.write_row(2, 0, row(Name="S2", Amount="=1+1"))
    book.close()

    rows, rejected = load(WorkbookFile(tmp_path / "Lab.xlsx"))

    assert len(rows) == 1
    assert rejected == {3: f"Amount {FORMULA}"}


def test_a_formula_in_csv_was_never_calculated(tmp_path: Path) -> None:
    source = csv_file(tmp_path, ",".join(HEADER) + "\nS1,Husk,P1,=A2,,5\nS2,Husk,P1,Yolo,,=1+1\n")
    assert load(source) == ([], {2: f"County {FORMULA}", 3: f"Amount {FORMULA}"})


# 2. What a spreadsheet made of an identifier.


@pytest.mark.parametrize(
    ("cell", "loaded"),
    [
        ("0007", "0007"),
        (7, "7"),
        ((7, "0000"), "0007"),
        ((42, '"BIO-"000'), "BIO-042"),
        ((42, '"BIO-"000;[Red]-0'), "BIO-042"),
        ((1.5, "0.00"), "1.50"),
        ((12345, "#,##0"), "12,345"),
        ((0.125, "0.0%"), "12.5%"),
        ((123456789, "000\\-00\\-0000"), "123-45-6789"),
        ((5, '0\\";\\-0\\"'), '5"'),
        ((-5, '0\\";\\-0\\"'), '-5"'),
        ((7, '[>5]"L-"0;"S-"0'), "L-7"),
        ((-7, "0;@"), "-7"),
        *(
            ((7, look), f"Name is the number 7, which programs show differently; {AS_TEXT}")
            for look in ("[DBNum1][$-804]General", "[$-2000401]0", "[$-D07041E]0")
        ),
        ((dt.date(2026, 3, 1), "d-mmm"), DATE),
        ((dt.date(2026, 3, 1), "yyyy-mm-dd"), DATE),
        (dt.time(10, 30), f"Name is the date or time 10:30:00, which a spreadsheet made of what was typed; {AS_TEXT}"),
        (True, f"Name is the truth value TRUE, {TRUTH_VALUE}"),
        (False, f"Name is the truth value FALSE, {TRUTH_VALUE}"),
        ((50000000000, "0.00E+00"), f"Name is the number 50000000000, which programs show differently; {AS_TEXT}"),
        (123456789012, f"Name is the number 123456789012, which programs show differently; {AS_TEXT}"),
        (1 / 3, f"Name is the number 0.333333333333333, which programs show differently; {AS_TEXT}"),
        ((0.5, "# ?/?"), f"Name is the number 0.5, which programs show differently; {AS_TEXT}"),
        (("042", '"BIO-"@'), "BIO-042"),
        (("042", '0;-0;0;"BIO-"@'), "BIO-042"),
        (("042", "_-@_-"), "042"),
        (("042", ";;;"), "Name is empty"),
        ((-5, "yyyy-mm-dd"), f"Name is the date or time -5, which a spreadsheet made of what was typed; {AS_TEXT}"),
        ("MAR-1", "MAR-1"),
        ("1-Mar", f"Name {CONVERTED}"),
        ("Mar-26", f"Name {CONVERTED}"),
        ("5.00E+10", f"Name {CONVERTED}"),
        ("TRUE", f"Name {CONVERTED}"),
    ],
    ids=str,
)
def test_a_name_in_a_workbook_is_what_people_see(tmp_path: Path, cell: object, loaded: str) -> None:
    rows, rejected = load(openpyxl_file(tmp_path, row(Name=cell)))
    assert [rows[0][0] if rows else rejected[2]] == [loaded]


@pytest.mark.parametrize(
    ("cell", "loaded"),
    [
        (number(7, "0007"), "0007"),
        (number(42, "BIO-042"), "BIO-042"),
        (number(1 / 3, "0.3333333333"), "0.3333333333"),
        (number(46082, "1-Mar", "DATE"), DATE),
        (True, f"Name is the truth value TRUE, {TRUTH_VALUE}"),
        ({"effectiveValue": {"stringValue": "042"}, "formattedValue": "BIO-042"}, "BIO-042"),
        (
            number(-18261, "1/1/1850", "DATE"),
            f"Name is the date or time 1/1/1850, which a spreadsheet made of what was typed; {AS_TEXT}",
        ),
    ],
    ids=str,
)
def test_a_name_in_google_sheets_is_what_people_see(tmp_path: Path, cell: object, loaded: str) -> None:
    with google_sheet(tmp_path, row(Name=cell)) as source:
        rows, rejected = load(source)
    assert [rows[0][0] if rows else rejected[2]] == [loaded]


@pytest.mark.parametrize(
    "shown",
    [
        *("1-Mar", "31-Dec", "Mar-26", "01-Mar", "1-Sept", "1.23E+11", "5E+10", "TRUE", "FALSE", "WAHR", "FAUX"),
        *(
            "2026-03-01",
            "2026/3/1",
            "3/1/2026",
            "31/12/2026",
            "3/1/26",
            "03/01/26",
            "01.03.2026",
            "1.3.2026",
            "01.03.26",
        ),
        *("01-03-2026", "1-Mar-26", "01-Mar-2026", "1 March 2026", '"Sunday, March 1, 2026"', "2026年3月1日"),
        *("2026-03-01 00:00:00", "2026-03-01T10:30:00", "3/1/2026 0:00", "3/1/2026 10:30 PM"),
    ],
)
def test_what_excel_made_of_a_name_before_it_wrote_csv_is_rejected(tmp_path: Path, shown: str) -> None:
    source = csv_file(tmp_path, ",".join(HEADER) + f"\n{shown},Husk,P1,,,\nS1,{shown},P1,,,\nS1,H,{shown},{shown},,\n")
    assert load(source) == (
        [],
        {2: f"Name {CONVERTED}", 3: f"Residue {CONVERTED}", 4: f"Code {CONVERTED}; County {CONVERTED}"},
    )


@pytest.mark.parametrize(
    "name",
    [
        *("1-MAR", "1_Mar", "32-Mar", "MAR-1", "True", "T_RUE", "0-Jan", "E10", "5E10", "March-26"),
        *("2026-03", "20260301", "2026-13-45", "3-1-26", "1.3.26", "1/2", "10:30", "BIO-2026-03-01", "2026-03-01 A"),
    ],
)
def test_names_that_only_look_similar_are_names(tmp_path: Path, name: str) -> None:
    rows, _ = load(csv_file(tmp_path, ",".join(HEADER) + f"\n{name},Husk,P1,,,\n"))
    assert [each[0] for each in rows] == [name]


@pytest.mark.parametrize(
    ("cell", "loaded"),
    [
        ((1234.5678, "#,##0.00"), "1234.5678"),
        ((1234.5678, "0"), "1234.5678"),
        ((0, '_-* #,##0.00_-;-* #,##0.00_-;_-* "-"??_-;_-@_-'), "0"),
        ((5, '0.0" kg"'), "5"),
        ((5, "[$€-407]#,##0.00"), "5"),
        ((0.5, "#.##"), "0.5"),
        ((1e-7, "0.00E+00"), "0.0000001"),
        (1 / 3, "0.333333333333333"),
        ((0.125, "0.0%"), "Amount holds 0.125, which its format shows as 12.5%"),
        ((12345, '0.0,"K"'), "Amount holds 12345, which its format shows as 12.3K"),
        ((1234, "0\\.00"), "Amount holds 1234, which its format shows as 12.34"),
        ((5, '0.0" mg/L"'), "5"),
        ((5, '[>999]0.0,"K";0'), "5"),
        ((1200, '[>999]0.0,"K";0'), "Amount holds 1200, which its format shows as 1.2K"),
        ((0.125, "[<1]0%;0"), "Amount holds 0.125, which its format shows as 13%"),
        ((1234, "0.000,"), "Amount holds 1234, which its format shows as 1.234"),
        ((-5, "0.00;[Red]0.00"), "Amount holds -5, which its format shows as 5.00"),
        ((-5, "0_);(0)"), "Amount is below 0; check the sign"),
        ((12.5, '"<"0.0'), "Amount holds 12.5, which its format shows as <12.5"),
        ((12.5, '0.0"x10³"'), "Amount holds 12.5, which its format shows as 12.5x10³"),
        ((12.5, '0.0" thousand"'), "Amount holds 12.5, which its format shows as 12.5 thousand"),
        ((5, '0" kg"'), "5"),
        ((0, '0;-0;"n.d."'), "Amount holds 0, which its format shows as n.d."),
        ((0, '0.00;-0.00;"CHF -"'), "0"),
        ((5, '"-"0'), "Amount holds 5, which its format shows as -5"),
        ((5, ";;;"), "Amount holds 5, which its format shows as nothing"),
        ((5, '"n.d."'), "Amount holds 5, which its format shows as n.d."),
        (dt.date(2026, 3, 1), "Amount is the date or time 2026-03-01; format the column as a number"),
        (True, "Amount is not a number"),
    ],
    ids=str,
)
def test_a_number_is_the_one_that_people_see_or_rejected(tmp_path: Path, cell: object, loaded: str) -> None:
    """What a format rounds keeps its digits; what it makes another number of is rejected, as in csv."""
    rows, rejected = load(openpyxl_file(tmp_path, row(Amount=cell)))
    assert (str(rows[0][5]) if rows else rejected[2]).startswith(loaded)
    assert bool(rows) == (not loaded.startswith("Amount"))


@pytest.mark.parametrize(
    ("cell", "loaded"),
    [
        (number(1234.5, "1.234,50"), "1234.5"),
        (number(1234567.5, "12,34,567.50"), "1234567.5"),
        (number(5, "€ 5.00", "CURRENCY"), "5"),
        (number(12345, "1.23E+04", "SCIENTIFIC"), "12345"),
        (number(5, "5 mg/L"), "5"),
        (number(0.5, "1/2"), "Amount holds 0.5, which its format shows as 1/2"),
        (number(-5, "5.00"), "Amount holds -5, which its format shows as 5.00"),
        (number(0.125, "12.5%", "PERCENT"), "Amount holds 0.125, which its format shows as 12.5%"),
        (number(45596, "10/31/2024", "DATE"), "Amount is the date or time 2024-10-31"),
    ],
    ids=str,
)
def test_a_number_of_google_sheets_is_the_one_that_people_see(tmp_path: Path, cell: object, loaded: str) -> None:
    with google_sheet(tmp_path, row(Amount=cell)) as source:
        rows, rejected = load(source)
    assert (str(rows[0][5]) if rows else rejected[2]).startswith(loaded)


@pytest.mark.parametrize("shown", ["31.10.2024", "31/10/2024", "10/31/2024", "Oct 2024", "2024-10-31"])
def test_a_date_of_google_sheets_does_not_depend_on_the_locale(tmp_path: Path, shown: str) -> None:
    with google_sheet(tmp_path, row(Date=number(45596, shown, "DATE"))) as source:
        assert load(source)[0][0][4] == dt.date(2024, 10, 31)


def test_one_worksheet_gives_the_same_through_every_source(tmp_path: Path) -> None:
    """Text, formatted numbers, dates and invisible characters; csv as a spreadsheet exports it."""
    table = [
        # In a workbook, in Google Sheets, in csv.
        (
            ("0007", "0007", "0007"),
            ((7, "0000"), number(7, "0007"), "0007"),
            ((42, '"BIO-"000'), number(42, "BIO-042"), "BIO-042"),
        ),
        (("lot_x0041_b", "lot_x0041_b", "lot_x0041_b"), (18, number(18, "18"), "18"), ("B\u00adIO", "BIO", '="bio"')),
        (("MAR-1", "MAR-1", "MAR-1"), ("a\u2066b", "ab", "a\u200db"), (1.5, number(1.5, "1.5"), "1.5")),
    ]
    date = (dt.date(2024, 10, 31), "d.m.yyyy"), number(45596, "31.10.2024", "DATE"), "2024-10-31"
    amount = (12.5, "0.00"), number(12.5, "12,50"), "12.50"
    kinds: list[list[list[object]]] = [
        [[*(cell[kind] for cell in cells), "Yolo", date[kind], amount[kind]] for cells in table] for kind in range(3)
    ]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([HEADER, *kinds[2]])

    workbook = load(openpyxl_file(tmp_path, *kinds[0]))
    with google_sheet(tmp_path, *kinds[1]) as source:
        google = load(source)
    from_csv = load(csv_file(tmp_path, text.getvalue()))

    def comparable(loaded: Loaded) -> list[tuple[object, ...]]:
        assert loaded[1] == {}
        return [(*cells[:5], Decimal(str(cells[5]))) for cells in loaded[0]]

    assert comparable(workbook) == comparable(google) == comparable(from_csv)
    assert [cells[:3] for cells in comparable(workbook)] == [
        ("0007", "0007", "BIO-042"),
        ("lot_x0041_b", "18", "BIO"),
        ("MAR-1", "ab", "1.5"),
    ]


# 3. Merged cells.


def test_a_row_that_a_merged_cell_covers_is_rejected(tmp_path: Path) -> None:
    source = openpyxl_file(
        tmp_path,
        row(Name="S1"),
        row(Name="S2", County=None),
        row(Name="S3", County=None),
        row(Name="S4"),
        change=lambda book: book.worksheets[0].merge_cells("D2:D4"),
    )
    rows, rejected = load(source)
    assert [cells[0] for cells in rows] == ["S1", "S4"]
    assert rejected == {3: f"County {MERGED}", 4: f"County {MERGED}"}


def test_a_value_below_a_merge_is_not_blanked(tmp_path: Path) -> None:
    """Programs write values that Excel hides."""
    source = openpyxl_file(tmp_path, row(County=None), row(Name="S2", County="Kern"), row(Name="S3"))
    merged(source, "D2:D3")
    rows, rejected = load(source)
    assert [cells[0] for cells in rows] == ["S1", "S3"]
    assert rejected == {3: f"County {MERGED}"}


def merged(source: WorkbookFile, *ranges: str) -> WorkbookFile:
    """Merge cells, without blanking what they cover as openpyxl does."""
    cells = "".join(f'<mergeCell ref="{each}"/>' for each in ranges)
    element = f"<mergeCells>{cells}</mergeCells>".encode()
    edit(source.path, {PAGE: lambda part: part.replace(b"</sheetData>", b"</sheetData>" + element)})
    return source


def test_an_empty_merge_and_one_of_the_header_change_nothing(tmp_path: Path) -> None:
    source = openpyxl_file(tmp_path, row(County=None), row(Name="S2", County=None))
    merged(source, "D2:D3", "H1:XFD1048576")
    assert [cells[:4] for cells in load(source)[0]] == [("S1", "Husk", "P1", None), ("S2", "Husk", "P1", None)]


def test_a_title_merged_over_the_columns_is_rejected_and_a_merge_alone_is_no_row(tmp_path: Path) -> None:
    source = openpyxl_file(tmp_path, ["Site 2"], row(Name="S1"), [None, None, None, None, None, None, "note"])
    merged(source, "A2:F2", "D3:D900")
    rows, rejected = load(source)
    assert [cells[0] for cells in rows] == ["S1"]
    assert rejected == {2: "; ".join(f"{name} {MERGED}" for name in HEADER[1:])}


def test_a_merge_in_google_sheets_is_rejected_too(tmp_path: Path) -> None:
    merge = {"startRowIndex": 1, "endRowIndex": 3, "startColumnIndex": 3, "endColumnIndex": 4}
    with google_sheet(tmp_path, GOOD, row(Name="S2", County=None), row(Name="S3"), merges=[merge]) as source:
        rows, rejected = load(source)
    assert [cells[0] for cells in rows] == ["S1", "S3"]
    assert rejected == {3: f"County {MERGED}"}


# 4. Errors in other words.


@pytest.mark.parametrize(
    "error",
    [
        *(
            "#REF!",
            "#N/A",
            "#VALUE!",
            "#DIV/0!",
            "#NAME?",
            "#NULL!",
            "#NUM!",
            "#ERROR!",
            "#SPILL!",
            "#CALC!",
            "#FIELD!",
        ),
        *("#BLOCKED!", "#GETTING_DATA", "#BUSY!", "#CONNECT!", "#UNKNOWN!", "#EXTERNAL!", "#PYTHON!", "#TIMEOUT!"),
        *(
            "#BEZUG!",
            "#NV",
            "#WERT!",
            "#ZAHL!",
            "#ÜBERLAUF!",
            "#FELD!",
            "#VALEUR!",
            "#NOM?",
            "#NOMBRE!",
            "#PROPAGATION!",
        ),
        *(
            "#¡REF!",
            "#¡VALOR!",
            "#¿NOMBRE?",
            "#N/D",
            "#RIF!",
            "#VERW!",
            "#N/B",
            "#SAKNAS!",
            "#I/T",
            "#VÆRDI!",
            "#PUUTTUU!",
        ),
        *("#ODKAZ!", "#NENÍ_K_DISPOZICI", "#HIÁNYZIK", "#ÉRTÉK!", "#ARG!", "#YOK", "#BAŞV!", "#SAYI/0!", "#DZIEL/0!"),
        *("#ЗНАЧ!", "#ССЫЛКА!", "#ИМЯ?", "#\u041d/\u0414", "#\u0394/\u03a5", "#ΑΝΑΦ!", "#n/a", "#N/A N/A"),
        *("Err:502", "Err:522", "Fehler:502", "Err :508", "Ошибка:502", "Chyba:502", "エラー:502", "Error 2042"),
    ],
)
def test_every_program_s_error_is_an_error(tmp_path: Path, error: str) -> None:
    source = csv_file(tmp_path, ",".join(HEADER) + f'\n{error},Husk,P1,,,\nS1,Husk,P1,"{error}",{error},{error}\n')
    assert load(source) == ([], {2: f"Name {ERROR}", 3: f"County {ERROR}; Date {ERROR}; Amount {ERROR}"})


@pytest.mark.parametrize(
    "name", ["#3 bin", "#1!", "# What?", "Err: 5", "pH:700", "N/A", "Bin:502", "#2", "Loading dock"]
)
def test_what_only_looks_similar_is_no_error(tmp_path: Path, name: str) -> None:
    rows, _ = load(csv_file(tmp_path, ",".join(HEADER) + f"\n{name},Husk,P1,,,\n"))
    assert [cells[0] for cells in rows] == [name]


@pytest.mark.parametrize("text", ["Loading...", "loading…", "Wird geladen...", "Chargement en cours...", "Загрузка..."])
def test_a_cell_that_google_has_not_calculated_is_no_value(tmp_path: Path, text: str) -> None:
    assert load(csv_file(tmp_path, ",".join(HEADER) + f"\nS1,Husk,P1,{text},,\n")) == ([], {2: f"County {LOADING}"})


def test_google_is_asked_again_until_it_has_calculated(tmp_path: Path) -> None:
    waiting = {"effectiveValue": {"errorValue": {"type": "LOADING"}}, "formattedValue": "Loading..."}
    with google_api() as api:
        source = waiting_sheet(tmp_path, api, [[HEADER, row(County=waiting)], [HEADER, GOOD]])
        assert load(source)[1] == {}
        assert load(source)[0][0][3] == "Yolo"

        source = waiting_sheet(tmp_path, api, [[HEADER, row(County=waiting), row(Name="S2")]])
        rows, rejected = load(source)
    assert [cells[0] for cells in rows] == ["S2"]
    assert rejected == {2: f"County {LOADING}"}


def waiting_sheet(path: Path, api: GoogleApi, answers: list[list[Sequence[object]]]) -> GoogleSheets:
    """Serve a worksheet that is another one at each reading; the last one stays."""

    class Changing(dict[str, Sequence[Sequence[object]] | None]):
        def get(self, _key: str, _default: object = None) -> list[Sequence[object]]:
            return answers.pop(0) if len(answers) > 1 else answers[0]

    api.spreadsheets = [Spreadsheet("1lab", "Lab", Changing(Samples=[]))]
    (path / "key.json").write_text(json.dumps(api.credentials), encoding="utf-8")
    return GoogleSheets(path / "key.json", api.url, retries=2, backoff=0.001)


# 5. Characters that cannot be seen.


@pytest.mark.parametrize(
    "character",
    [
        *("\u00ad", "\u034f", "\u061c", "\u115f", "\u180e", "\u200b", "\u200c", "\u200d", "\u200e", "\u202a", "\u202b"),
        *("\u202c", "\u202d", "\u202e", "\u2060", "\u2063", "\u2066", "\u2067", "\u2068", "\u2069", "\u206f", "\u3164"),
        *("\ufe00", "\ufe0e", "\ufe0f", "\ufeff", "\uffa0", "\ufff9", "\U000e0001", "\U000e0100"),
    ],
    ids=ascii,
)
def test_what_cannot_be_seen_does_not_distinguish(tmp_path: Path, character: str) -> None:
    cells = [f"{character}S{character}1", f"Husk{character}", f"P{character}1", character, f"2024{character}-10-31"]
    source = csv_file(
        tmp_path, ",".join(HEADER) + f"\n{','.join(cells)},1{character}2.5\n{character},,,,,{character}\n"
    )
    assert load(source) == ([("S1", "Husk", "P1", None, dt.date(2024, 10, 31), "12.5")], {})


def test_the_invisible_characters_are_those_of_unicode() -> None:
    """Unicode's list of characters that are not shown, as polars has it."""
    every = pl.Series([chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000])
    ignorable = every.filter(every.str.contains(r"^\p{Default_Ignorable_Code_Point}$"))
    assert [ascii(each) for each in ignorable if not is_blank(each)] == []


@pytest.mark.parametrize("control", ["\x80", "\x85", "\x92", "\x96", "\x9f"])
def test_a_byte_of_a_wrong_code_page_is_rejected(tmp_path: Path, control: str) -> None:
    """What it stood for is not known: an apostrophe, a dash, three dots."""
    _, rejected = load(csv_file(tmp_path, ",".join(HEADER) + f"\nFarmer{control}s,Husk,P1,,,1{control}2\n"))
    assert rejected[2].startswith("Name holds control characters, or bytes that are no UTF-8; type it again")
    assert "Amount holds control characters" in rejected[2]


# 6. csv files that were cut, or written by programs.


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "as-of-excel"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_nothing_of_a_row_that_was_cut_is_loaded(tmp_path: Path, mark: str, end: str) -> None:
    """Cut anywhere. Without Excel's mark, a cut within the last cell cannot be told from a file of Google's."""
    lines = [",".join(HEADER), "S1,Husk,P1,Yolo,2024-10-31,12.50", "S2,Hull,P2,Kern,2024-11-01,33.25"]
    content = (mark + end.join(lines) + end).encode()
    source = csv_file(tmp_path, content)
    whole, _ = load(source)
    first = len((mark + end.join(lines[:2]) + end).encode())
    last_cell = content.rindex(b",") + 1
    for size in range(first, len(content)):
        (tmp_path / "Lab/Samples.csv").write_bytes(content[:size])
        rows, rejected = load(source)
        if size == first:
            assert (rows, rejected) == (whole[:1], {})
        elif (mark and not content[:size].endswith(b"\r")) or size < last_cell:
            assert (rows, rejected) == (whole[:1], {3: CUT})
        else:
            assert rejected == {}


@pytest.mark.parametrize("lines", ["Name;Code\nS1;P1\n", "Name\tCode\nS1\tP1\n", "sep=,\nName,Code\nS1,P1\n"])
def test_other_separators_are_named(tmp_path: Path, lines: str) -> None:
    with pytest.raises(ExtractError, match="has other separators than commas"):
        load(csv_file(tmp_path, lines))


def test_a_last_row_without_a_line_end_is_whole_if_it_has_all_cells(tmp_path: Path) -> None:
    """As Google Sheets and many editors write it (RFC 4180)."""
    rows, rejected = load(csv_file(tmp_path, ",".join(HEADER) + "\r\nS1,Husk,P1,Yolo,2024-10-31,5"))
    assert (len(rows), rejected) == (1, {})


@pytest.mark.parametrize(
    ("content", "rejected"),
    [
        ("S1,Hu\rsk,P1,Yolo,,5\nS2,Husk,P1,,,5\n", {2: SPLIT, 3: SPLIT}),
        ("S1,Husk,P1,Yolo,,5\rkg\nS2,Husk,P1,,,5\n", {2: SPLIT, 3: SPLIT}),
        ("S1,Hu\r\rsk,P1,Yolo,,5\nS2,Husk,P1,,,5\n", {2: SPLIT, 4: SPLIT}),
        ("S2,Husk,P1,,,5\nS1,Husk,P1,Yo\rlo", {3: SPLIT, 4: SPLIT}),
        ('"S2","Husk","P1",,,"5"\n"S1","Hu\rsk","P1",,,\n', {}),
        ("S1,Husk,P1,,,5\rS2,Husk,P1,,,5\n", {}),
    ],
    ids=["in-a-cell", "in-the-last-cell", "two", "in-the-last-row", "quoted", "between-rows"],
)
def test_a_row_that_a_carriage_return_splits_is_not_loaded(
    tmp_path: Path, content: str, rejected: dict[int, str]
) -> None:
    rows, refused = load(csv_file(tmp_path, ",".join(HEADER) + "\n" + content))
    assert refused == rejected
    assert "S2" in [cells[0] for cells in rows]
    assert ("S1" in [cells[0] for cells in rows]) == (not rejected)


def test_a_row_that_a_line_feed_splits_is_not_loaded_where_lines_end_otherwise(tmp_path: Path) -> None:
    content = "\r\n".join([",".join(HEADER), "S1,Husk,P1,Yo\nlo,,5", "S2,Husk,P1,,,5", ""])
    rows, rejected = load(csv_file(tmp_path, content))
    assert [cells[0] for cells in rows] == ["S2"]
    assert rejected == {2: SPLIT, 3: SPLIT}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_end_may_be_a_file_s_own(tmp_path: Path, end: str) -> None:
    rows, rejected = load(csv_file(tmp_path, end.join([",".join(HEADER), "S1,Husk,P1", "", "S2,Husk,P1,,,5", ""])))
    assert (len(rows), rejected) == (2, {})


@pytest.mark.parametrize(
    ("cell", "text"),
    [('="00123"', "00123"), ('"=""00123"""', "00123"), ('"=""a """"b"""""""', 'a "b"'), ('" =""7"" "', "7")],
)
def test_a_text_that_a_program_wrote_as_a_formula_is_that_text(tmp_path: Path, cell: str, text: str) -> None:
    rows, rejected = load(csv_file(tmp_path, ",".join(HEADER) + f"\n{cell},Husk,P1,,,\n"))
    assert ([cells[0] for cells in rows], rejected) == ([text], {})


# 7. Escapes and micro signs.


def test_excel_s_escape_is_undone_once(tmp_path: Path) -> None:
    """As Excel writes the text; openpyxl writes it without the escape."""
    source = openpyxl_file(
        tmp_path, row(Name="lot_x005F_x0041_b"), row(Name="pot_x0041_b"), row(Name="a_x005F_x005F_b")
    )
    assert [cells[0] for cells in load(source)[0]] == ["lot_x0041_b", "pot_x0041_b", "a_x005F_b"]


def test_xlsxwriter_s_escape_is_undone_once(tmp_path: Path) -> None:
    book = XlsxWriterWorkbook(str(tmp_path / "Lab.xlsx"))
    page = book.add_worksheet("Samples")
    page.write_row(0, 0, HEADER)
    page.write_row(1, 0, row(Name="lot_x0041_b"))
    book.close()
    assert load(WorkbookFile(tmp_path / "Lab.xlsx"))[0][0][0] == "lot_x0041_b"


def test_both_micro_signs_are_one_unit() -> None:
    units = ["\N{MICRO SIGN}g/g", "\N{GREEK SMALL LETTER MU}g/g", "\N{GREEK SMALL LETTER MU}", "\N{OHM SIGN}", "Ω"]
    assert clean(pl.Series(units)).to_list() == ["µg/g", "µg/g", "µ", "Ω", "Ω"]
    assert clean(pl.Series(["\N{GREEK SMALL LETTER MU}έλι", "BIO\N{NON-BREAKING HYPHEN}1"])).to_list() == [
        "μέλι",
        "BIO-1",
    ]


# 8. Workbooks that Excel takes.

STRICT = {
    b"http://schemas.openxmlformats.org/spreadsheetml/2006/main": b"http://purl.oclc.org/ooxml/spreadsheetml/main",
    b"http://schemas.openxmlformats.org/officeDocument/2006/relationships": b"http://purl.oclc.org/ooxml/officeDocument/relationships",
}


def to_strict(part: bytes) -> bytes:
    """Return a part with the namespaces of Strict workbooks."""
    for old, new in STRICT.items():
        part = part.replace(old, new)
    return part


def with_prefix(part: bytes) -> bytes:
    """Return a worksheet whose elements have a prefix."""
    part = part.replace(b"xmlns=", b"xmlns:x=")
    return re.sub(rb"<(/?)(?=\w)", rb"<\1x:", part)


DATES = {"w": (dt.date(2024, 10, 31), "d.m.yyyy")}


@pytest.mark.parametrize("kind", ["strict", "styles", "names", "prefix", "no-addresses", "utf-16", "properties"])
def test_a_workbook_that_excel_takes_is_taken(tmp_path: Path, kind: str) -> None:
    source = openpyxl_file(tmp_path, row(Date=DATES["w"], Amount=(7, "0000")))
    sheet, styles, book = PAGE, "xl/styles.xml", "xl/workbook.xml"
    match kind:
        case "strict":
            parts = [sheet, styles, book, "xl/sharedStrings.xml", "xl/_rels/workbook.xml.rels", "_rels/.rels"]
            edit(source.path, dict.fromkeys(parts, to_strict))
        case "styles":
            edit(
                source.path,
                {
                    styles: lambda part: part.replace(b"<fills", b'<fills nonsense="1"').replace(
                        b'patternType="gray125"', b'patternType="plaid"'
                    )
                },
            )
        case "names":
            edit(source.path, {}, lambda name: name.upper() if name.startswith("xl/") else name)
        case "prefix":
            edit(source.path, {sheet: with_prefix})
        case "no-addresses":
            edit(source.path, {sheet: lambda part: re.sub(rb' r="[A-Z]*[0-9]+"', b"", part)})
        case "utf-16":
            edit(source.path, {sheet: lambda part: b"\xff\xfe" + part.decode().encode("utf-16-le")})
        case "properties":
            edit(source.path, {"docProps/core.xml": lambda _: b"<nonsense>", "docProps/app.xml": lambda _: b""})
    assert load(source) == ([("S1", "Husk", "P1", "Yolo", dt.date(2024, 10, 31), "7")], {})


@pytest.mark.parametrize(
    "look",
    [
        'yyyy"年"m"月"d"日"',
        "[$-411]ge.m.d",
        "[$-F800]dddd\\,\\ mmmm\\ dd\\,\\ yyyy",
        "d/m/yy;@",
        "[$-zh-CN]yyyy/m/d",
        "bbbb/mm/dd",
    ],
)
def test_dates_of_any_country_are_dates(tmp_path: Path, look: str) -> None:
    assert load(openpyxl_file(tmp_path, row(Date=(45596, look))))[0][0][4] == dt.date(2024, 10, 31)


@pytest.mark.parametrize("number_", [14, 27, 31, 36, 50, 57, 58, 71])
def test_dates_whose_format_has_only_a_number_are_dates(tmp_path: Path, number_: int) -> None:
    """27 to 36 and 50 to 58 are East Asian; files do not spell them out."""
    source = openpyxl_file(tmp_path, row(Date=(45596, "d.m.yyyy")))
    edit(
        source.path,
        {"xl/styles.xml": lambda part: part.replace(b'numFmtId="164" fontId', f'numFmtId="{number_}" fontId'.encode())},
    )
    assert load(source)[0][0][4] == dt.date(2024, 10, 31)


@pytest.mark.parametrize(
    ("days", "day"), [(1, dt.date(1900, 1, 1)), (59, dt.date(1900, 2, 28)), (61, dt.date(1900, 3, 1))]
)
def test_excel_s_year_1900_has_a_day_too_many(tmp_path: Path, days: int, day: dt.date) -> None:
    assert load(openpyxl_file(tmp_path, row(Date=(days, "d.m.yyyy"))))[0][0][4] == day


NO_DATE = (
    "Date is not a date from 1900 to 2100; type it as 2024-10-31, 10/31/2024 (month first) or 31-Oct-2024; "
    "leave the cell empty if it is not known"
)


@pytest.mark.parametrize(
    ("days", "look"),
    [(1, "[h]:mm"), (1, "hh:mm"), (45596, "h:mm AM/PM"), (45596, "mm:ss"), (60, "yyyy-mm-dd"), (-5, "yyyy-mm-dd")],
)
def test_a_day_that_people_do_not_see_is_no_date(tmp_path: Path, days: int, look: str) -> None:
    """24:00 is day 1 with a format of hours; Excel's 29 February 1900 was no day."""
    assert load(openpyxl_file(tmp_path, row(Date=(days, look)))) == ([], {2: NO_DATE})


@pytest.mark.parametrize(("shown", "form"), [("48:00:00", "DATE_TIME"), ("12:00:00 AM", "TIME"), ("0.00.00", "TIME")])
def test_a_time_of_google_sheets_is_no_date(tmp_path: Path, shown: str, form: str) -> None:
    with google_sheet(tmp_path, row(Date=number(2, shown, form))) as source:
        assert load(source) == ([], {2: NO_DATE})


def test_the_formats_of_conditions_are_not_those_of_cells(tmp_path: Path) -> None:
    source = openpyxl_file(tmp_path, row(Name=(7, "0000")))
    other = b'<dxfs count="1"><dxf><numFmt numFmtId="164" formatCode="yyyy"/></dxf></dxfs></styleSheet>'
    edit(source.path, {"xl/styles.xml": lambda part: re.sub(b"</styleSheet>", other, part)})
    assert load(source)[0][0][0] == "0007"


@pytest.mark.parametrize("value", [b"NaN", b"INF", b"1e400"])
def test_what_is_no_number_is_an_error(tmp_path: Path, value: bytes) -> None:
    source = openpyxl_file(tmp_path, row(Name=7))
    edit(source.path, {PAGE: lambda part: part.replace(b"<v>7</v>", b"<v>" + value + b"</v>")})
    assert load(source) == ([], {2: f"Name {ERROR}"})


def test_a_cell_that_is_there_twice_is_not_guessed(tmp_path: Path) -> None:
    source = openpyxl_file(tmp_path, row(Name=7))
    edit(source.path, {PAGE: lambda part: part.replace(b"<v>7</v></c>", b'<v>7</v></c><c r="A2"><v>8</v></c>')})
    with pytest.raises(ExtractError, match="row 2 has a cell twice"):
        load(source)


@pytest.mark.parametrize(
    ("typed", "year"), [("10/31/29", 2029), ("10/31/30", 1930), ("31-Oct-69", 1969), ("10/31/70", 1970)]
)
def test_a_year_of_two_digits_is_the_one_that_spreadsheets_take_it_for(tmp_path: Path, typed: str, year: int) -> None:
    rows, _ = load(csv_file(tmp_path, ",".join(HEADER) + f"\nS1,Husk,P1,,{typed},\n"))
    assert rows[0][4] == dt.date(year, 10, 31)


def test_the_date_system_of_old_macs_is_known(tmp_path: Path) -> None:
    source = openpyxl_file(tmp_path, row(Date=(45596 - 1462, "d.m.yyyy")))
    edit(source.path, {"xl/workbook.xml": lambda part: part.replace(b"<workbookPr ", b'<workbookPr date1904="1" ')})
    assert load(source)[0][0][4] == dt.date(2024, 10, 31)


# 9. Rows that say nothing.


def test_checkboxes_and_formulas_that_were_filled_down_make_no_rows(tmp_path: Path) -> None:
    book = XlsxWriterWorkbook(str(tmp_path / "Lab.xlsx"))
    page = book.add_worksheet("Samples")
    page.write_row(0, 0, [*HEADER, "Checked", "Total"])
    for number_ in range(1, 1001):
        typed = row(Name=f"S{number_}") if number_ <= 5 else [""] * 5
        page.write_row(number_, 0, typed)
        page.write_formula(number_, 5, "=G2*2", None, 0)
        page.write_boolean(number_, 6, False)
        page.write_formula(number_, 7, "=F2", None, "#N/A")
    book.close()
    edit(tmp_path / "Lab.xlsx", {"xl/workbook.xml": lambda part: part.replace(b' fullCalcOnLoad="1"', b"")})

    rows, rejected = load(WorkbookFile(tmp_path / "Lab.xlsx"))

    assert [cells[0] for cells in rows] == [f"S{number_}" for number_ in range(1, 6)]
    assert rejected == {}


def test_dates_that_were_filled_down_from_empty_cells_make_no_rows(tmp_path: Path) -> None:
    """They are 0, which is shown as January 0, 1900."""
    book = XlsxWriterWorkbook(str(tmp_path / "Lab.xlsx"))
    page = book.add_worksheet("Samples")
    page.write_row(0, 0, HEADER)
    page.write_row(1, 0, GOOD)
    page.write_formula(2, 4, "=Z3", book.add_format({"num_format": "m/d/yyyy"}), 0)
    book.close()
    edit(tmp_path / "Lab.xlsx", {"xl/workbook.xml": lambda part: part.replace(b' fullCalcOnLoad="1"', b"")})
    assert len(load(WorkbookFile(tmp_path / "Lab.xlsx"))[0]) == 1
    assert load(WorkbookFile(tmp_path / "Lab.xlsx"))[1] == {}


def test_checkboxes_in_google_sheets_make_no_rows(tmp_path: Path) -> None:
    zero = {**number(0, "0"), "userEnteredValue": {"formulaValue": "=G2*2"}}
    rest = [[None, None, None, False, None, zero] for _ in range(100)]
    with google_sheet(tmp_path, GOOD, *rest) as source:
        rows, rejected = load(source)
    assert (len(rows), rejected) == (1, {})


def test_a_zero_that_was_typed_is_a_row(tmp_path: Path) -> None:
    _, rejected = load(openpyxl_file(tmp_path, [None, None, None, None, None, 0]))
    assert rejected == {2: "Name is empty; Residue is empty; Code is empty"}


def test_notes_beside_what_a_flow_reads_make_no_row(tmp_path: Path) -> None:
    content = ",".join([*HEADER, "Notes"]) + "\nS1,Husk,P1,,,,\n,,,,,,to be continued\n,,,,,,,stray\n"
    rows, rejected = load(csv_file(tmp_path, content))
    assert (len(rows), rejected) == (1, {})


def test_notes_in_columns_without_a_name_do_not_reject_a_row(tmp_path: Path) -> None:
    """In a csv file they do: a comma that is not quoted looks the same."""
    assert len(load(openpyxl_file(tmp_path, [*GOOD, None, "spilled"]))[0]) == 1
    rows, rejected = load(csv_file(tmp_path, ",".join(HEADER) + "\nS1,Husk,P1,Yolo,2024-10-31,5,,spilled\n"))
    assert rows == []
    assert rejected[2].startswith("the row has more cells than the header; put double quotes")


def test_a_decimal_comma_that_moves_cells_beyond_the_header_is_rejected(tmp_path: Path) -> None:
    """The cell that has moved there may be empty: else 12,5 would be an amount of 12."""
    rows, rejected = load(csv_file(tmp_path, ",".join([*HEADER, "Notes"]) + "\nS1,Husk,P1,Yolo,2024-10-31,12,5,\n"))
    assert rows == []
    assert rejected[2].startswith("the row has more cells than the header")


def test_a_second_header_is_named(tmp_path: Path) -> None:
    _, rejected = load(openpyxl_file(tmp_path, GOOD, HEADER))
    assert rejected == {3: "the row is a second header; remove it"}


# 10. Cost.


def test_cost_follows_the_cells_that_have_something_in_them(tmp_path: Path) -> None:
    """A note in the last column and a stray cell in the last row; there are 17 billion cells."""
    source = openpyxl_file(tmp_path, GOOD, row(Name="S2"))
    note = b'<c r="XFD1" t="inlineStr"><is><t>note</t></is></c></row>'
    stray = b'<row r="1048576"><c r="XFD1048576"><v>5</v></c></row></sheetData>'
    edit(
        source.path,
        {PAGE: lambda part: part.replace(b"</row>", note, 1).replace(b"</sheetData>", stray)},
    )
    before = time.process_time()
    rows, rejected = load(source)
    assert (len(rows), rejected) == (2, {})
    # It was 195 seconds; now it is one.
    assert time.process_time() - before < 20


# Beyond the list: formats of characters, and what is hidden.

RAISED_NUMBER = (
    "has a superscript or subscript beside a digit, which are read as one number; "
    "type the number that is meant, such as 1000 for 10³, and delete the number of a footnote"
)
OF_CHARACTERS: list[tuple[list[tuple[str, dict[str, object]]], str]] = [
    ([("10", {}), ("3", {"vertAlign": "superscript"})], RAISED_NUMBER),
    ([("10", {}), ("2", {"vertAlign": "subscript"})], RAISED_NUMBER),
    ([("1", {"vertAlign": "superscript"}), ("25", {})], RAISED_NUMBER),
    (
        [("12.5 ", {}), ("1", {"vertAlign": "superscript"})],
        "is not a number; type digits with a decimal point and nothing ",
    ),
    ([("12", {"strike": True}), ("15", {})], STRUCK),
    ([("12", {}), (" ", {"strike": True})], ""),
    ([("1", {"b": True}), ("2", {})], ""),
]


@pytest.mark.parametrize("writer", ["openpyxl", "xlsxwriter"])
@pytest.mark.parametrize(("runs", "reason"), OF_CHARACTERS)
def test_digits_that_are_raised_or_struck_out_are_no_digits(
    tmp_path: Path, runs: list[tuple[str, dict[str, object]]], reason: str, writer: str
) -> None:
    """Such texts stand in the worksheet where openpyxl writes them, in the shared strings of XlsxWriter and Excel."""
    if writer == "openpyxl":
        blocks = [TextBlock(InlineFont(**font), text) if font else text for text, font in runs]  # type: ignore[arg-type]
        source = openpyxl_file(tmp_path, row(Amount=CellRichText(*blocks)))
    else:
        book = XlsxWriterWorkbook(str(tmp_path / "Lab.xlsx"))
        page = book.add_worksheet("Samples")
        page.write_row(0, 0, HEADER)
        page.write_row(1, 0, GOOD)
        names = {"vertAlign": "font_script", "strike": "font_strikeout", "b": "bold"}
        values = {"superscript": 1, "subscript": 2}
        fragments: list[object] = []
        for text, font in runs:
            form = {names[name]: values.get(str(value), value) for name, value in font.items()}
            fragments += [book.add_format(form), text] if form else [text]
        page.write_rich_string(1, HEADER.index("Amount"), *fragments)
        book.close()
        source = WorkbookFile(tmp_path / "Lab.xlsx")

    rows, rejected = load(source)

    assert (rejected == {}) == (not reason)
    if reason:
        assert rejected[2].startswith(f"Amount {reason}")
    else:
        assert [str(each[5]) for each in rows] == ["12"]


@pytest.mark.parametrize(
    ("runs", "name"),
    [
        ([("CO", ""), ("2", "subscript")], "CO2"),
        ([("m", ""), ("3", "superscript")], "m3"),
        ([("14", "superscript"), ("C", "")], "14C"),
        ([("BIO-001", ""), ("1", "superscript")], None),
        ([("BIO-001", ""), ("a", "superscript")], None),
    ],
)
def test_a_raised_character_in_a_name_is_on_the_line_unless_it_is_beside_a_digit(
    tmp_path: Path, runs: list[tuple[str, str]], name: str | None
) -> None:
    blocks = [TextBlock(InlineFont(vertAlign=kind), text) if kind else text for text, kind in runs]  # type: ignore[arg-type]
    rows, rejected = load(openpyxl_file(tmp_path, row(Name=CellRichText(*blocks))))
    assert [each[0] for each in rows] == ([name] if name else [])
    assert rejected == ({} if name else {2: f"Name {RAISED}"})


def test_a_cell_that_is_struck_out_is_rejected(tmp_path: Path) -> None:
    """A number, a name or a date; one that is empty says nothing."""

    def strike(book: Workbook) -> None:
        for cell in ("A3", "E3", "F3", "A4", "D5"):
            book.worksheets[0][cell].font = Font(strike=True)

    source = openpyxl_file(
        tmp_path, GOOD, row(Date=dt.date(2024, 10, 1)), [None], row(Name="S2", County=None), change=strike
    )
    rows, rejected = load(source)
    assert [each[0] for each in rows] == ["S1", "S2"]
    assert rejected == {3: f"Name {STRUCK}; Date {STRUCK}; Amount {STRUCK}"}


def test_a_row_that_is_struck_out_is_named_once(tmp_path: Path) -> None:
    """Its empty cells, and what stands in columns that the flow does not read, do not count."""

    def strike(book: Workbook) -> None:
        for column in "ABCDEF":
            book.worksheets[0][f"{column}3"].font = Font(strike=True)
        book.worksheets[0]["H3"] = "a note"

    rows, rejected = load(openpyxl_file(tmp_path, GOOD, row(Name="S2", County=None), change=strike))
    assert [each[0] for each in rows] == ["S1"]
    assert rejected == {3: "the row is struck out; delete it, or remove the strikethrough if it counts"}


@pytest.mark.parametrize(("is_raised", "shown"), [(True, "10^3"), (False, "10_3")])
def test_a_raised_digit_is_shown_beside_the_line(tmp_path: Path, is_raised: bool, shown: str) -> None:
    """As 103 it could not be found in the worksheet."""
    font = InlineFont(vertAlign="superscript" if is_raised else "subscript")
    source = openpyxl_file(tmp_path, row(Amount=CellRichText("10", TextBlock(font, "3"))))
    with source.open("Lab", "Samples") as worksheet:
        [frame] = frames(worksheet, [*SAMPLES.columns])
    assert Validator(SAMPLES, None).validate(frame).problems["value"].to_list() == [shown]


@pytest.mark.parametrize(("strikes", "is_named"), [(True, True), (False, False)])
def test_a_condition_that_strikes_out_is_named(tmp_path: Path, strikes: bool, is_named: bool) -> None:
    """Which cells fulfil it takes a spreadsheet program to calculate."""

    def condition(book: Workbook) -> None:
        font = Font(strike=True) if strikes else Font(bold=True)
        book.worksheets[0].conditional_formatting.add("A2:F9", FormulaRule(["$F2<0"], font=font))  # type: ignore[no-untyped-call]

    source = openpyxl_file(tmp_path, GOOD, change=condition)
    assert len(load(source)[0]) == 1
    said = (
        "a conditional format strikes cells out in A2:F9, and they are read like the rest: "
        "delete those that do not count"
    )
    assert notes(source) == ([said] if is_named else [])


def test_a_condition_on_another_worksheet_that_strikes_out_is_named(tmp_path: Path) -> None:
    """Excel writes its format beside the condition, at the end of the worksheet."""
    source = openpyxl_file(tmp_path, GOOD)
    extension = (
        b'<extLst><ext uri="{78C0D931-6437-407d-A8EE-F0AAD7539E65}" '
        b'xmlns:x14="http://schemas.microsoft.com/office/spreadsheetml/2009/9/main"><x14:conditionalFormattings>'
        b"<x14:conditionalFormatting><x14:cfRule><x14:dxf><font><strike/></font></x14:dxf></x14:cfRule>"
        b"</x14:conditionalFormatting></x14:conditionalFormattings></ext></extLst></worksheet>"
    )
    edit(source.path, {PAGE: lambda xml: xml.replace(b"</worksheet>", extension)})
    assert [note[:20] for note in notes(source)] == ["a conditional format"]


def test_what_is_struck_out_in_google_sheets_is_rejected(tmp_path: Path) -> None:
    struck = {"format": {"strikethrough": True}}
    whole = number(5, "5")
    whole["effectiveFormat"] = {"numberFormat": {"type": "NUMBER"}, "textFormat": {"strikethrough": True}}
    part = {
        "effectiveValue": {"stringValue": "1215"},
        "formattedValue": "1215",
        "textFormatRuns": [struck, {"startIndex": 2}],
    }
    plain = {
        "effectiveValue": {"stringValue": "S3"},
        "formattedValue": "S3",
        "effectiveFormat": {"textFormat": {"strikethrough": False}},
        "textFormatRuns": [{"format": {}}],
    }
    with google_sheet(tmp_path, row(Amount=whole), row(Name="S2", Amount=part), row(Name=plain)) as source:
        rows, rejected = load(source)
    assert [each[0] for each in rows] == ["S3"]
    assert rejected == {2: f"Amount {STRUCK}", 3: f"Amount {STRUCK}"}


def notes(source: Source) -> Sequence[str]:
    """Return what is said of the worksheet after it was read."""
    with source.open("Lab", "Samples") as worksheet:
        assert len([*worksheet.rows]) >= 1
        return worksheet.notes()


def test_what_is_hidden_is_read_and_named(tmp_path: Path) -> None:
    """Also rows without height and columns without width; not rows without a value and columns without a name."""

    def hide(book: Workbook) -> None:
        page = book.worksheets[0]
        for number in (3, 5, 6, 40):
            page.row_dimensions[number].hidden = True
        page.row_dimensions[7].height = 7
        page.column_dimensions["D"].hidden = True
        page.column_dimensions["F"].width = 7
        page.column_dimensions["Z"].hidden = True
        book.create_sheet("Notes")
        page.sheet_state = "hidden"
        book.active = 1

    source = openpyxl_file(tmp_path, *(row(Name=f"S{number}") for number in range(6)), change=hide)
    # openpyxl does not write a size of 0.
    edit(source.path, {PAGE: lambda xml: xml.replace(b'ht="7"', b'ht="0"').replace(b'width="7"', b'width="0"')})
    assert len(load(source)[0]) == 6
    assert notes(source) == [
        "hidden, and read like the rest: the worksheet itself; rows 3, 5-7; columns County, Amount"
    ]


def test_rows_that_are_hidden_by_default_are_named(tmp_path: Path) -> None:
    source = openpyxl_file(tmp_path, GOOD)
    edit(source.path, {PAGE: lambda xml: xml.replace(b"<sheetFormatPr", b'<sheetFormatPr zeroHeight="1"')})
    assert notes(source) == ["hidden, and read like the rest: rows 1-2"]


def test_of_many_hidden_rows_the_first_are_named(tmp_path: Path) -> None:
    def hide(book: Workbook) -> None:
        for number in range(3, 43, 2):
            book.worksheets[0].row_dimensions[number].hidden = True

    source = openpyxl_file(tmp_path, *(row(Name=f"S{number}") for number in range(50)), change=hide)
    assert notes(source) == [
        "hidden, and read like the rest: rows 3, 5, 7, 9, 11, 13, 15, 17, 19, 21 and others, 20 in all"
    ]


def test_what_is_hidden_in_google_sheets_is_named(tmp_path: Path) -> None:
    with google_sheet(tmp_path, GOOD, is_hidden=True, hidden_rows=[2, 900], hidden_columns=[5, 20]) as source:
        assert notes(source) == ["hidden, and read like the rest: the worksheet itself; row 2; column Amount"]
    with google_sheet(tmp_path, GOOD) as source:
        assert notes(source) == []


def test_a_last_row_without_a_line_end_is_named(tmp_path: Path) -> None:
    """Whether its last cell was cut cannot be known: 12.50 would be 12.5."""
    source = csv_file(tmp_path, ",".join(HEADER) + "\nS1,Husk,P1,Yolo,2024-10-31,12.5")
    assert len(load(source)[0]) == 1
    (note,) = notes(source)
    assert note == (
        "row 2, the last one, has no line end, as in files of Google Sheets, and in a file that was cut off: "
        "compare its last cell, '12.5', and whether rows are missing"
    )
    with (tmp_path / "Lab/Samples.csv").open("a") as file:
        file.write("\n")
    assert notes(source) == []
