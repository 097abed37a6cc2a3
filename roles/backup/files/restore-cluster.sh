#!/bin/sh
# Replaces a cluster's data directory by what pgBackRest restores, and keeps the old one. After a failure the old one is put back.
# Arguments: PostgreSQL's unit; its port; the data directory; the path to keep the old one at; pgBackRest's options.
set -eu
unit=$1 port=$2 data=$3 kept=$4
shift 4
# The account postgres may not be permitted to read the present working directory.
cd /
as_postgres() { runuser --user postgres -- "$@"; }
put_back() {
    journalctl --unit "$unit" --lines 12 --output cat --no-pager >&2
    systemctl stop "$unit"
    rm -rf "$data"
    [ ! -e "$kept" ] || mv "$kept" "$data"
    systemctl start "$unit"
}

systemctl stop "$unit"
trap put_back EXIT
[ ! -e "$data" ] || mv "$data" "$kept"
# On a disk that is new, nothing is there.
install --directory --owner postgres --group postgres "${data%/*}"
install --directory --owner postgres --group postgres --mode 700 "$data"
as_postgres pgbackrest restore --no-delta "$@"
systemctl start "$unit"
# The unit starts a server again that could not reach its target.
until [ "$(as_postgres psql --no-psqlrc --port "$port" -Atc 'SELECT pg_is_in_recovery()' 2>/dev/null)" = f ]; do
    [ "$(systemctl show --property=NRestarts --value "$unit")" = 0 ]
    systemctl is-active --quiet "$unit"
    sleep 1
done
trap - EXIT
