#!/bin/sh
# Makes the builder's environment where it is not there, and builds a release in it.
# Arguments: what to build, as build.py takes it; the builder's directory; its hashed requirements.
set -eu
specification=$1 builder=$2 requirements=$3
umask 022
mkdir -p "$UV_CACHE_DIR"
chmod 0700 "${UV_CACHE_DIR%/*}"

# One build at a time; whoever waited for another one finds its work done.
exec 9>"${0%/*}/lock"
flock 9

if ! [ -e "$builder/finished" ]; then
    rm -rf "$builder"
    /usr/bin/python3 -m venv "$builder"
    "$builder/bin/pip" install --quiet --require-hashes --requirement "$requirements"
    touch "$builder/finished"
fi
exec "$builder/bin/python" "${0%/*}/build.py" "$specification"
