"""What Excel shows of a number, by the cell's number format.

Source: ECMA-376 part 1, 18.8.30 (numFmt) and 18.8.31 (numFmts).
"""

import operator
import re
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cached_property

from ca_biositing.pipeline.sources.cells import general_text

GENERAL = "General"
# Formats that files name by their number only. Those of dates are the same in no two languages, but are dates in all.
_BUILT_IN = {
    0: GENERAL,
    1: "0",
    2: "0.00",
    3: "#,##0",
    4: "#,##0.00",
    9: "0%",
    10: "0.00%",
    11: "0.00E+00",
    12: "# ?/?",
    13: "# ??/??",
    37: "#,##0;(#,##0)",
    38: "#,##0;(#,##0)",
    39: "#,##0.00;(#,##0.00)",
    40: "#,##0.00;(#,##0.00)",
    48: "##0.0E+0",
    49: "@",
    **dict.fromkeys([*range(14, 18), 22, *range(27, 37), *range(50, 59), *range(71, 82)], "yyyy-mm-dd"),
    **dict.fromkeys([*range(18, 22), 45, 47], "h:mm"),
    46: "[h]:mm:ss",
}
_TOKEN = re.compile(
    r"""
      "(?P<quoted>[^"]*)"? | \\(?P<escaped>.) | _(?P<space>.) | \*(?P<fill>.)
    | (?P<numerals>\[(?:DBNum[0-9]|\$[^\]-]*-(?:0?[2-9A-F]|[1-9A-F][0-9A-F])[0-9A-F]{6})\])
    | \[\$(?P<currency>[^\]-]*)[^\]]*\] | \[(?P<elapsed>h+|m+|s+)\]
    | \[(?P<condition>(?:<>|[<>]=?|=)-?[0-9]+(?:\.[0-9]+)?)\] | \[(?P<colour>[^\]]*)\]
    | (?P<general>General) | (?P<exponent>E[+-]) | (?P<date>[ymdhsgeba]+(?:/p)?)
    | (?P<digit>[0#?]) | (?P<point>\.) | (?P<comma>,) | (?P<percent>%) | (?P<text>@)
    | (?P<fraction>/) | (?P<next>;) | (?P<other>.)
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
# Of these only Excel knows what it shows; the numerals are those of other scripts.
_UNKNOWN = {"exponent", "fraction", "numerals"}
_COMPARISONS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "<>": operator.ne,
}

Token = tuple[str, str]


@dataclass(frozen=True)
class NumberFormat:
    """A cell's number format, by its code; None is a format that is not known."""

    code: str | None

    @cached_property
    def is_date(self) -> bool:
        """Return whether it shows a number as a date or a time."""
        return any(kind in ("date", "elapsed") for section in self._sections for kind, _ in section)

    @cached_property
    def is_time(self) -> bool:
        """Return whether it shows only a time of a date and time."""
        tokens = [token for section in self._sections for token in section]
        letters = {letter for kind, text in tokens if kind == "date" for letter in text.lower()}
        return not letters & set("ydgeb") and (bool(letters & set("hs")) or self.is_elapsed)

    @cached_property
    def is_elapsed(self) -> bool:
        """Return whether it shows all hours, minutes or seconds, also those of whole days."""
        return any(kind == "elapsed" for section in self._sections for kind, _ in section)

    @cached_property
    def text_section(self) -> list[Token] | None:
        """Return the section that shows texts; None if it shows them as they are."""
        last = self._sections[:4][-1] if self._sections else []
        if len(self._sections) < 4 and ("text", "@") not in last:
            return None
        plain = {"text", "general", "colour", "space", "fill"}
        is_plain = any(kind == "text" for kind, _ in last) and all(kind in plain for kind, _ in last)
        return None if is_plain else last

    def shown_text(self, text: str) -> str:
        """Return what people see of a text."""
        return text if self.text_section is None else _literals(self.text_section, text)

    def shown(self, number: str) -> str | None:
        """Return what people see of a number, given by its text; None if that is not known.

        Spaces at the ends, which align columns, are not included.
        """
        if self.code == GENERAL:
            return general_text(number)
        value = Decimal(number)
        position = self._position(value)
        if position is None:
            return None
        section = self._sections[position]
        if any(kind in _UNKNOWN for kind, _ in section):
            return None
        if any(kind in ("general", "text") for kind, _ in section):
            text = general_text(number.removeprefix("-") if position == 1 else number)
            return None if text is None else _literals(section, text)
        sign = "-" if value < 0 and position == 0 else ""
        return (sign + _digits(section, abs(value))).strip()

    def _position(self, value: Decimal) -> int | None:
        """Return which section shows a number; None if only Excel knows it."""
        sections = self._sections[:3]
        if len(sections) > 1 and ("text", "@") in sections[-1]:
            sections.pop()
        conditions = [next((text for kind, text in section if kind == "condition"), "") for section in sections]
        if not any(conditions):
            position = 0 if value > 0 or len(sections) == 1 else 1 if value < 0 else 2
            return (position if position < len(sections) else 0) if sections else None
        if value < 0 or not all(conditions[:-1]):
            return None
        return next((index for index, each in enumerate(conditions) if not each or _holds(each, value)), None)

    @cached_property
    def _sections(self) -> list[list[Token]]:
        if self.code is None:
            return []
        sections: list[list[Token]] = [[]]
        for found in _TOKEN.finditer(self.code):
            kind = found.lastgroup or ""
            if kind == "next":
                sections.append([])
            else:
                sections[-1].append((kind, found[kind]))
        return sections


def built_in(number: int) -> NumberFormat:
    """Return the format that files name by this number."""
    return NumberFormat(_BUILT_IN.get(number))


def _holds(condition: str, value: Decimal) -> bool:
    number = condition.lstrip("<>=")
    return bool(_COMPARISONS[condition.removesuffix(number)](value, Decimal(number)))


def _literal(token: Token) -> str:
    kind, text = token
    match kind:
        case "space":
            return " "
        case "fill" | "colour" | "comma" | "condition":
            return ""
        case _:
            return text


def _literals(section: list[Token], number: str) -> str:
    shown = (number if token[0] in ("general", "text") else _literal(token) for token in section)
    return "".join(shown).strip()


def _digits(section: list[Token], value: Decimal) -> str:
    """Return a positive number laid out over the placeholders of a section."""
    places = [index for index, (kind, _) in enumerate(section) if kind == "digit"]
    if not places:
        return "".join(map(_literal, section))
    point = next((index for index, (kind, _) in enumerate(section) if kind == "point"), places[-1] + 1)
    whole = [index for index in places if index < point]
    decimals = [index for index in places if index > point]
    commas = [index for index, (kind, _) in enumerate(section) if kind == "comma"]
    last = max(whole, default=point - 1)
    grouped = any(whole and whole[0] < index < last for index in commas)
    # Commas behind the last placeholder divide by a thousand each.
    scale = sum(index > last for index in commas if index <= point or not decimals) + sum(
        index > decimals[-1] for index in commas if decimals
    )
    percents = sum(kind == "percent" for kind, _ in section)
    scaled = value.scaleb(2 * percents - 3 * scale)
    rounded = scaled.quantize(Decimal(1).scaleb(-len(decimals)), ROUND_HALF_UP)
    left, _, right = f"{rounded:f}".partition(".")
    shown = [_literal(token) for token in section]
    _lay_whole(shown, section, whole, "" if left == "0" else left, grouped=grouped)
    _lay_decimals(shown, section, decimals, right)
    if not whole and left != "0":
        shown[point] = left + shown[point]
    return "".join(shown)


def _lay_whole(shown: list[str], section: list[Token], places: list[int], digits: str, *, grouped: bool) -> None:
    rest, count = digits, 0
    for index in reversed(places):
        # The first place has room for all that is left.
        taken = rest if index == places[0] else rest[-1:]
        rest = rest[: len(rest) - len(taken)]
        shown[index] = ""
        for digit in reversed(taken or {"0": "0", "?": " "}.get(section[index][1], "")):
            comma = "," if grouped and digit != " " and count and count % 3 == 0 else ""
            shown[index] = digit + comma + shown[index]
            count += 1


def _lay_decimals(shown: list[str], section: list[Token], places: list[int], digits: str) -> None:
    is_end = True
    for index, digit in reversed([*zip(places, digits, strict=True)]):
        optional = section[index][1]
        is_end = is_end and digit == "0" and optional != "0"
        shown[index] = {"?": " "}.get(optional, "") if is_end else digit
