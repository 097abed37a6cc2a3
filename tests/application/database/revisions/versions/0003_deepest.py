"""A materialized view in a schema of its own, which a flow refreshes."""

from collections.abc import Sequence

from alembic import op

revision: str = "0003"
down_revision: str | Sequence[str] | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.execute("CREATE SCHEMA report")
    op.execute("""
        CREATE MATERIALIZED VIEW report.deepest AS
        SELECT site.id, name, ST_Y(location) AS latitude, max(bottom_cm) AS bottom_cm
          FROM site JOIN horizon ON site_id = site.id GROUP BY site.id
    """)
    # Without it, the view cannot be refreshed concurrently.
    op.execute("CREATE UNIQUE INDEX uq_deepest_id ON report.deepest (id)")


def downgrade() -> None:
    op.execute("DROP SCHEMA report CASCADE")
