"""Depths and bulk densities as soil surveys write them, in the units that soil science computes in."""

import re
from typing import NamedTuple

_CENTIMETRES = {"cm": 1.0, "in": 2.54}
_GRAMS_PER_CUBIC_CENTIMETRE = {"g/cm3": 1.0, "kg/m3": 0.001, "lb/ft3": 0.01601846}


class UnitError(ValueError):
    """A text is not a quantity; the message says what was expected."""


class Depth(NamedTuple):
    """The extent of a horizon below the surface, in cm."""

    top: float
    bottom: float


def parse_depth(text: str) -> Depth:
    """Return the depth in a text such as "0-25 cm" or "10-22 in".

    Raises:
        UnitError: there is none, or its bottom is not below its top.

    """
    match = re.fullmatch(r"\s*([\d.]+)\s*-\s*([\d.]+)\s*(\w+)\s*", text)
    if not match:
        raise UnitError(f"{text!r} is not a depth such as '0-25 cm'")
    factor = _factor(match[3], _CENTIMETRES)
    depth = Depth(round(_number(match[1]) * factor, 2), round(_number(match[2]) * factor, 2))
    if depth.top >= depth.bottom:
        raise UnitError(f"{text!r} ends above where it begins")
    return depth


def parse_bulk_density(text: str) -> float:
    """Return the bulk density, in g/cm³, in a text such as "1.35 g/cm3", "1350 kg/m3" or "84 lb/ft3".

    Raises:
        UnitError: there is none.

    """
    number, _, unit = text.strip().partition(" ")
    return round(_number(number) * _factor(unit.strip(), _GRAMS_PER_CUBIC_CENTIMETRE), 3)


def _number(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise UnitError(f"{text!r} is not a number")
    return float(text)


def _factor(unit: str, factors: dict[str, float]) -> float:
    if unit not in factors:
        raise UnitError(f"{unit!r} is not a unit known here: {', '.join(factors)}")
    return factors[unit]
