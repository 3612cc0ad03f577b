"""Write leases on files that the server creates (fcntl(2), F_SETLEASE).

While one is held, whoever opens the file on this machine waits in open(2), and we get SIGIO. So the server may tell its programs
that such a file is closed before all that was written has arrived here: nobody can look into it until it has. Whoever waits is
let in by the server's UNLEASE or RELEASE, which come behind what was written; after PATIENCE whatever the server does; and at
once if the connection is lost. No lease is held for longer than twice HELD: open(2) with O_NONBLOCK does not wait, but fails.

Nobody is left then who could be told that the disk is full. So as much room as all leases promise is kept in a file without a
name, on the export's filesystem. A write to a leased file that fails for want of room gets that file's part of it.
"""

import contextlib
import errno
import fcntl
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from fuse_gated.edge import syscalls
from fuse_gated.edge.handles import OpenFile
from fuse_gated.edge.loop import Loop, Timer

ROOM: Final = 2**16
"""Bytes that one lease promises at most."""
MOST: Final = 64
"""Leases at once."""
HELD: Final = 1.0
PATIENCE: Final = 5.0
"""Seconds: for which a lease is held before it is offered back, and in which the server is to answer."""
_PLENTY: Final = 64
"""Nothing is set aside on a filesystem that has not this many times as much room."""
_TRY_AGAIN: Final = 60.0
"""Seconds after a want of room, or of leases, in which nothing is set aside."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Leases:
    """Of one export. To be made on the main thread, because the process's SIGIO is taken (signal(2)); files may be leased and
    given up on any. `broken` hears on the loop's thread the handles of files that somebody wants."""

    def __init__(self, loop: Loop) -> None:
        self.broken: Callable[[int], None] = lambda _handle: None
        self._loop = loop
        self._leased: dict[int, tuple[OpenFile, float]] = {}
        """By handle: the file, and since when."""
        self._offered: dict[int, float] = {}
        """What the server was told to give up, and when, by handle."""
        self._room: tuple[int, int] | None = None
        """The file without a name, and its device."""
        self._redeemed: set[int] = set()
        """Handles of leased files that got their part of it."""
        self._parts = 0
        """How many are left."""
        self._changing = threading.RLock()
        self._none_before = 0.0
        self._at_end: Callable[[], None] | None = None
        """What is to be done when none is held any more; nothing is leased by then."""
        self._timer: Timer | None = None
        self._watched = False
        """Whether somebody looks when they have been held for long enough."""
        signal.signal(signal.SIGIO, lambda *_: loop.from_thread(self._look))
        signal.siginterrupt(signal.SIGIO, False)  # Not everything that os calls is tried again by itself.

    def __len__(self) -> int:
        return len(self._leased)

    def take(self, handle: int, file: OpenFile, wanted: int, root: int) -> int:
        """Lease a file that was just created, and is `handle`. For how many bytes there is room; 0: it is not leased.
        `root` is the export's directory, an O_PATH descriptor."""
        if wanted <= 0 or not file.local or self._loop.now < self._none_before:
            return 0
        with self._changing:
            if self._at_end is not None or len(self._leased) >= MOST:
                return 0
            try:
                if not self._has_room(file, root):
                    return 0
                fcntl.fcntl(file.fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    # Not EAGAIN, which says that somebody else has it open already: no leases, or not enough room, here.
                    self._none_before = self._loop.now + _TRY_AGAIN
                return 0
            file.leased = True
            self._leased[handle] = file, self._loop.now
            if not self._watched:
                self._watched = True
                self._loop.from_thread(self._look)
        return min(wanted, ROOM)

    def holds(self, handle: int) -> bool:
        """Whether nobody else can open it."""
        return handle in self._leased

    def give_up(self, handle: int) -> None:
        """Let in whoever waits. Its descriptor must still be open; what is not leased is left as it is."""
        with self._changing:
            self._offered.pop(handle, None)
            self._redeemed.discard(handle)
            file, _since = self._leased.pop(handle, (None, 0.0))
            if file is not None:
                file.leased = False
                if self._at_end is not None and not self._leased:
                    self._loop.from_thread(self._at_end)
                with contextlib.suppress(OSError):
                    fcntl.fcntl(file.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def give_way(self, device: int, inode: int) -> None:
        """We are about to open this file ourselves, and would wait for ourselves."""
        with self._changing:
            for handle, (file, _since) in list(self._leased.items()):
                if file.key == (device, inode):
                    self.give_up(handle)
                    self._loop.from_thread(partial(self.broken, handle))

    def retire(self, then: Callable[[], None]) -> bool:
        """Lease nothing any more, and offer back what is leased. `then` is called on the loop once all of it was given up: the
        server's programs have closed nothing by then that is still on its way. False if nothing was."""
        with self._changing:
            if not self._leased:
                return False
            self._at_end = then
        self._look(offer_all=True)
        return True

    def give_up_all(self) -> None:
        for handle in list(self._leased):
            self.give_up(handle)

    def makes_room(self, error: OSError, handle: int) -> bool:
        """Whether a write that failed with this may be tried again: there is more room. For a while nothing more is leased."""
        if error.errno not in _FULL:
            return False
        with self._changing:
            self._none_before = self._loop.now + _TRY_AGAIN
            if not self._leased:
                return self._free_room()
            if handle not in self._leased or handle in self._redeemed or self._room is None:
                return False
            self._redeemed.add(handle)
            self._parts -= 1
            with contextlib.suppress(OSError):
                os.ftruncate(self._room[0], self._parts * ROOM)
            return True

    def close(self) -> None:
        self.give_up_all()
        with self._changing:
            self._free_room()

    def _free_room(self) -> bool:
        room, self._room, self._parts = self._room, None, 0
        if room is not None:
            os.close(room[0])
        return room is not None

    def _has_room(self, file: OpenFile, root: int) -> bool:
        """Whether room is set aside where this file lies. Raises OSError."""
        if self._parts < MOST:
            if self._leased:
                return False
            self._free_room()
            aside = MOST * ROOM
            status = os.fstatvfs(root)
            if status.f_bavail * status.f_frsize < _PLENTY * aside:
                self._none_before = self._loop.now + _TRY_AGAIN
                return False
            fd = os.open(b".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=root)
            try:
                syscalls.fallocate(fd, 0, 0, aside)
                self._room, self._parts = (fd, os.fstat(fd).st_dev), MOST
            except OSError:
                os.close(fd)
                raise
        return self._room is not None and self._room[1] == file.key[0]

    def _look(self, *, offer_all: bool = False) -> None:
        """Somebody wants one of them, or one may have been held for long enough."""
        now = self._loop.now
        for handle, (file, since) in list(self._leased.items()):
            offered = self._offered.get(handle)
            if offered is not None:
                if now - offered >= PATIENCE:
                    self.give_up(handle)
            elif offer_all or now - since >= HELD or _is_wanted(file):
                self._offered[handle] = now
                self.broken(handle)
        if self._timer is not None:
            self._timer.cancel()
        with self._changing:
            self._watched = bool(self._leased)
            if not self._watched:
                self._offered.clear()
                self._free_room()
        self._timer = self._loop.after(HELD, self._look) if self._watched else None


def _is_wanted(file: OpenFile) -> bool:
    try:
        # It says what the lease is about to become.
        return fcntl.fcntl(file.fd, fcntl.F_GETLEASE) != fcntl.F_WRLCK
    except OSError:
        return False
