"""Noticing that a worker has ended where its pidfd does not tell (`guest.main_thread_has_ended`), without looking at a thousand
of them all the time.

A worker's main thread has the only end of its channel: a thread that is stuck in the kernel has a table of descriptors of its own
(edge/notifying.py). So with that thread the channel ends, and whose channel has ended is looked at. Where unshare(2) is forbidden
nothing tells, so all others are looked at as well, a few at a time.
"""

from collections.abc import Callable, Collection
from typing import Final

from fuse_gated.edge.loop import Loop
from fuse_gated.guest import Guest

SOON: Final = 0.25
"""Seconds from the end of a worker's channel until it is looked at: one that ends as others do has ended by then, and its pidfd
has told."""
EVERY: Final = 1.0
"""Seconds from one look to the next."""
AT_ONCE: Final = 50
"""Of those whose channel is open, how many are looked at in one go."""


class Deaths:
    """`died` is told of each of `guests` that serves a session no more. Nothing is looked at before `begin`."""

    def __init__(self, loop: Loop, guests: Callable[[], Collection[Guest]], died: Callable[[Guest], None]) -> None:
        self._loop = loop
        self._guests = guests
        self._died = died
        self._others: list[Guest] = []

    def begin(self) -> None:
        """Look at those whose channel is open, from now on and for ever."""
        self._loop.after(EVERY, self.begin)
        if not self._others:
            self._others = list(self._guests())
        for guest in self._others[:AT_ONCE]:
            self._look(guest)
        del self._others[:AT_ONCE]

    def silent(self, guest: Guest) -> None:
        """Its channel has ended. It may live on all the same, if it is somebody else's: so it is looked at until it has ended."""
        self._loop.after(SOON, lambda: self._look_again(guest))

    def _look_again(self, guest: Guest) -> None:
        self._look(guest)
        if not guest.dead:
            self._loop.after(EVERY, lambda: self._look_again(guest))

    def _look(self, guest: Guest) -> None:
        if guest.seat is not None and not guest.dead and guest.has_ended():
            self._died(guest)


__all__ = ["Deaths"]
