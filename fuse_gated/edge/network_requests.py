"""What an attached program asks for, made into what the kernel would have asked for in its place.

Behind a mount stands the kernel: it passes on only handles of the very program, offsets that a file can have, reads through
descriptors that are open for reading, and no flags of its own making. A program that is attached by a socket can send anything.
So each request is checked here before the turnstile sees it, and what the kernel alone knows (whose lock it is, who loses
setuid) is put in. What no correct program sends is a ProtocolError, and ends its socket; what one may try fails with an errno.

Sources: open(2), pread(2), fcntl(2), xattr(7), mknod(2), and what fs/fuse and fs/*.c of Linux check before they ask.
"""

import os
import stat
from collections.abc import Callable, Mapping
from errno import E2BIG, EACCES, EBADF, EINVAL, ENAMETOOLONG, ENOENT, EPERM
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from fuse_gated import operations as op
from fuse_gated.errors import ProtocolError
from fuse_gated.operations import Failed, Request
from fuse_gated.tree.by_path import is_hidden_name
from fuse_gated.tree.posix_locks import UNLOCK

MOST_DATA: Final = 128 * 2**10
"""Bytes in one READ or WRITE."""
MOST_LISTING: Final = 64 * 2**10
"""Bytes in one READDIR, as it is counted there."""

_LAST: Final = 2**63 - 1
_MODE: Final = 0o7777
_UID_MAX: Final = 2**32 - 2  # 2**32 - 1 means none (chown(2)).
_XATTR_SIZE: Final = 64 * 2**10
_XATTR_NAME: Final = 255
_RDLCK: Final = 0
_WRLCK: Final = 1
# Not FMODE_EXEC, which only the kernel may claim: it shows what it reads to nobody.
_OPEN_FLAGS: Final = os.O_ACCMODE | os.O_TRUNC | os.O_APPEND | os.O_SYNC | os.O_DSYNC
_NODES: Final = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, 0)


class Held(NamedTuple):
    """A handle that the program has open: what the kernel would know of its descriptor."""

    directory: bool
    flags: int = 0

    @property
    def readable(self) -> bool:
        return not self.directory and self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writable(self) -> bool:
        return not self.directory and self.flags & os.O_ACCMODE != os.O_RDONLY


class Asker(NamedTuple):
    """A program that is attached. `owner` is the number by which its locks are told from those of others; `handles` is what it
    has open."""

    uid: int
    pid: int
    owner: int
    handles: Mapping[int, Held]


class _Refused(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def vetted(request: Request, asker: Asker) -> Request | Failed:
    """The request as the turnstile may have it, or how it fails without it.

    Raises ProtocolError for what no correct program sends.
    """
    check = _CHECKS.get(type(request))
    if check is None:
        raise ProtocolError(f"{type(request).__name__.lower()} is not served here")
    try:
        _without_hidden_names(request)
        wanted: Request = check(request, asker)
    except _Refused as refused:
        return Failed(refused.number)
    return wanted


def _without_hidden_names(request: Request) -> None:
    """libfuse's names for open files that were removed (tree/by_path.py) are its own, where a mount has it."""
    for field in ("node", "parent", "new_parent"):
        if is_hidden_name(getattr(request, field, b"").rpartition(b"/")[2]):
            raise _Refused(ENOENT)
    if isinstance(request, _NAMING) and is_hidden_name(request.name):
        raise _Refused(ENOENT if isinstance(request, _FINDING) else EACCES)
    if is_hidden_name(getattr(request, "new_name", b"")):
        raise _Refused(EACCES)


_FINDING: Final = op.Lookup | op.Unlink | op.Rmdir | op.Rename
_NAMING: Final = _FINDING | op.Create | op.Mkdir | op.Mknod | op.Symlink


def _in(number: int, least: int, most: int, what: str) -> None:
    if not least <= number <= most:
        raise ProtocolError(f"{what} {number}")


def _range(offset: int, length: int) -> None:
    _in(offset, 0, _LAST, "offset")
    _in(length, 0, _LAST - offset, "length")


def _held(asker: Asker, number: int, *, directory: bool = False) -> Held:
    held = asker.handles.get(number)
    if held is None or held.directory != directory:
        raise _Refused(EBADF)
    return held


def _readable(asker: Asker, number: int) -> None:
    if not _held(asker, number).readable:
        raise _Refused(EBADF)


def _writable(asker: Asker, number: int) -> Held:
    held = _held(asker, number)
    if not held.writable:
        raise _Refused(EBADF)
    return held


def _as_it_is(request: Request, _asker: Asker) -> Request:
    return request


def _getattr(request: op.Getattr, asker: Asker) -> Request:
    if request.handle is not None:
        _held(asker, request.handle)
    return request


def _setattr(request: op.Setattr, asker: Asker) -> Request:
    if request.handle is not None:
        if request.size is None:
            # What is not its size is set by name.
            raise _Refused(EINVAL)
        _writable(asker, request.handle)
    for value, most, what in (
        (request.mode, _MODE, "mode"),
        (request.uid, _UID_MAX, "uid"),
        (request.gid, _UID_MAX, "gid"),
        (request.size, _LAST, "size"),
    ):
        if value is not None:
            _in(value, 0, most, what)
    return replace(request, kill_suidgid=asker.uid != 0)


def _symlink(request: op.Symlink, _asker: Asker) -> Request:
    if b"\0" in request.target:
        raise _Refused(EINVAL)
    return request


def _mknod(request: op.Mknod, _asker: Asker) -> Request:
    kind = stat.S_IFMT(request.mode)
    _in(request.mode, 0, 0o177777, "mode")
    if kind not in _NODES:
        raise _Refused(EPERM)
    return replace(request, mode=(kind or stat.S_IFREG) | request.mode & _MODE, rdev=0, umask=0)


def _mkdir(request: op.Mkdir, _asker: Asker) -> Request:
    return replace(request, mode=request.mode & _MODE, umask=0)


def _unlink(request: op.Unlink, _asker: Asker) -> Request:
    if request.alias is not None:
        raise ProtocolError("an alias, which is libfuse's")
    return request


def _rename(request: op.Rename, _asker: Asker) -> Request:
    _in(request.flags, 0, 2**32 - 1, "flags")
    return request


def _open_flags(flags: int) -> int:
    if flags & os.O_ACCMODE == os.O_ACCMODE:
        raise _Refused(EINVAL)
    return flags & _OPEN_FLAGS


def _open(request: op.Open, asker: Asker) -> Request:
    flags = _open_flags(request.flags)
    return op.Open(request.node, flags, bool(flags & os.O_TRUNC) and asker.uid != 0)


def _create(request: op.Create, _asker: Asker) -> Request:
    flags = _open_flags(request.flags) | os.O_CREAT | request.flags & os.O_EXCL
    return replace(request, flags=flags, mode=request.mode & _MODE, umask=0)


def _read(request: op.Read, asker: Asker) -> Request:
    _range(request.offset, request.size)
    _in(request.size, 0, MOST_DATA, "size")
    _readable(asker, request.handle)
    return request


def _write(request: op.Write, asker: Asker) -> Request:
    _range(request.offset, len(request.data))
    _in(len(request.data), 0, MOST_DATA, "size")
    held = _writable(asker, request.handle)
    append = request.append or bool(held.flags & os.O_APPEND)
    return replace(request, from_cache=False, kill_suidgid=asker.uid != 0, append=append)


def _flush(request: op.Flush, asker: Asker) -> Request:
    _held(asker, request.handle)
    return replace(request, owner=asker.owner)


def _release(request: op.Release, asker: Asker) -> Request:
    _held(asker, request.handle)
    # A flock belongs to the open file, and goes with it.
    return op.Release(b"", request.handle)


def _fsync(request: op.Fsync, asker: Asker) -> Request:
    _held(asker, request.handle)
    return request


def _opendir(request: op.Opendir, _asker: Asker) -> Request:
    return op.Opendir(request.node, os.O_RDONLY)


def _readdir(request: op.Readdir, asker: Asker) -> Request:
    _in(request.offset, 0, _LAST, "offset")
    _in(request.size, 1, MOST_LISTING, "size")
    _held(asker, request.handle, directory=True)
    return request


def _directory(request: op.Releasedir | op.Fsyncdir, asker: Asker) -> Request:
    _held(asker, request.handle, directory=True)
    return request


def _access(request: op.Access, _asker: Asker) -> Request:
    if not 0 <= request.mask <= os.R_OK | os.W_OK | os.X_OK:
        raise _Refused(EINVAL)
    return request


def _xattr_name(name: bytes) -> None:
    if not 0 < len(name) <= _XATTR_NAME or b"\0" in name:
        raise _Refused(ENAMETOOLONG if len(name) > _XATTR_NAME else EINVAL)


def _getxattr(request: op.Getxattr, _asker: Asker) -> Request:
    _xattr_name(request.name)
    return replace(request, size=_XATTR_SIZE)


def _setxattr(request: op.Setxattr, _asker: Asker) -> Request:
    _xattr_name(request.name)
    if len(request.value) > _XATTR_SIZE:
        raise _Refused(E2BIG)
    if not 0 <= request.flags <= os.XATTR_REPLACE:
        raise _Refused(EINVAL)
    return request


def _listxattr(request: op.Listxattr, _asker: Asker) -> Request:
    return replace(request, size=_XATTR_SIZE)


def _removexattr(request: op.Removexattr, _asker: Asker) -> Request:
    _xattr_name(request.name)
    return request


def _lseek(request: op.Lseek, asker: Asker) -> Request:
    _in(request.offset, 0, _LAST, "offset")
    _held(asker, request.handle)
    return request


def _fallocate(request: op.Fallocate, asker: Asker) -> Request:
    _range(request.offset, request.length)
    _in(request.mode, 0, 2**31 - 1, "mode")
    if not request.length:
        raise _Refused(EINVAL)
    _writable(asker, request.handle)
    return request


def _copy_file_range(request: op.CopyFileRange, asker: Asker) -> Request:
    _range(request.offset, request.length)
    _range(request.to_offset, request.length)
    _readable(asker, request.handle)
    if _writable(asker, request.to_handle).flags & os.O_APPEND:
        raise _Refused(EBADF)
    return request


def _lock(request: op.Getlk | op.Setlk, asker: Asker) -> Request:
    held = _held(asker, request.handle)
    _in(request.start, 0, _LAST, "start")
    _in(request.end, request.start, _LAST, "end")
    _in(request.type, _RDLCK, UNLOCK, "type")
    flock = isinstance(request, op.Setlk) and request.flock
    wrong = {_RDLCK: not held.readable, _WRLCK: not held.writable}
    if isinstance(request, op.Setlk) and not flock and wrong.get(request.type, False):
        raise _Refused(EBADF)
    return replace(request, owner=asker.owner, pid=asker.pid)


_CHECKS: Final[dict[type[Request], Callable[[Any, Asker], Request]]] = {
    op.Lookup: _as_it_is,
    op.Getattr: _getattr,
    op.Setattr: _setattr,
    op.Readlink: _as_it_is,
    op.Symlink: _symlink,
    op.Mknod: _mknod,
    op.Mkdir: _mkdir,
    op.Unlink: _unlink,
    op.Rmdir: _as_it_is,
    op.Rename: _rename,
    op.Link: _as_it_is,
    op.Open: _open,
    op.Create: _create,
    op.Read: _read,
    op.Write: _write,
    op.Flush: _flush,
    op.Release: _release,
    op.Fsync: _fsync,
    op.Opendir: _opendir,
    op.Readdir: _readdir,
    op.Releasedir: _directory,
    op.Fsyncdir: _directory,
    op.Statfs: _as_it_is,
    op.Access: _access,
    op.Getxattr: _getxattr,
    op.Setxattr: _setxattr,
    op.Listxattr: _listxattr,
    op.Removexattr: _removexattr,
    op.Getlk: _lock,
    op.Setlk: _lock,
    op.Lseek: _lseek,
    op.Fallocate: _fallocate,
    op.CopyFileRange: _copy_file_range,
}
