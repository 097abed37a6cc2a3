#!/bin/sh
# Creates the channel, a separate wheel and the locked application in a directory that contains debs.tar.
set -eu
work=$1
rm -rf "$work/debs" "$work/channel" "$work/application" "$work/wheel"
mkdir -p "$work/debs" "$work/channel/wheels"
tar --extract --file "$work/debs.tar" --directory "$work/debs"
python3 -m tests.conda.channel --out "$work/channel" --debs "$work/debs"

# A wheel that no package requires, so that a lock file may contain it or not.
mkdir -p "$work/wheel/src/example_wheel"
printf '[project]\nname = "example-wheel"\nversion = "1.0"\n[build-system]\nrequires = ["uv_build"]\nbuild-backend = "uv_build"\n' >"$work/wheel/pyproject.toml"
echo 'ANSWER = 42' >"$work/wheel/src/example_wheel/__init__.py"
uv build --quiet --offline --wheel --out-dir "$work/channel/wheels" "$work/wheel"

cp -R tests/application "$work/application"
echo '{"account": "soil-laboratory"}' >"$work/laboratory.json"
python=$(basename "$work"/debs/python3.*-minimal_*.deb)
sh "$(dirname "$0")/lock.sh" "$work" "$(echo "$python" | sed 's/python\(3\.[0-9]*\).*/\1/')" example_wheel-1.0-py3-none-any.whl
tar --create --file "$work/channel.tar" --directory "$work" channel
