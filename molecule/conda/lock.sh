#!/bin/sh
# Locks the application. Arguments: directory of application and channel; version of Python; a wheel of the channel to include, or
# an empty string; additional options of tests.conda.lockfile.
set -eu
work=$1 python=$2 wheel=${3-}
if [ $# -le 2 ]; then shift 2; else shift 3; fi
exec python3 -m tests.conda.lockfile --channel-directory "$work/channel" --channel-url http://127.0.0.1:8099 \
    --environment survey --requirements "$work/application/requirements.txt" --python-version "$python" \
    --conda python --conda example-activation --local ./libraries/soil-units --local ./libraries/soil-maps --local ./libraries/soil-survey \
    ${wheel:+--wheel "$work/channel/wheels/$wheel=http://127.0.0.1:8099/wheels/$wheel"} \
    --output "$work/application/pixi.lock" "$@"
