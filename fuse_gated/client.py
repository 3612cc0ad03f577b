"""The client: one export, offered to one server.

The states of a connection are a table (TRANSITIONS). What a server says before the welcome is a refusal or a fault of its
own; after it, requests come and answers go until either side leaves.
"""

import contextlib
import enum
import socket
import threading
from collections.abc import Callable
from typing import Final

import msgspec
from websockets.client import ClientProtocol
from websockets.http11 import Request, Response
from websockets.protocol import State as ProtocolState
from websockets.typing import Subprotocol

from fuse_gated import __version__
from fuse_gated.edge.answering import Answering
from fuse_gated.edge.destination import Destination
from fuse_gated.edge.files import Export
from fuse_gated.edge.loop import Loop, Timer
from fuse_gated.edge.pool import Pool
from fuse_gated.edge.websocket import WebSocket
from fuse_gated.endings import ending, refusal
from fuse_gated.errors import GateError, PeerError, ProtocolError
from fuse_gated.wire import codec
from fuse_gated.wire.messages import MAX_MESSAGE, SUBPROTOCOL, Asked, Cancel, FromServer, Hello, Offer, Welcome

CONNECT_TIMEOUT: Final = 10.0
LOGIN_TIMEOUT: Final = 30.0
"""Seconds from the connection to the welcome; the server may wait for its mount meanwhile."""
PING_EVERY: Final = 15.0
DEAD_AFTER: Final = 45.0
_GOODBYE: Final = "goodbye"
_ENDING_TIMEOUT: Final = 2.0


class State(enum.Enum):
    CONNECTING = "connecting"
    LOGGED_IN = "logged in"
    MOUNTED = "mounted"
    CLOSED = "closed"


TRANSITIONS: Final = {
    (State.CONNECTING, "upgraded"): State.LOGGED_IN,
    (State.CONNECTING, "lost"): State.CLOSED,
    (State.LOGGED_IN, "welcomed"): State.MOUNTED,
    (State.LOGGED_IN, "lost"): State.CLOSED,
    (State.MOUNTED, "lost"): State.CLOSED,
}
"""What may happen in which state, and where it leads."""


class Event(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Something that happened: 'connecting', 'logged-in', 'mounted' or 'closed'. `path` is where the server mounted it."""

    event: str
    server: str | None = None
    export: str | None = None
    path: str | None = None
    session: str | None = None
    reason: str | None = None


class Client:
    """Runs on a loop of the caller's; `on_event` hears what happens. One use: a client that has ended stays ended."""

    def __init__(self, loop: Loop, export: Export, destination: Destination, on_event: Callable[[Event], None]) -> None:
        self.state = State.CONNECTING
        self.mount_path = ""
        self._pools = (Pool(loop), Pool(loop))
        self.answering = Answering(loop, export, self._pools[0], self._send, self._queued, self._pools[1])
        self._loop = loop
        self._export = export
        self._destination = destination
        self._on_event = on_event
        self._tls = destination.tls_context()
        self._websocket: WebSocket | None = None
        self._timers: list[Timer] = []
        self._failure: GateError | None = None
        self._leaving = False

    def run(self) -> None:
        """Serve until the session ends. Returns after a goodbye.

        Raises RefusedError if the server refuses, PeerError if it cannot be reached, breaks off or breaks the protocol.
        """
        self._on_event(Event(event="connecting", server=self._destination.address, export=self._destination.name))
        # In a thread, because name resolution cannot be done without waiting.
        threading.Thread(target=self._connect, name="fuse-gate-connect", daemon=True).start()
        self._loop.run()
        if self._websocket is not None:
            self._websocket.abort()
        for timer in self._timers:
            timer.cancel()
        self.answering.stop()
        # What a dead filesystem holds up ends with the process, which then also closes its files.
        if all(pool.close(_ENDING_TIMEOUT) for pool in self._pools):
            self._export.close()
        if self._failure is not None:
            raise self._failure

    def goodbye(self) -> None:
        """Leave in order; said twice, leave at once."""
        again, self._leaving = self._leaving, True
        if self._websocket is None:
            self._lost(None)
        elif again:
            self._websocket.abort()
        else:
            self._websocket.close(1000, _GOODBYE)

    # Connecting.

    def _connect(self) -> None:
        destination = self._destination
        try:
            sock = socket.create_connection((destination.uri.host, destination.uri.port), CONNECT_TIMEOUT)
        except (OSError, UnicodeError) as error:  # UnicodeError: a host's name that IDNA does not allow
            why = getattr(error, "strerror", None) or error
            problem = PeerError(f"cannot reach {destination.address}: {why}", "is the server running there?")
            self._loop.from_thread(lambda: self._lost(problem))
        else:
            self._loop.from_thread(lambda: self._connected(sock))

    def _connected(self, sock: socket.socket) -> None:
        if self.state is State.CLOSED:
            sock.close()
            return
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        uri = self._destination.uri
        if self._tls is not None:
            sock = self._tls.wrap_socket(sock, server_hostname=uri.host, do_handshake_on_connect=False)
        protocol = ClientProtocol(uri, subprotocols=[Subprotocol(SUBPROTOCOL)], max_size=MAX_MESSAGE)
        self._websocket = WebSocket(self._loop, sock, protocol, self)
        request = protocol.connect()
        request.headers["Authorization"] = f"Bearer {self._destination.token}"
        request.headers["User-Agent"] = f"fuse-gate/{__version__}"
        protocol.send_request(request)
        self._websocket.flush_soon()
        self._timers.append(self._loop.after(LOGIN_TIMEOUT, self._login_took_too_long))

    def _login_took_too_long(self) -> None:
        if self.state in (State.CONNECTING, State.LOGGED_IN):
            self._fail(PeerError(f"the server did not open a session within {LOGIN_TIMEOUT:.0f} s", "see the server's log"), 1002)

    # The connection's events (edge/websocket.py).

    def on_request(self, request: Request) -> None:
        """Only servers get requests."""

    def on_response(self, response: Response) -> None:
        assert self._websocket is not None
        if self._websocket.protocol.state is not ProtocolState.OPEN:
            self._fail(refusal(response, self._websocket), 1002)
        elif self._websocket.protocol.subprotocol != SUBPROTOCOL:
            self._fail(PeerError(f"the server does not speak {SUBPROTOCOL}", "is it a fuse-gated server?"), 1002)
        else:
            self._enter("upgraded")
            self._on_event(Event(event="logged-in"))
            offer = Offer(
                export=self._destination.name,
                program=f"fuse-gate/{__version__}",
                root=self._export.root,
                capabilities=self._export.capabilities,
            )
            self._websocket.send(codec.encode(Hello(offer)))

    def on_message(self, data: bytes | bytearray) -> None:
        if self._failure is not None:
            return
        try:
            for frame in codec.decode_from_server(data):
                self._frame(frame)
        except ProtocolError as error:
            self._fail(error, error.close_code)

    def on_closed(self, code: int, reason: str) -> None:
        assert self._websocket is not None
        self._lost(None if self._leaving else self._failure or ending(self._websocket, code, reason))

    def _frame(self, frame: FromServer) -> None:
        if isinstance(frame, Asked):
            if self.state is not State.MOUNTED:
                raise ProtocolError("a request before the welcome")
            self.answering.asked(frame)
        elif isinstance(frame, Cancel):
            self.answering.cancelled(frame)
        else:
            self._welcomed(frame)

    def _welcomed(self, frame: Welcome) -> None:
        if self.state is not State.LOGGED_IN:
            raise ProtocolError("a second welcome")
        self.answering.begin(frame.terms)
        self.mount_path = frame.terms.mount
        self._enter("welcomed")
        self._on_event(Event(event="mounted", path=frame.terms.mount, session=frame.terms.session))
        self._timers.append(self._loop.after(PING_EVERY, self._keep_alive))

    def _keep_alive(self) -> None:
        assert self._websocket is not None
        if self._loop.now - self._websocket.last_heard > DEAD_AFTER:
            self._failure = PeerError(f"the server has been silent for {DEAD_AFTER:.0f} s", "is the network up?")
            self._websocket.abort()
            return
        self._websocket.ping()
        self._timers.append(self._loop.after(PING_EVERY, self._keep_alive))
        del self._timers[:-1]

    # Endings.

    def _fail(self, error: GateError, code: int) -> None:
        assert self._websocket is not None
        if self._failure is None:
            self._failure = error
        self._websocket.close(code, error.message)

    def _lost(self, error: GateError | None) -> None:
        """The connection is over, or never was: decides what happens next. It ends the client, with `error` unless it left
        by itself; a client that connects again would go back to CONNECTING here, and keep its handles and locks."""
        if self.state is State.CLOSED:
            return
        self._enter("lost")
        self._failure = error
        self._on_event(Event(event="closed", reason=_GOODBYE if error is None else error.message))
        self._loop.stop()

    def _enter(self, happened: str) -> None:
        self.state = TRANSITIONS[self.state, happened]

    def _send(self, message: bytearray) -> None:
        assert self._websocket is not None
        self._websocket.send_now(message)

    def _queued(self) -> int:
        assert self._websocket is not None
        return self._websocket.queued
