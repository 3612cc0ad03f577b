"""The directories that are watched, and what the kernel's events say about them.

inotify watches an inode, and the server knows paths. A path is told rightly only as long as each directory on the way to it is
where it was; so whoever watches a directory watches all above it as well, up to the root, and when one of them moves, what lies
beneath is watched no more. Nothing is remembered by descriptor: a directory is resolved beneath the root like anything else.

A directory is watched first, and looked at again afterwards: whatever moved it away in between either shows then, or tells of
itself by an event on its parent, which is watched already. Only the root's own mount is watched: what is mounted elsewhere may
be changed by others, of whom inotify hears nothing, and a directory that is mounted twice would have two paths.

Directories are added by several threads, events are handled by one.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable
from typing import Final

from fuse_gated.edge import inotify, syscalls
from fuse_gated.edge.attributes import attributes
from fuse_gated.edge.beneath import Beneath, BeyondMount
from fuse_gated.edge.handles import FileKey
from fuse_gated.operations import Attributes
from fuse_gated.paths import join, split

CHANGED: Final = 1
MOVED: Final = 2
"""A watched directory's path may stand for another one, or for none."""
LOST: Final = 3
"""The directory of this path is not watched any more."""

_LONGEST_PATH: Final = 4096


class Directory:
    """One that is watched: `key` says which it is, `wanted` whether for its own sake. `alive` turns false with the watch."""

    __slots__ = ("alive", "children", "key", "parent", "path", "wanted", "watch")

    def __init__(self, path: bytes, parent: "Directory | None", key: FileKey, watch: int) -> None:
        self.path = path
        self.parent = parent
        self.key = key
        self.watch = watch
        self.wanted = False
        self.alive = True
        self.children: set[Directory] = set()


class Watches:
    """Of what lies beneath `beneath`, at most `most` directories (default: a fair share of what the user may have).

    `on_shortage` is called, on any thread, whenever a directory was not watched because this user may watch no more. Raises
    OSError if there is no inotify to be had.
    """

    def __init__(self, beneath: Beneath, most: int | None = None) -> None:
        self.most = inotify.fair_share() if most is None else most
        self.on_shortage: Callable[[], None] = _nothing
        self.root = beneath.root
        self._beneath = beneath
        self._device = os.fstat(beneath.root).st_dev
        self._fd = syscalls.inotify_init()
        self._by_path: dict[bytes, Directory] = {}
        self._by_watch: dict[int, Directory] = {}
        self._adding = threading.Lock()
        """One thread adds at a time, so that what another one finds has been looked at again."""
        self._mutex = threading.Lock()
        """Of the tables."""

    def __len__(self) -> int:
        return len(self._by_watch)

    @property
    def is_busy(self) -> bool:
        """Whether a thread adds a directory just now, for which another has to wait."""
        return self._adding.locked()

    def fileno(self) -> int:
        """The inotify descriptor, for a loop; -1 after it was lost."""
        return self._fd

    # For whoever reads, on any thread.

    def watch(self, path: bytes) -> Directory | None:
        """Have changes in this directory told from now on; None if they cannot be. On other mounts it asks nothing: BeyondMount
        and OSError are caught."""
        directory = self._by_path.get(path)
        if directory is not None and directory.wanted and directory.alive:
            return directory
        if len(path) >= _LONGEST_PATH:
            return None
        before = self._beneath.within_mount.on
        self._beneath.within_mount.on = True
        try:
            with self._adding:
                return self._watch(path)
        except (OSError, ValueError, BeyondMount):
            return None
        finally:
            self._beneath.within_mount.on = before

    def watched(self, path: bytes) -> Directory | None:
        """The directory of this path, if it is watched for its own sake."""
        directory = self._by_path.get(path)
        return directory if directory is not None and directory.wanted else None

    def unwatch(self, paths: Iterable[bytes]) -> None:
        """Changes in these directories need not be told any more. Those above others stay watched for their sake."""
        with self._mutex:
            for path in paths:
                directory = self._by_path.get(path)
                if directory is not None:
                    directory.wanted = False
                    self._prune(directory)

    # For whoever tells.

    def happened(self, data: bytes) -> dict[bytes, int] | None:
        """What was read from the descriptor, as paths and what became of each (CHANGED, MOVED, LOST), in the order of the events.
        None: there is no telling, because events were lost."""
        found: dict[bytes, int] = {}
        with self._mutex:
            for watch, mask, name in inotify.events(data):
                if mask & inotify.Q_OVERFLOW:
                    return None
                directory = self._by_watch.get(watch)
                if directory is None:
                    continue
                path = directory.path
                if mask & inotify.ENDED:
                    if directory.parent is None:
                        return None
                    self._drop(directory)
                    found[path] = LOST
                    continue
                if name:
                    if mask & inotify.NAMES_CHANGED:
                        found.setdefault(path, CHANGED)
                    path = join(path, name)
                moved = mask & inotify.PLACES_CHANGED and path in self._by_path
                found[path] = max(found.get(path, CHANGED), MOVED if moved else CHANGED)
        return found

    def look(self, path: bytes) -> Attributes | None:
        """What the path stands for now; None: nothing. Raises OSError or BeyondMount where that cannot be said."""
        try:
            with self._beneath.within_mount:
                return attributes(self._beneath.status(path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def is_lost(self, path: bytes, found: Attributes | None) -> bool:
        """Whether a watched directory had this path, and now this is there: it is watched no more, then."""
        with self._mutex:
            directory = self._by_path.get(path)
            if directory is None or (found is not None and directory.key == (found.device, found.inode)):
                return False
            self._drop(directory)
            return True

    def renew(self) -> None:
        """Watch nothing any more. Raises OSError if there is no inotify to be had: then nothing can be watched."""
        with self._mutex:
            were_any = bool(self._by_watch)
            for directory in self._by_watch.values():
                directory.alive = False
            self._by_watch.clear()
            self._by_path.clear()
            before, self._fd = self._fd, -1
            if before >= 0 and were_any:
                # close(2) waits here until no processor looks at a watch any more: 20 ms, whatever else there is to do.
                threading.Thread(target=os.close, args=(before,), name="fuse-gate-close", daemon=True).start()
            elif before >= 0:
                os.close(before)
            self._fd = syscalls.inotify_init()

    def close(self) -> None:
        with self._mutex:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1

    # Details.

    def _watch(self, path: bytes) -> Directory | None:
        above: Directory | None = None
        try:
            for prefix in _prefixes(path):
                directory = self._by_path.get(prefix) or self._add(prefix, above)
                if directory is None:
                    return None
                above = directory
            with self._mutex:
                if above is None or not above.alive:
                    return None
                above.wanted = True
                return above
        finally:
            if above is not None:
                with self._mutex:
                    self._prune(above)

    def _add(self, path: bytes, above: Directory | None) -> Directory | None:
        with self._beneath.node(path) as fd:
            status = os.fstat(fd)
            if not stat.S_ISDIR(status.st_mode) or status.st_dev != self._device:
                return None
            directory = self._insert(path, above, (status.st_dev, status.st_ino), fd)
        if directory is None or self._is_there(directory):
            return directory
        with self._mutex:
            self._drop(directory)
        return None

    def _insert(self, path: bytes, above: Directory | None, key: FileKey, fd: int) -> Directory | None:
        with self._mutex:
            if self._fd < 0 or (above is not None and not above.alive):
                return None
            if len(self._by_watch) >= self.most:
                if self.most < inotify.MOST_WATCHES:
                    self.on_shortage()
                return None
            try:
                watch = syscalls.inotify_add_watch(self._fd, syscalls.proc_path(fd), inotify.EVERYTHING)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    self.on_shortage()
                return None
            if watch in self._by_watch:
                # It is known by the path that it had before: the event that says so is on its way.
                return None
            directory = self._by_path[path] = self._by_watch[watch] = Directory(path, above, key, watch)
            if above is not None:
                above.children.add(directory)
            return directory

    def _is_there(self, directory: Directory) -> bool:
        try:
            status = self._beneath.status(directory.path)
        except (OSError, BeyondMount):
            return False
        return (status.st_dev, status.st_ino) == directory.key

    def _prune(self, directory: Directory) -> None:
        """Give up what nobody wants any more, and nothing above and nothing beneath asks for."""
        while directory.alive and not directory.wanted and not directory.children:
            above = directory.parent
            self._drop(directory)
            if above is None:
                return
            directory = above

    def _drop(self, directory: Directory) -> None:
        """Forget a directory and what lies beneath it."""
        if not directory.alive:
            return
        if directory.parent is not None:
            directory.parent.children.discard(directory)
        beneath = [directory]
        while beneath:
            one = beneath.pop()
            beneath += one.children
            one.alive = False
            del self._by_path[one.path], self._by_watch[one.watch]
            try:
                syscalls.inotify_rm_watch(self._fd, one.watch)
            except OSError:
                continue  # The kernel was faster.


def _prefixes(path: bytes) -> list[bytes]:
    """The root, and every directory on the way to `path`, itself included."""
    found = []
    while path:
        found.append(path)
        path = split(path)[0]
    return [b"", *reversed(found)]


def _nothing() -> None:
    """Nobody wants to hear of it."""
