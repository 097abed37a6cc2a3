"""Functions look for names in PostgreSQL's own schema first; other roles than the owner only read the history."""

from collections.abc import Sequence

from alembic import op

revision: str = "0004"
down_revision: str | Sequence[str] | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# These name only what is PostgreSQL's. Without a search path of their own, they would find the caller's temporary
# tables first: a table pg_class there said who owns the history.
_FUNCTIONS = ("changed_by_hand()", "refuse_change()")
# Its body named the functions of triggers without their schema, which is that of the tables.
_KEEP_HISTORY = """
CREATE OR REPLACE FUNCTION keep_history(kept regclass) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  home text := (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = kept);
BEGIN
  -- Triggers fire in the order of their names: this one first.
  EXECUTE format(
    'CREATE TRIGGER change_is_none BEFORE UPDATE ON %s FOR EACH ROW'
    ' EXECUTE FUNCTION suppress_redundant_updates_trigger()', kept);
  EXECUTE format(
    'CREATE TRIGGER changed_by_hand BEFORE UPDATE ON %s FOR EACH ROW'
    ' WHEN (NEW.changed_from IS NOT DISTINCT FROM OLD.changed_from)'
    ' EXECUTE FUNCTION %s.changed_by_hand()', kept, home);
  EXECUTE format(
    'CREATE TRIGGER history_of_updates AFTER UPDATE ON %s REFERENCING OLD TABLE AS old_row FOR EACH STATEMENT'
    ' EXECUTE FUNCTION %s.record_history()', kept, home);
  EXECUTE format(
    'CREATE TRIGGER history_of_deletions AFTER DELETE ON %s REFERENCING OLD TABLE AS old_row FOR EACH STATEMENT'
    ' EXECUTE FUNCTION %s.record_history()', kept, home);
END
$$
"""
_KEEP_HISTORY_BEFORE = """
CREATE OR REPLACE FUNCTION keep_history(kept regclass) RETURNS void LANGUAGE plpgsql AS $$
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
# The trigger that writes the history has its owner's privileges. A converge gives the rights of writers for all tables
# but those with a trigger refuse_change, by which it knows this one.
_ONLY_READ = """
DO $$
DECLARE
  held record;
BEGIN
  FOR held IN
    SELECT privilege_type, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS holder
      FROM pg_class, aclexplode(relacl)
     WHERE pg_class.oid = 'row_history'::regclass AND grantee <> relowner AND privilege_type <> 'SELECT'
  LOOP
    EXECUTE format('REVOKE %s ON row_history FROM %s', held.privilege_type, held.holder);
  END LOOP;
END
$$
"""


def upgrade() -> None:
    for function in _FUNCTIONS:
        op.execute(f"ALTER FUNCTION {function} SET search_path = pg_catalog, pg_temp")
    op.execute(_KEEP_HISTORY)
    op.execute(_ONLY_READ)


def downgrade() -> None:
    # Rights to the history do not come back: no role that had them could use them.
    op.execute(_KEEP_HISTORY_BEFORE)
    for function in _FUNCTIONS:
        op.execute(f"ALTER FUNCTION {function} RESET search_path")
