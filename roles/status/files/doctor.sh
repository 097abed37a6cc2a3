#!/bin/sh
# Prints what a helper would ask for about a host, in sections; reads only. Arguments: the units of the platform on this host.
# Of the units' environment files, it prints the names of the variables, and the values of those that cannot hold a secret.
set -u
export LC_ALL=C.UTF-8 SYSTEMD_COLORS=0 SYSTEMD_PAGER=

section() {
    printf '\n===== %s\n' "$*"
    # A command that hangs or fails must not hide the others.
    timeout 20 "$@" 2>&1 || printf '(exit code %s)\n' "$?"
}

section cat /etc/os-release
section uname --all
section uptime
section timedatectl show
section free --mebi
section df --human-readable
section df --inodes
section systemctl --failed --no-legend
section ss --tcp --udp --listening --processes --numeric
section nft list ruleset
section dpkg-query --show 'postgresql*' 'nginx*' 'python3' 'systemd' 'linux-image*'
section journalctl --disk-usage

# Values that cannot hold a secret.
shown='PREFECT_API_URL|PG(HOST|PORT|DATABASE|SSLMODE)|ETL_SOURCE|ETL_SOURCE_DIRECTORY|PREFECT_LOGGING_LEVEL'
# Of a value with several lines, only the first begins a variable; the others are left out.
variables() { sed -nE "s/^($shown)=.*/&/p; t; s/^([A-Z_][A-Z_0-9]*)=.*/\1=(not shown)/p" "$1"; }
for file in /etc/biocirv/*.env; do
    printf '\n===== variables of %s\n' "$file"
    variables "$file"
done

section ls -l --time-style=long-iso /opt/biocirv /opt/biocirv/releases /var/lib/biocirv/dumps /var/lib/biocirv/removed-rows
for manifest in /opt/biocirv/current/manifest.json /opt/biocirv/candidate/manifest.json; do
    section cat "$manifest"
done
section du --human-readable --max-depth=1 /opt/biocirv/releases /var/lib/postgresql /var/lib/prefect-worker /var/lib/prefect-server

if command -v pg_lsclusters >/dev/null; then
    section pg_lsclusters
    query() { section runuser --user postgres -- psql --no-psqlrc --expanded --command "$1" "${2:-postgres}"; }
    query 'SELECT version()'
    query "SELECT name, setting, unit, source FROM pg_settings WHERE source NOT IN ('default', 'client', 'override')"
    query 'SELECT datname, pg_size_pretty(pg_database_size(datname)) FROM pg_database'
    query 'SELECT datname, usename, application_name, client_addr, state, wait_event_type, age(now(), state_change) FROM pg_stat_activity'
    query "SELECT relation::regclass, mode, granted, pid FROM pg_locks WHERE NOT granted"
fi

for unit in "$@"; do
    section systemctl status --no-pager --lines=0 "$unit"
    section systemctl show --property=NRestarts,ExecMainStatus,ActiveEnterTimestamp,MemoryCurrent,TasksCurrent "$unit"
    section journalctl --unit "$unit" --no-pager --lines=200 --output=short-iso
done
section journalctl SYSLOG_IDENTIFIER=biocirv-audit _UID=0 --no-pager --lines=50 --output=short-iso
section journalctl --dmesg --priority=warning --no-pager --lines=30
