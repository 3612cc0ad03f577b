"""A TCP port of loopback that is a program's own from the moment it is chosen, before the program listens on it."""

import socket


def reserve() -> socket.socket:
    """A socket that holds a port of 127.0.0.1, which `getsockname` tells, until it is closed.

    Whoever sets SO_REUSEADDR, as servers do, may listen there all the same, and again after that one has gone; the kernel
    gives the port to nobody who asks for any, neither to bind(2) nor to connect(2) (ip(7), socket(7)).
    """
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    place.bind(("127.0.0.1", 0))
    return place


def port_of(place: socket.socket) -> int:
    """The port that it holds."""
    port: int = place.getsockname()[1]
    return port
