#!/bin/sh
# Reads a configuration as nginx does, and prints what it says against it. Takes it on its standard input. Run as root.
set -eu
file=$(mktemp)
trap 'rm -f "$file"' EXIT
cat >"$file"
/usr/sbin/nginx -t -q -e stderr -c "$file"
