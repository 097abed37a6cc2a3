"""Field samples, experiments and observations; the accounting of ETL runs."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | Sequence[str] | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "etl_run",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("flow", sa.Text(), nullable=False),
        sa.Column("flow_run_id", sa.Uuid(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("read", sa.Integer(), server_default="0", nullable=False),
        sa.Column("inserted", sa.Integer(), server_default="0", nullable=False),
        sa.Column("updated", sa.Integer(), server_default="0", nullable=False),
        sa.Column("unchanged", sa.Integer(), server_default="0", nullable=False),
        sa.Column("rejected", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint("(status = 'running') = (finished_at IS NULL)", name=op.f("ck_etl_run_finished")),
        sa.CheckConstraint("status = 'completed' OR read = 0", name=op.f("ck_etl_run_nothing_half_loaded")),
        sa.CheckConstraint("status IN ('running', 'completed', 'failed')", name=op.f("ck_etl_run_status")),
        sa.CheckConstraint("least(inserted, updated, unchanged, rejected) >= 0", name=op.f("ck_etl_run_counts")),
        sa.CheckConstraint("read = inserted + updated + unchanged + rejected", name=op.f("ck_etl_run_accounting")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_etl_run")),
        sa.UniqueConstraint("flow_run_id", name=op.f("uq_etl_run_flow_run_id")),
    )
    op.create_index("ix_etl_run_flow_started_at", "etl_run", ["flow", "started_at"], unique=False)
    op.create_table(
        "experiment",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("name_key", sa.Text(), nullable=False),
        sa.Column("analysis_type_id", sa.Integer(), nullable=True),
        sa.Column("start_date", sa.Date(), nullable=True),
        sa.Column("analyst", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["analysis_type_id"], ["analysis_types.id"], name=op.f("fk_experiment_analysis_type_id_analysis_types")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_experiment")),
        sa.UniqueConstraint("name_key", name=op.f("uq_experiment_name_key")),
    )
    op.create_index(op.f("ix_experiment_analysis_type_id"), "experiment", ["analysis_type_id"], unique=False)
    op.create_table(
        "field_sample",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("name_key", sa.Text(), nullable=False),
        sa.Column("residue", sa.Text(), nullable=False),
        sa.Column("residue_key", sa.Text(), nullable=False),
        sa.Column("primary_product_id", sa.Integer(), nullable=True),
        sa.Column("provider_code", sa.Text(), nullable=False),
        sa.Column("county", sa.Text(), nullable=True),
        sa.Column("collection_date", sa.Date(), nullable=True),
        sa.Column("amount_kg", sa.Numeric(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("amount_kg >= 0", name=op.f("ck_field_sample_amount_kg")),
        sa.ForeignKeyConstraint(
            ["primary_product_id"],
            ["primary_product.id"],
            name=op.f("fk_field_sample_primary_product_id_primary_product"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_field_sample")),
        sa.UniqueConstraint("name_key", name=op.f("uq_field_sample_name_key")),
    )
    op.create_index(op.f("ix_field_sample_primary_product_id"), "field_sample", ["primary_product_id"], unique=False)
    op.create_index(op.f("ix_field_sample_residue_key"), "field_sample", ["residue_key"], unique=False)
    op.create_table(
        "rejected_row",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("etl_run_id", sa.Integer(), nullable=False),
        sa.Column("sheet", sa.Text(), nullable=False),
        sa.Column("worksheet", sa.Text(), nullable=False),
        sa.Column("row_number", sa.Integer(), nullable=False),
        sa.Column("column_name", sa.Text(), nullable=True),
        sa.Column("value", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["etl_run_id"], ["etl_run.id"], name=op.f("fk_rejected_row_etl_run_id_etl_run"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rejected_row")),
        sa.UniqueConstraint("etl_run_id", "worksheet", "row_number", name=op.f("uq_rejected_row_etl_run_id")),
    )
    op.create_table(
        "observation",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("field_sample_id", sa.Integer(), nullable=False),
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("parameter", sa.Text(), nullable=False),
        sa.Column("parameter_key", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=True),
        sa.Column("value", sa.Numeric(), nullable=False),
        sa.Column("replicate", sa.SmallInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("replicate >= 1", name=op.f("ck_observation_replicate")),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiment.id"], name=op.f("fk_observation_experiment_id_experiment")
        ),
        sa.ForeignKeyConstraint(
            ["field_sample_id"], ["field_sample.id"], name=op.f("fk_observation_field_sample_id_field_sample")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_observation")),
        sa.UniqueConstraint(
            "field_sample_id",
            "experiment_id",
            "parameter_key",
            "unit",
            "replicate",
            name="uq_observation_natural_key",
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_index(op.f("ix_observation_experiment_id"), "observation", ["experiment_id"], unique=False)
    for table in ("primary_product", "analysis_types"):
        op.add_column(
            table, sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)
        )
        op.execute(f"UPDATE {table} SET updated_at = created_at")  # noqa: S608 - a constant


def downgrade() -> None:
    for table in ("analysis_types", "primary_product"):
        op.drop_column(table, "updated_at")
    for table in ("observation", "rejected_row", "experiment", "field_sample", "etl_run"):
        op.drop_table(table)
