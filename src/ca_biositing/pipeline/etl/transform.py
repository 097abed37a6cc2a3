"""Transform: cells as people typed them into text that compares."""

import unicodedata

import polars as pl

# Pasted text carries them, and nobody sees them.
_INVISIBLE = (
    "[\N{ZERO WIDTH SPACE}\N{WORD JOINER}\N{ZERO WIDTH NO-BREAK SPACE}\N{LEFT-TO-RIGHT MARK}\N{RIGHT-TO-LEFT MARK}]"
)
# Most cells are clean: finding the others first makes it several times faster.
_UNTIDY = "^$|^ |  | $|[^ -~]"


def clean(cells: pl.Series) -> pl.Series:
    """Return the texts in Unicode NFC, trimmed, each run of white space (no-break too) as one space, empty as null."""
    untidy = cells.str.contains(_UNTIDY).fill_null(value=False)
    if not untidy.any():
        return cells
    text = pl.col("text").str.replace_all(_INVISIBLE, "").str.normalize("NFC")
    text = text.str.replace_all(r"\s+", " ").str.strip_chars(" ")
    tidy = cells.filter(untidy).to_frame("text").select(pl.when(text != "").then(text)).to_series()
    return cells.scatter(untidy.arg_true(), tidy)


def fold(cells: pl.Series) -> pl.Series:
    """Return the texts' keys: equal where the texts differ in nothing but case."""
    # Polars lowers, which is not Unicode's case folding. Most cells repeat: each text is folded once.
    texts = cells.drop_nulls().unique()
    # Folding can undo the normal form.
    keys = [unicodedata.normalize("NFC", text.casefold()) for text in texts]
    return cells.replace_strict(texts, pl.Series(keys, dtype=pl.String), default=None, return_dtype=pl.String)
