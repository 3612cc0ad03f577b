"""A request of the server's, and what can be told of it by its arguments."""

import errno
from typing import Final

from fuse_gated.edge.loop import Timer
from fuse_gated.edge.pool import Job, Pool
from fuse_gated.wire import messages as wire

RELEASES: Final = (wire.Release, wire.Releasedir)
FOR_A_CONNECTION: Final = (wire.Gather, wire.Unwatch, wire.Read)
"""What is of no use once the connection is lost that it was asked on: nothing is watched then."""
WEIGHTY: Final = frozenset({wire.Read, wire.Write, wire.Gather})
"""What brings file data, or asks for it."""


class Request:
    """`id` is None for what nobody will ever hear of. `heard` says whether the connection is there that asked: else the answer
    is kept until the server asks again."""

    __slots__ = (
        "arguments", "came", "comes_after_failure", "deadline", "delay", "heard", "id", "job", "known", "pool", "timer", "weight",
    )  # fmt: skip

    def __init__(self, number: int | None, arguments: wire.Arguments) -> None:
        self.id = number
        self.arguments = arguments
        self.heard = number is not None
        self.weight = weight_of(arguments)
        """Bytes of file data that it brings or asks for."""
        self.job: Job | None = None
        self.pool: Pool | None = None
        self.timer: Timer | None = None
        self.delay = 0.0
        self.deadline = 0.0
        self.came = 0.0
        """When it was read, in seconds of time.monotonic()."""
        self.comes_after_failure = False
        """Whether one of those that it waited for ended with an error."""
        self.known: wire.Reply | None = None
        """Its first answer, if it was asked before and now waits for its turn to be answered again."""

    @property
    def is_release(self) -> bool:
        return isinstance(self.arguments, RELEASES)

    @property
    def is_own(self) -> bool:
        """Whether it is the server's own, by an id that it will not ask by again."""
        return self.id is None or bool(self.id & 1)

    def shares_handle(self, other: "Request") -> bool:
        return not set(handles_of(self.arguments)).isdisjoint(handles_of(other.arguments))

    def withdraw(self) -> bool:
        """Whether it waited for a thread, and waits no more."""
        return self.job is not None and self.pool is not None and self.pool.cancel(self.job)

    def stop_waiting(self) -> bool:
        """Whether it waited for its lock to be tried for again, and waits no more."""
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()
        return timer is not None


def is_held_by_another(error: Exception, arguments: wire.Arguments) -> bool:
    """Whether this is a lock that is worth waiting for."""
    is_held = isinstance(error, OSError) and error.errno == errno.EAGAIN
    return is_held and isinstance(arguments, wire.Setlk) and arguments.wait > 0


def weight_of(arguments: wire.Arguments) -> int:
    """Bytes of file data that a request brings or asks for."""
    if isinstance(arguments, wire.Write):
        return arguments.data.nbytes  # Not len(): in msgspec 0.19's views it is wrong.
    if isinstance(arguments, wire.Gather):
        return max(arguments.most, 0)
    return max(arguments.size, 0) if isinstance(arguments, wire.Read) else 0


def handles_of(arguments: wire.Arguments) -> tuple[int, ...]:
    """The handles that a request works on."""
    found = (getattr(arguments, "handle", None), getattr(arguments, "to_handle", None), getattr(arguments, "target", None))
    return tuple(handle for handle in found if isinstance(handle, int))
