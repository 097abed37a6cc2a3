#!/bin/sh
# Moves dumps from the directory that they were fetched to into its parent directory, and removes the emptied directory.
# Arguments: the directory; the names of the dumps.
set -eu
directory=$1
shift
cd "$directory"
chmod 600 "$@"
sync "$@"
mv "$@" ..
rm -r "$directory"
