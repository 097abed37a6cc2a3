"""Reads the parts of an Office Open XML workbook: what is in each cell, and how people see it.

No library that reads workbooks tells formulas without a result, merged cells and number formats at a cost that follows
the cells (tests/unit/test_readers.py). Source: ECMA-376, part 1 (SpreadsheetML, also Strict), part 2 (packages).
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from posixpath import dirname, join, normpath
from typing import IO
from xml.etree import ElementTree
from xml.parsers import expat
from zipfile import ZipFile

from ca_biositing.pipeline.sources.cells import (
    SERIAL_EPOCH,
    Cell,
    Hidden,
    Kind,
    Merge,
    Merges,
    Row,
    clock_text,
    marked_text,
    moment_text,
    number_cell,
    number_text,
    seen,
    time_text,
)
from ca_biositing.pipeline.sources.number_formats import GENERAL, NumberFormat, built_in

_CHUNK = 256 * 1024
_MAX_ROW = 1_048_576
_MAX_COLUMN = 16_384
# What is held in memory is limited, not how many rows a worksheet has. Cells of Excel have at most 32,767 characters. A
# worksheet of 400 times its compressed size holds nothing but repetitions, which neither people nor programs write.
_MAX_HELD_BYTES = 128 * 1024 * 1024
_MAX_CELL_CHARACTERS = 1_000_000
_MAX_EXPANSION = 400
# Excel escapes control characters, halves of characters, and the underscore of a text that looks like an escape. What
# looks like another escape is a text of a program that does not escape.
_ESCAPE = re.compile("(?i)_x(00[0189][0-9a-f]|007f|005f|d[89a-f][0-9a-f]{2}|fff[ef])_")
# Of runs that are not on the line; see cells.marked_text.
_MARKS: Mapping[str | None, str] = {"superscript": "^", "subscript": "_"}
_WHOLE = re.compile("[1-9][0-9]{0,14}")
# Day 0 of each date system. Excel's days before March 1900 are one too many: 1900 was no leap year.
_EPOCH, _EPOCH_1904 = SERIAL_EPOCH, datetime(1904, 1, 1)
_NO_DAY_OF_1900, _FIRST_MARCH_1900 = 60, 61


class DamagedError(Exception):
    """A part of the workbook is missing, or says what no workbook says."""


@dataclass(frozen=True)
class _Context:
    """What cells refer to: shared strings, formats by style, the date system, whether results of formulas are true."""

    strings: Sequence[str]
    formats: Sequence[NumberFormat]
    # The formats that show texts in another way, by the style as cells name it.
    text_formats: Mapping[str, NumberFormat]
    # The styles whose font is struck out, as cells name them.
    struck_styles: Set[str]
    # The formats of conditions that strike out, as conditions name them.
    struck_conditions: Set[str]
    epoch: datetime
    is_calculated: bool


class Workbook:
    """An open workbook.

    Raises:
        DamagedError, KeyError, zipfile.BadZipFile, xml.parsers.expat.ExpatError, ...: it is damaged.

    """

    def __init__(self, file: IO[bytes]) -> None:
        self._archive = ZipFile(file)
        # Part names are not case-sensitive.
        self._parts = {_part(name): name for name in self._archive.namelist()}
        main = next(iter(self._related("", "officedocument").values()), "xl/workbook.xml")
        root = self._xml(main)
        related = self._related(main, "worksheet")
        self.pages = {
            element.attrib["name"]: related[identifier]
            for element in _all(root, "sheet")
            for name, identifier in element.attrib.items()
            if name.endswith("}id") and identifier in related
        }
        self.hidden_pages = {
            element.attrib["name"] for element in _all(root, "sheet") if element.get("state", "visible") != "visible"
        }
        self._context = self._read_context(main, root)

    def rows(self, page: str, on_read: Callable[[float], None], hidden: Hidden) -> Iterator[tuple[int, Row]]:
        """Return a worksheet's rows that have a cell with a value, with their numbers; row 1 is the first.

        ``on_read`` is called with the fraction of the worksheet that was read. What is hidden of it is added to
        ``hidden``.
        """
        hidden.is_worksheet = page in self.hidden_pages
        name = self._parts[_part(self.pages[page])]
        info = self._archive.getinfo(name)
        size = max(info.file_size, 1)
        if size > max(_MAX_HELD_BYTES, _MAX_EXPANSION * info.compress_size):
            raise DamagedError(
                f"{name} expands to {size >> 20} MB, {size // max(info.compress_size, 1)} times its size"
            )
        merges = self._merges(name)
        with self._archive.open(name) as part:
            parser = _Worksheet(self._context, merges, hidden)
            read = 0
            while not parser.is_done:
                chunk = part.read(_CHUNK)
                yield from parser.feed(chunk)
                read += len(chunk)
                on_read(read / size)

    def _merges(self, name: str) -> list[Merge]:
        """Return a worksheet's merged ranges, which stand behind its rows."""
        found = False
        with self._archive.open(name) as part:
            end = b""
            while chunk := part.read(_CHUNK):
                # In UTF-16 the word is not seen.
                found = found or b"mergeCell" in end + chunk or chunk[:2] in (b"\xff\xfe", b"\xfe\xff")
                end = chunk[-16:]
        if not found:
            return []
        merges: list[Merge] = []

        def start(element: str, attributes: dict[str, str]) -> None:
            if _local(element) == "mergeCell":
                first, _, last = attributes["ref"].partition(":")
                left, top = _address(first)
                right, bottom = _address(last or first)
                merges.append(Merge(top, left, bottom, right))

        parser = _parser()
        parser.StartElementHandler = start
        with self._archive.open(name) as part:
            parser.ParseFile(part)
        return merges

    def _read_context(self, main: str, root: ElementTree.Element) -> _Context:
        strings = [text for path in self._related(main, "sharedstrings").values() for text in self._strings(path)]
        styles = [self._xml(path) for path in self._related(main, "styles").values()]
        formats = [each for root_of_styles in styles for each in _formats(root_of_styles)]
        struck = {str(style) for style, is_struck in enumerate(chain(*map(_struck, styles))) if is_struck}
        conditions = [_strikes(each) for root_of_styles in styles for each in _all(root_of_styles, "dxf")]
        struck_conditions = {str(number) for number, strikes in enumerate(conditions) if strikes}
        is_1904 = any(_is_true(element.get("date1904")) for element in _all(root, "workbookPr"))
        # Programs that do not calculate ask Excel to do so; what they write beside formulas is no result.
        is_calculated = not any(_is_true(element.get("fullCalcOnLoad")) for element in _all(root, "calcPr"))
        text_formats = {str(style): look for style, look in enumerate(formats) if look.text_section is not None}
        epoch = _EPOCH_1904 if is_1904 else _EPOCH
        return _Context(strings, formats, text_formats, struck, struck_conditions, epoch, is_calculated)

    def _related(self, part: str, kind: str) -> dict[str, str]:
        """Return the parts that a part refers to as this kind, by the reference's id."""
        relations = join(dirname(part), "_rels", part.rpartition("/")[2] + ".rels")
        if _part(relations) not in self._parts:
            return {}
        return {
            relation.attrib["Id"]: normpath(join("/", dirname(part), relation.attrib["Target"])).lstrip("/")
            for relation in _all(self._xml(relations), "Relationship")
            # The namespaces of Strict workbooks are others.
            if relation.attrib["Type"].lower().endswith(f"/{kind}")
        }

    def _xml(self, path: str) -> ElementTree.Element:
        with self._open(path) as part:
            return ElementTree.parse(part).getroot()  # noqa: S314 - expat limits what entities expand to

    def _open(self, path: str) -> IO[bytes]:
        if _part(path) not in self._parts:
            raise DamagedError(f"it has no part {path}")
        info = self._archive.getinfo(self._parts[_part(path)])
        if info.file_size > _MAX_HELD_BYTES:
            raise DamagedError(
                f"{path} expands to {info.file_size >> 20} MB, of which at most {_MAX_HELD_BYTES >> 20} MB can be read"
            )
        return self._archive.open(info)

    def _strings(self, path: str) -> list[str]:
        """Return the texts that cells refer to by number."""
        strings = []
        with self._open(path) as part:
            events = ElementTree.iterparse(part, ("start", "end"))  # noqa: S314 - see _xml
            _, root = next(events)
            for event, element in events:
                if event == "end" and _local(element.tag) == "si":
                    strings.append(marked_text(_runs(element)))
                    if len(strings[-1]) > _MAX_CELL_CHARACTERS:
                        raise DamagedError(f"a text has {len(strings[-1])} characters, more than any cell")
                    root.clear()
        return strings


class _Worksheet:
    """Parses a worksheet's part, piece by piece."""

    def __init__(self, context: _Context, merges: Iterable[Merge], hidden: Hidden) -> None:
        self.is_done = False
        self._context = context
        self._merges = Merges(merges)
        self._hidden = hidden
        self._is_hidden_row = self._are_rows_hidden = False
        self._rows: list[tuple[int, Row]] = []
        self._number = 0
        self._cells: dict[int, str] = {}
        self._columns: dict[str, int] = {}
        self._column = -1
        self._attributes: dict[str, str] = {}
        self._value: list[str] = []
        self._formula: list[str] | None = None
        # The runs of a rich text that have ended; the mark of the one that the parser is in, whether it is struck out.
        self._runs: list[tuple[str, str, bool]] = []
        self._run_start = 0
        self._mark = ""
        self._is_struck = False
        self._is_behind_rows = False
        self._range = ""
        # Where the text that the parser is in belongs, if it is wanted.
        self._into: list[str] | None = None
        self._length = 0
        self._is_hint = False
        self._starts: dict[str, Callable[[dict[str, str]], None]] = {}
        self._ends: dict[str, Callable[[], None]] = {}
        self._parser = _parser()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters

    def feed(self, chunk: bytes) -> Iterator[tuple[int, Row]]:
        """Parse the next piece of the part, an empty one at its end; return its rows, also those before an error."""
        error = None
        try:
            self._parser.Parse(chunk, not chunk)
        except Exception as raised:  # noqa: BLE001 - it is raised again
            error = raised
        rows, self._rows = self._rows, []
        yield from rows
        if error:
            raise error
        self.is_done = not chunk

    def _start(self, element: str, attributes: dict[str, str]) -> None:
        if not self._starts:
            self._name_elements(element.rpartition("worksheet")[0])
        if start := self._starts.get(element):
            start(attributes)

    def _end(self, element: str) -> None:
        if end := self._ends.get(element):
            end()

    def _characters(self, characters: str) -> None:
        if self._into is not None:
            self._into.append(characters)
            self._length += len(characters)
            if self._length > _MAX_CELL_CHARACTERS:
                raise DamagedError(f"a cell of row {self._number} has more than {_MAX_CELL_CHARACTERS} characters")

    def _name_elements(self, prefix: str) -> None:
        starts = {
            "sheetFormatPr": self._start_defaults,
            "col": self._start_columns,
            "row": self._start_row,
            "c": self._start_cell,
            "vertAlign": self._start_raised,
            "strike": self._start_struck,
            "v": self._start_value,
            "f": self._start_formula,
            "t": self._start_text,
            "rPh": self._start_hint,
            "conditionalFormatting": self._start_conditions,
            "cfRule": self._start_condition,
        }
        ends = {
            "row": self._end_row,
            "c": self._end_cell,
            "v": self._end_text,
            "f": self._end_text,
            "t": self._end_text,
            "r": self._end_run,
            "rPh": self._end_hint,
            "sheetData": self._end_rows,
        }
        self._starts = {prefix + name: function for name, function in starts.items()}
        self._ends = {prefix + name: function for name, function in ends.items()}

    def _start_defaults(self, attributes: dict[str, str]) -> None:
        self._are_rows_hidden = _is_true(attributes.get("zeroHeight"))

    def _start_columns(self, attributes: dict[str, str]) -> None:
        if _is_true(attributes.get("hidden")) or _is_zero(attributes.get("width")):
            last = min(int(attributes["max"]), _MAX_COLUMN)
            self._hidden.columns.update(range(int(attributes["min"]) - 1, last))

    def _start_row(self, attributes: dict[str, str]) -> None:
        number = int(attributes.get("r", self._number + 1))
        if not self._number < number <= _MAX_ROW:
            raise DamagedError(f"row {number} stands behind row {self._number}")
        self._number = number
        self._column = -1
        self._cells = {}
        # A row that is written down has a height of its own, or the default one.
        is_default = self._are_rows_hidden and "hidden" not in attributes and "ht" not in attributes
        self._is_hidden_row = _is_true(attributes.get("hidden")) or _is_zero(attributes.get("ht")) or is_default

    def _end_row(self) -> None:
        self._merges.cover(self._number, self._cells)
        if self._cells:
            if self._is_hidden_row:
                self._hidden.rows.append(self._number)
            self._rows.append((self._number, Row(self._cells)))

    def _start_cell(self, attributes: dict[str, str]) -> None:
        self._attributes = attributes
        self._length = 0
        self._value = []
        self._formula = None
        self._runs = []
        self._run_start = 0
        self._mark = ""
        self._is_struck = False
        reference = attributes.get("r")
        self._column = self._column_of(reference) if reference else self._column + 1

    def _end_cell(self) -> None:
        if (cell := self._cell()) != "":
            if self._context.struck_styles and self._attributes.get("s") in self._context.struck_styles:
                cell = Cell(cell, Kind.STRUCK, seen(cell), is_idle=isinstance(cell, Cell) and cell.is_idle)
            if self._column in self._cells:
                raise DamagedError(f"row {self._number} has a cell twice")
            self._cells[self._column] = cell

    def _start_value(self, _: dict[str, str]) -> None:
        self._into = self._value

    def _start_formula(self, _: dict[str, str]) -> None:
        self._into = self._formula = []

    def _start_text(self, _: dict[str, str]) -> None:
        self._into = None if self._is_hint else self._value

    def _end_text(self) -> None:
        self._into = None

    def _start_raised(self, attributes: dict[str, str]) -> None:
        self._mark = _MARKS.get(attributes.get("val"), "")

    def _start_struck(self, attributes: dict[str, str]) -> None:
        self._is_struck = _is_true(attributes.get("val", "1"))
        # Behind the rows, conditions that look at other worksheets hold their formats.
        if self._is_behind_rows and self._is_struck:
            self._hidden.struck.add("")

    def _start_conditions(self, attributes: dict[str, str]) -> None:
        self._range = attributes.get("sqref", "")

    def _start_condition(self, attributes: dict[str, str]) -> None:
        if attributes.get("dxfId") in self._context.struck_conditions:
            self._hidden.struck.add(self._range)

    def _end_rows(self) -> None:
        self._is_behind_rows = True

    def _end_run(self) -> None:
        text = "".join(self._value[self._run_start :])
        self._run_start = len(self._value)
        self._runs.append((_unescaped(text), self._mark, self._is_struck))
        self._mark = ""
        self._is_struck = False

    def _start_hint(self, _: dict[str, str]) -> None:
        self._is_hint = True

    def _end_hint(self) -> None:
        self._is_hint = False

    def _column_of(self, reference: str) -> int:
        letters = reference.rstrip("0123456789")
        if letters not in self._columns:
            self._columns[letters] = _address(f"{letters}1")[0]
        return self._columns[letters]

    def _cell(self) -> str:
        """Return the cell that has just ended; an empty one is an empty string."""
        value = "".join(self._value)
        formula = self._formula
        kind = self._attributes.get("t", "n")
        if formula is not None and (not self._context.is_calculated or (value == "" and kind != "str")):
            return Cell(f"={''.join(formula)}", Kind.FORMULA)
        match kind:
            case "s":
                return self._seen(self._context.strings[int(value)]) if value else ""
            case "str" | "inlineStr":
                return self._seen(marked_text(self._runs) if self._runs else _unescaped(value))
            case "b" if value:
                text = "TRUE" if _is_true(value) else "FALSE"
                return Cell(text, Kind.BOOLEAN, is_idle=text == "FALSE")
            case "e":
                return Cell(value or "#N/A", Kind.ERROR)
            case "d" if value:
                return Cell(time_text(datetime.fromisoformat(value)) if "T" in value else value, Kind.DATE)
        return self._number_cell(value, is_formula=formula is not None) if value else ""

    def _seen(self, text: str) -> str:
        formats = self._context.text_formats
        look = formats.get(self._attributes.get("s", "0")) if formats and text else None
        return look.shown_text(text) if look and not isinstance(text, Cell) else text

    def _number_cell(self, value: str, *, is_formula: bool) -> str:
        style = int(self._attributes.get("s", 0))
        formats = self._context.formats
        look = formats[style] if style < len(formats) else NumberFormat(GENERAL)
        if not math.isfinite(float(value)):
            return Cell(value, Kind.ERROR)
        if look.is_date:
            return self._date_cell(float(value), look, is_formula=is_formula)
        text = value if _WHOLE.fullmatch(value) else number_text(float(value))
        return number_cell(text, look.shown(text), is_idle=is_formula and text == "0")

    def _date_cell(self, days: float, look: NumberFormat, *, is_formula: bool) -> Cell:
        if look.is_time and days >= 0:
            text = clock_text(days if look.is_elapsed else days % 1)
        else:
            text = self._moment(days) or number_text(days)
        return Cell(text, Kind.DATE, is_idle=is_formula and days == 0)

    def _moment(self, days: float) -> str | None:
        if self._context.epoch == _EPOCH and _NO_DAY_OF_1900 <= days < _FIRST_MARCH_1900:
            return None
        is_too_many = self._context.epoch == _EPOCH and 1 <= days < _FIRST_MARCH_1900
        return moment_text(days + is_too_many, self._context.epoch)


def _formats(styles: ElementTree.Element) -> list[NumberFormat]:
    """Return the number format of each style that cells refer to by number."""
    codes = {
        element.attrib["numFmtId"]: NumberFormat(element.attrib["formatCode"])
        # The formats of conditions have numbers of their own.
        for group in _all(styles, "numFmts")
        for element in _all(group, "numFmt")
    }
    used = [cell.get("numFmtId", "0") for group in _all(styles, "cellXfs") for cell in _all(group, "xf")]
    return [codes.get(number) or built_in(int(number)) for number in used]


def _struck(styles: ElementTree.Element) -> list[bool]:
    """Return for each style that cells refer to by number whether its font is struck out."""
    fonts = [_strikes(font) for group in _all(styles, "fonts") for font in _all(group, "font")]
    used = [int(cell.get("fontId", 0)) for group in _all(styles, "cellXfs") for cell in _all(group, "xf")]
    return [font < len(fonts) and fonts[font] for font in used]


def _strikes(element: ElementTree.Element) -> bool:
    """Return whether a font, or what has one, strikes out."""
    return any(_is_true(strike.get("val", "1")) for strike in _all(element, "strike"))


def _unescaped(text: str) -> str:
    """Return a text without the escapes for characters that XML cannot hold, such as _x000D_ (carriage return)."""
    if "_x" not in text:
        return text
    text = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
    # Two escapes may be the halves of one character.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _address(reference: str) -> tuple[int, int]:
    """Return the column, from 0, and the row, from 1, of a reference such as ``C7``."""
    match = re.fullmatch(r"\$?([A-Za-z]{1,3})\$?([0-9]{1,7})", reference)
    if not match:
        raise DamagedError(f"'{reference}' is no cell")
    column = 0
    for letter in match[1].upper():
        column = 26 * column + ord(letter) - ord("A") + 1
    if column > _MAX_COLUMN:
        raise DamagedError(f"'{reference}' is no cell")
    return column - 1, int(match[2])


def _parser() -> expat.XMLParserType:
    parser = expat.ParserCreate()
    parser.buffer_text = True
    return parser


def _all(root: ElementTree.Element, name: str) -> Iterable[ElementTree.Element]:
    return (element for element in root.iter() if _local(str(element.tag)) == name)


def _runs(element: ElementTree.Element) -> Iterator[tuple[str, str, bool]]:
    """Return the runs of a text, see :func:`.cells.marked_text`, but not its phonetic hints."""
    for child in element:
        match _local(child.tag):
            case "t":
                yield _unescaped(child.text or ""), "", False
            case "r":
                text = "".join(each.text or "" for each in child if _local(each.tag) == "t")
                marks = (_MARKS.get(each.get("val"), "") for each in _all(child, "vertAlign"))
                yield _unescaped(text), next(marks, ""), _strikes(child)


def _local(name: str) -> str:
    """Return an element's name without its prefix or namespace."""
    return name.rpartition("}")[2].rpartition(":")[2]


def _part(path: str) -> str:
    return path.replace("\\", "/").lstrip("/").casefold()


def _is_true(value: str | None) -> bool:
    return value in ("1", "true")


def _is_zero(size: str | None) -> bool:
    return size is not None and float(size) == 0
