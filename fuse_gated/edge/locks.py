"""File locks for callers on the server, taken on the client, so that programs on both sides exclude each other.

A POSIX lock belongs to an owner on the server, of whom this one process serves many. Open file description locks (fcntl(2),
F_OFD_SETLK) conflict with one another and with classic POSIX locks, and belong to a description: so each owner of locks on
a file gets a description of its own, reopened through /proc/self/fd. Nothing here waits: whoever waits tries again.
"""

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable
from typing import Final

from fuse_gated.edge.handles import FileKey, OpenFile
from fuse_gated.edge.syscalls import proc_path
from fuse_gated.wire.messages import LockState

READ: Final = 0
WRITE: Final = 1
NONE: Final = 2
END: Final = 2**63 - 1
"""As a lock's end: the file's end, wherever it is."""

_FLOCK = struct.Struct("hhqqi0q")  # struct flock with 64-bit offsets: type, whence, start, length, pid
_FLOCK_OPERATIONS: Final = {READ: fcntl.LOCK_SH, WRITE: fcntl.LOCK_EX, NONE: fcntl.LOCK_UN}

Range = tuple[int, int]


class _Description:
    """One owner's open file description of one file. `read_ranges` is kept while it is open for reading only."""

    __slots__ = ("fd", "read_ranges", "writable")

    def __init__(self, fd: int, writable: bool) -> None:
        self.fd = fd
        self.writable = writable
        self.read_ranges: list[Range] = []


class Locks:
    """The locks of all owners. It may be used by several threads. At most `limit` (file, owner) pairs hold locks on local
    files, and as many on others: they are kept apart, because a server that answers nothing holds up whoever comes next."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._local, self._elsewhere = HeldLocks(limit), HeldLocks(limit)

    def of(self, file: OpenFile) -> "HeldLocks":
        """Those of files such as this one."""
        return self._local if file.local else self._elsewhere

    def forget(self) -> Callable[[], None] | None:
        """Begin anew, without any. Those on local files are given up; the others' giving up, which may wait, is returned if
        there are any."""
        local, elsewhere = self._local, self._elsewhere
        self._local, self._elsewhere = HeldLocks(self._limit), HeldLocks(self._limit)
        local.close()
        return elsewhere.close if elsewhere.shut() else None

    def close(self) -> None:
        """Give up everything."""
        self._local.close()
        self._elsewhere.close()


class HeldLocks:
    """Locks, one thread at a time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[FileKey, dict[int, _Description]] = {}
        self._count = 0
        self._shut = False
        self._mutex = threading.Lock()

    def test(self, file: OpenFile, owner: int, start: int, end: int, kind: int) -> LockState:
        """F_GETLK: a lock that keeps `owner` from taking this one. Raises OSError EINVAL."""
        _require_lock(start, end, kind)
        if kind == NONE:
            # Since Linux 6.4 the kernel would tell about the description's own locks.
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        with self._mutex:
            own = self._held.get(file.key, {}).get(owner)
            # Without locks of its own, the owner is in the same case as the handle's description, which never has any.
            answer = fcntl.fcntl(own.fd if own else file.fd, fcntl.F_OFD_GETLK, _packed(kind, start, end))
        found, _, found_start, length, _ = _FLOCK.unpack(answer)
        if found == NONE:
            return LockState(NONE)
        return LockState(found, found_start, found_start + length - 1 if length else END)

    def set(self, file: OpenFile, owner: int, start: int, end: int, kind: int) -> None:
        """F_SETLK. Raises OSError: EAGAIN if another's lock is in the way, EBADF if the handle is not open in the way that
        this lock needs, ENOLCK, EINVAL."""
        _require_lock(start, end, kind)
        if (kind == WRITE and not file.writable) or (kind == READ and not file.readable):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        with self._mutex:
            own = self._held.get(file.key, {}).get(owner)
            if kind == NONE:
                if own is not None:
                    self._unlock(file, owner, own, start, end)
                return
            if self._shut:
                raise OSError(errno.EBADF, "the session that the handle belonged to is over")
            if own is None:
                own = self._describe(file, owner)
            elif kind == WRITE and not own.writable:
                _widen(own, file)
            try:
                fcntl.fcntl(own.fd, fcntl.F_OFD_SETLK, _packed(kind, start, end))
            except OSError as error:
                if error.errno == errno.EACCES:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
                raise
            if not own.writable:
                own.read_ranges.append((start, end))

    def flock(self, file: OpenFile, kind: int) -> None:
        """flock(2) on the handle itself. Raises OSError EAGAIN if another's lock is in the way, EINVAL."""
        operation = _FLOCK_OPERATIONS.get(kind)
        if operation is None:
            raise OSError(errno.EINVAL, f"lock type {kind}")
        fcntl.flock(file.fd, operation | fcntl.LOCK_NB)

    def release_owner(self, file: OpenFile, owner: int) -> None:
        """Give up all of `owner`'s POSIX locks on the file, as any close(2) of it does."""
        if self._held:
            with self._mutex:
                self._drop(file.key, owner)

    def closed(self, file: OpenFile, still_open: Callable[[FileKey], bool]) -> None:
        """A handle on the file was released. Nobody can hold locks on a file that is not open."""
        if file.key in self._held and not still_open(file.key):
            with self._mutex:
                for owner in list(self._held.get(file.key, ())):
                    self._drop(file.key, owner)

    def shut(self) -> bool:
        """Take no further lock. Whether there is still any to give up."""
        self._shut = True
        return bool(self._held) or self._mutex.locked()

    def close(self) -> None:
        """Give up everything, and take no further lock."""
        self._shut = True
        with self._mutex:
            for key, owners in list(self._held.items()):
                for owner in list(owners):
                    self._drop(key, owner)

    def _describe(self, file: OpenFile, owner: int) -> _Description:
        if self._count >= self._limit:
            raise OSError(errno.ENOLCK, f"{self._limit} owners hold locks")
        own = _Description(_reopen(file), file.writable)
        self._held.setdefault(file.key, {})[owner] = own
        self._count += 1
        return own

    def _unlock(self, file: OpenFile, owner: int, own: _Description, start: int, end: int) -> None:
        if (start, end) == (0, END):
            self._drop(file.key, owner)
            return
        fcntl.fcntl(own.fd, fcntl.F_OFD_SETLK, _packed(NONE, start, end))
        own.read_ranges = [rest for held in own.read_ranges for rest in _without(held, start, end)]

    def _drop(self, key: FileKey, owner: int) -> None:
        owners = self._held.get(key, {})
        own = owners.pop(owner, None)
        if own is not None:
            os.close(own.fd)
            self._count -= 1
            if not owners:
                del self._held[key]


def _reopen(file: OpenFile) -> int:
    """A description of its own, open for what the handle is open for: a write lock needs one that is open for writing."""
    if not file.writable:
        return _open_again(file, os.O_RDONLY)
    try:
        # For reading too: the owner may take read locks through another handle.
        return _open_again(file, os.O_RDWR)
    except OSError:
        if file.readable:
            raise
        return _open_again(file, os.O_WRONLY)


def _open_again(file: OpenFile, access: int) -> int:
    try:
        return os.open(proc_path(file.fd), access | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except BlockingIOError:
        raise  # Another process holds a lease, and has been told to give it up.
    except OSError as error:
        # The file's mode has changed since it was opened, say.
        raise OSError(errno.ENOLCK, f"cannot be opened for locking: {error.strerror}") from error


def _widen(own: _Description, file: OpenFile) -> None:
    """The owner locked through a handle for reading, and now locks through one for writing. Its read locks move to a
    description that can hold both; as the old one still holds them, no writer gets in between."""
    fd = _open_again(file, os.O_RDWR)
    try:
        for start, end in own.read_ranges:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _packed(READ, start, end))
    except OSError:
        os.close(fd)
        raise
    os.close(own.fd)
    own.fd, own.writable, own.read_ranges = fd, True, []


def _without(held: Range, start: int, end: int) -> list[Range]:
    first, last = held
    if end < first or start > last:
        return [held]
    return [part for part in ((first, start - 1), (end + 1, last)) if part[0] <= part[1]]


def _packed(kind: int, start: int, end: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, start, 0 if end == END else end - start + 1, 0)


def _require_lock(start: int, end: int, kind: int) -> None:
    if kind not in (READ, WRITE, NONE) or not 0 <= start <= end <= END:
        raise OSError(errno.EINVAL, f"lock type {kind} from {start} to {end}")
