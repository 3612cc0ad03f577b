"""System calls that Python's os module does not offer, by ctypes. Each raises OSError as os does.

Names reach the kernel as C strings: callers check them first (`paths.is_safe_name`), because ctypes would cut a name at a
NUL where os raises ValueError.
"""

import ctypes
import errno
import os
from typing import Final

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EACCESS: Final = 0x200

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2

_CLONE_FILES: Final = 0x400
_SYS_OPENAT2: Final = ctypes.c_long(437)  # The same on every architecture but alpha (asm-generic/unistd.h).
_RESOLVE_NO_XDEV: Final = 0x01
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class _OpenHow(ctypes.Structure):
    """struct open_how (linux/openat2.h)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_RESOLVE = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
# Of the width that syscall(2) passes on: what a plain int leaves in a register's upper half is nobody's promise.
_HOW_SIZE: Final = ctypes.c_size_t(ctypes.sizeof(_OpenHow))
# Kept alive and never written to again, so that a call costs no allocation.
_DIRECTORY = _OpenHow(os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, _RESOLVE)
_NODE = _OpenHow(os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0, _RESOLVE)
_DIRECTORY_HERE = _OpenHow(_DIRECTORY.flags, 0, _RESOLVE | _RESOLVE_NO_XDEV)
_NODE_HERE = _OpenHow(_NODE.flags, 0, _RESOLVE | _RESOLVE_NO_XDEV)
_hows = {
    # (must_be_directory, same_mount)
    (True, False): ctypes.byref(_DIRECTORY),
    (False, False): ctypes.byref(_NODE),
    (True, True): ctypes.byref(_DIRECTORY_HERE),
    (False, True): ctypes.byref(_NODE_HERE),
}


def openat2(directory: int, path: bytes, *, must_be_directory: bool, same_mount: bool = False) -> int:
    """An O_PATH descriptor of what `path` names beneath `directory`, without following any link (openat2(2)). The last
    component may itself be a link, and is then what the descriptor stands for, unless `must_be_directory`. With `same_mount`
    nothing that is mounted is entered, nor asked anything: EXDEV."""
    how = _hows[must_be_directory, same_mount]
    while True:
        fd: int = _libc.syscall(_SYS_OPENAT2, directory, path, how, _HOW_SIZE)
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def unshare_files() -> bool:
    """Give this thread a table of descriptors of its own (unshare(2), CLONE_FILES): what others open or close from now on it does
    not. False where that is forbidden."""
    return bool(_libc.unshare(_CLONE_FILES) == 0)


def is_elsewhere(directory: int, name: bytes) -> bool:
    """Whether something is mounted on `name`, which is not asked anything. False also where there is no such name."""
    how = _hows[False, True]
    while True:
        fd: int = _libc.syscall(_SYS_OPENAT2, directory, name, how, _HOW_SIZE)
        if fd >= 0:
            os.close(fd)
            return False
        number = ctypes.get_errno()
        if number != errno.EINTR:
            return number == errno.EXDEV


def renameat2(directory: int, name: bytes, new_directory: int, new_name: bytes, flags: int) -> None:
    """renameat2(2); `flags` of RENAME_NOREPLACE and RENAME_EXCHANGE."""
    _check(_libc.renameat2(directory, name, new_directory, new_name, flags))


def faccessat(directory: int, name: bytes, mask: int, flags: int) -> None:
    """faccessat(2). os.access does not tell the errno."""
    _check(_libc.faccessat(directory, name, mask, flags))


def utimensat(path: bytes, atime: int | None, mtime: int | None, now: int) -> None:
    """utimensat(2), following `path`: nanoseconds since the epoch, None to leave a time as it is, `now` for UTIME_NOW.
    os.utime can neither leave one of them nor set one to now."""
    times = (_Timespec * 2)(_timespec(atime, now), _timespec(mtime, now))
    _check(_libc.utimensat(AT_FDCWD, path, times, 0))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with a mode; os.posix_fallocate has none."""
    while True:
        if _libc.fallocate64(fd, mode, offset, length) == 0:
            return
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def inotify_init() -> int:
    """A descriptor that tells of changes (inotify_init1(2)), and never blocks. Raises OSError EMFILE where this user has as many
    as fs.inotify.max_user_instances allows."""
    return _result(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))


def inotify_add_watch(fd: int, path: bytes, mask: int) -> int:
    """The number of the watch on what `path` leads to (inotify_add_watch(2)): of the one that is there already, if it is. Raises
    OSError ENOSPC where this user has as many as fs.inotify.max_user_watches allows."""
    return _result(_libc.inotify_add_watch(fd, path, ctypes.c_uint32(mask)))


def inotify_rm_watch(fd: int, watch: int) -> None:
    """inotify_rm_watch(2)."""
    _check(_libc.inotify_rm_watch(fd, watch))


def filesystem_type(fd: int) -> int:
    """The magic number of the filesystem that `fd` lies on (statfs(2), f_type)."""
    buffer = (ctypes.c_long * 64)()  # struct statfs has 120 bytes; f_type comes first, and is a long.
    _check(_libc.fstatfs(fd, ctypes.byref(buffer)))
    return buffer[0] & 0xFFFFFFFF


def proc_path(fd: int) -> bytes:
    """A path that leads to the very file that `fd` stands for, whatever has its name by now (proc(5), /proc/pid/fd)."""
    return b"/proc/self/fd/%d" % fd


def _timespec(time: int | None, now: int) -> _Timespec:
    if time is None:
        return _Timespec(0, UTIME_OMIT)
    if time == now:
        return _Timespec(0, UTIME_NOW)
    return _Timespec(*divmod(time, 10**9))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _result(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
