#!/bin/sh
# Restores a dump into a new database, <database>_restored, next to the one that is in use.
# Arguments: the dump; PostgreSQL's port; the database's name, its owner, and the login that assumes the owner.
# A dump holds functions that run while it is restored, in constraints and indexes: its session is that of the login, which is no
# superuser. With SET ROLE instead, the functions could reset the role.
set -eu
dump=$1 database=$3 owner=$4 login=$5
export PGPORT="$2"
# The account postgres may not be permitted to read the present working directory.
cd /
as_postgres() { runuser --user postgres -- "$@"; }
# Of the database in use, a superuser runs nothing but PostgreSQL's own functions.
ask() { as_postgres env PGOPTIONS=-csearch_path=pg_catalog psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --set restored="${database}_restored" --set owner="$owner" "$@" --file=-; }
# Remnants of an interrupted restoration; the replaced database had already been dumped.
for left in "${database}_restored" "${database}_replaced"; do as_postgres dropdb --if-exists --force "$left"; done
as_postgres createdb --template=template0 --owner="$owner" "${database}_restored"

# Extensions that only a superuser may create, and the tables of them that a dump has rows of.
ask "$database" <<'SQL'
SELECT coalesce(string_agg(format('CREATE EXTENSION IF NOT EXISTS %I CASCADE', extname), '; '), 'SELECT') AS statements
  FROM pg_extension JOIN pg_available_extension_versions ON (name, version) = (extname, extversion)
 WHERE superuser AND NOT trusted
\gset
\connect :"restored"
SET search_path = public;
-- PostGIS 3.3, Debian 12's, refuses to be created while pgaudit logs.
SET pgaudit.log = none;
:statements;
SQL
extensions() {
    ask "${database}_restored" --set verb="$1" <<'SQL'
SELECT format('%s %s ON %s %s %I', :'verb', CASE relkind WHEN 'S' THEN 'UPDATE' ELSE 'INSERT' END, pg_class.oid::regclass,
              CASE :'verb' WHEN 'GRANT' THEN 'TO' ELSE 'FROM' END, :'owner')
  FROM pg_extension, unnest(extconfig) AS configuration (oid) JOIN pg_class USING (oid)
 WHERE relowner = 10
\gexec
SQL
}
extensions GRANT

# An extension's comment may only be set by its owner, and comes with the extension.
list=$(as_postgres mktemp)
trap 'rm -f "$list"' EXIT
as_postgres pg_restore --list <"$dump" | grep --invert-match --extended-regexp '^[0-9]+; [0-9]+ [0-9]+ COMMENT - EXTENSION ' |
    as_postgres tee "$list" >/dev/null
as_postgres pg_restore --exit-on-error --single-transaction --no-owner --use-list="$list" --username="$login" \
    --dbname="${database}_restored" <"$dump"
extensions REVOKE
# PostgreSQL's own tables are left to autovacuum.
as_postgres env PGOPTIONS=-cclient_min_messages=error psql --no-psqlrc --quiet --username="$login" --command=ANALYZE "${database}_restored"
