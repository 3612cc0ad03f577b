"""A TCP connection to a server, by its name, in a time that is bounded."""

import contextlib
import socket
import time


def connect(host: str, port: int, timeout: float, dead_after: float) -> socket.socket:
    """A non-blocking socket, connected to the first of the host's addresses that answers. The name is resolved anew each time,
    which alone may take longer than `timeout` seconds; the addresses share what is left of them. What was sent and is not
    acknowledged within `dead_after` seconds breaks the connection (tcp(7), TCP_USER_TIMEOUT; else it takes a quarter of an
    hour).

    Raises OSError, also for a name without an address, and UnicodeError for a name that IDNA does not allow.
    """
    deadline = time.monotonic() + timeout
    failure: OSError | None = None
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for tried, (family, kind, protocol, _, address) in enumerate(found):
        try:
            sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:  # This machine has no IPv6, say.
            failure = error
            continue
        try:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(dead_after * 1000)))
            # One that is silent must leave some time to the others.
            sock.settimeout(max(deadline - time.monotonic(), 0.1) / (len(found) - tried))
            sock.connect(address)
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure or OSError("the name has no address")
