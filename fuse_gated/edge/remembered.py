"""The answers that a client gives twice: what it did once must not be done again because a connection was lost.

After a session has been resumed the server asks again whatever it has no answer for, with the same id. Where the first answer
is known, it is repeated. Only what changes something is kept; the rest is as well done anew. All of it is small: the data of
a READ is never kept.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import msgspec

from fuse_gated.wire import messages as wire
from fuse_gated.wire.tables import OPERATION_OF

PER_REQUEST_IN_FLIGHT: Final = 4
"""How many answers are kept for each request that may be in flight: those that the server may not have, and those that it has
but whose caller may not, because the server's process was killed in between."""

IDEMPOTENT: Final[frozenset[type[wire.Arguments]]] = frozenset(
    {
        wire.Getattr, wire.Readlink, wire.Read, wire.Readdir, wire.Statfs, wire.Access, wire.Getxattr, wire.Listxattr, wire.Lseek,
        wire.Getlk, wire.Fsync, wire.Fsyncdir, wire.Release, wire.Releasedir, wire.Unlease, wire.Gather, wire.Unwatch,
    }
)  # fmt: skip
"""What may be done twice. (A second release of a handle is EBADF, for which nobody waits.)"""

_CHANGES: Final = frozenset(OPERATION_OF) - IDEMPOTENT


class Remembered:
    """The replies to the latest requests that changed something, by id and operation. At most `limit` of them."""

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self._replies: OrderedDict[tuple[int, type[wire.Arguments]], wire.Reply] = OrderedDict()
        self._failures: dict[int, int] = {}
        """How many of the kept replies to an id are errors."""

    def __len__(self) -> int:
        return len(self._replies)

    def keep(self, arguments: wire.Arguments, reply: wire.Reply) -> None:
        """Keep a reply, if it is one to keep; the oldest goes."""
        kind = type(arguments)
        # Odd ids are the server's own, and never asked again.
        if kind not in _CHANGES or reply.id & 1:
            return
        if kind is wire.Setlk and reply.errno == "EAGAIN":
            return  # Nothing was done, and the server asks again under this id for as long as its caller waits.
        if isinstance(reply.result, wire.OpenedFile) and reply.result.leased:
            # Leases are a connection's, and this is for the next one.
            reply = msgspec.structs.replace(reply, result=msgspec.structs.replace(reply.result, leased=0))
        self._replies[reply.id, kind] = reply
        if reply.errno is not None:
            self._failures[reply.id] = self._failures.get(reply.id, 0) + 1
        while len(self._replies) > self.limit:
            oldest = self._replies.popitem(last=False)[1]
            if oldest.errno is not None:
                self._failures[oldest.id] -= 1
                if not self._failures[oldest.id]:
                    del self._failures[oldest.id]

    def reply(self, number: int, arguments: wire.Arguments) -> wire.Reply | None:
        """The first reply to this request, if it is known."""
        return self._replies.get((number, type(arguments))) if self._replies else None

    def has_failed(self, numbers: Iterable[int]) -> bool:
        """Whether an error is known of any of these ids."""
        return bool(self._failures) and not self._failures.keys().isdisjoint(numbers)

    def forget(self) -> None:
        self._replies.clear()
        self._failures.clear()
