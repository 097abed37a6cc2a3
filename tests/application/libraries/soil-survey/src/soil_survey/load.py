"""Sites and horizons, from a CSV into the database."""

import csv
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from soil_units import Depth, UnitError, parse_bulk_density, parse_depth
from sqlalchemy import Boolean, Connection, Integer, literal_column
from sqlalchemy.dialects.postgresql import insert

from soil_survey.models import Base, Horizon, Site


class SitesError(Exception):
    """The CSV cannot be loaded; the message says where and why."""


class Record(NamedTuple):
    """A row of the CSV: one horizon of a site."""

    site: str
    location: str
    depth: Depth
    bulk_density: float


def read(path: Path) -> list[Record]:
    """Return the rows of a CSV with the columns site, latitude, longitude (degrees), depth and bulk_density.

    Raises:
        SitesError: the file or a row cannot be read.

    """
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            return [_record(path, number, row) for number, row in enumerate(csv.DictReader(lines, restval=""), start=2)]
    except OSError as error:
        raise SitesError(f"{path} cannot be read: {error.strerror}") from error


def load(connection: Connection, records: Iterable[Record]) -> str:
    """Upsert the records; return the counts, such as "10 sites (10 new), 22 horizons (22 new)"."""
    inserted = {Site: Counter[bool](), Horizon: Counter[bool]()}
    sites: dict[str, int] = {}
    for record in records:
        if record.site not in sites:
            values: dict[str, Any] = {"name": record.site, "location": record.location}
            sites[record.site], new = _upsert(connection, Site, ["name"], values)
            inserted[Site][new] += 1
        values = {"site_id": sites[record.site], "top_cm": record.depth.top, "bottom_cm": record.depth.bottom}
        _, new = _upsert(connection, Horizon, ["site_id", "top_cm"], values | {"bulk_density": record.bulk_density})
        inserted[Horizon][new] += 1
    return ", ".join(f"{n.total()} {table.__tablename__}s ({n[True]} new)" for table, n in inserted.items())


def _record(path: Path, number: int, row: dict[str, str]) -> Record:
    try:
        location = f"SRID=4326;POINT({float(row['longitude'])} {float(row['latitude'])})"
        return Record(row["site"], location, parse_depth(row["depth"]), parse_bulk_density(row["bulk_density"]))
    except KeyError as error:
        raise SitesError(f"{path} has no column {error}") from error
    except (UnitError, ValueError) as error:
        raise SitesError(f"{path}, row {number}: {error}") from error


def _upsert(connection: Connection, table: type[Base], key: list[str], values: dict[str, Any]) -> tuple[int, bool]:
    """Upsert a row; return its id, and whether it is new."""
    statement = insert(table).values(values).on_conflict_do_update(index_elements=key, set_=values)
    # xmax is 0 if no transaction has updated or deleted the row: it was inserted just now.
    new = literal_column("xmax = 0", Boolean).label("new")
    row = connection.execute(statement.returning(literal_column("id", Integer), new)).one()
    return row.id, row.new
