#!/bin/sh
# Dumps databases into a directory, and reads each dump to its end. Prints the path and the size in bytes of each.
# Arguments: the directory, whose owner gets the dumps; PostgreSQL's port; names of databases.
set -eu
directory=$1 port=$2
shift 2
owner=$(stat --format=%u:%g "$directory")
time=$(date --utc +%Y%m%dT%H%M%SZ)
umask 077
# Where postgres may be.
cd /
chown postgres "$directory"
for database; do
    dump=$directory/$database-$time.dump
    # --file, not >: on its standard output pg_dump appends what it should overwrite.
    runuser --user postgres -- pg_dump --port="$port" --format=custom --file="$dump" "$database"
    runuser --user postgres -- pg_restore --file=/dev/null "$dump"
    stat --format='%n %s' "$dump"
done
chown --recursive "$owner" "$directory"
