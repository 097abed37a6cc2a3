"""The declaration of a flow's data: which worksheets are loaded into which table."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sqlalchemy import Column, Table, UniqueConstraint

from ca_biositing.datamodels.models import Record
from ca_biositing.pipeline.etl.fields import Field
from ca_biositing.pipeline.sources import ExtractError, Source
from ca_biositing.pipeline.sources.base import nearest, original, quoted


@dataclass(frozen=True)
class Dataset:
    """Worksheets of a sheet, and the table that their rows are loaded into.

    ``worksheets`` is the worksheet's name, or a pattern such as ``03.[1-9]*`` for several. ``columns`` maps each
    header to the kind of its cells; a cell may be empty where the table's column may be null.
    """

    name: str
    sheet: str
    worksheets: str
    columns: Mapping[str, Field]
    model: type[Record]

    def __post_init__(self) -> None:
        """Reject, when the module is imported, a declaration with which every load would fail."""
        columns = self.table.columns
        if unknown := self.filled.keys() - columns.keys():
            raise ValueError(f"{self.name}: {self.table} has no column {', '.join(sorted(unknown))}")
        required = {
            column.name for column in columns if not (column.nullable or column.identity or column.server_default)
        }
        if unfilled := required - self.filled.keys():
            raise ValueError(f"{self.name}: no cell fills {', '.join(sorted(unfilled))} of {self.table}")
        keys = sum(isinstance(each, UniqueConstraint) for each in self.table.constraints)
        if keys != 1:
            raise ValueError(f"{self.name}: {self.table} has {keys} unique constraints; one is its natural key")

    @property
    def table(self) -> Table:
        """Return the table."""
        table = self.model.__table__
        assert isinstance(table, Table)  # noqa: S101 - declarative models map tables, which their type does not say
        return table

    @property
    def natural_key(self) -> Sequence[Column[object]]:
        """Return the columns of the table's one unique constraint."""
        (key,) = (each for each in self.table.constraints if isinstance(each, UniqueConstraint))
        return list(key.columns)

    @property
    def key(self) -> "Dataset":
        """Return the part of the dataset that fills the natural key."""
        names = {column.name for column in self.natural_key}
        return self.part([header for header, field in self.columns.items() if names.intersection(field.fills())])

    def part(self, headers: Collection[str]) -> "Dataset":
        """Return the dataset with only some of its columns: its rows can be validated, and not loaded."""
        columns = {header: field for header, field in self.columns.items() if header in headers}
        return _Part(self.name, self.sheet, self.worksheets, columns, self.model)

    @property
    def filled(self) -> Mapping[str, str]:
        """Return the names of the table's columns that cells fill, each with the header of those cells."""
        return {name: header for header, field in self.columns.items() for name in field.fills()}

    @property
    def loaded_columns(self) -> Sequence[Column[object]]:
        """Return the table's columns that cells fill, in the table's order."""
        return [column for column in self.table.columns if column.name in self.filled]

    def is_required(self, field: Field) -> bool:
        """Return whether a cell of this kind must not be empty."""
        return not self.table.c[field.column].nullable

    @property
    def example(self) -> str:
        """Return a name that the worksheet may have: ``03.1-name`` for the pattern ``03.[1-9]*-*``."""
        return re.sub(r"\[(.).*?\]\*?|\*", lambda found: found[1] or "name", self.worksheets)

    @property
    def such_as(self) -> str:
        """Return the worksheet's name, in quotes; of a pattern, a name that matches it, and the pattern."""
        is_name = self.is_named(self.worksheets)
        pattern = "" if is_name else f", with any text for 'name' (the pattern is {self.worksheets})"
        return f"'{self.example}'{pattern}"

    def name_for(self, worksheet: str, present: Collection[str]) -> str:
        """Return a name that is read, and that no worksheet has yet, for a worksheet that is named wrong.

        Of a pattern, ``03.1-Ash`` for ``03.1 Ash`` and for ``Ash``.
        """
        candidates = (_with_dash(worksheet), self.example.replace("name", worksheet.strip()))
        return next((each for each in candidates if self.is_named(each) and each not in present), self.example)

    def worksheets_in(self, source: Source) -> Sequence[str]:
        """Return the names of the worksheets that the source has.

        Raises:
            ExtractError: the sheet is missing, has no such worksheet, or has one and a copy of it.

        """
        present = source.worksheets(self.sheet)
        names = [name for name in present if self.is_named(name)]
        if not names:
            found = f"Present: {quoted(sorted(present))}" if present else "There is no worksheet at all"
            near = nearest(self.worksheets, present)
            if not self.is_named(self.worksheets):
                what = f"Sheet '{self.sheet}' has no worksheet such as {self.such_as}"
                near = next((each for each in present if self.is_named(_with_dash(each))), None)
                advice = f"Rename '{near}' to '{_with_dash(near)}', and so on" if near else "Name the worksheets so"
            else:
                what = f"Worksheet '{self.worksheets}' of sheet '{self.sheet}' is missing"
                advice = f"Rename '{near}' to '{self.worksheets}', if it is that one" if near else "Name it so"
            raise ExtractError(f"{what}. {found}. {advice}")
        if copies := {each: of for each in names if (of := original(each, names))}:
            found = ", ".join(f"'{copy}' of '{of}'" for copy, of in copies.items())
            raise ExtractError(
                f"Sheet '{self.sheet}' has copies of worksheets, by their names: {found}. Of each pair, delete the one "
                "that does not count; if both do, rename the copy, without a number in parentheses"
            )
        return names

    def is_named(self, worksheet: str) -> bool:
        """Return whether the name of a worksheet is one of those of the dataset."""
        return fnmatchcase(worksheet, self.worksheets)


def _with_dash(name: str) -> str:
    """Return the name of a worksheet with a dash in place of the first space or similar."""
    return re.sub(r"\s*[\s_\u2013\u2014-]\s*", "-", name.strip(), count=1)


class _Part(Dataset):
    """A dataset without some of its columns."""

    def __post_init__(self) -> None:
        """Accept that the columns do not fill the table."""
