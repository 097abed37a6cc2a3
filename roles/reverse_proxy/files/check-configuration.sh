#!/bin/sh
# Validates a configuration with nginx, and prints its errors. Reads the configuration from standard input. Run as root.
set -eu
file=$(mktemp)
trap 'rm -f "$file"' EXIT
cat >"$file"
/usr/sbin/nginx -t -q -e stderr -c "$file"
