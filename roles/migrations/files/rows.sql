-- Prints the application's tables that have rows, each with their number; with remove=on it also removes these rows, all or none.
-- The application's tables are those of the role that its migrations assume. Alembic's own holds the schema's revision, and stays.
\set ON_ERROR_STOP on
\set QUIET on
BEGIN;
-- A load that takes longer fails the command; nothing is removed then.
SET LOCAL lock_timeout = '10s';
SELECT string_agg(format('%I.%I', nspname, relname), ', ') AS tables,
       string_agg(format('SELECT %L AS name, count(*) AS rows FROM %I.%I', relname, nspname, relname), ' UNION ALL ') AS counts
  FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE relkind IN ('r', 'p') AND NOT relispartition AND relpersistence <> 't' AND pg_get_userbyid(relowner) = current_user
   AND relname <> 'alembic_version'
   AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e')
\gset
\if :{?tables}
\if :remove
LOCK TABLE :tables IN ACCESS EXCLUSIVE MODE;
\endif
SELECT name, rows FROM (:counts) AS counted WHERE rows > 0 ORDER BY name;
\if :remove
-- Ids go on: artifacts of earlier runs refer to the old ones. Without CASCADE, which would empty tables that others have added.
TRUNCATE :tables;
\endif
\endif
COMMIT;
