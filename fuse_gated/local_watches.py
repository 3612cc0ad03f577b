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

_MASK: Final = inotify.CLOSE_WRITE | inotify.ATTRIB | inotify.NAMES_CHANGED | inotify.DELETE_SELF
_IS_DIRECTORY: Final = 0x40000000  # IN_ISDIR
_READ_SIZE: Final = 64 * 1024


class LocalWatches:
    """Of the copy in `root`. Without inotify (a user has only so many) there is nothing to wait for: `fileno` is -1."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._most = inotify.fair_share()
        self._paths: dict[int, bytes] = {}
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
                        changed.add(join(self._paths[watch], name))
        return changed, everything

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
