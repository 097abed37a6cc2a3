"""Where rows came from, what they were before, and which of them no worksheet names."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0003"
down_revision: str | Sequence[str] | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_TABLES = ("primary_product", "analysis_types", "field_sample", "experiment", "observation")
_COLUMNS = ("inserted_from", "changed_from", "row_number")

# A row without a note of some flow of its table is named by that flow, or by one that has not yet loaded the table.
_ORPHANED_ROW = """
CREATE VIEW orphaned_row AS
SELECT table_name, row_id, max(etl_run_id) AS etl_run_id
  FROM unnamed_row
       JOIN (SELECT table_name, count(DISTINCT flow) AS flows FROM etl_run GROUP BY table_name) AS loaded
       USING (table_name)
 GROUP BY table_name, row_id, flows
HAVING count(*) = flows
"""
# A load always changes changed_from, and to a number that no row had before.
_CHANGED_BY_HAND = """
CREATE FUNCTION changed_by_hand() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.updated_at = now();
  NEW.changed_from = NULL;
  NEW.row_number = NULL;
  RETURN NEW;
END
$$
"""
# Runs with its owner's privileges, because flows must not be able to change the history. So everything that it names
# has its schema, and no other role can make it a trigger of a table of its own.
_RECORD_HISTORY = """
CREATE FUNCTION record_history() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  EXECUTE format(
    'INSERT INTO %I.row_history (table_name, row_id, change, before) SELECT $1, id, $2, to_jsonb(old_row) FROM old_row',
    TG_TABLE_SCHEMA) USING TG_TABLE_NAME, lower(TG_OP);
  RETURN NULL;
END
$$
"""
# Not by privileges: every converge gives those of writers for all tables.
_REFUSE_CHANGE = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE') THEN
    RAISE 'Only the triggers of tables write %', TG_TABLE_NAME
      USING ERRCODE = 'insufficient_privilege', HINT = 'Its owner can change it; make access-db is such a login.';
  END IF;
  RETURN NULL;
END
$$
"""
_KEEP_HISTORY = """
CREATE FUNCTION keep_history(kept regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  -- Triggers fire in the order of their names: this one first.
  EXECUTE format(
    'CREATE TRIGGER change_is_none BEFORE UPDATE ON %s FOR EACH ROW'
    ' EXECUTE FUNCTION suppress_redundant_updates_trigger()', kept);
  EXECUTE format(
    'CREATE TRIGGER changed_by_hand BEFORE UPDATE ON %s FOR EACH ROW'
    ' WHEN (NEW.changed_from IS NOT DISTINCT FROM OLD.changed_from)'
    ' EXECUTE FUNCTION changed_by_hand()', kept);
  EXECUTE format(
    'CREATE TRIGGER history_of_updates AFTER UPDATE ON %s REFERENCING OLD TABLE AS old_row FOR EACH STATEMENT'
    ' EXECUTE FUNCTION record_history()', kept);
  EXECUTE format(
    'CREATE TRIGGER history_of_deletions AFTER DELETE ON %s REFERENCING OLD TABLE AS old_row FOR EACH STATEMENT'
    ' EXECUTE FUNCTION record_history()', kept);
END
$$
"""


def upgrade() -> None:
    op.add_column("etl_run", sa.Column("table_name", sa.Text(), nullable=True))
    op.add_column("etl_run", sa.Column("orphaned", sa.Integer(), server_default="0", nullable=False))
    op.create_table(
        "etl_worksheet",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("etl_run_id", sa.Integer(), nullable=False),
        sa.Column("sheet", sa.Text(), nullable=False),
        sa.Column("worksheet", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["etl_run_id"], ["etl_run.id"], name=op.f("fk_etl_worksheet_etl_run_id_etl_run"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_etl_worksheet")),
    )
    op.create_index(op.f("ix_etl_worksheet_etl_run_id"), "etl_worksheet", ["etl_run_id"], unique=False)
    op.create_table(
        "unnamed_row",
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("row_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("flow", sa.Text(), nullable=False),
        sa.Column("etl_run_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["etl_run_id"], ["etl_run.id"], name=op.f("fk_unnamed_row_etl_run_id_etl_run"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("table_name", "row_id", "flow", name=op.f("pk_unnamed_row")),
    )
    op.create_index(op.f("ix_unnamed_row_etl_run_id"), "unnamed_row", ["etl_run_id"], unique=False)
    op.create_table(
        "row_history",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("row_id", sa.BigInteger(), nullable=False),
        sa.Column("change", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("changed_by", sa.Text(), server_default=sa.text("session_user"), nullable=False),
        sa.Column("before", postgresql.JSONB(), nullable=False),
        sa.CheckConstraint("change IN ('update', 'delete')", name=op.f("ck_row_history_change")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_row_history")),
    )
    op.create_index("ix_row_history_table_name_row_id", "row_history", ["table_name", "row_id"], unique=False)
    for statement in (_ORPHANED_ROW, _CHANGED_BY_HAND, _RECORD_HISTORY, _REFUSE_CHANGE, _KEEP_HISTORY):
        op.execute(statement)
    op.execute("REVOKE EXECUTE ON FUNCTION record_history() FROM PUBLIC")
    op.execute(
        "CREATE TRIGGER refuse_change BEFORE INSERT OR UPDATE OR DELETE ON row_history FOR EACH STATEMENT"
        " EXECUTE FUNCTION refuse_change()"
    )
    for table in _TABLES:
        for column in _COLUMNS:
            op.add_column(table, sa.Column(column, sa.Integer(), nullable=True))
        op.execute(f"SELECT keep_history('{table}')")


def downgrade() -> None:
    op.execute("DROP FUNCTION keep_history(regclass)")
    for table in _TABLES:
        op.execute(f"DROP TRIGGER change_is_none ON {table}")
    # With the triggers of the tables.
    op.execute("DROP FUNCTION changed_by_hand() CASCADE")
    op.execute("DROP FUNCTION record_history() CASCADE")
    op.execute("DROP FUNCTION refuse_change() CASCADE")
    op.execute("DROP VIEW orphaned_row")
    for table in _TABLES:
        for column in _COLUMNS:
            op.drop_column(table, column)
    for table in ("row_history", "unnamed_row", "etl_worksheet"):
        op.drop_table(table)
    op.drop_column("etl_run", "orphaned")
    op.drop_column("etl_run", "table_name")
