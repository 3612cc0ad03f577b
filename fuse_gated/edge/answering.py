"""Answering what the server asks, each request once.

What becomes ready in one turn of the loop leaves in one message. Requests finish in any order. Nothing is held without bound:
a server that has more in flight than it promised is refused, and one that does not read its answers gets no further ones.

A request may name others that it comes after: it is held until they have ended. A WRITE is not carried out at all (ECANCELED) if
one of those failed, so that nothing is written behind a gap.

A session may outlive its connection (`suspend`, `resume`). What had begun by then goes on to its end, and what it changed is
answered when the server asks again; what had not begun is forgotten, because the server will ask. Only odd ids, which are the
server's own, are never asked again: those are all carried out, but for those that come after something on their own handle that
is forgotten (a RELEASE would close what is to be written to once more: the server asks for both).
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from fuse_gated.edge.carrying import Carrying
from fuse_gated.edge.files import Export
from fuse_gated.edge.gathering import Collected
from fuse_gated.edge.loop import Loop, Timer
from fuse_gated.edge.order import Order
from fuse_gated.edge.pool import Pool
from fuse_gated.edge.remembered import IDEMPOTENT, PER_REQUEST_IN_FLIGHT, Remembered
from fuse_gated.edge.request import FOR_A_CONNECTION, WEIGHTY, Request, weight_of
from fuse_gated.edge.watching import Watching
from fuse_gated.errors import ProtocolError
from fuse_gated.operations import Attributes
from fuse_gated.wire import codec
from fuse_gated.wire import messages as wire

MOST_IN_FLIGHT: Final = 1024
MOST_BYTES_IN_FLIGHT: Final = 256 * 2**20
"""What this client is ready to hold, whatever a server would like."""

_UNREAD_CHECK: Final = 0.02
_VIOLATION: Final = 1008


class Answering:
    """`send` takes the messages that go out, `queued` tells how many bytes of them have not left yet. `elsewhere` are threads
    for what concerns other filesystems than the root's (default: the same ones). `on_shortage` hears, once, that more was to be
    watched for the server than may be."""

    def __init__(
        self,
        loop: Loop,
        export: Export,
        pool: Pool,
        send: Callable[[bytearray | codec.Parts], None],
        queued: Callable[[], int],
        elsewhere: Pool | None = None,
        on_shortage: Callable[[], None] = lambda: None,
    ) -> None:
        self.operations = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self._loop = loop
        self._export = export
        self._carrying = Carrying(loop, export, pool, elsewhere or pool, self._finished)
        self._order = Order(self._proceed)
        self._send = send
        self._queued = queued
        self._max_in_flight = 0
        self._max_bytes = 0
        self._batch = codec.Batch()
        self._is_to_be_sent = False
        self._connected = False
        self._watching: Watching | None = None
        if export.watches is not None:
            self._watching = Watching(loop, export.watches, self._tell, queued, on_shortage)
        if export.leases is not None:
            export.leases.broken = self._lease_broken
        self._remembered = Remembered()
        self._requests: dict[int, Request] = {}
        self._left_over: dict[int, Request] = {}
        """What had begun when its connection was lost, and may be asked again."""
        self._unheard: set[Request] = set()
        """What goes on although nobody will hear of it."""
        self._unread: deque[Request] = deque()
        self._unread_timer: Timer | None = None
        self._answered = 0
        self._bytes = 0
        self._answered_bytes = 0
        self._stopped = False

    @property
    def in_flight(self) -> int:
        """Requests whose answers have not been sent."""
        return len(self._requests) + self._answered

    @property
    def remembered(self) -> int:
        """Answers that are kept."""
        return len(self._remembered)

    # The session's life.

    def begin(self, terms: wire.Terms) -> None:
        """From now on requests of a new session may come; an older one is over.

        Raises ProtocolError for terms that would have this client hold more than it is ready to.
        """
        self._agree(terms)
        self.forget()
        self._connect()

    def resume(self, terms: wire.Terms) -> None:
        """From now on requests may come again, on another connection, in the session that was suspended.

        Raises ProtocolError as `begin`.
        """
        self._agree(terms)
        self._connect()

    def suspend(self) -> None:
        """The connection is lost: nothing is sent until the session is resumed, or another one begins."""
        self._connected = False
        if self._export.leases is not None:
            self._export.leases.give_up_all()
        if self._watching is not None:
            self._watching.reset()
        requests, self._requests = self._requests, {}
        unread, self._unread = self._unread, deque()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
        self._batch.take()
        self._answered = self._bytes = self._answered_bytes = 0
        not_begun: dict[Request, set[Request]] = {request: set() for request in unread}
        not_begun |= {request: self._order.leave(request) for request in requests.values() if self._order.holds(request)}
        forgotten: set[Request] = set()
        for request in requests.values():
            request.heard = False
            if request in not_begun:
                continue
            if request.stop_waiting():
                forgotten.add(request)
            else:
                self._leave_over(request)
        for request in requests.values():
            if not self._is_carried_out(request) and self._carrying.withdraw(request):
                self._let_go(request)
                forgotten.add(request)
        for request, others in not_begun.items():
            if request.is_own and not any(request.shares_handle(other) for other in others & forgotten):
                self._go_on_unheard(request, others)
            else:
                forgotten.add(request)
        for request in forgotten:
            # Something that an earlier connection left may still wait for it.
            self._order.ended(request, failed=False)

    def forget(self) -> None:
        """The session is over, to be called while nothing is in flight: give back what it had open and locked, as soon as
        what still runs there has ended, and forget what was answered."""
        for request in self._left_over.values():
            request.id = None
            self._unheard.add(request)
        self._left_over.clear()
        self._remembered.forget()
        self._carrying.forget_locks()
        for release in self._export.releases():
            self._do_unheard(release)

    def stop(self) -> None:
        """Answer nothing any more. What runs on threads goes on to its end."""
        self._stopped = True
        if self._watching is not None:
            self._watching.stop()
        self._carrying.stop()
        self._order.clear()
        for request in [*self._requests.values(), *self._left_over.values(), *self._unheard]:
            request.stop_waiting()
            request.withdraw()
        self._requests.clear()
        self._left_over.clear()
        self._unheard.clear()
        self._unread.clear()

    # What the server says.

    def asked(self, frame: wire.Asked) -> None:
        """Answer a request, now or later. It need not be good any longer than this call: what waits is copied.

        Raises ProtocolError for a request that is malformed, more than the terms allow, or whose id is in flight.
        """
        number = frame.id
        if self._queued() > 2 * self._max_bytes + wire.MAX_MESSAGE:
            # More than answers to what may be in flight, and to what was asked before anybody could know.
            raise ProtocolError("more and more is asked, and no answer read", _VIOLATION)
        if number in self._requests:
            raise ProtocolError(f"request {number} is in flight already", _VIOLATION)
        if len(self._requests) + self._answered >= self._max_in_flight:
            raise ProtocolError(f"more than {self._max_in_flight} requests in flight", _VIOLATION)
        arguments = codec.decode_arguments(frame)
        if arguments is None:
            self._reply(wire.Reply(number, "ENOSYS"), 0)
            return
        weight = weight_of(arguments) if type(arguments) in WEIGHTY else 0
        if weight and self._bytes + weight > self._max_bytes and self.in_flight:
            raise ProtocolError(f"more than {self._max_bytes} bytes in flight", _VIOLATION)
        self._bytes += weight
        if self._left_over and number in self._left_over:
            self._take_up(number, self._new_request(number, arguments))
            return
        if frame.after and self._is_put_in_order(number, arguments, frame.after):
            return
        known = self._remembered.reply(number, arguments) if type(arguments) not in IDEMPOTENT else None
        if known is not None:
            self._reply(known, weight)
        elif self._unread or self._queued() > self._max_bytes:
            request = self._requests[number] = self._new_request(number, arguments)
            self._keep_unread(request)
        else:
            self._carry_out(number, arguments, weight)

    def cancelled(self, frame: wire.Cancel) -> None:
        """End a request that waits: for its turn, for a lock, or for a thread. What has begun goes on, and is answered."""
        request = self._requests.get(frame.id)
        if request is None or request.known is not None:
            return
        if self._order.holds(request):
            self._order.leave(request)
            self._finished(request, "EINTR", None)
        else:
            self._carrying.cancel(request)

    # Beyond a connection.

    def _agree(self, terms: wire.Terms) -> None:
        if not 0 < terms.max_in_flight <= MOST_IN_FLIGHT or not 0 < terms.max_bytes_in_flight <= MOST_BYTES_IN_FLIGHT:
            raise ProtocolError(
                f"terms of {terms.max_in_flight} requests and {terms.max_bytes_in_flight} bytes in flight; "
                f"{MOST_IN_FLIGHT} and {MOST_BYTES_IN_FLIGHT} are the most",
                _VIOLATION,
            )
        self._max_in_flight = terms.max_in_flight
        self._max_bytes = terms.max_bytes_in_flight
        self._remembered.limit = PER_REQUEST_IN_FLIGHT * terms.max_in_flight

    def _connect(self) -> None:
        if self._watching is not None:
            # What threads went on to watch for a connection that was lost is nobody's.
            self._watching.reset()
        self._connected = True

    def _leave_over(self, request: Request) -> None:
        assert request.id is not None
        if request.is_own:
            request.id = None
            self._unheard.add(request)
        else:
            self._left_over[request.id] = request

    def _is_left_over(self, request: Request) -> bool:
        return request.id is not None and self._left_over.get(request.id) is request

    def _is_carried_out(self, request: Request) -> bool:
        """Whether it must be done although its connection is lost. Releases are no more than there are handles; of what else
        is the server's own, only so many are held."""
        if isinstance(request.arguments, FOR_A_CONNECTION):
            return False
        own = request.id is None and len(self._unheard) <= PER_REQUEST_IN_FLIGHT * self._max_in_flight
        return own or request.is_release

    def _go_on_unheard(self, request: Request, others: set[Request]) -> None:
        """It had not begun when its connection was lost, and comes after what is still going on of these."""
        request.id = None
        if self._is_carried_out(request):
            self._unheard.add(request)
            going_on = [other for other in others if other in self._unheard or self._is_left_over(other)]
            if going_on:
                self._order.hold(request, going_on)
            else:
                self._start(request)

    def _take_up(self, number: int, again: Request) -> None:
        """It is asked again while it is being worked on: this connection gets its one answer."""
        request = self._left_over[number]
        if type(request.arguments) is not type(again.arguments):
            raise ProtocolError(f"request {number} was another one before", _VIOLATION)
        del self._left_over[number]
        request.heard, request.weight = True, again.weight
        request.deadline = request.delay = 0.0
        self._requests[number] = request

    def _let_go(self, request: Request) -> None:
        """It will never be finished."""
        self._unheard.discard(request)
        if request.id is not None:
            del self._left_over[request.id]

    def _do_unheard(self, arguments: wire.Arguments) -> None:
        request = Request(None, arguments)
        self._unheard.add(request)
        self._carrying.start(request)

    # What comes after what.

    def _is_put_in_order(self, number: int, arguments: wire.Arguments, after: tuple[int, ...]) -> bool:
        """False if nothing keeps it from being carried out now."""
        others = [other for name in after if (other := self._requests.get(name) or self._left_over.get(name)) is not None]
        comes_after_failure = self._remembered.has_failed(after)
        if not others and not (comes_after_failure and type(arguments) is wire.Write):
            return False
        request = self._requests[number] = self._new_request(number, arguments)
        request.comes_after_failure = comes_after_failure
        if type(arguments) not in IDEMPOTENT:
            # Now, because it may be forgotten by the time that its turn comes.
            request.known = self._remembered.reply(number, arguments)
        if others:
            self._order.hold(request, others)
        else:
            self._proceed(request)
        return True

    def _proceed(self, request: Request) -> None:
        """Its turn has come."""
        if request.known is not None:
            del self._requests[request.known.id]
            self._reply(request.known, request.weight)
            self._order.ended(request, failed=request.known.errno is not None)
        elif request.heard and (self._unread or self._queued() > self._max_bytes):
            self._keep_unread(request)
        else:
            self._start(request)

    def _start(self, request: Request) -> None:
        if request.comes_after_failure and isinstance(request.arguments, wire.Write):
            self._finished(request, "ECANCELED", None)
        else:
            self._carrying.start(request)

    # Answers.

    def _new_request(self, number: int, arguments: wire.Arguments) -> Request:
        if isinstance(arguments, wire.Write):
            # It waits, and the message that its data lies in is good no longer than this call.
            arguments = msgspec.structs.replace(arguments, data=memoryview(bytes(arguments.data)))
        request = Request(number, arguments)
        request.came = self._loop.now
        return request

    def _carry_out(self, number: int, arguments: wire.Arguments, weight: int) -> None:
        """Most of it is done by the time that a Request would be made of it, and needs none."""
        outcome = self._carrying.attempt(arguments)
        if isinstance(outcome, tuple):
            self._reply(self._outcome(number, arguments, outcome[0], outcome[1], self._loop.now), weight)
        else:
            request = self._requests[number] = self._new_request(number, arguments)
            self._carrying.start(request, outcome)

    def _outcome(self, number: int, arguments: wire.Arguments, failure: str | None, result: Any, came: float) -> wire.Reply:
        kind = type(arguments)
        if type(result) is Collected:
            result = result.answer()
        if failure is None:
            self.operations += 1
            if kind in WEIGHTY:
                self._count(arguments, result)
        reply = wire.Reply(number, failure, result, int((time.monotonic() - came) * 1e6))
        if kind not in IDEMPOTENT:
            self._remembered.keep(arguments, reply)
        return reply

    def _keep_unread(self, request: Request) -> None:
        self._unread.append(request)
        if self._unread_timer is None:
            self._unread_timer = self._loop.after(_UNREAD_CHECK, self._go_on)

    def _go_on(self) -> None:
        while self._unread and self._queued() <= self._max_bytes:
            self._start(self._unread.popleft())
        self._unread_timer = self._loop.after(_UNREAD_CHECK, self._go_on) if self._unread else None

    def _finished(self, request: Request, failure: str | None, result: Any) -> None:
        number = request.id
        if number is None:
            self._unheard.discard(request)
            if isinstance(result, wire.OpenedFile):
                # Nobody will ever name this handle.
                is_directory = isinstance(request.arguments, wire.Opendir)
                self._do_unheard(wire.Releasedir(result.handle) if is_directory else wire.Release(result.handle))
        else:
            reply = self._outcome(number, request.arguments, failure, result, request.came)
            if request.heard:
                if isinstance(request.arguments, wire.Create):
                    reply = self._with_lease(reply)
                if isinstance(request.arguments, wire.Setlk) and request.arguments.current and failure is None:
                    # Not to be said again: it holds now.
                    reply = msgspec.structs.replace(reply, result=self._as_it_is(request.arguments))
                del self._requests[number]
                self._reply(reply, request.weight)
            else:
                del self._left_over[number]
                if isinstance(result, wire.OpenedFile) and self._export.leases is not None:
                    # The next connection is told of none.
                    self._export.leases.give_up(result.handle)
        self._order.ended(request, failed=failure is not None)

    def _with_lease(self, reply: wire.Reply) -> wire.Reply:
        """It may have been created, and leased, for the connection before."""
        opened, leases = reply.result, self._export.leases
        if not isinstance(opened, wire.OpenedFile) or not opened.leased or (leases is not None and leases.holds(opened.handle)):
            return reply
        return msgspec.structs.replace(reply, result=msgspec.structs.replace(opened, leased=0))

    def _as_it_is(self, arguments: wire.Setlk) -> Attributes | None:
        """What a file is like that has just been locked, once the server was told of all that became of others before; None where
        that cannot be said."""
        if self._watching is None or not self._watching.catch_up():
            return None
        try:
            found = self._export.attempt(wire.Getattr(arguments.handle))
        except OSError:
            return None
        return found if isinstance(found, Attributes) else None

    def _count(self, arguments: wire.Arguments, result: Any) -> None:
        if isinstance(arguments, wire.Read):
            self.bytes_read += len(result)
        elif isinstance(arguments, wire.Write):
            self.bytes_written += result
        else:
            self.bytes_read += sum(len(found.content) for found in result if found.content is not None)

    def _lease_broken(self, handle: int) -> None:
        if self._connected:
            self._batch.add(wire.Broken(handle))
            self._send_soon()
        elif self._export.leases is not None:
            self._export.leases.give_up(handle)

    def _tell(self, notice: wire.Notice) -> None:
        if self._connected:
            self._batch.add(notice)
            self._send_soon()

    def _reply(self, reply: wire.Reply, weight: int) -> None:
        self._answered += 1
        self._answered_bytes += weight
        # Sent or encoded at once: a read's result is a view of a buffer that the next read overwrites.
        message = self._batch.take_with(reply)
        if message is None:
            self._batch.add(reply)
        if message is not None or self._batch.is_long:
            self._flush(message)
        else:
            self._send_soon()

    def _send_soon(self) -> None:
        if not self._is_to_be_sent:
            self._is_to_be_sent = True
            self._loop.soon(self._flush)

    def _flush(self, last: codec.Parts | None = None) -> None:
        self._is_to_be_sent = False
        self._bytes -= self._answered_bytes
        self._answered = self._answered_bytes = 0
        messages: list[bytearray | codec.Parts] = [*self._batch.take()]
        if last is not None:
            messages.append(last)
        for message in messages:
            if not self._stopped:
                self._send(message)
