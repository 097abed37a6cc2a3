"""Prints the TCP ports of a host that are open: `python3 scan.py HOST SECONDS`. Needs nothing but Python."""

import errno
import resource
import select
import socket
import sys
import time

# As many sockets as a process may have.
AT_ONCE = min(16000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100)


def scan(address: str, ports: range, seconds: float) -> list[int]:
    """Return which of these ports accept a connection within some seconds."""
    poll = select.epoll()
    waiting = {}
    found = []
    for port in ports:
        connection = socket.socket()
        connection.setblocking(False)
        error = connection.connect_ex((address, port))
        if error == 0:
            found.append(port)
        elif error != errno.EINPROGRESS:
            sys.exit(f"port {port}: {errno.errorcode[error]}")
        poll.register(connection, select.EPOLLOUT)
        waiting[connection.fileno()] = port, connection
    deadline = time.monotonic() + seconds
    while waiting and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left):
            port, connection = waiting.pop(descriptor)
            if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found.append(port)
            poll.unregister(descriptor)
            connection.close()
    for _, connection in waiting.values():
        connection.close()
    return found


if __name__ == "__main__":
    target = socket.gethostbyname(sys.argv[1])
    found: set[int] = set()
    for first in range(1, 65536, AT_ONCE):
        found.update(scan(target, range(first, min(first + AT_ONCE, 65536)), float(sys.argv[2])))
    sys.stdout.write(" ".join(map(str, sorted(found))))
