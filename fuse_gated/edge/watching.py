"""Telling the server what changes on the client: events become notices.

A path is told at once, with what it is by then, and after that once in 20 ms for as long as it goes on changing; the last state
is never left out. What happens faster than it can be told is folded, and what is too much to be told ends all watches, which the
server is told instead (`overflow`). A directory that is not watched any more is told of as gone, and then as what is there now.
"""

import os
from collections.abc import Callable
from typing import Final

from fuse_gated.edge.beneath import BeyondMount
from fuse_gated.edge.filesystems import MountPoints
from fuse_gated.edge.loop import Loop, Timer
from fuse_gated.edge.watches import CHANGED, LOST, Watches
from fuse_gated.operations import Attributes
from fuse_gated.wire.messages import Notice

TICK: Final = 0.02
"""Seconds in which a path is told once."""
MOST_AT_ONCE: Final = 1024
"""Paths in one turn of the loop, and so in one message: looking at so many takes 10 ms, and the wire allows 4096."""
MOST_WAITING: Final = 16384
"""Paths that wait to be told."""
MOST_QUEUED: Final = 16 * 2**20
"""Bytes on their way to the server beyond which notices wait: it would have them no sooner."""
_FRAME_SIZE: Final = 2**20
_READ_SIZE: Final = 64 * 1024
_READS_TO_CATCH_UP: Final = 8
"""After which those who go on changing files are faster: about as many events as two thousand changes make."""
_READS_IN_A_TICK: Final = 32
"""After which the kernel collects, and folds, until the tick is over. It keeps 16384 events (fs.inotify.max_queued_events)."""


class Watching:
    """`tell` takes the notices. `queued` tells how many bytes have not left yet. `on_shortage` hears, once, that more was to be
    watched than may be."""

    def __init__(
        self,
        loop: Loop,
        watches: Watches,
        tell: Callable[[Notice], None],
        queued: Callable[[], int],
        on_shortage: Callable[[], None],
    ) -> None:
        self.notices = 0
        """Paths that were told."""
        self._loop = loop
        self._watches = watches
        self._tell = tell
        self._queued = queued
        self._on_shortage: Callable[[], None] | None = on_shortage
        self._changed: dict[bytes, int] = {}
        """To be told as soon as there is room."""
        self._again: dict[bytes, int] = {}
        """Changed in the tick in which they were told."""
        self._told: set[bytes] = set()
        self._timer: Timer | None = None
        self._reads = 0
        self._room = MOST_AT_ONCE
        self._stopped = False
        self._points = MountPoints(watches.root)
        watches.on_shortage = lambda: loop.from_thread(self._short)
        loop.watch(self._points.fileno(), self._mounts_changed, read=False)
        self._listen()

    def reset(self) -> None:
        """A connection is lost, or another one begins: nothing is watched any more, and nobody need hear of it."""
        if not self._stopped:
            self._renew()

    def stop(self) -> None:
        """Tell nothing any more; said twice, it is done once."""
        if self._stopped:
            return
        self._stopped = True
        for fd in (self._watches.fileno(), self._points.fileno()):
            self._loop.forget(fd)
        if self._timer is not None:
            self._timer.cancel()
        self._points.close()

    # What the kernel says.

    def _listen(self) -> None:
        if self._watches.fileno() >= 0:
            self._loop.watch(self._watches.fileno(), self._readable)

    def catch_up(self) -> bool:
        """Tell at once what has happened until now, what was told in this tick as well. False where that is too much."""
        for _ in range(_READS_TO_CATCH_UP):
            if not self._read():
                break
        else:
            return False
        again, self._again = self._again, {}
        for path, what in again.items():
            self._changed[path] = max(what, self._changed.get(path, CHANGED))
        self._tell_changes()
        return not self._changed

    def _read(self) -> bool:
        """Whether anything has happened."""
        try:
            data = os.read(self._watches.fileno(), _READ_SIZE) if self._watches.fileno() >= 0 else b""
        except BlockingIOError:
            return False
        found = self._watches.happened(data)
        if found is None:
            self._overflow()
            return True
        for path, what in found.items():
            waiting = self._again if what == CHANGED and path in self._told else self._changed
            waiting[path] = max(what, waiting.get(path, CHANGED))
        return bool(data)

    def _readable(self, _events: int) -> None:
        if not self._read():
            return
        self._reads += 1
        if self._reads == _READS_IN_A_TICK:
            self._loop.change(self._watches.fileno(), read=False)
        self._tell_changes()

    def _mounts_changed(self, _events: int) -> None:
        """A directory that something is mounted on is another one, of which inotify says nothing."""
        if self._points.have_changed() and len(self._watches):
            self._overflow()

    # What the server is told.

    def _tell_changes(self) -> None:
        if len(self._changed) + len(self._again) > MOST_WAITING:
            self._overflow()
            return
        if self._timer is None and (self._changed or self._again or self._reads):
            self._timer = self._loop.after(TICK, self._tick)
        if self._changed and self._queued() <= MOST_QUEUED:
            self._tell_some()

    def _tell_some(self) -> None:
        if self._room == MOST_AT_ONCE:
            self._loop.soon(self._make_room)
        paths: list[bytes] = []
        attributes: list[Attributes | None] = []
        size = 0
        while self._changed and self._room > 1:
            path = next(iter(self._changed))
            what = self._changed.pop(path)
            try:
                found = self._watches.look(path)
            except (OSError, BeyondMount):
                # What is there cannot be said, so nothing that was said before can be left to stand.
                self._overflow()
                return
            lost = self._watches.is_lost(path, found) or what == LOST
            told = [None, found] if lost and found is not None else [found]
            paths += [path] * len(told)
            attributes += told
            self._told.add(path)
            self._again.pop(path, None)
            self._room -= len(told)
            size += (len(path) + 100) * len(told)
            if size > _FRAME_SIZE:
                self._send(paths, attributes)
                paths, attributes, size = [], [], 0
        if paths:
            self._send(paths, attributes)

    def _send(self, paths: list[bytes], attributes: list[Attributes | None]) -> None:
        self.notices += len(paths)
        self._tell(Notice(tuple(paths), tuple(attributes)))

    def _make_room(self) -> None:
        """The turn of the loop is over, and its message leaves."""
        self._room = MOST_AT_ONCE
        if self._changed:
            self._loop.after(0.0, self._tell_changes)

    def _tick(self) -> None:
        self._timer = None
        if self._reads >= _READS_IN_A_TICK:
            self._loop.change(self._watches.fileno())
        self._reads = 0
        self._told.clear()
        again, self._again = self._again, {}
        for path, what in again.items():
            self._changed[path] = max(what, self._changed.get(path, CHANGED))
        self._tell_changes()
        if self._told and self._timer is None:
            self._timer = self._loop.after(TICK, self._tick)

    def _overflow(self) -> None:
        self._renew()
        self._tell(Notice((), (), True))

    def _renew(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._changed.clear()
        self._again.clear()
        self._told.clear()
        self._reads = 0
        self._loop.forget(self._watches.fileno())
        try:
            self._watches.renew()
        except OSError:
            self._short()
        self._listen()

    def _short(self) -> None:
        on_shortage, self._on_shortage = self._on_shortage, None
        if on_shortage is not None:
            on_shortage()
