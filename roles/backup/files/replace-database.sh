#!/bin/sh
# Dumps a database, renames it to <database>_replaced, and renames <database>_restored to <database>. Prints the dump's path.
# Arguments: the directory of such dumps; the number of them to keep; PostgreSQL's port; the database's name. Run as postgres.
set -eu
directory=$1 kept=$2
export PGPORT="$3" PGDATABASE="$4"
cd /
/opt/biocirv/bin/dump-database "$directory" "$kept"
# Settings and grants of the database itself; pg_dump only includes them with --create.
settings=$(pg_dump --create --schema-only --exclude-schema='*' |
    grep -E '^(ALTER DATABASE .* (SET|CONNECTION LIMIT) |ALTER ROLE .* IN DATABASE |(GRANT|REVOKE) .* ON DATABASE )') || settings=
# While pg_database is locked, no session can connect, so that neither database is in use.
psql --no-psqlrc --quiet --output=/dev/null --set ON_ERROR_STOP=1 --single-transaction --dbname=postgres <<SQL
LOCK TABLE pg_database IN ACCESS EXCLUSIVE MODE;
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname IN ('$PGDATABASE', '${PGDATABASE}_restored');
ALTER DATABASE "$PGDATABASE" RENAME TO "${PGDATABASE}_replaced";
ALTER DATABASE "${PGDATABASE}_restored" RENAME TO "$PGDATABASE";
$settings
SQL
