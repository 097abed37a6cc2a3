"""Run a command of which code comes from a source or a package: as an account that owns nothing, in a sandbox.

The command becomes a transient unit of systemd, which ends with all of its processes. It gets this program's
environment and standard streams; the exit code is the command's. The only place of a host that it can write to is the
directory that it is given.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

ACCOUNT = "biocirv-build"
# As in the units' template, of role systemd_unit. In addition, systemd cannot be asked to run something for this
# account outside of the sandbox, and what is left when the command has ended gets five seconds.
PROPERTIES = """
CapabilityBoundingSet=
DevicePolicy=closed
KeyringMode=private
LimitCORE=0
LockPersonality=true
MemorySwapMax=0
NoNewPrivileges=true
PrivateDevices=true
PrivateIPC=true
PrivateTmp=true
ProtectClock=true
ProtectControlGroups=true
ProtectHome=true
ProtectHostname=true
ProtectKernelLogs=true
ProtectKernelModules=true
ProtectKernelTunables=true
ProtectProc=invisible
ProtectSystem=strict
RemoveIPC=true
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=true
RestrictRealtime=true
RestrictSUIDSGID=true
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallFilter=~io_uring_setup io_uring_enter io_uring_register
UMask=0022
InaccessiblePaths=-/run/dbus -/run/systemd/private
TemporaryFileSystem=/dev/shm:size=50%,mode=1777
RuntimeMaxSec=3600
TimeoutStopSec=5
"""
# Variables of root's session, which mean nothing to the account.
OF_THE_SESSION = re.compile("(DBUS|SSH|SUDO|XDG)_.*|INVOCATION_ID|JOURNAL_STREAM|LOGNAME|MAIL|SHELL|USER")


def main() -> int:
    """Run the command line; return the command's exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--directory", default="/", help="working directory")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    return run(options.command, directory=options.directory).returncode


def run(
    command: list[str], *, directory: str = "/", writable: dict[str, str] | None = None, text: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a command; with ``text`` as its standard input, its output is captured.

    ``writable``: the account's own directories, and where the command has them.
    """
    variables = {name: value for name, value in os.environ.items() if not OF_THE_SESSION.fullmatch(name)}
    variables["HOME"] = "/tmp"  # noqa: S108 - a private one
    # Everybody can ask systemd for the variables of a unit, but not read this file: addresses can hold passwords.
    with tempfile.NamedTemporaryFile("w", prefix=f"{ACCOUNT}.", dir="/run", encoding="utf-8") as file:
        for name, value in variables.items():
            file.write(f"{name}={json.dumps(value, ensure_ascii=False)}\n")
        file.flush()
        unit = ["systemd-run", "--quiet", "--collect", "--wait", "--pipe", f"--unit={ACCOUNT}-{os.getpid()}"]
        unit += [f"--uid={ACCOUNT}", f"--gid={ACCOUNT}", f"--working-directory={directory}"]
        properties = [*PROPERTIES.strip().splitlines(), f"EnvironmentFile={file.name}"]
        properties += [f"BindPaths={path}:{place}" for path, place in (writable or {}).items()]
        unit += [f"--property={line}" for line in properties]
        captured = None if text is None else subprocess.PIPE
        command = [*unit, "--", *command]
        return subprocess.run(command, input=text, stdout=captured, stderr=captured, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
