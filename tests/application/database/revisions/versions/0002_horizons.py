"""Horizons of the sites."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | Sequence[str] | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "horizon",
        sa.Column("id", sa.Integer(), sa.Identity(), nullable=False),
        sa.Column("site_id", sa.Integer(), nullable=False),
        sa.Column("top_cm", sa.Double(), nullable=False),
        sa.Column("bottom_cm", sa.Double(), nullable=False),
        sa.Column("bulk_density", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_horizon"),
        sa.ForeignKeyConstraint(["site_id"], ["site.id"], name="fk_horizon_site_id_site"),
        sa.UniqueConstraint("site_id", "top_cm", name="uq_horizon_site_id_top_cm"),
        sa.CheckConstraint("bottom_cm > top_cm", name="ck_horizon_depth"),
    )


def downgrade() -> None:
    op.drop_table("horizon")
