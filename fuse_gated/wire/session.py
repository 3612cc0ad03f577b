"""The server's end of a session on the wire: what may come when, the requests in flight, and their deadlines.

The order is hello, then replies and notices; anything else closes the connection with a reason. At most `max_in_flight`
requests and `max_bytes_in_flight` bytes are with the client at once; what is more waits here, in order. A request that its
caller gave up stays known (`given_up`) and keeps its place, so that its late reply is told from an invented one, and so that
what such a reply brings (an open handle, a lock) can be given back.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from fuse_gated.errors import ProtocolError, errno_name, errno_number
from fuse_gated.wire import codec
from fuse_gated.wire.messages import Arguments, Ask, Broken, Cancel, Hello, Notice, Offer, Replied
from fuse_gated.wire.tables import OPERATION_OF

MAX_HELLO: Final = 64 * 2**10
"""Bytes in the first message, which comes from somebody who may not have logged in."""


_LASTING: Final = 2**61
_REST: Final = 2**59
_UNLOCK: Final = 2**58
"""The kernel counts its requests, and will not come there; edge/fuse_network.py's are beyond."""


class Pending:
    """A request on its way: what was asked, by when it must be answered, and who wants the result.

    `answered(result)` is called with the decoded result, `failed(errno)` with an errno's name."""

    __slots__ = ("answered", "arguments", "deadline", "failed", "given_up", "id", "operation", "sent", "size")

    def __init__(
        self,
        number: int,
        arguments: Arguments,
        deadline: float,
        answered: Callable[[Any], None],
        failed: Callable[[str], None],
        size: int = 0,
    ) -> None:
        self.id = number
        self.operation = OPERATION_OF[type(arguments)]
        self.arguments = arguments
        self.deadline = deadline
        self.answered = answered
        self.failed = failed
        self.size = size
        """Bytes that the request or its reply may carry."""
        self.sent = False
        self.given_up = False


class Session:
    """`send` takes the frames that are to go out, in order; `late` a request that succeeded after its caller had gone, and its
    result; `noticed` what the client tells of changes."""

    def __init__(
        self,
        send: Callable[[Ask | Cancel], None],
        late: Callable[[Pending, Any], None],
        noticed: Callable[[Notice], None],
        *,
        max_in_flight: int,
        max_bytes_in_flight: int,
    ) -> None:
        self._send = send
        self._late = late
        self._noticed = noticed
        self._max_in_flight = max_in_flight
        self._max_bytes = max_bytes_in_flight
        self._pending: dict[int, Pending] = {}
        self._waiting: deque[Pending] = deque()
        self._in_flight = 0
        self._bytes = 0
        self._waiting_bytes = 0
        self._given_up = 0
        self._next_own = 1
        self.usec = 0
        """Microseconds that the client says it needed for the reply that is being taken; 0 while there is none."""
        self.on_room: Callable[[int], None] = lambda _number: None
        """Called when a request that had to wait is sent."""
        self.on_broken: Callable[[int], None] = lambda _handle: None
        """Called when a lease is to be given up (wire/messages.Broken), with the client's handle."""
        self.after: Callable[[Pending], tuple[int, ...]] | None = None
        """Names the requests that must have ended before this one begins; only for a client with the capability AFTER."""
        self.message_size = 0
        """Bytes of the message that is being taken: who keeps a view of it keeps so much."""

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def busy(self) -> bool:
        """Whether any request is still to be answered."""
        return bool(self._pending)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def crowded(self) -> bool:
        """Whether so many bytes wait here that no further request should be taken: it would only wait behind them."""
        return self._waiting_bytes > self._max_bytes

    @property
    def clogged(self) -> bool:
        """Whether requests wait although everything in flight was given up, or is never to be: the client answers nothing any
        more."""
        if not (self._waiting and self._given_up):
            return False
        return all(pending.given_up or pending.deadline == math.inf for pending in self._pending.values() if pending.sent)

    def count(self, *names: str) -> int:
        """How many requests of these operations are to be answered, by whom somebody waits for them or not."""
        return sum(pending.operation in names for pending in self._pending.values())

    def asked(self) -> list[Arguments]:
        """What is to be answered, by whom somebody waits for it or not."""
        return [pending.arguments for pending in self._pending.values()]

    def own_id(self) -> int:
        """An id for a request that no kernel request stands behind: odd, as the kernel's uniques are even (linux/fuse.h,
        FUSE_UNIQUE)."""
        number, self._next_own = self._next_own, self._next_own + 2
        return number

    def lasting_id(self, number: int) -> int:
        """An id for a request that no kernel request stands behind, and that a successor asks for again: even, so that the client
        repeats its answer, and beyond the kernel's. `number` is never used twice."""
        return _LASTING + 2 * number

    def rest_id(self, number: int) -> int:
        """The same for what finishes the kernel's request `number`."""
        return self.lasting_id(_REST + number // 2)

    def unlock_id(self, number: int) -> int:
        """The same for what gives up a lock, of which the kernel's request `number` has been told that it is done."""
        return self.lasting_id(_UNLOCK + number // 2)

    def begin(self, epoch: int) -> None:
        """Own ids go on from where no earlier worker's are, each of which had an epoch of its own."""
        self._next_own = (epoch << 32) + 1

    def is_own(self, number: int) -> bool:
        """Whether no request of the kernel's stands behind it."""
        return number % 2 == 1 or _LASTING <= number < 2 * _LASTING

    def ask(self, pending: Pending) -> None:
        """Send a request, or keep it until the client has room."""
        if pending.id in self._pending:
            raise ValueError(f"request {pending.id} is in flight already")
        self._pending[pending.id] = pending
        if self._has_room(pending):
            self._transmit(pending)
        else:
            self._waiting.append(pending)
            self._waiting_bytes += pending.size

    def ask_for_nobody(self, pending: Pending) -> None:
        """Send a request that its caller gave up before another connection was there: what it brings is late."""
        pending.given_up = True
        self._given_up += 1
        self.ask(pending)

    def known(self, number: int) -> Pending | None:
        """A request that is still to be answered, whether somebody waits for it or not."""
        return self._pending.get(number)

    def sent(self) -> dict[int, Pending]:
        """The requests that the client may have begun."""
        return {number: pending for number, pending in self._pending.items() if pending.sent}

    def would_wait(self, size: int) -> bool:
        """Whether a request of so many bytes would have to be kept (its data must then be copied)."""
        return bool(self._waiting) or self._in_flight >= self._max_in_flight or self._bytes + size > self._max_bytes

    def give_up(self, number: int) -> bool:
        """The caller no longer waits. True if the client may have begun: it is asked to end it, and answers all the same."""
        pending = self._pending.get(number)
        if pending is None or pending.given_up:
            return False
        if not pending.sent:
            del self._pending[number]
            self._waiting.remove(pending)
            self._waiting_bytes -= pending.size
            self._transmit_waiting()
            return False
        pending.given_up = True
        self._given_up += 1
        self._send(Cancel(number))
        return True

    def cancel(self, number: int) -> bool:
        """Ask the client to end a request, and go on waiting for its answer. False if it was never sent."""
        pending = self._pending.get(number)
        if pending is None or not pending.sent:
            return False
        self._send(Cancel(number))
        return True

    def withdraw(self, number: int) -> None:
        """Take back a request whose frame was handed to `send` but never left."""
        pending = self._pending.get(number)
        if pending is not None and pending.sent:
            self._remove(pending)
            self._transmit_waiting()

    def abandon(self) -> None:
        """The client is gone: nothing will be answered, nobody is called back."""
        self._pending.clear()
        self._waiting.clear()
        self._in_flight = self._bytes = self._waiting_bytes = self._given_up = 0

    def get(self, number: int) -> Pending | None:
        """A request that somebody waits for."""
        pending = self._pending.get(number)
        return None if pending is None or pending.given_up else pending

    def overdue(self, now: float) -> list[Pending]:
        """The requests whose deadline has passed and that somebody still waits for."""
        self.usec = 0
        return [pending for pending in self._pending.values() if pending.deadline <= now and not pending.given_up]

    def received(self, message: bytes | bytearray | memoryview) -> None:
        """Takes a message after the hello: calls back for each reply and each notice, in their order, because a notice may say
        what was before a reply.

        Raises ProtocolError for what is malformed, out of order, or answers what was not asked.
        """
        self.message_size = len(message)
        for frame in codec.decode_from_client(message):
            if type(frame) is Replied:
                self._replied(frame)
            elif type(frame) is Notice:
                self._noticed(frame)
            elif type(frame) is Broken:
                self.on_broken(frame.handle)
            else:
                raise ProtocolError("a second hello")

    def _replied(self, frame: Replied) -> None:
        pending = self._pending.get(frame.id)
        if pending is None or not pending.sent:
            raise ProtocolError(f"a reply to request {frame.id}, which is not in flight", 1008)
        self._remove(pending)
        self.usec = frame.usec
        if frame.errno is not None:
            if not pending.given_up:
                # A name that this machine does not know becomes EIO here, so that the client's text goes no further.
                pending.failed(errno_name(errno_number(frame.errno)))
        else:
            result = codec.decode_result(pending.operation, frame.result)
            if pending.given_up:
                self._late(pending, result)
            else:
                pending.answered(result)
        self._transmit_waiting()

    def _remove(self, pending: Pending) -> None:
        del self._pending[pending.id]
        self._in_flight -= 1
        self._bytes -= pending.size
        self._given_up -= pending.given_up

    def _transmit_waiting(self) -> None:
        while self._waiting and self._has_room(self._waiting[0]):
            pending = self._waiting.popleft()
            self._waiting_bytes -= pending.size
            self.on_room(pending.id)
            self._transmit(pending)

    def _has_room(self, pending: Pending) -> bool:
        if self._waiting and self._waiting[0] is not pending:
            return False
        return self._in_flight < self._max_in_flight and (self._in_flight == 0 or self._bytes + pending.size <= self._max_bytes)

    def _transmit(self, pending: Pending) -> None:
        pending.sent = True
        self._in_flight += 1
        self._bytes += pending.size
        after = () if self.after is None else self.after(pending)
        self._send(Ask(pending.id, pending.operation, pending.arguments, after))


def read_hello(message: bytes | bytearray | memoryview) -> Offer:
    """What the client offers in its first message, which must be one hello.

    Raises ProtocolError for anything else, and for a hello of more than MAX_HELLO bytes.
    """
    if len(message) > MAX_HELLO:
        raise ProtocolError(f"a hello of {len(message)} bytes, {MAX_HELLO} are allowed", 1009)
    frames = codec.decode_from_client(message)
    if len(frames) != 1 or not isinstance(frames[0], Hello):
        raise ProtocolError("the first message must be one hello")
    return frames[0].offer
