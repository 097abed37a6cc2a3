"""Load: what was transformed, into biocirv_db."""

import csv
import io
from contextlib import closing
from dataclasses import dataclass

from sqlalchemy import Engine, column, select, table, text
from sqlalchemy.dialects.postgresql import insert

from ca_biositing.datamodels.models import NamedRecord
from ca_biositing.pipeline.etl.transform import DistinctNames

_STAGING = table("staging", column("name"), column("name_key"))


@dataclass(frozen=True)
class LoadCounts:
    """What became of a worksheet's rows: ``read == inserted + unchanged + duplicates + empty``.

    ``unchanged`` names were in the table before, ``duplicates`` are further rows with a name that
    the worksheet has already given, ``empty`` cells hold no name.
    """

    read: int
    inserted: int
    unchanged: int
    duplicates: int
    empty: int

    def __str__(self) -> str:
        """Return the counts as a line for the log."""
        return (
            f"read {self.read} = inserted {self.inserted} + unchanged {self.unchanged} "
            f"+ duplicates {self.duplicates} + empty {self.empty}"
        )


def load_names(engine: Engine, model: type[NamedRecord], distinct: DistinctNames) -> LoadCounts:
    """Insert the names that the table does not have, all of them or none, and count.

    A name that is already there keeps its row and its spelling. Several loads at once are safe.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database cannot be reached, or refuses.

    """
    rows = io.StringIO()
    csv.writer(rows).writerows((name, key) for key, name in distinct.names.items())
    rows.seek(0)
    new_rows = (
        insert(model)
        # In one order everywhere: two loads at once then wait for each other instead of deadlocking.
        .from_select(["name", "name_key"], select(_STAGING).order_by(_STAGING.c.name_key))
        .on_conflict_do_nothing(index_elements=["name_key"])
        .execution_options(preserve_rowcount=True)
    )
    with engine.begin() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE staging (name text, name_key text) ON COMMIT DROP"))
        with closing(connection.connection.cursor()) as cursor:
            cursor.copy_expert("COPY staging FROM STDIN (FORMAT csv)", rows)
        inserted = connection.execute(new_rows).rowcount
    return LoadCounts(
        read=distinct.read,
        inserted=inserted,
        unchanged=len(distinct.names) - inserted,
        duplicates=distinct.duplicates,
        empty=distinct.empty,
    )
