#!/bin/sh
# Creates the builder's environment if it does not exist, and builds a release in it.
# Arguments: the specification for build.py; the builder's directory; the builder's hashed requirements.
set -eu
specification=$1 builder=$2 requirements=$3
umask 022
mkdir -p "$UV_CACHE_DIR"
chmod 0700 "${UV_CACHE_DIR%/*}"

# Only one build at a time; a process that waited for another build finds its work done.
exec 9>"${0%/*}/lock"
flock 9

if ! [ -e "$builder/finished" ]; then
    rm -rf "$builder"
    /usr/bin/python3 -m venv "$builder"
    # Without many attempts: an index that is not trusted or not found stays so.
    "$builder/bin/pip" install --quiet --retries 2 --require-hashes --requirement "$requirements"
    touch "$builder/finished"
fi
exec "$builder/bin/python" "${0%/*}/build.py" "$specification"
