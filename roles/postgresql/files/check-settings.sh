#!/bin/sh
# Validates settings with the PostgreSQL server's own parser, and prints its errors. Reads the lines of a configuration file from
# standard input. Arguments: the directory of PostgreSQL's programs; the cluster's data directory. Run as postgres.
set -eu
programs=$1 data=$2
file=$(mktemp)
trap 'rm -f "$file"' EXIT
cat >"$file"
"$programs/postgres" -C port -D "$data" -c config_file="$file" >/dev/null
