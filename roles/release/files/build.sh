#!/bin/sh
# Creates the builder's environment if it does not exist, and builds a release in it.
# Arguments: the specification for build.py; the builder's directory; the builder's hashed requirements.
set -eu
specification=$1 builder=$2 requirements=$3 account=biocirv-build
umask 022

# Only one build at a time; a process that waited for another build finds its work done.
exec 9>"${0%/*}/lock"
flock 9

# Files of a cache that root filled are those of releases, too: they may not become the account's.
cache=${UV_CACHE_DIR%/*}
[ "$(stat -c %U "$cache" 2>/dev/null)" = "$account" ] || rm -rf "$cache"
# What is in it, the account makes: where it has put a link, root would give it what that leads to.
install -d -o "$account" -g "$account" -m 0700 "$cache"

if ! [ -e "$builder/finished" ]; then
    rm -rf "$builder"
    /usr/bin/python3 -m venv "$builder"
    # Without many attempts: an index that is not trusted or not found stays so. Only wheels, which run nothing when they are installed.
    "$builder/bin/pip" install --quiet --retries 2 --only-binary :all: --require-hashes --requirement "$requirements"
    touch "$builder/finished"
fi
exec /usr/bin/python3 "${0%/*}/build.py" "$specification" "$builder/bin/python"
