"""Sites. PostGIS must exist: only a superuser can create it."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import UserDefinedType

revision: str = "0001"
down_revision: str | Sequence[str] | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


class _Point(UserDefinedType[str]):
    def get_col_spec(self, **_keywords: object) -> str:
        return "geometry(Point,4326)"


def upgrade() -> None:
    op.create_table(
        "site",
        sa.Column("id", sa.Integer(), sa.Identity(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("location", _Point(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_site"),
        sa.UniqueConstraint("name", name="uq_site_name"),
    )


def downgrade() -> None:
    op.drop_table("site")
