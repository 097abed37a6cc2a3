-- Prints the database and the server that answers, then the application's tables that have rows, each with their number. With remove=on
-- it also dumps the database into `directory` by `program`, prints the dump's path, and removes the rows, all or none.
-- The application's tables are those of the role that its migrations assume. Alembic's own holds the schema's revision, and stays.
\set ON_ERROR_STOP on
\set QUIET on
SELECT format('%s on %s:%s%s', current_database(), :'HOST', :'PORT', ' (' || host(inet_server_addr()) || ')');
BEGIN;
-- A load that takes longer fails the command; nothing is removed then.
SET LOCAL lock_timeout = '10s';
-- The session is idle during the dump.
SET LOCAL idle_in_transaction_session_timeout = 0;
SELECT string_agg(format('%I.%I', nspname, relname), ', ') AS tables,
       string_agg(format('SELECT %L AS name, count(*) AS rows FROM %I.%I', relname, nspname, relname), ' UNION ALL ') AS counts
  FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE relkind IN ('r', 'p') AND NOT relispartition AND relpersistence <> 't' AND pg_get_userbyid(relowner) = current_user
   AND relname <> 'alembic_version'
   AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e')
\gset
\if :{?tables}
\if :remove
-- Until the commit no row can be added that the dump would lack; pg_dump, a session of its own, can read.
LOCK TABLE :tables IN EXCLUSIVE MODE;
\endif
SELECT name, rows FROM (:counts) AS counted WHERE rows > 0 ORDER BY name;
\if :remove
-- A program that fails must leave nothing: psql 15 knows no exit code.
\set dump `dump=$(:'program' :'directory' all </dev/null) && echo "$dump"`
SELECT :'dump' = '' AS failed
\gset
\if :failed
DO $$ BEGIN RAISE 'The dump failed.'; END $$;
\endif
\echo :dump
-- Ids go on: artifacts of earlier runs refer to the old ones. Without CASCADE, which would empty tables that others have added.
TRUNCATE :tables;
\endif
\endif
COMMIT;
