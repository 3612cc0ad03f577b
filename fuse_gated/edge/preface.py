"""What comes before everything else on a connection, TLS included: a header of the PROXY protocol, or none.

Nothing behind the header is taken out of the socket, because TLS reads there itself.
"""

import socket
from collections.abc import Callable
from typing import Final

from fuse_gated.errors import ProtocolError
from fuse_gated.wire import proxy_protocol

_SNIFFED: Final = 16


class Preface:
    """Called whenever there is something to read, until it is True: then everything else follows.

    With `expected`, the connection must begin with a header, whose address goes to `told` (None: the proxy has none to tell).
    Without, it must not. Raises ProtocolError where it is otherwise, OSError and EOFError as the connection ends.
    """

    def __init__(self, expected: bool, told: Callable[[str | None], None]) -> None:
        self._expected = expected
        self._told = told
        self._data = b""

    def __call__(self, sock: socket.socket) -> bool:
        try:
            if not self._expected:
                if proxy_protocol.begins(_peek(sock, _SNIFFED)):
                    raise ProtocolError("the PROXY protocol is not expected")
                return True
            while True:
                seen = _peek(sock, proxy_protocol.MAX_HEADER)
                if not seen:
                    raise EOFError
                header = proxy_protocol.parse(self._data + seen)
                if header is not None:
                    _take(sock, header.length - len(self._data))
                    self._told(header.address)
                    return True
                # All of it is the header's. What stayed in the socket would wake the loop again and again.
                _take(sock, len(seen))
                self._data += seen
        except BlockingIOError:
            return False


def _peek(sock: socket.socket, size: int) -> bytes:
    # Beneath TLS: an SSLSocket's own recv would decrypt.
    return socket.socket.recv(sock, size, socket.MSG_PEEK)


def _take(sock: socket.socket, size: int) -> None:
    while size:
        size -= len(socket.socket.recv(sock, size))
