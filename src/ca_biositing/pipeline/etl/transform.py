"""Transform: cells as people typed them into values as the database keeps them."""

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DistinctNames:
    """The distinct names of a column.

    ``names`` maps each name's key to its spelling, in the column's order. Cells are counted so that
    ``read == len(names) + duplicates + empty``.
    """

    names: Mapping[str, str]
    read: int
    duplicates: int
    empty: int


def clean(text: str) -> str:
    """Return the text in Unicode NFC, trimmed, each run of white space (no-break too) as one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def distinct_names(cells: Iterable[str]) -> DistinctNames:
    """Return the distinct names among the cells.

    A cell is cleaned (see :func:`clean`); names whose casefolded text is equal are one name, spelt
    as where it first occurs in the column. So the same worksheet always gives the same names, and
    moving a row up may change a spelling, never the set of names. Cells with nothing but white
    space are no name, and are counted as empty.
    """
    names: dict[str, str] = {}
    read = empty = 0
    for cell in cells:
        read += 1
        if name := clean(cell):
            # Casefolding can undo the normal form.
            names.setdefault(unicodedata.normalize("NFC", name.casefold()), name)
        else:
            empty += 1
    return DistinctNames(names, read=read, duplicates=read - empty - len(names), empty=empty)
