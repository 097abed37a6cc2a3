#!/bin/sh
# Prints the audit trail: what root recorded of operators, and what PostgreSQL's account did of its log. Any account can write to the
# journal under any name, but not with the id of another: journald has it from the kernel.
# Arguments: options of journalctl.
set -eu
postgres=$(id --user postgres 2>/dev/null) || postgres=
exec journalctl --quiet --no-pager "$@" SYSLOG_IDENTIFIER=biocirv-audit _UID=0 ${postgres:++ SYSLOG_IDENTIFIER=postgres "_UID=$postgres"}
