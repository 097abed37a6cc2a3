#!/bin/sh
# Dumps a database, renames it to <database>_replaced, and renames <database>_restored to <database>. Prints the dump's path.
# Arguments: the directory of such dumps; the number of them to keep; PostgreSQL's port; the database's name; the login that assumes its
# owner. Run as postgres, which also dumps tables that somebody has made as superuser.
set -eu
directory=$1 kept=$2 login=$5
export PGPORT="$3" PGDATABASE="$4"
cd /
PGUSER=$login DUMP_USER=postgres /opt/biocirv/bin/dump-database "$directory" "$kept"
export PGOPTIONS=-csearch_path=pg_catalog
psql --no-psqlrc --quiet --output=/dev/null --set ON_ERROR_STOP=1 --single-transaction --dbname=postgres --file=- \
    --set database="$PGDATABASE" --set replaced="${PGDATABASE}_replaced" --set restored="${PGDATABASE}_restored" <<'SQL'
-- While pg_database is locked, no session can connect, so that neither database is in use.
LOCK TABLE pg_database IN ACCESS EXCLUSIVE MODE;
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname IN (:'database', :'restored');

-- The limit, privileges and settings of the database itself, which a dump does not contain. Its owner has chosen the values.
WITH setting AS (
SELECT split_part(entry, '=', 1) AS name, substr(entry, strpos(entry, '=') + 1) AS value,
       CASE setrole WHEN 0 THEN format('DATABASE %I', :'restored')
                    ELSE format('ROLE %I IN DATABASE %I', pg_get_userbyid(setrole), :'restored') END AS target,
       -- Lists of names, which SET would take for one name.
       split_part(entry, '=', 1) IN ('search_path', 'temp_tablespaces', 'local_preload_libraries', 'session_preload_libraries') AS is_list
  FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase, unnest(setconfig) AS entry
 WHERE datname = :'database'
), statement (step, about, part, sql) AS (
SELECT 1, '', 1, format('ALTER DATABASE %I CONNECTION LIMIT %s', :'restored', datconnlimit)
  FROM pg_database WHERE datname = :'database' AND datconnlimit >= 0
UNION ALL
SELECT 2, '', 1, format('REVOKE ALL ON DATABASE %I FROM PUBLIC', :'restored') FROM pg_database WHERE datname = :'database' AND datacl IS NOT NULL
UNION ALL
SELECT 3, '', 1, format('GRANT %s ON DATABASE %I TO %s%s', privilege_type, :'restored',
                        CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END,
                        CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
  FROM pg_database, aclexplode(datacl) WHERE datname = :'database'
UNION ALL
SELECT 4, target || name, 1, format('ALTER %s SET %I TO %L', target, name, value) FROM setting WHERE NOT is_list
UNION ALL
SELECT 4, target || name, 1, format('SELECT set_config(%L, %L, true)', name, value) FROM setting WHERE is_list
UNION ALL
SELECT 4, target || name, 2, format('ALTER %s SET %I FROM CURRENT', target, name) FROM setting WHERE is_list
)
SELECT sql FROM statement ORDER BY step, about, part \gexec

ALTER DATABASE :"database" RENAME TO :"replaced";
ALTER DATABASE :"restored" RENAME TO :"database";
SQL
