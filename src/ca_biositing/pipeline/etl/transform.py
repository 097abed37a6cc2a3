"""Transform: normalize cells as typed, so that equal texts compare equal."""

import unicodedata

import polars as pl

# Invisible characters that pasted text often contains.
_INVISIBLE = (
    "[\N{ZERO WIDTH SPACE}\N{WORD JOINER}\N{ZERO WIDTH NO-BREAK SPACE}\N{LEFT-TO-RIGHT MARK}\N{RIGHT-TO-LEFT MARK}]"
)
# Most cells are clean: selecting the others first makes cleaning several times faster.
_UNTIDY = "^$|^ |  | $|[^ -~]"


def clean(cells: pl.Series) -> pl.Series:
    """Return the texts in Unicode NFC, trimmed, runs of white space (also no-break) as one space, empty as null."""
    untidy = cells.str.contains(_UNTIDY).fill_null(value=False)
    if not untidy.any():
        return cells
    text = pl.col("text").str.replace_all(_INVISIBLE, "").str.normalize("NFC")
    text = text.str.replace_all(r"\s+", " ").str.strip_chars(" ")
    tidy = cells.filter(untidy).to_frame("text").select(pl.when(text != "").then(text)).to_series()
    return cells.scatter(untidy.arg_true(), tidy)


def fold(cells: pl.Series) -> pl.Series:
    """Return the texts' case-folded keys: texts that differ only in case have equal keys."""
    # Polars only lowercases, which is not case folding. Most cells repeat, so each distinct text is folded once.
    texts = cells.drop_nulls().unique()
    # Case folding does not preserve NFC.
    keys = [unicodedata.normalize("NFC", text.casefold()) for text in texts]
    return cells.replace_strict(texts, pl.Series(keys, dtype=pl.String), default=None, return_dtype=pl.String)
