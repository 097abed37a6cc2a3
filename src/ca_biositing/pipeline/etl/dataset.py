"""The declaration of a flow's data: which worksheets are loaded into which table."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sqlalchemy import Column, Table, UniqueConstraint

from ca_biositing.datamodels.models import Record
from ca_biositing.pipeline.etl.fields import Field
from ca_biositing.pipeline.sources import ExtractError, Source
from ca_biositing.pipeline.sources.base import nearest, quoted


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
        pattern = "" if self.is_named(self.worksheets) else f" (the pattern is {self.worksheets})"
        return f"'{self.example}'{pattern}"

    def worksheets_in(self, source: Source) -> Sequence[str]:
        """Return the names of the worksheets that the source has.

        Raises:
            ExtractError: the sheet is missing, or has no such worksheet.

        """
        present = source.worksheets(self.sheet)
        names = [name for name in present if self.is_named(name)]
        if not names:
            found = f"Present: {quoted(sorted(present))}" if present else "There is no worksheet at all"
            near = nearest(self.worksheets, present)
            if not self.is_named(self.worksheets):
                what = f"Sheet '{self.sheet}' has no worksheet such as {self.such_as}"
                advice = "Name the worksheets so"
            else:
                what = f"Worksheet '{self.worksheets}' of sheet '{self.sheet}' is missing"
                advice = f"Rename '{near}' to '{self.worksheets}', if it is that one" if near else "Name it so"
            raise ExtractError(f"{what}. {found}. {advice}")
        return names

    def is_named(self, worksheet: str) -> bool:
        """Return whether the name of a worksheet is one of those of the dataset."""
        return fnmatchcase(worksheet, self.worksheets)


class _Part(Dataset):
    """A dataset without some of its columns."""

    def __post_init__(self) -> None:
        """Accept that the columns do not fill the table."""
