"""Requests that the limiter holds back, and what they hold meanwhile."""

import msgspec

from fuse_gated import operations
from fuse_gated.gate.limiter import REFUSED
from fuse_gated.operations import Request
from fuse_gated.turnstile.call import Call
from fuse_gated.turnstile.desk import Desk
from fuse_gated.turnstile.measures import IN_FLIGHT
from fuse_gated.turnstile.writing import copied


class Limiting(Desk):
    """The desk, and who waits before it."""

    _held_bytes = 0

    def count_ended(self) -> None:
        """So that others see how many operations there were, and how long they took."""
        self.measures.words[IN_FLIGHT] = len(self._calls)
        self.measures.cached(self.cache.hits, self.cache.misses)
        self.measures.fold()

    def is_held(self, call: Call, kind: str) -> bool:
        """Whether it has to wait; then it comes to its handler later (`tick`). Raises Failure(EAGAIN) where it may not even."""
        request = call.request
        size = _size(request)
        kept = size if isinstance(request, operations.Write) else 0
        full = self._held_bytes + kept > self.limits.max_bytes_in_flight
        wait = REFUSED if full else self.limiter.take(self.now, kind, size, longest=self.limits.deadline)
        if wait == REFUSED:
            raise self.limited(call, "EAGAIN", self.path_of(request), f"more {kind} operations or bytes than the policy allows")
        if wait <= 0.0:
            return False
        if isinstance(request, operations.Write):
            call.request = msgspec.structs.replace(request, data=bytes(request.data))
        call.limited_as = kind
        self._held_bytes += kept
        self.hold(call, wait)
        return True

    def let_go(self, call: Call) -> None:
        """Nobody waits any more for a request that the limiter holds: its turn goes to the others, its data is dropped."""
        self.limiter.give_back(call.limited_as, _size(call.request))
        self.no_longer_held(call)
        call.request = operations.Destroy()

    def no_longer_held(self, call: Call) -> None:
        """Its turn has come."""
        call.limited_as = ""
        if isinstance(call.request, operations.Write):
            self._held_bytes -= len(call.request.data)


def _size(request: Request) -> int:
    """The bytes that a request counts for with the limiter."""
    if isinstance(request, operations.Write):
        return len(request.data)
    if isinstance(request, operations.Read):
        return request.size
    return copied(request) if isinstance(request, operations.CopyFileRange) else 0
