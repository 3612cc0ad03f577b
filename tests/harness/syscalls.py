"""System calls that Python has no function for, or not with all their arguments. Each raises OSError."""

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import Final

_LIBC = ctypes.CDLL(None, use_errno=True)

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_COLLAPSE_RANGE, FALLOC_ZERO_RANGE = 1, 2, 8, 16

Time = int | tuple[int, int]
"""Nanoseconds since the epoch, or (seconds, nanoseconds) as they are, for UTIME_NOW and UTIME_OMIT."""


def check(result: int, *shown: object) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), " ".join(map(str, shown)))
    return result


def renameat2(old: str | os.PathLike[str], new: str | os.PathLike[str], flags: int = 0) -> None:
    """renameat2(2) on two paths."""
    check(_LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)), old, new)


def exchange(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> None:
    """Both names change places."""
    renameat2(old, new, RENAME_EXCHANGE)


def link_following(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> None:
    """linkat(2) with AT_SYMLINK_FOLLOW, which os.link never passes on Linux."""
    check(_LIBC.linkat(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), 0x400), old, new)


def utimensat(path: str | os.PathLike[str], atime: Time, mtime: Time, follow: bool = True) -> None:
    """utimensat(2)."""
    flags = 0 if follow else AT_SYMLINK_NOFOLLOW
    check(_LIBC.utimensat(AT_FDCWD, os.fsencode(path), _timespecs(atime, mtime), flags), path)


def futimens(descriptor: int, atime: Time, mtime: Time) -> None:
    """futimens(3)."""
    check(_LIBC.futimens(descriptor, _timespecs(atime, mtime)), descriptor)


def _timespecs(*times: Time) -> bytes:
    pairs = [divmod(time, 10**9) if isinstance(time, int) else time for time in times]
    return b"".join(struct.pack("@ll", *pair) for pair in pairs)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), with Linux's modes."""
    check(_LIBC.fallocate64(descriptor, mode, ctypes.c_longlong(offset), ctypes.c_longlong(length)), descriptor)


def truncate(path: str | os.PathLike[str], length: int) -> None:
    """truncate(2), whatever the length."""
    check(_LIBC.truncate64(os.fsencode(path), ctypes.c_longlong(length)), path)


def faccessat(path: str | os.PathLike[str], mode: int, flags: int = 0) -> None:
    """faccessat(2): raises what access(2) tells, which os.access hides."""
    check(_LIBC.faccessat(AT_FDCWD, os.fsencode(path), mode, flags), path)


def at_pointer(number: int, *arguments: int) -> None:
    """A raw system call with plain numbers, such as a bad address, for arguments."""
    check(_LIBC.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)), number)


class _Dirent(ctypes.Structure):
    _fields_ = [
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_ushort),
        ("d_type", ctypes.c_ubyte),
        ("d_name", ctypes.c_char * 256),
    ]


_LIBC.opendir.restype = ctypes.c_void_p
_LIBC.readdir64.restype = ctypes.POINTER(_Dirent)
_LIBC.telldir.restype = ctypes.c_long


class DirectoryStream:
    """opendir(3) and its family: a position that can be told and gone back to."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        stream = _LIBC.opendir(os.fsencode(path))
        check(0 if stream else -1, path)
        self._stream = ctypes.c_void_p(stream)

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        """(name, d_ino, d_type), '.' and '..' included."""
        while entry := self.read():
            yield entry

    def read(self) -> tuple[str, int, int] | None:
        ctypes.set_errno(0)
        entry = _LIBC.readdir64(self._stream)
        if entry:
            found = entry.contents
            return os.fsdecode(found.d_name), found.d_ino, found.d_type
        check(-1 if ctypes.get_errno() else 0)
        return None

    def tell(self) -> int:
        return int(_LIBC.telldir(self._stream))

    def seek(self, position: int) -> None:
        _LIBC.seekdir(self._stream, ctypes.c_long(position))

    def rewind(self) -> None:
        _LIBC.rewinddir(self._stream)

    def close(self) -> None:
        check(_LIBC.closedir(self._stream))

    def __enter__(self) -> "DirectoryStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
