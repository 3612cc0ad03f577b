"""A very small HTTP server for one page: what a monitoring system fetches every few seconds (RFC 9112).

Whoever connects may be anyone on the network: requests are bounded in length and time, answers are sent as fast as they are read,
and each connection is over after one. Nobody waits for another: not for one who says nothing, nor for one who reads slowly.
"""

import contextlib
import http
import socket
from collections.abc import Callable, Sequence
from typing import Final

from fuse_gated.edge.listening import rest_if_scarce
from fuse_gated.edge.loop import Loop, Timer

PATH: Final = "/metrics"
MOST_CONNECTIONS: Final = 32
"""Who comes then takes the place of the oldest."""
PATIENCE: Final = 10.0
"""Seconds for a request to come, and as many for its answer to be taken without a pause."""
_MOST_REQUEST: Final = 8192
_PIECE: Final = 2**16
_TEXT: Final = "text/plain; charset=utf-8"

Page = Callable[[str], tuple[str, bytes]]
"""Of an Accept header: the content type and the page."""


class Scraping:
    """Serves `page` at PATH on the listening sockets."""

    def __init__(self, loop: Loop, listeners: Sequence[socket.socket], page: Page) -> None:
        self._loop = loop
        self._page = page
        self._connections: dict[int, _Connection] = {}
        for listener in listeners:
            listener.setblocking(False)
            self._listen(listener)

    def __len__(self) -> int:
        return len(self._connections)

    def _listen(self, listener: socket.socket) -> None:
        self._loop.watch(listener.fileno(), lambda _events: self._accept(listener))

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as error:
            rest_if_scarce(self._loop, listener, error, lambda: self._listen(listener))
            return
        if len(self._connections) >= MOST_CONNECTIONS:
            next(iter(self._connections.values())).close()
        sock.setblocking(False)
        number = sock.fileno()
        self._connections[number] = _Connection(self._loop, sock, self._page, lambda: self._connections.pop(number, None))


class _Connection:
    def __init__(self, loop: Loop, sock: socket.socket, page: Page, on_closed: Callable[[], object]) -> None:
        self._loop = loop
        self._sock = sock
        self._page = page
        self._on_closed = on_closed
        self._request = b""
        self._answer = memoryview(b"")
        self._timer: Timer = loop.after(PATIENCE, self.close)
        loop.watch(sock.fileno(), self._read)

    def close(self) -> None:
        self._timer.cancel()
        self._loop.forget(self._sock.fileno())
        self._sock.close()
        self._on_closed()

    def _read(self, _events: int) -> None:
        try:
            data = self._sock.recv(_MOST_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._request += data
        if not data:
            self.close()
        elif b"\r\n\r\n" in self._request:
            self._begin(self._answered(self._request))
        elif len(self._request) > _MOST_REQUEST:
            self._begin(_answer(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _TEXT, b"too long\n"))

    def _answered(self, request: bytes) -> bytes:
        line, *fields = request.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        method, _, rest = line.partition(" ")
        target, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1."):
            return _answer(http.HTTPStatus.BAD_REQUEST, _TEXT, b"not a request\n")
        if method not in ("GET", "HEAD"):
            return _answer(http.HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, b"GET only\n", ("Allow: GET, HEAD",))
        if target.partition("?")[0] != PATH:
            return _answer(http.HTTPStatus.NOT_FOUND, _TEXT, f"it is at {PATH}\n".encode())
        named = (field.partition(":") for field in fields)
        accept = ", ".join(value.strip() for name, _, value in named if name.strip().lower() == "accept")
        content_type, body = self._page(accept)
        return _answer(http.HTTPStatus.OK, content_type, body, whole=method == "GET")

    def _begin(self, answer: bytes) -> None:
        self._answer = memoryview(answer)
        self._loop.forget(self._sock.fileno())
        self._loop.watch(self._sock.fileno(), self._write, read=False, write=True)

    def _write(self, _events: int) -> None:
        try:
            sent = self._sock.send(self._answer[:_PIECE])
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._answer = self._answer[sent:]
        self._timer.cancel()
        if self._answer:
            self._timer = self._loop.after(PATIENCE, self.close)
            return
        with contextlib.suppress(OSError):
            # What the peer still sends must not make the kernel throw away what it has not read yet (RFC 9112, 9.6).
            self._sock.shutdown(socket.SHUT_WR)
        self._timer = self._loop.after(PATIENCE, self.close)
        self._loop.forget(self._sock.fileno())
        self._loop.watch(self._sock.fileno(), self._drain)

    def _drain(self, _events: int) -> None:
        try:
            over = not self._sock.recv(_MOST_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            over = True
        if over:
            self.close()


def _answer(status: http.HTTPStatus, content_type: str, body: bytes, more: Sequence[str] = (), *, whole: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *more,
    )
    return "\r\n".join((*head, "", "")).encode("latin-1") + (body if whole else b"")
