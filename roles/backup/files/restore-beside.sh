#!/bin/sh
# Restores a dump into a new database, <database>_restored, next to the one that is in use.
# Arguments: the dump; PostgreSQL's port; the database's name and its owner.
set -eu
dump=$1 database=$3 owner=$4
export PGPORT="$2"
# The account postgres may not be permitted to read the present working directory.
cd /
as_postgres() { runuser --user postgres -- "$@"; }
# Remnants of an interrupted restoration; the replaced database had already been dumped.
for left in "${database}_restored" "${database}_replaced"; do as_postgres dropdb --if-exists --force "$left"; done
as_postgres createdb --template=template0 --owner="$owner" "${database}_restored"
as_postgres pg_restore --exit-on-error --single-transaction --dbname="${database}_restored" <"$dump"
as_postgres vacuumdb --quiet --analyze-only "${database}_restored"
