"""How a client holds on to its server: when it tries again, and for how long."""

import random
from typing import Final

import msgspec

_MOST_DOUBLINGS: Final = 60
_CHANCE: Final = random.SystemRandom()
SOON: Final = 0.2
"""Seconds within which to be back where the server has said that it will be."""


class Persistence(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds. Attempts are `delay` apart at first, doubled each time up to `longest_delay`; at most `max_attempts`
    that fail one after the other (None: without end). `from_start`: also before the first session; else a server that cannot
    be reached then is an error. Without `reconnect` the session ends with its first connection."""

    reconnect: bool = True
    from_start: bool = False
    delay: float = 1.0
    longest_delay: float = 30.0
    max_attempts: int | None = None
    dead_after: float = 20.0

    def pause(self, failures: int) -> float:
        """How long to wait after so many failed attempts (0: the connection was lost just now). Anything between nothing and
        the longest, so that clients that lost their server together do not come back together (full jitter)."""
        return _CHANCE.uniform(0.0, min(self.longest_delay, self.delay * 2.0 ** min(failures, _MOST_DOUBLINGS)))

    def short_pause(self) -> float:
        """How long to wait for a server that has left in order."""
        return _CHANCE.uniform(0.0, min(SOON, self.longest_delay))
