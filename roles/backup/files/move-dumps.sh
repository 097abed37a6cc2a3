#!/bin/sh
# Moves dumps out of the directory that they were fetched to into the one above it, and removes the former.
# Arguments: the directory; the names of the dumps.
set -eu
directory=$1
shift
cd "$directory"
chmod 600 "$@"
sync "$@"
mv "$@" ..
rm -r "$directory"
