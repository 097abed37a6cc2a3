#!/bin/sh
# Downloads this Debian's Python, and the libraries of its standard library, into a directory.
set -eu
mkdir -p "$1"
cd "$1"
packages=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
    python3-minimal libpython3-stdlib |
    grep -xE 'python3\.[0-9]+-minimal|libpython3\.[0-9]+-(minimal|stdlib)|lib(bz2|expat|ffi|lzma|mpdec|ncursesw|readline|sqlite3|ssl|tinfo|uuid|zstd)[-.0-9t]*|zlib1g' |
    sort -u)
# shellcheck disable=SC2086 # one word per package
apt-get download --quiet --quiet --option APT::Sandbox::User=root $packages
