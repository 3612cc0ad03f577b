"""The client's side of one connection: an attempt to reach the server, its upgrade, its messages, and how it ended.

It ends once, whatever happens: each stage has its time, and a link that has died is noticed by pings that nobody answers.
"""

import socket
import ssl
import threading
from collections.abc import Callable
from typing import Final, Protocol

from websockets.client import ClientProtocol
from websockets.http11 import Request, Response
from websockets.protocol import State as ProtocolState
from websockets.typing import Subprotocol

from fuse_gated import __version__
from fuse_gated.edge.connecting import connect
from fuse_gated.edge.destination import Destination
from fuse_gated.edge.loop import Loop, Timer
from fuse_gated.edge.websocket import WebSocket
from fuse_gated.endings import Ending, Outlook, ending, refusal
from fuse_gated.errors import PeerError, ProtocolError
from fuse_gated.wire.codec import Parts
from fuse_gated.wire.messages import MAX_MESSAGE, SUBPROTOCOL

CONNECT_TIMEOUT: Final = 10.0
"""Seconds for connecting, TLS and the upgrade together."""
LOGIN_TIMEOUT: Final = 30.0
"""Seconds from then to the welcome; the server may wait for its mount meanwhile."""
_PINGS: Final = 2
"""In the time after which a silent server is taken for dead."""
_SLACK: Final = 10
"""Its death is noticed up to so many-th of that time later."""


class Owner(Protocol):
    """Who uses a connection implements this."""

    def on_upgraded(self) -> None:
        """The server is there, and takes the token."""

    def on_message(self, data: bytes | bytearray | memoryview) -> None:
        """A whole message, good until this returns. May raise ProtocolError, which ends the connection."""

    def on_lost(self, end: Ending) -> None:
        """It is over, once. It is not called after `abort`."""


class Connection:
    """An attempt begins at once. `dead_after` are the seconds of silence after which the server is taken for dead."""

    def __init__(
        self, loop: Loop, destination: Destination, tls: ssl.SSLContext | None, owner: Owner, dead_after: float
    ) -> None:
        self._loop = loop
        self._destination = destination
        self._tls = tls
        self._owner = owner
        self._dead_after = dead_after
        self._websocket: WebSocket | None = None
        self._failure: Ending | None = None
        self._over = False
        self._unanswered = 0
        self._handing_over = threading.Lock()
        self._made: socket.socket | None = None
        """What the thread has connected, until the loop takes it."""
        self._timer: Timer = loop.after(CONNECT_TIMEOUT, self._took_too_long)
        self._pulse: Timer | None = None
        # In a thread, because name resolution cannot be done without waiting.
        threading.Thread(target=self._connect, name="fuse-gate-connect", daemon=True).start()

    @property
    def queued(self) -> int:
        """Bytes that are to be sent and that the kernel has not taken yet."""
        return self._websocket.queued if self._websocket is not None else 0

    def send(self, message: bytes | bytearray | Parts) -> None:
        """Send one message, at once if there is room. It is dropped silently once the connection is closing."""
        if self._websocket is None:
            return
        if isinstance(message, tuple):
            self._websocket.send_parts(message)
        else:
            self._websocket.send_now(message)

    def welcomed(self) -> None:
        """The session is open: from now on nothing but silence ends the connection."""
        self._timer.cancel()

    def close(self, code: int, reason: str) -> bool:
        """Start the closing handshake, upon which `on_lost` follows. False if there is nothing to close: nothing follows."""
        if self._websocket is None:
            self.abort()
            return False
        self._websocket.close(code, reason)
        return True

    def abort(self) -> None:
        """Let go of the socket at once, and say no more."""
        with self._handing_over:
            if self._over:
                return
            self._over = True
            if self._made is not None:
                self._made.close()
        self._timer.cancel()
        if self._pulse is not None:
            self._pulse.cancel()
        if self._websocket is not None:
            self._websocket.abort()

    # Connecting.

    def _connect(self) -> None:
        uri = self._destination.uri
        try:
            sock = connect(uri.host, uri.port, CONNECT_TIMEOUT, self._dead_after)
        except (OSError, UnicodeError) as error:  # UnicodeError: a host's name that IDNA does not allow
            why = getattr(error, "strerror", None) or error
            problem = PeerError(f"cannot reach {self._destination.address}: {why}", "is the server running there?")
            self._tell(lambda: self._lost(Ending(problem)))
        else:
            if not self._tell(lambda: self._connected(sock), sock):
                sock.close()

    def _tell(self, callback: Callable[[], None], sock: socket.socket | None = None) -> bool:
        """From the thread: unless it has been given up, which may have been long ago."""
        with self._handing_over:
            if self._over:
                return False
            self._made = sock
            self._loop.from_thread(callback)
            return True

    def _connected(self, sock: socket.socket) -> None:
        if self._over:
            return
        self._made = None
        uri = self._destination.uri
        if self._tls is not None:
            try:
                sock.getpeername()  # wrap_socket() loses a socket that has been reset already.
                sock = self._tls.wrap_socket(sock, server_hostname=uri.host, do_handshake_on_connect=False)
            except OSError as error:
                sock.close()
                problem = PeerError(f"the server broke off the connection: {error.strerror}", "is it a wss:// server?")
                self._lost(Ending(problem))
                return
        protocol = ClientProtocol(uri, subprotocols=[Subprotocol(SUBPROTOCOL)], max_size=MAX_MESSAGE)
        self._websocket = WebSocket(self._loop, sock, protocol, self)
        request = protocol.connect()
        request.headers["Authorization"] = f"Bearer {self._destination.token}"
        request.headers["User-Agent"] = f"fuse-gate/{__version__}"
        # The hello says it too, but a balancer before several servers sees only this.
        request.headers["Fuse-Gate-Export"] = self._destination.name
        protocol.send_request(request)
        self._websocket.flush_soon()

    def _took_too_long(self) -> None:
        why = f"{self._destination.address} did not answer within {CONNECT_TIMEOUT:g} s"
        error = PeerError(why, "is it a fuse-gated server?")
        self._lost(Ending(error))

    def _login_took_too_long(self) -> None:
        error = PeerError(f"the server did not open a session within {LOGIN_TIMEOUT:g} s", "see the server's log")
        self._fail(Ending(error), 1002)

    # The WebSocket's events (edge/websocket.py).

    def on_request(self, request: Request) -> None:
        """Only servers get requests."""

    def on_response(self, response: Response) -> None:
        assert self._websocket is not None
        if self._websocket.protocol.state is not ProtocolState.OPEN:
            self._lost(refusal(response, self._websocket))
        elif self._websocket.protocol.subprotocol != SUBPROTOCOL:
            error = PeerError(f"the server does not speak {SUBPROTOCOL}", "is it a fuse-gated server?")
            self._fail(Ending(error, Outlook.DOUBTFUL), 1002)
        else:
            self._timer.cancel()
            self._timer = self._loop.after(LOGIN_TIMEOUT, self._login_took_too_long)
            # A link may die before the welcome as well, which then waits for nobody: the session's programs do.
            self._pulse = self._loop.after(self._dead_after / _PINGS, self._keep_alive)
            self._owner.on_upgraded()

    def on_message(self, data: bytes | bytearray | memoryview) -> None:
        if self._failure is not None or self._over:
            return
        try:
            self._owner.on_message(data)
        except ProtocolError as error:
            self._fail(Ending(error, Outlook.FINAL), error.close_code)

    def on_closed(self, code: int, reason: str) -> None:
        assert self._websocket is not None
        self._lost(self._failure or ending(self._websocket, code, reason))

    # Endings.

    def _keep_alive(self) -> None:
        """A ping for a link that has been silent for a while. None costs anything while there is something to hear."""
        assert self._websocket is not None
        silent = self._loop.now - self._websocket.last_heard
        every = self._dead_after / _PINGS
        if silent < every:
            self._unanswered = 0
        elif silent < self._dead_after or self._unanswered < _PINGS - 1:
            # A process that was stopped for a while asks first.
            self._unanswered += 1
            self._websocket.ping()
        else:
            self._lost(Ending(PeerError(f"the server has been silent for {silent:.0f} s", "is the network up?")))
            return
        # A little later: an answer takes its time, and one look then does for all of the time since.
        self._pulse = self._loop.after((every - silent if silent < every else every) + every / _SLACK, self._keep_alive)

    def _fail(self, end: Ending, code: int) -> None:
        assert self._websocket is not None
        if self._failure is None:
            self._failure = end
        self._websocket.close(code, end.error.message)

    def _lost(self, end: Ending) -> None:
        if not self._over:
            self.abort()
            self._owner.on_lost(end)

