"""Binary messages of a WebSocket on their short way (RFC 6455, 5.2).

Nearly all that a session says is whole, unfragmented binary messages. Those are cut out of the received bytes here and given
a header here; handshakes, control frames, fragments and everything faulty are for `websockets`, which sees the connection as
if they were all there is. That saves a third of what a message costs (docs/decisions/0006-where-the-time-goes.md).
"""

import mmap
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

from websockets.protocol import SERVER, State
from websockets.protocol import Protocol as WebSocketProtocol

from fuse_gated.edge.memory import make_buffer

try:
    from websockets.speedups import apply_mask
except ImportError:  # pragma: no cover - built where there was no C compiler
    from websockets.utils import apply_mask

BUFFER: Final = 2**20 + 64 * 1024
"""Bytes received at once at most: a message with the data of a whole READ or WRITE, and not much of the next."""
_FOR_STRANGERS: Final = 64 * 1024
"""The same as long as no message of that length is expected."""

_LENT: Final = 64 * 1024
"""Bytes of a message that is not copied out of the buffer."""

_BINARY: Final = 0x82  # FIN, no extension, opcode 2
_PING: Final = 0x89
_PONG: Final = 0x8A
_MASKED: Final = 0x80
_HEAD_ENDS: Final = b"\r\n\r\n"
_ALL: Final = sys.maxsize
_MASKS: Final = 256
_OPEN: Final = State.OPEN  # Asked of the enumeration it costs a call, in every message, up to Python 3.11.
_SHORT: Final = [bytes((_BINARY, second)) for second in range(256)]
"""The headers of messages of less than 126 bytes, by their second byte."""


class Incoming:
    """What arrives. Receive into `room()`, then say how much it was with `take`: it calls `on_message` for each whole binary
    message of at most `most` bytes, and gives everything else to the protocol, then calling `on_other`. A message of that length
    may get its room as soon as it is announced, so `most` is to be small for strangers. A memoryview is good until `on_message`
    returns: the next bytes overwrite it.

    `fragmented` is to be set while a message of fragments is incomplete, `over` when nothing more is wanted. `on_ping`, if it is
    set, takes pings without a word in them and is to answer them; `on_pong` hears of such pongs.
    """

    __slots__ = (
        "_buffer", "_filled", "_got", "_large", "_large_mask", "_masked", "_needed", "_on_message", "_on_other", "_protocol",
        "_rest", "_tail", "_view", "fragmented", "most", "on_ping", "on_pong", "over",
    )  # fmt: skip

    def __init__(
        self,
        protocol: WebSocketProtocol,
        most: int,
        on_message: Callable[[bytes | bytearray | memoryview], None],
        on_other: Callable[[], None],
    ) -> None:
        self.fragmented = False
        self.over = False
        self.on_ping: Callable[[], None] | None = None
        self.on_pong: Callable[[], None] | None = None
        self.most = most
        self._protocol = protocol
        self._masked = _MASKED if protocol.side is SERVER else 0
        self._on_message = on_message
        self._on_other = on_other
        self._buffer = make_buffer(BUFFER)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._needed = 0
        """How many bytes the message has that has begun in the buffer; 0 if that is not known."""
        self._rest = 0
        """Bytes of the present frame that the protocol still has to get."""
        self._tail: bytes | None = b""
        """The last bytes of the handshake's head; None once it is complete."""
        self._large: bytearray | None = None
        """A message too long for the buffer, which is received into its own place."""
        self._large_mask = b""
        self._got = 0

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if self._large is not None:
            return memoryview(self._large)[self._got :]
        if self.most < BUFFER:
            return self._view[self._filled : self._filled + _FOR_STRANGERS]
        # Not beyond a message that has begun: what came of the next one would have to be moved.
        return self._view[self._filled : self._needed or BUFFER] if self._filled else self._view

    def take(self, count: int) -> None:
        """`count` bytes were received."""
        if self._large is not None:
            self._take_large(count)
            return
        at, end = 0, self._filled + count
        if end < self._needed:
            self._filled = end
            return
        self._filled = self._needed = 0
        while at < end and not self.over:
            if self._rest:
                stop = self._pass(at, end)
            elif self._tail is not None:
                stop = self._head(at, end)
            else:
                stop = self._frame(at, end)
                if stop == at:
                    # The rest of it is still to come.
                    self._filled = end - at
                    if at:
                        self._buffer[: end - at] = self._buffer[at:end]
                    return
            at = stop

    @property
    def waiting(self) -> int:
        """Bytes of a message that is not whole yet."""
        return self._filled + self._got

    def rest(self) -> bool:
        """Nothing long comes any more, for all that is known: what the buffer took of it is given back. False while a message in
        it is not whole yet."""
        if self._filled:
            return False
        self._buffer.madvise(mmap.MADV_DONTNEED)
        return True

    def _give(self, start: int, stop: int) -> None:
        self._protocol.receive_data(self._view[start:stop])  # type: ignore[arg-type]  # it only appends to its own buffer
        self._on_other()

    def _head(self, at: int, end: int) -> int:
        """The handshake up to its empty line: a frame behind it starts anew."""
        assert self._tail is not None
        seen = self._tail + self._buffer[at:end]
        found = seen.find(_HEAD_ENDS)
        if found < 0:
            self._tail = bytes(seen[-3:])
            stop = end
        else:
            stop = at + found + len(_HEAD_ENDS) - len(self._tail)
            self._tail = None
        self._give(at, stop)
        return stop

    def _frame(self, at: int, end: int) -> int:
        """Where the frame that begins at `at` ends, or the part of it that can be had; `at` where more bytes are needed."""
        if self._protocol.state is not _OPEN:
            # No handshake, a refused one, or the end: what comes now is not for us.
            self._rest = _ALL
            return self._pass(at, end)
        buffer = self._buffer
        if end - at < 2:
            return at
        second = buffer[at + 1]
        length = second & 0x7F
        body = at + 2
        if length > 125:
            body += 2 if length == 126 else 8
            if end < body:
                return at
            length = int.from_bytes(buffer[at + 2 : body], "big")
        mask = body
        if second & _MASKED:
            body += 4
        if buffer[at] != _BINARY or second & _MASKED != self._masked or length > self.most or self.fragmented:
            if second == self._masked and end >= body and self._is_sign(buffer[at]):
                return body
            self._rest = body - at + length
            return self._pass(at, end)
        if end < body:
            return at
        stop = body + length
        if stop > end:
            if stop - at > BUFFER:
                self._begin_large(mask, body, end, length)
                return end
            self._needed = stop - at
            return at
        if self._masked:
            self._on_message(apply_mask(self._view[body:stop], buffer[mask:body]))
        else:
            data = self._view[body:stop]
            self._on_message(data if length >= _LENT else bytes(data))
        return stop

    def _is_sign(self, first: int) -> bool:
        """Whether a frame of nothing but its header was a sign of life (`Outgoing.ping`), and heard as one. A thousand idle
        sessions do nothing else, and take two fifths less of the processor for it than by the protocol."""
        if first == _PONG:
            if self.on_pong is not None:
                self.on_pong()
            return True
        if first == _PING and self.on_ping is not None:
            self.on_ping()
            return True
        return False

    def _pass(self, at: int, end: int) -> int:
        """Give the protocol its frame, as far as it is there; where that part ends."""
        stop = min(end, at + self._rest)
        self._rest -= stop - at
        self._give(at, stop)
        return stop

    def _begin_large(self, mask: int, body: int, end: int, length: int) -> None:
        self._large_mask = bytes(self._buffer[mask:body])
        self._large = bytearray(length)
        self._got = end - body
        self._large[: self._got] = self._view[body:end]

    def _take_large(self, count: int) -> None:
        assert self._large is not None
        self._got += count
        if self._got == len(self._large):
            whole, self._large, self._got = self._large, None, 0
            if self._protocol.state is _OPEN:
                self._on_message(apply_mask(whole, self._large_mask) if self._masked else whole)


class Outgoing:
    """Headers, and for a client masks, of binary messages."""

    __slots__ = ("_masked", "_masks", "_used")

    def __init__(self, protocol: WebSocketProtocol) -> None:
        self._masked = protocol.side is not SERVER
        self._masks = b""
        self._used = 0

    def frame(self, data: bytes | bytearray | memoryview) -> tuple[bytes, bytes | bytearray | memoryview]:
        """One whole binary message: its header, and what follows it."""
        header = self._header(len(data))
        if not self._masked:
            return header, data
        mask = self._mask()
        return header + mask, apply_mask(data, mask)

    def frame_of(self, parts: Sequence[bytes | bytearray | memoryview]) -> list[bytes | bytearray | memoryview]:
        """The same of a message in pieces, which are not joined."""
        header = self._header(sum(map(len, parts)))
        if not self._masked:
            return [header, *parts]
        mask = self._mask()
        pieces: list[bytes | bytearray | memoryview] = [header + mask]
        for part in parts:
            pieces.append(apply_mask(part, mask))
            turn = len(part) & 3
            mask = mask[turn:] + mask[:turn]
        return pieces

    def _header(self, size: int) -> bytes:
        bit = _MASKED if self._masked else 0
        if size < 126:
            return _SHORT[bit | size]
        if size < 65536:
            return bytes((_BINARY, bit | 126, size >> 8, size & 0xFF))
        return bytes((_BINARY, bit | 127)) + size.to_bytes(8, "big")

    def ping(self) -> bytes:
        """A ping without a word in it."""
        return self._empty(_PING)

    def pong(self) -> bytes:
        """The answer to such a ping."""
        return self._empty(_PONG)

    def _empty(self, first: int) -> bytes:
        return bytes((first, _MASKED)) + self._mask() if self._masked else bytes((first, 0))

    def _mask(self) -> bytes:
        # Unpredictable (RFC 6455, 5.3), and asked of the kernel for many messages at once.
        if self._used >= len(self._masks):
            self._masks, self._used = os.urandom(4 * _MASKS), 0
        mask = self._masks[self._used : self._used + 4]
        self._used += 4
        return mask
