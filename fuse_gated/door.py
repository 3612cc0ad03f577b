"""The daemon's door: accepts connections, counts those that have not logged in, and turns away what is too much."""

import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import Final

from fuse_gated.config.settings import Settings
from fuse_gated.edge import process
from fuse_gated.edge.listening import rest_if_scarce
from fuse_gated.edge.loop import Loop
from fuse_gated.gate.admission import Refusal, Startups
from fuse_gated.gate.proxies import TrustedProxies

PROGRAM: Final = "fuse-gated"
_ACCEPTS_A_TURN: Final = 32
_MOST_TURNED_AWAY: Final = 1000
_TURNED_AWAY_PATIENCE: Final = 2.0
_DRAINED: Final = 4096


class Door:
    """`admit(socket, address)` is called for each connection that may come in, and takes the socket over unless it raises
    OSError. Where connections speak TLS nothing can be said to whom nobody serves."""

    def __init__(
        self,
        loop: Loop,
        listeners: Sequence[socket.socket],
        settings: Settings,
        admit: Callable[[socket.socket, str], None],
        on_turned_away: Callable[[str, str], None],
    ) -> None:
        self._loop = loop
        self._listeners = listeners
        self._startups = Startups(settings.admission.startups, settings.admission.per_address)
        self._proxies = TrustedProxies(settings.proxies.addresses if settings.proxies is not None else ())
        self._admit = admit
        self._on_turned_away = on_turned_away
        self._silent = settings.tls is not None
        self._shut = False
        self._turned_away: set[socket.socket] = set()
        for listener in listeners:
            listener.setblocking(False)
            self._listen(listener)

    def logged_in(self, address: str) -> None:
        """A connection from there no longer counts as a stranger's: it has logged in, or is gone."""
        self._startups.done(address)

    def moved(self, proxy: str, address: str) -> Refusal | None:
        """One that was let in comes, by what a proxy says, from that address: why it may not stay, or None."""
        return self._startups.move(proxy, address)

    def is_proxy(self, address: str) -> bool:
        """Whether what comes from there may say that it comes from elsewhere."""
        return self._proxies.trusts(address)

    def shut(self) -> None:
        """Accept nobody any more."""
        self._shut = True
        for listener in self._listeners:
            self._loop.forget(listener.fileno())

    def _listen(self, listener: socket.socket) -> None:
        if not self._shut:
            self._loop.watch(listener.fileno(), lambda _events: self._accept(listener))

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock, peer = listener.accept()
            except OSError as error:
                rest_if_scarce(self._loop, listener, error, lambda: self._listen(listener))
                return
            address = peer[0] if isinstance(peer, tuple) else ""
            refusal = self._startups.admit(address, proxy=self.is_proxy(address))
            if refusal is not None:
                self._on_turned_away(address, refusal.reason)
                self._turn_away(sock, refusal.status, refusal.reason)
                continue
            try:
                self._admit(sock, address)
            except OSError as error:
                self._startups.done(address)
                process.tell(PROGRAM, f"cannot start a worker: {error.strerror} (are processes or memory short?)")
                self._on_turned_away(address, "the server cannot start a worker now")
                self._turn_away(sock, 503, "the server cannot start a worker now")

    def _turn_away(self, sock: socket.socket, status: int, reason: str) -> None:
        """What the stranger sends is thrown away unread until it has had the time to hear: a socket that is closed with bytes
        in it is reset, and its answer is lost."""
        with contextlib.suppress(OSError):
            sock.setblocking(False)
            if not self._silent:
                length = len(reason) + 1
                head = f"HTTP/1.1 {status} Refused\r\nConnection: close\r\nRetry-After: 5\r\nContent-Length: {length}\r\n\r\n"
                sock.send(f"{head}{reason}\n".encode())
                sock.shutdown(socket.SHUT_WR)
                if len(self._turned_away) < _MOST_TURNED_AWAY:
                    self._turned_away.add(sock)
                    self._loop.watch(sock.fileno(), lambda _events: self._drain(sock))
                    self._loop.after(_TURNED_AWAY_PATIENCE, lambda: self._let_go(sock))
                    return
        sock.close()

    def _drain(self, sock: socket.socket) -> None:
        try:
            rest = sock.recv(_DRAINED)
        except BlockingIOError:
            return
        except OSError:
            rest = b""
        if not rest:
            self._let_go(sock)

    def _let_go(self, sock: socket.socket) -> None:
        if sock in self._turned_away:
            self._turned_away.discard(sock)
            self._loop.forget(sock.fileno())
            sock.close()


__all__ = ["Door"]
