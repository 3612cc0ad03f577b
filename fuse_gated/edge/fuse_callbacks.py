"""fusepy's callbacks as requests. Nothing is decided here: each is asked of the worker, and its answer or errno passed on.

Paths are text in Latin-1 with a leading slash. Operations on what is open come without a path (`flag_nopath`): a handle says
enough, and libfuse then holds no lock on the path, so that a program that waits for a lock does not keep others from
renaming or removing the file.
"""

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from typing import Any, Final, Protocol

from fuse_gated import operations as op
from fuse_gated.edge.libfuse import ENCODING, Timespecs
from fuse_gated.paths import split

_MODE: Final = 0o7777
_FLAGS: Final = 2**32 - 1
_TO_THE_END: Final = 2**63 - 1
_UTIME_NOW: Final = (1 << 30) - 1
_UTIME_OMIT: Final = (1 << 30) - 2
_SECOND: Final = 1_000_000_000
_LISTED_AT_ONCE: Final = 32 * 1024
_LONGEST_VALUE: Final = 64 * 1024  # XATTR_SIZE_MAX, XATTR_LIST_MAX (linux/limits.h)
_UNLOCK: Final = 2  # operations.Setlk

Ask = Callable[[op.Request], Any]
Tell = Callable[[op.Request], None]
Fill = Callable[[bytes, int, int, int], bool]


class OpenFile(Protocol):
    """What is used of struct fuse_file_info."""

    flags: int
    fh: int
    lock_owner: int
    writepage: int


class _Flock(ctypes.Structure):
    """struct flock of a 64-bit Linux (fcntl(2))."""

    _fields_ = (
        ("l_type", ctypes.c_short),
        ("l_whence", ctypes.c_short),
        ("l_start", ctypes.c_int64),
        ("l_len", ctypes.c_int64),
        ("l_pid", ctypes.c_int),
    )


_NUMBERS: Final = {0: fcntl.F_RDLCK, 1: fcntl.F_WRLCK, _UNLOCK: fcntl.F_UNLCK}
_TYPES: Final = {number: kind for kind, number in _NUMBERS.items()}


class Callbacks:
    """`ask` puts a request to the worker, and raises OSError; so does `tell`, which waits for no answer. `on_began(max_write)`
    is called when the mount is there."""

    use_ns = True
    flag_nullpath_ok = 1
    flag_nopath = 1
    flag_utime_omit_ok = 1

    def __init__(self, ask: Ask, tell: Tell, on_began: Callable[[int], None]) -> None:
        self._ask = ask
        self._tell = tell
        self.init = on_began

    def __call__(self, name: str, *arguments: Any) -> Any:
        return getattr(self, name)(*arguments)

    # Names.

    def getattr(self, path: str | None, file: OpenFile | None = None) -> dict[str, int]:
        if file is not None:
            request: op.Request = op.Getattr(b"", file.fh)
        else:
            node = _node(path or "/")
            request = op.Lookup(*split(node)) if node else op.Getattr(node)
        found: op.Attributes = self._ask(request)
        return {
            "st_ino": found.inode,
            "st_mode": found.mode,
            "st_nlink": found.nlink,
            "st_uid": found.uid,
            "st_gid": found.gid,
            "st_rdev": found.rdev,
            "st_size": found.size,
            "st_blocks": found.blocks,
            "st_blksize": found.block_size,
            "st_atime": found.atime,
            "st_mtime": found.mtime,
            "st_ctime": found.ctime,
        }

    def readlink(self, path: str) -> str:
        target: bytes = self._ask(op.Readlink(_node(path)))
        return target.decode(ENCODING)

    def symlink(self, path: str, target: str) -> int:
        self._ask(op.Symlink(*_place(path), target.encode(ENCODING)))
        return 0

    def mknod(self, path: str, mode: int, device: int) -> int:
        self._ask(op.Mknod(*_place(path), mode, device, 0))
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        self._ask(op.Mkdir(*_place(path), mode & _MODE, 0))
        return 0

    def unlink(self, path: str) -> int:
        self._ask(op.Unlink(*_place(path)))
        return 0

    def rmdir(self, path: str) -> int:
        self._ask(op.Rmdir(*_place(path)))
        return 0

    def rename(self, old: str, new: str) -> int:
        self._ask(op.Rename(*_place(old), *_place(new), 0))
        return 0

    def link(self, new: str, old: str) -> int:
        self._ask(op.Link(_node(old), *_place(new)))
        return 0

    # Attributes.

    def chmod(self, path: str, mode: int) -> int:
        self._ask(op.Setattr(_node(path), mode=mode & _MODE))
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        self._ask(op.Setattr(_node(path), uid=None if uid == -1 else uid, gid=None if gid == -1 else gid))
        return 0

    def truncate(self, path: str | None, size: int, file: OpenFile | None = None) -> int:
        if file is not None:
            self._ask(op.Setattr(b"", file.fh, size=size))
        else:
            self._ask(op.Setattr(_node(path or "/"), size=size))
        return 0

    def utimens(self, path: str, times: Timespecs) -> int:
        self._ask(op.Setattr(_node(path), atime=_time(*times.atime), mtime=_time(*times.mtime)))
        return 0

    def access(self, path: str, mask: int) -> int:
        self._ask(op.Access(_node(path), mask))
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        found: op.Filesystem = self._ask(op.Statfs(_node(path)))
        return {
            "f_bsize": found.block_size,
            "f_frsize": found.fragment_size,
            "f_blocks": found.blocks,
            "f_bfree": found.free,
            "f_bavail": found.available,
            "f_files": found.files,
            "f_ffree": found.files_free,
            "f_favail": found.files_free,
            "f_namemax": found.name_max,
        }

    def getxattr(self, path: str, name: str) -> bytes:
        if name == "security.capability":
            # The kernel asks before every write, and nobody is served any but user.* attributes.
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        value: bytes = self._ask(op.Getxattr(_node(path), name.encode(ENCODING), _LONGEST_VALUE))
        return value

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> int:
        self._ask(op.Setxattr(_node(path), name.encode(ENCODING), value, flags))
        return 0

    def listxattr(self, path: str) -> list[str]:
        names: bytes = self._ask(op.Listxattr(_node(path), _LONGEST_VALUE))
        return [name.decode(ENCODING) for name in names.split(b"\0")[:-1]]

    def removexattr(self, path: str, name: str) -> int:
        self._ask(op.Removexattr(_node(path), name.encode(ENCODING)))
        return 0

    # Open files.

    def open(self, path: str, file: OpenFile) -> int:
        file.fh = self._ask(op.Open(_node(path), file.flags & _FLAGS))
        return 0

    def create(self, path: str, mode: int, file: OpenFile) -> int:
        file.fh = self._ask(op.Create(*_place(path), file.flags & _FLAGS, mode & _MODE, 0))
        return 0

    def read(self, _path: str | None, size: int, offset: int, file: OpenFile) -> bytes:
        data: bytes = self._ask(op.Read(b"", file.fh, offset, size))
        if len(data) > size:
            # fusepy asserts it, which an optimised Python leaves out, and then writes past libfuse's buffer.
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return data

    def write(self, _path: str | None, data: bytes, offset: int, file: OpenFile) -> int:
        count: int = self._ask(op.Write(b"", file.fh, offset, data, bool(file.writepage), append=bool(file.flags & os.O_APPEND)))
        return count

    def flush(self, _path: str | None, file: OpenFile) -> int:
        self._ask(op.Flush(b"", file.fh, file.lock_owner))
        return 0

    def release(self, _path: str | None, file: OpenFile) -> int:
        # Nobody hears of an error; and until this returns libfuse takes the file for open, and hides it from whoever removes it.
        self._tell(op.Release(b"", file.fh))
        return 0

    def fsync(self, _path: str | None, data_only: int, file: OpenFile) -> int:
        self._ask(op.Fsync(b"", file.fh, bool(data_only)))
        return 0

    def lock(self, _path: str | None, file: OpenFile, command: int, address: int) -> int:
        """`address` is a struct flock's: F_GETLK's answer goes there."""
        flock = _Flock.from_address(address)
        end = flock.l_start + flock.l_len - 1 if flock.l_len else _TO_THE_END
        wanted = (b"", file.fh, file.lock_owner, flock.l_start, end, _TYPES[flock.l_type], flock.l_pid)
        if command == fcntl.F_GETLK:
            kind, flock.l_start, end, flock.l_pid = self._ask(op.Getlk(*wanted))
            flock.l_type = _NUMBERS[kind]
            flock.l_len = 0 if end == _TO_THE_END else end - flock.l_start + 1
        else:
            self._ask(op.Setlk(*wanted, command == fcntl.F_SETLKW, False))
        return 0

    # Open directories.

    def opendir(self, path: str) -> int:
        handle: int = self._ask(op.Opendir(_node(path), os.O_RDONLY))
        return handle

    def readdir(self, handle: int, offset: int, fill: Fill) -> bool:
        """Give `fill` entries from `offset` on, until it has no more room (False). Whether there are any."""
        entries = self._ask(op.Readdir(b"", handle, offset, _LISTED_AT_ONCE, False))
        for name, inode, following, kind in entries:
            if not fill(name, inode, kind, following):
                break
        return bool(entries)

    def releasedir(self, _path: str | None, handle: int) -> int:
        self._tell(op.Releasedir(b"", handle))
        return 0

    def fsyncdir(self, _path: str | None, data_only: int, handle: int) -> int:
        self._ask(op.Fsyncdir(b"", handle, bool(data_only)))
        return 0


def _node(path: str) -> bytes:
    return path.encode(ENCODING)[1:]


def _place(path: str) -> tuple[bytes, bytes]:
    """(the directory, the name in it)"""
    return split(_node(path))


def _time(seconds: int, nanoseconds: int) -> int | None:
    if nanoseconds == _UTIME_OMIT:
        return None
    if nanoseconds == _UTIME_NOW:
        return op.NOW
    # One nanosecond before the epoch would read as NOW.
    time = op.carried(seconds * _SECOND + nanoseconds)
    return time if time != op.NOW else -2
