#!/bin/sh
# Runs the Python package of this name as postgres; without -B it would leave compiled files that no converge knows.
[ "$(id --user)" -ne 0 ] || exec runuser --user postgres -- "$0" "$@"
cd /opt/biocirv/lib || exit
exec /usr/bin/python3 -B -m recovery "$@"
