"""Reports on all sites."""

from sqlalchemy import Connection, text

_FARTHEST = text("""
    SELECT a.name, b.name, ST_Distance(geography(a.location), geography(b.location)) / 1000 AS km
    FROM site AS a JOIN site AS b ON a.id < b.id
    ORDER BY km DESC LIMIT 1
""")


def farthest(connection: Connection) -> tuple[str, str, float] | None:
    """Return the two sites that are farthest apart, and their distance in km; None if there are fewer than two."""
    row = connection.execute(_FARTHEST).one_or_none()
    return (row[0], row[1], row[2]) if row else None
