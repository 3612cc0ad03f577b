"""Much at once: attributes, listings and small files of many paths, read ahead of a program that is about to ask for them.

Directories are watched before they are looked at, so that whatever becomes of them afterwards is told. What lies on another mount
is left to the operations that ask for it alone: its server may answer nothing.
"""

import contextlib
import errno
import os
import stat
from typing import Final

from fuse_gated.edge import listing, syscalls
from fuse_gated.edge.attributes import attributes
from fuse_gated.edge.beneath import Beneath, BeyondMount
from fuse_gated.edge.filesystems import Filesystems
from fuse_gated.edge.watches import Directory, Watches
from fuse_gated.errors import errno_name
from fuse_gated.paths import split
from fuse_gated.wire import messages as wire

MOST_ENTRIES: Final = 10_000
"""Of one directory."""
MOST_BYTES: Final = 3 * 2**20
"""Of one answer, as they are estimated; encoded it may be a third more, and a message has 4 MiB."""

_ATTRIBUTES_SIZE: Final = 100
_ENTRY_SIZE: Final = 110


class Collected:
    """What was gathered. `answer` is to be asked on the loop when it is sent: a directory that was lost meanwhile has been told
    of already, before its answer."""

    def __init__(self) -> None:
        self._found: list[wire.Gathered] = []
        self._watches: list[Directory | None] = []

    def add(self, found: wire.Gathered, watch: Directory | None) -> None:
        """`watch`: what tells of changes."""
        self._found.append(found)
        self._watches.append(watch)

    def answer(self) -> tuple[wire.Gathered, ...]:
        return tuple(
            wire.Gathered(
                found.errno, found.attributes, watch is not None and watch.alive, found.entries, found.complete, found.content
            )
            for found, watch in zip(self._found, self._watches, strict=True)
        )


class Slow(Exception):
    """What was to be done at once would take its time."""


class Budget:
    """What an answer may cost: bytes, of which what comes first may have MOST_BYTES in any case; and, with `quick`, no more time
    than a thread takes to be woken: else Slow is raised."""

    def __init__(self, most: int, *, quick: bool = False) -> None:
        self.left = min(most, MOST_BYTES)
        self.empty = True
        self.quick = quick

    def take(self, size: int) -> bool:
        """Whether so many bytes fit; then they are taken."""
        if size > (MOST_BYTES if self.empty else self.left):
            return False
        self.left -= size
        self.empty = False
        return True


class Gathering:
    """May be used by several threads. Without `watches` nothing is ever watched."""

    def __init__(self, beneath: Beneath, filesystems: Filesystems, watches: Watches | None) -> None:
        self._beneath = beneath
        self._filesystems = filesystems
        self._watches = watches

    def gather(self, arguments: wire.Gather) -> Collected:
        """Raises OSError EINVAL for more than MAX_GATHERED paths, and numbers below 0. What else goes wrong is a path's own
        affair. EXDEV: it lies on another mount, and is to be asked for by itself."""
        _check(arguments)
        collected, budget = Collected(), Budget(arguments.most)
        with self._beneath.within_mount if self._beneath.uses_openat2 else contextlib.nullcontext():
            for path in arguments.paths:
                if not self._gather(path, arguments, budget, collected):
                    break
        return collected

    def gather_quickly(self, arguments: wire.Gather) -> Collected | None:
        """As `gather`, where it asks for one small thing; else None. To be called while Beneath.within_mount is entered."""
        _check(arguments)
        if len(arguments.paths) != 1 or not self._beneath.uses_openat2 or (self._watches is not None and self._watches.is_busy):
            return None
        collected = Collected()
        try:
            self._gather(arguments.paths[0], arguments, Budget(arguments.most, quick=True), collected)
        except Slow:
            return None
        return collected

    def unwatch(self, arguments: wire.Unwatch) -> None:
        """Raises OSError EINVAL for more than MAX_GATHERED paths."""
        if len(arguments.paths) > wire.MAX_GATHERED:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if self._watches is not None:
            self._watches.unwatch(arguments.paths)

    def _gather(self, path: bytes, arguments: wire.Gather, budget: Budget, collected: Collected) -> bool:
        """False if there is no room for it."""
        above = self._above(path, arguments)
        found: wire.Gathered | None
        try:
            with self._beneath.node(path) as fd:
                status = os.fstat(fd)
                if stat.S_ISDIR(status.st_mode):
                    watch = self._watch(path, arguments)
                    if watch is not None and watch.key != (status.st_dev, status.st_ino):
                        watch = None
                    if budget.quick and status.st_size > listing.QUICK_SIZE:
                        raise Slow
                    found = self._directory(fd, arguments, budget)
                else:
                    found, links = self._other(fd, status, arguments, budget)
                    # What has other names is changed through them too, of which a watch on this one's directory says nothing.
                    watch = above if links == 1 else None
        except BeyondMount:
            watch, found = None, _failed("EXDEV", budget)
        except (OSError, ValueError) as error:
            # ValueError: a NUL in a name.
            failure = errno_name(getattr(error, "errno", None) or errno.EINVAL)
            watch, found = above if failure == "ENOENT" else None, _failed(failure, budget)
        if found is not None:
            collected.add(found, watch)
        return found is not None

    def _above(self, path: bytes, arguments: wire.Gather) -> Directory | None:
        """What tells of changes in the directory that something lies in, which is watched for all but directories: those tell of
        themselves."""
        if self._watches is None or not path:
            return None
        above = split(path)[0]
        watch = self._watches.watched(above)
        if watch is None and arguments.watch and not self._is_directory(path):
            watch = self._watches.watch(above)
        return watch

    def _is_directory(self, path: bytes) -> bool:
        try:
            return stat.S_ISDIR(self._beneath.status(path).st_mode)
        except (OSError, ValueError, BeyondMount):
            return False

    def _watch(self, path: bytes, arguments: wire.Gather) -> Directory | None:
        if self._watches is None:
            return None
        return self._watches.watch(path) if arguments.watch else self._watches.watched(path)

    def _directory(self, node: int, arguments: wire.Gather, budget: Budget) -> wire.Gathered | None:
        try:
            fd = _open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, node) if arguments.entries else None
        except PermissionError:
            fd = None  # One that may not be listed can be known all the same.
        if fd is None:
            return wire.Gathered(None, attributes(os.fstat(node))) if budget.take(_ATTRIBUTES_SIZE) else None
        try:
            listed = self._listed(fd, min(arguments.entries, MOST_ENTRIES), budget)
        finally:
            os.close(fd)
        if listed is None:
            return None
        entries, complete = listed
        return wire.Gathered(None, attributes(os.fstat(node)), entries=entries, complete=complete)

    def _listed(self, fd: int, most: int, budget: Budget) -> tuple[tuple[wire.ListedEntry, ...], bool] | None:
        covered = self._filesystems.mounted_in(fd)
        entries = listing.scan(fd, covered, most + 1)
        if budget.quick and len(entries) > listing.QUICK_COUNT:
            raise Slow
        complete = len(entries) <= most
        del entries[most:]
        while not budget.take(_ATTRIBUTES_SIZE + sum(_ENTRY_SIZE + len(entry.name) for entry in entries)):
            if not budget.empty:
                return None
            del entries[len(entries) // 2 :]
            complete = False
        found = (entry if entry.name in covered else listing.with_its_attributes(fd, entry) for entry in entries)
        return tuple(found), complete

    def _other(
        self, node: int, status: os.stat_result, arguments: wire.Gather, budget: Budget
    ) -> tuple[wire.Gathered | None, int]:
        """With the number of its names."""
        content: bytes | None = None
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(b"", dir_fd=node)
            wanted = len(content)
        else:
            is_small = stat.S_ISREG(status.st_mode) and status.st_size <= min(arguments.content, wire.MAX_DATA)
            wanted = status.st_size if is_small and arguments.content else -1
        if not budget.take(_ATTRIBUTES_SIZE + max(wanted, 0)):
            return None, 0
        if content is None and wanted >= 0:
            content, status = _read(node, status, quick=budget.quick)
        return wire.Gathered(None, attributes(status), content=content), status.st_nlink


def _failed(failure: str, budget: Budget) -> wire.Gathered | None:
    return wire.Gathered(failure) if budget.take(_ATTRIBUTES_SIZE) else None


def _check(arguments: wire.Gather) -> None:
    if len(arguments.paths) > wire.MAX_GATHERED or min(arguments.content, arguments.entries, arguments.most) < 0:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def _read(node: int, before: os.stat_result, *, quick: bool) -> tuple[bytes | None, os.stat_result]:
    """A regular file's content, and what it is afterwards. None if it was changed meanwhile, or may not be read."""
    try:
        # Not waiting: another process's lease (fcntl(2), F_SETLEASE) would hold us up.
        fd = _open(syscalls.proc_path(node), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None, before
    try:
        content = _content_at_once(fd, before.st_size) if quick else _content(fd, before.st_size)
        after = os.fstat(fd)
    except OSError:
        return None, before
    finally:
        os.close(fd)
    is_same = (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    return (content if is_same and len(content) == before.st_size else None), after


def _content(fd: int, size: int) -> bytes:
    """What there is, up to a byte more than `size`."""
    content = os.pread(fd, size + 1, 0)
    while len(content) < size and (more := os.pread(fd, size + 1 - len(content), len(content))):
        content += more
    return content


def _content_at_once(fd: int, size: int) -> bytes:
    """As `_content`, if the page cache holds it (preadv2(2), RWF_NOWAIT)."""
    content = bytearray(size + 1)
    try:
        count = os.preadv(fd, (content,), 0, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
            raise Slow from None
        raise
    if count < size:
        raise Slow
    return bytes(memoryview(content)[:count])


def _open(path: bytes, flags: int, directory: int | None = None) -> int:
    """Nobody has looked at it yet, so its time of access stays as it is, where that may be asked for (open(2), O_NOATIME)."""
    try:
        return os.open(path, flags | os.O_NOATIME, dir_fd=directory)
    except PermissionError:
        return os.open(path, flags, dir_fd=directory)
