#!/bin/sh
# Dumps databases into a directory, and verifies that each dump can be read to its end. Prints path and size in bytes of each.
# Arguments: the directory, whose owner also becomes the owner of the dumps; PostgreSQL's port; names of databases.
set -eu
directory=$1 port=$2
shift 2
owner=$(stat --format=%u:%g "$directory")
time=$(date --utc +%Y%m%dT%H%M%SZ)
umask 077
# The account postgres may not be permitted to read the present working directory.
cd /
chown postgres "$directory"
for database; do
    dump=$directory/$database-$time.dump
    # --file instead of a redirection: on standard output, pg_dump appends data that it should overwrite.
    # Whoever writes a table can lock it for as long as a session lasts: then the dump fails, and names the table.
    runuser --user postgres -- pg_dump --lock-wait-timeout=10min --port="$port" --format=custom --file="$dump" "$database"
    runuser --user postgres -- pg_restore --file=/dev/null "$dump"
    stat --format='%n %s' "$dump"
done
chown --recursive "$owner" "$directory"
