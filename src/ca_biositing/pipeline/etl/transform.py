"""Transform: normalize cells as typed, so that equal texts compare equal."""

import re
import unicodedata

import polars as pl

# Characters that are not shown (Unicode's Default_Ignorable_Code_Point, and marks of annotations): direction marks,
# joiners, variation selectors, soft hyphens, fillers.
_INVISIBLE = (
    r"[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    r"\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# White space, and a blank Braille cell. Not U+0085, which is a letter's or a mark's byte in a wrong code page.
_SPACES = r"[\s\x{2800}--\x{85}]+"
# Characters that look the same in all fonts.
_HYPHENS = "[\N{HYPHEN}\N{NON-BREAKING HYPHEN}]"
_MU = "\N{GREEK SMALL LETTER MU}"
_GREEK = rf"[\p{{Greek}}--{_MU}\x{{3A9}}]"  # not the ohm, which NFC makes an omega
# Programs write texts so that Excel does not take them for numbers: ="0017".
_TEXT_AS_FORMULA = r'^\s*="((?:[^"]|"")*)"\s*$'
# Most cells are clean: selecting the others first makes cleaning several times faster.
_UNTIDY = '^$|^ |  | $|[^ -~]|^="'


_BLANK = re.compile(rf"(?:{_INVISIBLE}|[\s\u2800])*")


def is_blank(text: str) -> bool:
    """Return whether people see nothing of a text."""
    return not text or _BLANK.fullmatch(text) is not None


def clean(cells: pl.Series) -> pl.Series:
    """Return the texts as people see them: NFC, trimmed, white space as one space, nothing invisible, empty as null."""
    untidy = cells.str.contains(_UNTIDY).fill_null(value=False)
    if not untidy.any():
        return cells
    text = cells.filter(untidy).str.replace_all(_INVISIBLE, "").str.normalize("NFC").str.replace_all(_HYPHENS, "-")
    written = text.str.extract(_TEXT_AS_FORMULA, 1).str.replace_all('""', '"', literal=True)
    text = written.zip_with(written.is_not_null(), text)
    # Keyboards type the micro sign; beside other Greek letters, a mu is one of them.
    micro = text.str.replace_all(_MU, "\N{MICRO SIGN}", literal=True)
    text = text.zip_with(text.str.contains(_GREEK), micro)
    text = text.str.replace_all(_SPACES, " ").str.strip_chars(" ")
    return cells.scatter(untidy.arg_true(), text.set(text == "", None))


def fold(cells: pl.Series) -> pl.Series:
    """Return the texts' case-folded keys: texts that differ only in case have equal keys."""
    # Polars only lowercases, which is not case folding. Most cells repeat, so each distinct text is folded once.
    texts = cells.drop_nulls().unique()
    # Case folding does not preserve NFC.
    keys = [unicodedata.normalize("NFC", text.casefold()) for text in texts]
    return cells.replace_strict(texts, pl.Series(keys, dtype=pl.String), default=None, return_dtype=pl.String)
