"""A WebSocket (RFC 6455) on a non-blocking socket: `websockets` speaks the protocol, this moves the bytes, and whole binary
messages take a short way past it (edge/frames.py).

Messages that are sent in one turn of the loop leave in one system call at its end. Bytes are received into one buffer that
lives as long as the connection, because recv() with a large size costs an mmap each.
"""

import contextlib
import select
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Protocol

from websockets.exceptions import InvalidMessage
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Protocol as WebSocketProtocol
from websockets.protocol import State
from websockets.server import ServerProtocol

from fuse_gated.edge.frames import Incoming, Outgoing
from fuse_gated.edge.loop import WRITABLE, Loop, Timer
from fuse_gated.edge.memory import give_back_freed, keep_freed
from fuse_gated.errors import ProtocolError
from fuse_gated.wire.messages import MAX_MESSAGE

_READS_A_TURN = 8
_CLOSE_TIMEOUT = 3.0
_MOST_PONGS = 1000
_WORTH_NO_COPY = 64 * 1024
_LONG = 128 * 1024
_RECORD = 16 * 1024
"""Bytes that TLS gives at once of what is longer (RFC 8446, 5.1)."""
_REST = 2.0
"""Seconds without a long message after which none is expected any more."""
_NO_WEBSOCKET = "this is no WebSocket"
_OPEN = State.OPEN  # As in frames.py.


class Handlers(Protocol):
    """Who uses a WebSocket implements this."""

    def on_request(self, request: Request) -> None:
        """A server received the upgrade request; it answers with `protocol.accept` or `.reject` and `send_response`."""

    def on_response(self, response: Response) -> None:
        """A client received the answer to its upgrade request; the connection is open if `protocol.state` is OPEN."""

    def on_message(self, data: bytes | bytearray | memoryview) -> None:
        """A whole binary message. A memoryview is good until this returns: the next bytes overwrite it."""

    def on_closed(self, code: int, reason: str) -> None:
        """The connection is over, once: 1006 if it broke off without a close frame (RFC 6455, 7.1.5). It comes with the peer's
        close frame, or when a fault of the peer's is found, though the socket may not be closed yet."""


class WebSocket:
    """One connection. The socket must be connected and non-blocking; an ssl.SSLSocket may still have its handshake to do. For
    `expected` see `expect`. `preface` reads what comes before everything else, the handshake too: it is called with the socket
    whenever there is something, until it is True, and raises ProtocolError to refuse the connection."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        protocol: WebSocketProtocol,
        handlers: Handlers,
        *,
        expected: int = MAX_MESSAGE,
        preface: Callable[[socket.socket], bool] | None = None,
    ) -> None:
        self.protocol = protocol
        self.queued = 0
        """Bytes accepted by `send` that the kernel has not taken yet."""
        self.last_heard = loop.now
        self.on_sign: Callable[[], None] | None = None
        """Called for each ping that came, which is answered in any case, and for the answers to ours."""
        self.bytes_received = 0
        self.bytes_sent = 0
        self._loop = loop
        self._socket = sock
        self._handlers = handlers
        self._incoming = Incoming(protocol, expected, handlers.on_message, self._deliver)
        self._incoming.on_ping, self._incoming.on_pong = self._pinged, self._ponged
        self._outgoing = Outgoing(protocol)
        self._out: list[memoryview] = []
        self._parts: bytearray | None = None
        self._unread_pongs = 0
        self._ponged_in = 0.0
        """The turn, by its time, in which a ping was last answered at once."""
        self._flush_is_due = False
        self._waits_for_write = False
        self._send_eof = False
        self._over = False
        self._peer_gone = False
        self._told_bad_request = False
        self._told_closed = False
        self._close_timer: Timer | None = None
        self._rest_timer: Timer | None = None
        self._rests_at = 0.0
        self._tls = sock if isinstance(sock, ssl.SSLSocket) else None
        self._handshaking = self._tls is not None
        self._preface = preface
        self._refused = ""
        self.tls_error = ""
        """What went wrong in the TLS handshake, for people."""
        loop.watch(sock.fileno(), self._ready)
        if self._handshaking and preface is None:
            loop.soon(self._handshake)

    @property
    def open(self) -> bool:
        return self.protocol.state is _OPEN and not self._over

    def expect(self, size: int) -> None:
        """Messages of so many bytes are no surprise from now on, and get their room at once. What is longer is taken as it comes,
        up to the protocol's own limit."""
        self._incoming.most = size

    @property
    def closed(self) -> bool:
        """The socket is closed, and `on_closed` was called."""
        return self._over

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Queue one binary message. It is dropped silently once the connection is closing."""
        if self.protocol.state is _OPEN:
            self.protocol.send_binary(data)
            self.flush_soon()

    def send_now(self, data: bytes | bytearray | memoryview) -> None:
        """As `send`, without waiting for the turn's end: for whoever has gathered what the turn produced."""
        if self.protocol.state is not _OPEN:
            return
        if self.protocol.writes:
            self.protocol.send_binary(data)
            self._flush()
            return
        header, body = self._outgoing.frame(data)
        size = len(header) + len(body)
        if self._out or self._tls is not None:
            self._queue_message(header, body)
            self._flush()
            return
        try:
            sent = self._socket.send(header + body) if size < _WORTH_NO_COPY else self._socket.sendmsg((header, body))
        except OSError:
            # No room, or the end, which reading tells after what the peer said last.
            sent = 0
        self.bytes_sent += sent
        if sent == size:
            self._unread_pongs = 0
            return
        self._queue_message(header, body, sent)
        self._flush()

    def send_parts(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """As `send_now`, for a long message in pieces, which are not joined. What cannot leave at once is copied."""
        if self.protocol.state is not _OPEN:
            return
        self._moves_much()
        if self.protocol.writes:
            self.send_now(b"".join(parts))
            return
        pieces = self._outgoing.frame_of(parts)
        if self._out or self._tls is not None:
            # What TLS is given leaves in records of its own.
            self._queue(b"".join(pieces))
            self._flush()
            return
        size = sum(map(len, pieces))
        try:
            sent = self._socket.sendmsg(pieces)
        except OSError:
            # As in `send_now`.
            sent = 0
        self.bytes_sent += sent
        if sent == size:
            self._unread_pongs = 0
            return
        self._queue(b"".join(pieces), sent)
        self._flush()

    def ping(self) -> None:
        """Ask the other side for a sign of life. A thousand idle sessions do little else, so it goes past the protocol."""
        if self.protocol.state is _OPEN:
            self._queue(self._outgoing.ping())
            self.flush_soon()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Start the closing handshake; `on_closed` follows, within three seconds."""
        if self._over:
            return
        if self.protocol.state is _OPEN:
            self.protocol.fail(code, _short(reason)) if code != 1000 else self.protocol.send_close(code, _short(reason))
            self._flush()
            if self._close_timer is None:
                self._close_timer = self._loop.after(_CLOSE_TIMEOUT, self.abort)
        elif self.protocol.state is State.CONNECTING:
            self.abort()

    def abort(self) -> None:
        """Let go of the socket at once."""
        if self._over:
            return
        self._over = self._incoming.over = True
        if self._close_timer is not None:
            self._close_timer.cancel()
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            give_back_freed()
        self._loop.forget(self._socket.fileno())
        if not self._peer_gone:
            with contextlib.suppress(Exception):
                self.protocol.receive_eof()
        self._socket.close()
        self._tell_closed()

    def _tell_closed(self) -> None:
        if self._told_closed:
            return
        self._told_closed = True
        received, sent = self.protocol.close_rcvd, self.protocol.close_sent
        told = sent if self.protocol.close_rcvd_then_sent is False and sent is not None else received or sent
        why = self.tls_error or self._refused or str(self.protocol.handshake_exc or "")
        self._handlers.on_closed(told.code if told else 1006, told.reason if told else why)

    def _fail(self, code: int, reason: str) -> None:
        self.close(code, reason)
        self._tell_closed()

    def flush_soon(self) -> None:
        """Send what the protocol has to say at the end of this turn."""
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.soon(self._flush)

    def _ready(self, events: int) -> None:
        if self._preface is not None:
            self._read_preface(self._preface)
        elif self._handshaking:
            self._handshake()
        else:
            if events & WRITABLE and self._waits_for_write:
                self._flush()
            if not self._over and events & ~select.EPOLLOUT:
                self._receive()

    def _read_preface(self, preface: Callable[[socket.socket], bool]) -> None:
        try:
            if not preface(self._socket):
                return
        except ProtocolError as error:
            self._refused = error.message
            # Thrown away unread until the peer has heard: a socket that is closed with bytes in it is reset.
            self._preface = _throw_away
            if self._tls is None:
                self._queue(_bad_request(error.message))
                self._send_eof = True
                self._flush()
            self._tell_closed()
            return
        except (OSError, EOFError):
            self._ended()
            return
        self._preface = None
        if self._handshaking:
            self._handshake()
        else:
            self._receive()

    def _handshake(self) -> None:
        assert self._tls is not None
        if self._over:
            return
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._loop.change(self._socket.fileno())
            return
        except ssl.SSLWantWriteError:
            self._loop.change(self._socket.fileno(), write=True)
            return
        except OSError as error:
            # What did not fit: another authority, another name, a certificate that has expired.
            doubt = getattr(error, "verify_message", "")
            self.tls_error = f"TLS handshake failed: {getattr(error, 'reason', None) or error}" + (f": {doubt}" if doubt else "")
            self.abort()
            return
        self._handshaking = False
        self._loop.change(self._socket.fileno())
        self.flush_soon()
        self._receive()

    def _receive(self) -> None:
        """A few reads at most, so that others get their turn. Nothing is left where epoll does not see it: what TLS has taken
        out of the socket is read to its end."""
        reads = 0
        while reads < _READS_A_TURN or (self._tls is not None and self._tls.pending()):
            reads += 1
            room = self._incoming.room()
            try:
                count = self._socket.recv_into(room)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError:
                count = 0
            if count == 0:
                self._ended()
                return
            self.last_heard = self._loop.now
            self.bytes_received += count
            if count > _LONG or count == _RECORD:
                self._moves_much()
            self._incoming.take(count)
            if self._over:
                return
            if self._incoming.waiting > _LONG:
                # It comes in small pieces.
                self._moves_much()
            if count < len(room) and self._tls is None:
                return

    def _moves_much(self) -> None:
        """A long message is seldom the last one."""
        self._rests_at = self._loop.now + _REST
        if self._rest_timer is None:
            keep_freed()
            self._rest_timer = self._loop.at(self._rests_at, self._rest)

    def _rest(self) -> None:
        if self._loop.now < self._rests_at:
            self._rest_timer = self._loop.at(self._rests_at, self._rest)
        elif self._incoming.rest():
            self._rest_timer = None
            give_back_freed()
        else:
            self._rests_at = self._loop.now + _REST
            self._rest_timer = self._loop.at(self._rests_at, self._rest)

    def _ended(self) -> None:
        self._peer_gone = True
        with contextlib.suppress(Exception):
            self.protocol.receive_eof()
        self._deliver()
        self._flush()
        self.abort()

    def _deliver(self) -> None:
        for event in self.protocol.events_received():
            if self._over:
                return
            if isinstance(event, Frame):
                self._frame(event)
            elif isinstance(event, Request):
                self._handlers.on_request(event)
            else:
                self._handlers.on_response(event)
        if (self.protocol.parser_exc or self.protocol.close_rcvd) is not None and not self._peer_gone:
            # Nothing more is heard from it. Only its hearing the end is waited for.
            self._flush()
            self._tell_closed()
        if isinstance(self.protocol.handshake_exc, InvalidMessage) and isinstance(self.protocol, ServerProtocol):
            self._say_bad_request()
        if self.protocol.writes:
            self.flush_soon()
        if self.protocol.state is not _OPEN and self._close_timer is None and self.protocol.close_expected():
            self._close_timer = self._loop.after(_CLOSE_TIMEOUT, self.abort)

    def _say_bad_request(self) -> None:
        """What is no HTTP is answered with nothing by `websockets`; people try ports, and want to know."""
        if not self._told_bad_request and not self._peer_gone:
            self._told_bad_request = True
            self._queue(_bad_request(_NO_WEBSOCKET))
            self.flush_soon()

    def _frame(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is Opcode.BINARY:
            if frame.fin:
                self._handlers.on_message(frame.data)
            else:
                # One buffer, not a list: empty fragments, of which there is no end, must cost nothing.
                self._parts = bytearray(frame.data)
                self._incoming.fragmented = True
        elif opcode is Opcode.TEXT:
            self._fail(1003, "text messages are not part of this protocol")
        elif opcode is Opcode.CONT and self._parts is not None:
            self._parts += frame.data
            if frame.fin:
                parts, self._parts = self._parts, None
                self._incoming.fragmented = False
                self._handlers.on_message(parts)
        elif opcode is Opcode.PING:
            self._answered()
        elif opcode is Opcode.PONG:
            self._ponged()

    def _pinged(self) -> None:
        pong, sent = self._outgoing.pong(), 0
        if self._ponged_in != self._loop.now and not self._out and not self.protocol.writes and self._tls is None:
            # The turn's only one in all likelihood, and all that an idle session does: nothing is to be gathered.
            self._ponged_in = self._loop.now
            with contextlib.suppress(OSError):
                sent = self._socket.send(pong)
            self.bytes_sent += sent
        if sent < len(pong):
            self._queue(pong, sent)
            self.flush_soon()
            self._answered()
        elif self.on_sign is not None:
            self.on_sign()

    def _answered(self) -> None:
        """A ping, by a pong that is on its way."""
        self._unread_pongs += 1
        if self._unread_pongs > _MOST_PONGS:
            self._fail(1008, "too many pings whose answers were not read")
        elif self.on_sign is not None:
            self.on_sign()

    def _ponged(self) -> None:
        if self.on_sign is not None:
            self.on_sign()

    def _flush(self) -> None:
        self._flush_is_due = False
        if self._over or self._handshaking:
            return
        for data in self.protocol.data_to_send():
            if data:
                self._queue(data)
            else:
                self._send_eof = True
        try:
            self._write()
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            if not self._waits_for_write:
                self._waits_for_write = True
                self._loop.change(self._socket.fileno(), write=True)
            return
        except OSError:
            # Reading tells the end, after what the peer said last.
            self._out.clear()
            self.queued = 0
        if self._waits_for_write:
            self._waits_for_write = False
            self._loop.change(self._socket.fileno())
        self._unread_pongs = 0
        if self._send_eof and not self._out:
            self._half_close()

    def _queue(self, data: bytes | bytearray | memoryview, sent: int = 0) -> None:
        self._out.append(memoryview(data)[sent:])
        self.queued += len(data) - sent

    def _queue_message(self, header: bytes, body: bytes | bytearray | memoryview, sent: int = 0) -> None:
        if len(body) < _WORTH_NO_COPY or self._tls is not None:
            # What TLS is given leaves in records of its own.
            self._queue(header + body, sent)
        elif sent < len(header):
            self._queue(header, sent)
            self._queue(body)
        else:
            self._queue(body, sent - len(header))

    def _write(self) -> None:
        while self._out:
            sent = self._tls.send(self._out[0]) if self._tls is not None else self._socket.sendmsg(self._out[:64])
            self.queued -= sent
            self.bytes_sent += sent
            while sent and sent >= len(self._out[0]):
                sent -= len(self._out.pop(0))
            if sent:
                self._out[0] = self._out[0][sent:]

    def _half_close(self) -> None:
        self._send_eof = False
        if self._tls is not None:
            # TLS has no half-close that websockets' peers understand; both sides have said all they had to say.
            self._loop.soon(self.abort)
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        if self._peer_gone:
            self.abort()


def _throw_away(sock: socket.socket) -> bool:
    try:
        if not socket.socket.recv(sock, 4096):
            raise EOFError
    except BlockingIOError:
        pass
    return False


def _bad_request(reason: str) -> bytes:
    body = f"{reason}\n".encode()
    return b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def _short(reason: str) -> str:
    """A close frame's reason is at most 123 bytes of UTF-8 (RFC 6455, 5.5)."""
    return reason.encode()[:123].decode("utf-8", "ignore")
