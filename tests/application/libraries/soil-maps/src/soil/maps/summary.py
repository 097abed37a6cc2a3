"""The materialized view report.deepest: for each site its deepest horizon."""

from sqlalchemy import Connection, text


def refresh(connection: Connection) -> None:
    """Bring the view up to date, while others may read it, and let the planner know the tables."""
    connection.execute(text("REFRESH MATERIALIZED VIEW CONCURRENTLY report.deepest"))
    connection.execute(text("ANALYZE site, horizon"))


def deepest(connection: Connection) -> tuple[str, float] | None:
    """Return the site with the deepest horizon, and how deep it is in cm; None if there is none."""
    row = connection.execute(
        text("SELECT name, bottom_cm FROM report.deepest ORDER BY bottom_cm DESC LIMIT 1")
    ).one_or_none()
    return (row[0], row[1]) if row else None
