#!/bin/sh
# Reads settings as PostgreSQL's server does, and prints what it says against them. Takes the lines of a configuration file on its
# standard input. Arguments: the directory of PostgreSQL's programs; the cluster's data directory. Run as postgres.
set -eu
programs=$1 data=$2
file=$(mktemp)
trap 'rm -f "$file"' EXIT
cat >"$file"
"$programs/postgres" -C port -D "$data" -c config_file="$file" >/dev/null
