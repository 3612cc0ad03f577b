"""Answering what the server asks: quick operations on the loop, slow ones on threads, waiting locks by timers.

What becomes ready in one turn of the loop leaves in one message. Requests finish in any order, except that a release waits
for what still runs on its handle, whose descriptor it gives back. Nothing is held without bound: a server that has more in
flight than it promised is refused, and one that does not read its answers gets no further ones.
"""

import errno
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from fuse_gated.edge.files import ELSEWHERE, LATER, Export
from fuse_gated.edge.loop import Loop, Timer
from fuse_gated.edge.pool import Job, Pool
from fuse_gated.errors import ProtocolError, errno_name
from fuse_gated.wire import codec
from fuse_gated.wire import messages as wire

MOST_IN_FLIGHT: Final = 1024
MOST_BYTES_IN_FLIGHT: Final = 256 * 2**20
"""What this client is ready to hold, whatever a server would like."""

_FIRST_TRY: Final = 0.001
_SLOWEST_TRY: Final = 0.05
_LONGEST_WAIT: Final = 600.0
_UNREAD_CHECK: Final = 0.02
_VIOLATION: Final = 1008
_RELEASES: Final = (wire.Release, wire.Releasedir)


class _Request:
    """One that could not be answered at once."""

    __slots__ = ("arguments", "deadline", "delay", "id", "job", "pool", "timer", "weight")

    def __init__(self, number: int, arguments: wire.Arguments, weight: int) -> None:
        self.id = number
        self.arguments = arguments
        self.weight = weight
        self.job: Job | None = None
        self.pool: Pool | None = None
        self.timer: Timer | None = None
        self.delay = _FIRST_TRY
        self.deadline = 0.0


class Answering:
    """`send` takes the messages that go out, `queued` tells how many bytes of them have not left yet. `elsewhere` are threads
    for what concerns other filesystems than the root's (default: the same ones), so that one that hangs holds up no other
    slow work."""

    def __init__(
        self,
        loop: Loop,
        export: Export,
        pool: Pool,
        send: Callable[[bytearray], None],
        queued: Callable[[], int],
        elsewhere: Pool | None = None,
    ) -> None:
        self.operations = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self._loop = loop
        self._export = export
        self._pool = pool
        self._elsewhere = elsewhere or pool
        self._send = send
        self._queued = queued
        self._max_in_flight = 0
        self._max_bytes = 0
        self._batch = codec.Batch()
        self._requests: dict[int, _Request] = {}
        self._unread: deque[_Request] = deque()
        self._busy: dict[int, int] = {}
        self._releasing: set[int] = set()
        self._parked: dict[int, _Request] = {}
        self._answered = 0
        self._bytes = 0
        self._answered_bytes = 0
        self._stopped = False

    @property
    def in_flight(self) -> int:
        """Requests whose answers have not been sent."""
        return len(self._requests) + self._answered

    def begin(self, terms: wire.Terms) -> None:
        """From now on requests may come.

        Raises ProtocolError for terms that would have this client hold more than it is ready to.
        """
        if not 0 < terms.max_in_flight <= MOST_IN_FLIGHT or not 0 < terms.max_bytes_in_flight <= MOST_BYTES_IN_FLIGHT:
            raise ProtocolError(
                f"terms of {terms.max_in_flight} requests and {terms.max_bytes_in_flight} bytes in flight; "
                f"{MOST_IN_FLIGHT} and {MOST_BYTES_IN_FLIGHT} are the most",
                _VIOLATION,
            )
        self._max_in_flight = terms.max_in_flight
        self._max_bytes = terms.max_bytes_in_flight

    def asked(self, frame: wire.Asked) -> None:
        """Answer a request, now or later.

        Raises ProtocolError for a request that is malformed, more than the terms allow, or whose id is in flight.
        """
        if frame.id in self._requests:
            raise ProtocolError(f"request {frame.id} is in flight already", _VIOLATION)
        if self.in_flight >= self._max_in_flight:
            raise ProtocolError(f"more than {self._max_in_flight} requests in flight", _VIOLATION)
        arguments = codec.decode_arguments(frame)
        if arguments is None:
            self._answer(frame.id, "ENOSYS", None, 0)
            return
        weight = _weight(arguments)
        if self._bytes + weight > self._max_bytes and self.in_flight:
            raise ProtocolError(f"more than {self._max_bytes} bytes in flight", _VIOLATION)
        self._bytes += weight
        if self._unread or self._queued() > self._max_bytes:
            self._keep_unread(_Request(frame.id, arguments, weight))
        else:
            self._start(frame.id, arguments, weight)

    def cancelled(self, frame: wire.Cancel) -> None:
        """End a request that waits: for a lock, or for a thread. What has begun goes on, and is answered."""
        request = self._requests.get(frame.id)
        if request is None:
            return
        if request.timer is not None:
            request.timer.cancel()
            self._finish(request, "EINTR", None)
        elif _withdrawn(request):
            self._finish(request, "EINTR", None)
            self._no_longer_busy(request)
        else:
            request.deadline = self._loop.now  # A lock that a thread is trying for is not tried for again.

    def stop(self) -> None:
        """Answer nothing any more. What runs on threads goes on to its end."""
        self._stopped = True
        for request in self._requests.values():
            if request.timer is not None:
                request.timer.cancel()
            _withdrawn(request)
        self._requests.clear()
        self._unread.clear()
        self._parked.clear()

    def _start(self, number: int, arguments: wire.Arguments, weight: int) -> None:
        if self._releasing and not self._releasing.isdisjoint(_handles(arguments)):
            # Its descriptor's number may be another file's by the time a thread used it.
            self._answer(number, "EBADF", None, weight)
        elif isinstance(arguments, _RELEASES) and arguments.handle in self._busy:
            self._releasing.add(arguments.handle)
            self._parked[arguments.handle] = self._keep(_Request(number, arguments, weight))
        else:
            self._begin(number, arguments, weight)

    def _begin(self, number: int, arguments: wire.Arguments, weight: int) -> None:
        try:
            result = self._export.attempt(arguments)
        except OSError as error:
            if _is_held_by_another(error, arguments):
                self._wait_for_lock(self._keep(_Request(number, arguments, weight)))
            else:
                self._answer(number, errno_name(error.errno or errno.EIO), None, weight)
            return
        if result is LATER or result is ELSEWHERE:
            self._hand_over(self._keep(_Request(number, arguments, weight)), self._pool if result is LATER else self._elsewhere)
        else:
            self._count(arguments, result)
            self._answer(number, None, result, weight)

    def _hand_over(self, request: _Request, pool: Pool) -> None:
        arguments = request.arguments
        for handle in _handles(arguments):
            self._busy[handle] = self._busy.get(handle, 0) + 1
        if isinstance(arguments, _RELEASES):
            self._releasing.add(arguments.handle)
        request.pool = pool
        request.job = pool.submit(
            lambda: self._export.perform(arguments), lambda result, error: self._performed(request, result, error)
        )

    def _performed(self, request: _Request, result: Any, error: Exception | None) -> None:
        if self._stopped:
            return
        request.job = None
        if error is None:
            self._count(request.arguments, result)
            self._finish(request, None, result)
        elif _is_held_by_another(error, request.arguments) and (not request.deadline or self._loop.now < request.deadline):
            self._wait_for_lock(request)
        elif isinstance(error, OSError):
            self._finish(request, errno_name(error.errno or errno.EIO), None)
        else:
            raise error
        self._no_longer_busy(request)

    def _no_longer_busy(self, request: _Request) -> None:
        for handle in _handles(request.arguments):
            self._busy[handle] -= 1
            if not self._busy[handle]:
                del self._busy[handle]
                self._releasing.discard(handle)
                if handle in self._parked:
                    release = self._parked.pop(handle)
                    del self._requests[release.id]
                    self._begin(release.id, release.arguments, release.weight)

    def _wait_for_lock(self, request: _Request) -> None:
        assert isinstance(request.arguments, wire.Setlk)
        if not request.deadline:
            request.deadline = self._loop.now + min(request.arguments.wait / 1000, _LONGEST_WAIT)
        else:
            request.delay = min(request.delay * 2, _SLOWEST_TRY)
        request.timer = self._loop.after(request.delay, lambda: self._try_lock(request))

    def _try_lock(self, request: _Request) -> None:
        request.timer = None
        if not self._releasing.isdisjoint(_handles(request.arguments)):
            self._finish(request, "EBADF", None)
            return
        try:
            result = self._export.attempt(request.arguments)
        except OSError as error:
            if error.errno == errno.EAGAIN and self._loop.now < request.deadline:
                self._wait_for_lock(request)
            else:
                self._finish(request, errno_name(error.errno or errno.EIO), None)
            return
        if result is LATER or result is ELSEWHERE:
            self._hand_over(request, self._pool if result is LATER else self._elsewhere)
            return
        self.operations += 1
        self._finish(request, None, None)

    def _keep_unread(self, request: _Request) -> None:
        if not self._unread:
            self._loop.after(_UNREAD_CHECK, self._go_on)
        self._unread.append(self._keep(request))

    def _go_on(self) -> None:
        while self._unread and self._queued() <= self._max_bytes:
            request = self._unread.popleft()
            del self._requests[request.id]
            self._start(request.id, request.arguments, request.weight)
        if self._unread:
            self._loop.after(_UNREAD_CHECK, self._go_on)

    def _keep(self, request: _Request) -> _Request:
        self._requests[request.id] = request
        return request

    def _finish(self, request: _Request, failure: str | None, result: Any) -> None:
        del self._requests[request.id]
        self._answer(request.id, failure, result, request.weight)

    def _count(self, arguments: wire.Arguments, result: Any) -> None:
        self.operations += 1
        if isinstance(arguments, wire.Read):
            self.bytes_read += len(result)
        elif isinstance(arguments, wire.Write):
            self.bytes_written += result

    def _answer(self, number: int, failure: str | None, result: Any, weight: int) -> None:
        # Encoded at once: a read's result is a view of a buffer that the next read overwrites.
        self._batch.add(wire.Reply(number, failure, result))
        if not self._answered:
            self._loop.soon(self._flush)
        self._answered += 1
        self._answered_bytes += weight

    def _flush(self) -> None:
        self._bytes -= self._answered_bytes
        self._answered = self._answered_bytes = 0
        for message in self._batch.take():
            if not self._stopped:
                self._send(message)


def _withdrawn(request: _Request) -> bool:
    """Whether it waited for a thread, and waits no more."""
    return request.job is not None and request.pool is not None and request.pool.cancel(request.job)


def _is_held_by_another(error: Exception, arguments: wire.Arguments) -> bool:
    """Whether this is a lock that is worth waiting for."""
    is_held = isinstance(error, OSError) and error.errno == errno.EAGAIN
    return is_held and isinstance(arguments, wire.Setlk) and arguments.wait > 0


def _weight(arguments: wire.Arguments) -> int:
    """Bytes of file data that a request brings or asks for."""
    if isinstance(arguments, wire.Write):
        return arguments.data.nbytes  # Not len(): in msgspec 0.19's views it is wrong.
    return max(arguments.size, 0) if isinstance(arguments, wire.Read) else 0


def _handles(arguments: wire.Arguments) -> tuple[int, ...]:
    """The handles that a request works on."""
    found = (getattr(arguments, "handle", None), getattr(arguments, "to_handle", None), getattr(arguments, "target", None))
    return tuple(handle for handle in found if isinstance(handle, int))
