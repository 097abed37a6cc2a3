#!/bin/sh
# Builds a release: its environment and its code, and as the last thing its manifest, without which it is not finished.
# Arguments: the archive of its source; its directory; the builder's directory; the builder's requirements and the
# application's, both relative to the source.
set -eu
archive=$1 release=$2 builder=$3 builder_requirements=$4 requirements=$5
umask 022

# One build at a time; whoever waited for another one finds its work done.
exec 9>"$archive.lock"
flock 9
if [ -e "$release/manifest.json" ]; then
    rm -f "$archive"
    exit 0
fi

# What a build that was cut off left.
rm -rf "$release"
mkdir -p "$release/app"
tar --extract --gzip --no-same-owner --file "$archive" --directory "$release/app"

if ! [ -x "$builder/bin/uv" ]; then
    /usr/bin/python3 -m venv "$builder"
    "$builder/bin/pip" install --quiet --require-hashes --requirement "$release/app/$builder_requirements"
fi
uv=$builder/bin/uv
python=$release/env/bin/python
"$uv" venv --quiet --python /usr/bin/python3 "$release/env"
"$uv" pip install --quiet --python "$python" --require-hashes --compile-bytecode --requirement "$release/app/$requirements"
# The application itself is built from the source alone, by the backend that uv carries.
"$uv" pip install --quiet --python "$python" --offline --no-deps --compile-bytecode "$release/app"
"$python" -m compileall -q "$release/app"

cd "$release/app"
PREFECT_HOME=/nonexistent "$python" "${0%/*}/describe.py" >"$release/manifest.json.partial"
mv "$release/manifest.json.partial" "$release/manifest.json"
rm -f "$archive"
