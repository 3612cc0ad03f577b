"""What programs do in a copy, soon after they have done it, by inotify(7) (docs/decisions/0013-inotify-by-ourselves.md).

It only saves time: whoever keeps the copy looks at all of it every now and then, and finds what was not told here.
"""

import contextlib
import os
from collections.abc import Iterable
from typing import Final

from fuse_gated.edge import inotify, syscalls
from fuse_gated.edge.copy_tree import open_within
from fuse_gated.paths import join

_MASK: Final = inotify.MODIFY | inotify.CLOSE_WRITE | inotify.ATTRIB | inotify.NAMES_CHANGED | inotify.DELETE_SELF
_IS_DIRECTORY: Final = 0x40000000  # IN_ISDIR
_READ_SIZE: Final = 64 * 1024


class LocalWatches:
    """Of the copy in `root`. Without inotify (a user has only so many) there is nothing to wait for: `fileno` is -1."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._most = inotify.fair_share()
        self._paths: dict[int, bytes] = {}
        self._closed: set[bytes] = set()
        self._written: set[bytes] = set()
        try:
            self._fd = syscalls.inotify_init()
        except OSError:
            self._fd = -1

    def fileno(self) -> int:
        return self._fd

    def watch(self, directories: Iterable[bytes]) -> None:
        """Watch these, as long as there may be more. One that is watched already is known by its path of now."""
        for path in directories:
            if self._fd < 0 or len(self._paths) >= self._most:
                return
            # It may be gone, or be closed to us.
            with contextlib.suppress(OSError):
                opened = open_within(self._root, path, os.O_PATH | os.O_DIRECTORY)
                try:
                    self._paths[syscalls.inotify_add_watch(self._fd, syscalls.proc_path(opened), _MASK)] = path
                finally:
                    os.close(opened)

    def read(self) -> tuple[set[bytes], bool]:
        """The paths that have changed, and whether everything is to be looked at: a directory came or went, or too much happened
        at once."""
        changed: set[bytes] = set()
        everything = False
        with contextlib.suppress(BlockingIOError):
            while self._fd >= 0:
                for watch, mask, name in inotify.events(os.read(self._fd, _READ_SIZE)):
                    if mask & inotify.IGNORED:
                        self._paths.pop(watch, None)
                    elif mask & (inotify.Q_OVERFLOW | _IS_DIRECTORY | inotify.DELETE_SELF):
                        everything = everything or not mask & inotify.ATTRIB
                    elif name and watch in self._paths:
                        self._heard(mask, join(self._paths[watch], name), changed)
        if everything:
            # Their names may be others by now.
            self._written.clear()
        return changed, everything

    def _heard(self, mask: int, path: bytes, changed: set[bytes]) -> None:
        if mask & inotify.MODIFY:
            # It is looked at when it is closed.
            self._written.add(path)
            return
        changed.add(path)
        if not mask & inotify.ATTRIB:
            self._written.discard(path)
        if mask & inotify.CLOSE_WRITE:
            self._closed.add(path)

    def is_written(self, path: bytes) -> bool:
        """Whether a program has written to that file and nobody has closed it since."""
        return path in self._written

    def closed(self) -> set[bytes]:
        """What programs had open for writing and have closed, and nobody has read since."""
        return set(self._closed)

    def is_read(self, path: bytes) -> None:
        """What is in that file is looked at: who has closed it before needs no other look."""
        self._closed.discard(path)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
