"""A small event loop over epoll(7): descriptors, timers, wake-ups. One thread runs it.

Not asyncio, because a WebSocket round trip costs a third of asyncio's here (docs/decisions/0001-own-event-loop.md). A turn
of the loop is: wait, call what became ready, call what is due, then call what was put off with `soon`, so that everything
that one turn produced can leave together.
"""

import contextlib
import heapq
import os
import select
import time
from collections import deque
from collections.abc import Callable

READABLE = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP
WRITABLE = select.EPOLLOUT | select.EPOLLERR
_LONGEST_WAIT = 60.0
_FEW_TIMERS = 64
_MOST_EVENTS = 64
"""Taken at once; room for each is made anew for every wait, and Python would make it for a thousand."""


class Timer:
    """A call that is due at a time. `cancel` may be called at any moment, also after it ran."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: "Timer") -> bool:
        return self.when < other.when


class Loop:
    """Watches descriptors and keeps timers. Times are seconds of time.monotonic()."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._sweep_at = _FEW_TIMERS
        self._soon: deque[Callable[[], None]] = deque()
        self._from_threads: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = False
        self.now = time.monotonic()
        self.watch(self._wake, self._woken)

    def descriptors(self) -> set[int]:
        """The loop's own descriptors, which a process that closes all others must keep."""
        return {self._epoll.fileno(), self._wake}

    def watch(self, fd: int, callback: Callable[[int], None], *, read: bool = True, write: bool = False) -> None:
        """Call `callback(events)` whenever `fd` is ready (epoll's event bits; READABLE and WRITABLE test them)."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, _mask(read, write))

    def change(self, fd: int, *, read: bool = True, write: bool = False) -> None:
        """Wait for something else on a watched descriptor."""
        self._epoll.modify(fd, _mask(read, write))

    def forget(self, fd: int) -> None:
        """Stop watching; to be called before the descriptor is closed. Forgetting twice is harmless."""
        if self._callbacks.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` once `now` has reached `when`."""
        timer = Timer(when, callback)
        heapq.heappush(self._timers, timer)
        if len(self._timers) > self._sweep_at:
            self._sweep()
        return timer

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` in so many seconds."""
        return self.at(time.monotonic() + seconds, callback)

    def soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` at the end of this turn."""
        self._soon.append(callback)

    def from_thread(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the loop's thread; the only method that another thread may call."""
        self._from_threads.append(callback)
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Leave `run` after this turn."""
        self._stopping = True

    def run(self) -> None:
        """Turn until `stop` is called. What a callback raises comes out of here."""
        self._stopping = False
        self.now = time.monotonic()
        while not self._stopping:
            self.turn()

    def turn(self) -> None:
        """Wait for something to do, and do it."""
        ready = self._epoll.poll(self._wait() if self._timers or self._soon else _LONGEST_WAIT, _MOST_EVENTS)
        self.now = time.monotonic()
        for fd, events in ready:
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback(events)
        timers, soon = self._timers, self._soon
        while timers and timers[0].when <= self.now:
            due = heapq.heappop(timers).callback
            if due is not None:
                due()
        while soon:
            soon.popleft()()

    def close(self) -> None:
        """Give up the loop's own descriptors; the watched ones stay their owners'."""
        self._epoll.close()
        os.close(self._wake)

    def _wait(self) -> float:
        if self._soon:
            return 0.0
        timers = self._timers
        while timers and timers[0].callback is None:
            heapq.heappop(timers)
        if not timers:
            return _LONGEST_WAIT
        # `now` is as old as this turn: what is due is late by that at most, which is less than a call for the time costs.
        wait = timers[0].when - self.now
        return 0.0 if wait < 0.0 else _LONGEST_WAIT if wait > _LONGEST_WAIT else wait

    def _sweep(self) -> None:
        """Cancelled timers would stay until they are due, which may be in a week: a session's grace."""
        # In place: this may be called by a timer that is being run.
        self._timers[:] = [timer for timer in self._timers if timer.callback is not None]
        heapq.heapify(self._timers)
        self._sweep_at = max(_FEW_TIMERS, 2 * len(self._timers))

    def _woken(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._from_threads:
            self._from_threads.popleft()()


def _mask(read: bool, write: bool) -> int:
    return (select.EPOLLIN | select.EPOLLRDHUP if read else 0) | (select.EPOLLOUT if write else 0)
