"""The kernel's requests, decoded: linux/fuse.h's structures to `operations`. The table lists every opcode.

All structures are in the machine's own byte order. A driver gives each decoder the node id and the bytes after the header.
"""

import os
import struct
from collections.abc import Callable
from typing import Final

from fuse_gated import operations as op

IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
"""struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""

INIT: Final = 26
NOTIFY_REPLY: Final = 41

_U32_2 = struct.Struct("=II")
_U64 = struct.Struct("=Q")
_GETATTR = struct.Struct("=IIQ")
_SETATTR = struct.Struct("=IIQQQqqqIIIIIIII")
_MKNOD = struct.Struct("=IIII")
_RENAME2 = struct.Struct("=QII")
_CREATE = struct.Struct("=IIII")
_IO = struct.Struct("=QQII")  # read_in and write_in up to their flags
_WRITE = struct.Struct("=QQII8xI")  # write_in up to the descriptor's flags
_IO_SIZE: Final = 40
_FH_OWNER = struct.Struct("=QIIQ")  # flush_in, release_in
_FSYNC = struct.Struct("=QII")
_LK = struct.Struct("=QQQQIII")
_FALLOCATE = struct.Struct("=QQQI")
_LSEEK = struct.Struct("=QqI")
_COPY = struct.Struct("=QQQQQQQ")

_FATTR_MODE, _FATTR_UID, _FATTR_GID, _FATTR_SIZE, _FATTR_ATIME, _FATTR_MTIME, _FATTR_FH = 1, 2, 4, 8, 16, 32, 64
_FATTR_ATIME_NOW, _FATTR_MTIME_NOW, _FATTR_KILL_SUIDGID = 128, 256, 2048
_SECOND: Final = 1_000_000_000

Decoder = Callable[[int, memoryview], op.Request]


def _names(body: memoryview, start: int) -> list[bytes]:
    """The NUL-terminated strings from `start` on."""
    return bytes(body[start:]).split(b"\0")[:-1]


def _name(body: memoryview, start: int = 0) -> bytes:
    raw = bytes(body[start:])
    return raw[: raw.index(0)]


def _lookup(node: int, body: memoryview) -> op.Request:
    return op.Lookup(node, _name(body))


def _forget(node: int, body: memoryview) -> op.Request:
    return op.Forget(((node, _U64.unpack_from(body)[0]),))


def _batch_forget(_node: int, body: memoryview) -> op.Request:
    count = _U32_2.unpack_from(body)[0]
    numbers = struct.unpack_from(f"={2 * count}Q", body, 8)
    return op.Forget(tuple(zip(numbers[::2], numbers[1::2], strict=True)))


def _getattr(node: int, body: memoryview) -> op.Request:
    flags, _, handle = _GETATTR.unpack_from(body)
    return op.Getattr(node, handle if flags & 1 else None)


def _setattr(node: int, body: memoryview) -> op.Request:
    (valid, _, handle, size, _owner, atime, mtime, _ctime, atime_ns, mtime_ns, _ctime_ns, mode, _, uid, gid, _) = (
        _SETATTR.unpack_from(body)
    )
    return op.Setattr(
        node,
        handle if valid & _FATTR_FH else None,
        mode & 0o7777 if valid & _FATTR_MODE else None,
        uid if valid & _FATTR_UID else None,
        gid if valid & _FATTR_GID else None,
        size if valid & _FATTR_SIZE else None,
        _time(valid, _FATTR_ATIME, _FATTR_ATIME_NOW, atime, atime_ns),
        _time(valid, _FATTR_MTIME, _FATTR_MTIME_NOW, mtime, mtime_ns),
        bool(valid & _FATTR_KILL_SUIDGID),
    )


def _time(valid: int, bit: int, now: int, seconds: int, nanoseconds: int) -> int | None:
    if valid & now:
        return op.NOW
    if not valid & bit:
        return None
    time = op.carried(seconds * _SECOND + nanoseconds)
    # One nanosecond before the epoch would read as NOW: it becomes the epoch's last nanosecond but one.
    return time if time != op.NOW else -2


def _readlink(node: int, _body: memoryview) -> op.Request:
    return op.Readlink(node)


def _symlink(node: int, body: memoryview) -> op.Request:
    name, target = _names(body, 0)[:2]
    return op.Symlink(node, name, target)


def _mknod(node: int, body: memoryview) -> op.Request:
    mode, rdev, umask, _ = _MKNOD.unpack_from(body)
    return op.Mknod(node, _name(body, 16), mode, rdev, umask)


def _mkdir(node: int, body: memoryview) -> op.Request:
    mode, umask = _U32_2.unpack_from(body)
    return op.Mkdir(node, _name(body, 8), mode, umask)


def _unlink(node: int, body: memoryview) -> op.Request:
    return op.Unlink(node, _name(body))


def _rmdir(node: int, body: memoryview) -> op.Request:
    return op.Rmdir(node, _name(body))


def _rename(node: int, body: memoryview) -> op.Request:
    name, new_name = _names(body, 8)[:2]
    return op.Rename(node, name, _U64.unpack_from(body)[0], new_name, 0)


def _rename2(node: int, body: memoryview) -> op.Request:
    new_parent, flags, _ = _RENAME2.unpack_from(body)
    name, new_name = _names(body, 16)[:2]
    return op.Rename(node, name, new_parent, new_name, flags)


def _link(node: int, body: memoryview) -> op.Request:
    return op.Link(_U64.unpack_from(body)[0], node, _name(body, 8))


def _open(node: int, body: memoryview) -> op.Request:
    flags, open_flags = _U32_2.unpack_from(body)
    return op.Open(node, flags, bool(open_flags & 1))


def _create(node: int, body: memoryview) -> op.Request:
    flags, mode, umask, _open_flags = _CREATE.unpack_from(body)
    return op.Create(node, _name(body, 16), flags, mode, umask)


def _read(node: int, body: memoryview) -> op.Request:
    handle, offset, size, _ = _IO.unpack_from(body)
    return op.Read(node, handle, offset, size)


def _write(node: int, body: memoryview) -> op.Request:
    handle, offset, size, flags, descriptor = _WRITE.unpack_from(body)
    data = body[_IO_SIZE : _IO_SIZE + size]
    return op.Write(node, handle, offset, data, bool(flags & 1), bool(flags & 4), bool(descriptor & os.O_APPEND))


def _statfs(node: int, _body: memoryview) -> op.Request:
    return op.Statfs(node)


def _release(node: int, body: memoryview) -> op.Request:
    handle, _flags, release_flags, owner = _FH_OWNER.unpack_from(body)
    return op.Release(node, handle, owner if release_flags & 2 else None)


def _fsync(node: int, body: memoryview) -> op.Request:
    handle, flags, _ = _FSYNC.unpack_from(body)
    return op.Fsync(node, handle, bool(flags & 1))


def _setxattr(node: int, body: memoryview) -> op.Request:
    size, flags = _U32_2.unpack_from(body)
    name = _name(body, 8)
    start = 8 + len(name) + 1
    return op.Setxattr(node, name, bytes(body[start : start + size]), flags)


def _getxattr(node: int, body: memoryview) -> op.Request:
    return op.Getxattr(node, _name(body, 8), _U32_2.unpack_from(body)[0])


def _listxattr(node: int, body: memoryview) -> op.Request:
    return op.Listxattr(node, _U32_2.unpack_from(body)[0])


def _removexattr(node: int, body: memoryview) -> op.Request:
    return op.Removexattr(node, _name(body))


def _flush(node: int, body: memoryview) -> op.Request:
    handle, _, _, owner = _FH_OWNER.unpack_from(body)
    return op.Flush(node, handle, owner)


def _opendir(node: int, body: memoryview) -> op.Request:
    return op.Opendir(node, _U32_2.unpack_from(body)[0])


def _readdir(node: int, body: memoryview) -> op.Request:
    handle, offset, size, _ = _IO.unpack_from(body)
    return op.Readdir(node, handle, offset, size, False)


def _readdirplus(node: int, body: memoryview) -> op.Request:
    handle, offset, size, _ = _IO.unpack_from(body)
    return op.Readdir(node, handle, offset, size, True)


def _releasedir(node: int, body: memoryview) -> op.Request:
    return op.Releasedir(node, _U64.unpack_from(body)[0])


def _fsyncdir(node: int, body: memoryview) -> op.Request:
    handle, flags, _ = _FSYNC.unpack_from(body)
    return op.Fsyncdir(node, handle, bool(flags & 1))


def _getlk(node: int, body: memoryview) -> op.Request:
    handle, owner, start, end, kind, pid, _flags = _LK.unpack_from(body)
    return op.Getlk(node, handle, owner, start, end, kind, pid)


def _setlk(node: int, body: memoryview) -> op.Request:
    handle, owner, start, end, kind, pid, flags = _LK.unpack_from(body)
    return op.Setlk(node, handle, owner, start, end, kind, pid, False, bool(flags & 1))


def _setlkw(node: int, body: memoryview) -> op.Request:
    handle, owner, start, end, kind, pid, flags = _LK.unpack_from(body)
    return op.Setlk(node, handle, owner, start, end, kind, pid, True, bool(flags & 1))


def _access(node: int, body: memoryview) -> op.Request:
    return op.Access(node, _U32_2.unpack_from(body)[0])


def _interrupt(_node: int, body: memoryview) -> op.Request:
    return op.Interrupt(_U64.unpack_from(body)[0])


def _destroy(_node: int, _body: memoryview) -> op.Request:
    return op.Destroy()


def _fallocate(node: int, body: memoryview) -> op.Request:
    handle, offset, length, mode = _FALLOCATE.unpack_from(body)
    return op.Fallocate(node, handle, offset, length, mode)


def _lseek(node: int, body: memoryview) -> op.Request:
    handle, offset, whence = _LSEEK.unpack_from(body)
    return op.Lseek(node, handle, offset, whence)


def _copy_file_range(node: int, body: memoryview) -> op.Request:
    handle, offset, to_node, to_handle, to_offset, length, _flags = _COPY.unpack_from(body)
    return op.CopyFileRange(node, handle, offset, to_node, to_handle, to_offset, length)


def _unserved(opcode: int, errno: str) -> Decoder:
    request = op.Unserved(opcode, errno)
    return lambda _node, _body: request


OPCODES: Final[dict[int, tuple[str, Decoder]]] = {
    1: ("LOOKUP", _lookup),
    2: ("FORGET", _forget),
    3: ("GETATTR", _getattr),
    4: ("SETATTR", _setattr),
    5: ("READLINK", _readlink),
    6: ("SYMLINK", _symlink),
    8: ("MKNOD", _mknod),
    9: ("MKDIR", _mkdir),
    10: ("UNLINK", _unlink),
    11: ("RMDIR", _rmdir),
    12: ("RENAME", _rename),
    13: ("LINK", _link),
    14: ("OPEN", _open),
    15: ("READ", _read),
    16: ("WRITE", _write),
    17: ("STATFS", _statfs),
    18: ("RELEASE", _release),
    20: ("FSYNC", _fsync),
    21: ("SETXATTR", _setxattr),
    22: ("GETXATTR", _getxattr),
    23: ("LISTXATTR", _listxattr),
    24: ("REMOVEXATTR", _removexattr),
    25: ("FLUSH", _flush),
    27: ("OPENDIR", _opendir),
    28: ("READDIR", _readdir),
    29: ("RELEASEDIR", _releasedir),
    30: ("FSYNCDIR", _fsyncdir),
    31: ("GETLK", _getlk),
    32: ("SETLK", _setlk),
    33: ("SETLKW", _setlkw),
    34: ("ACCESS", _access),
    35: ("CREATE", _create),
    36: ("INTERRUPT", _interrupt),
    # ENOSYS is remembered by the kernel for the mount's life: it stands only where we never serve the opcode.
    37: ("BMAP", _unserved(37, "ENOSYS")),
    38: ("DESTROY", _destroy),
    39: ("IOCTL", _unserved(39, "ENOTTY")),
    40: ("POLL", _unserved(40, "ENOSYS")),
    42: ("BATCH_FORGET", _batch_forget),
    43: ("FALLOCATE", _fallocate),
    44: ("READDIRPLUS", _readdirplus),
    45: ("RENAME2", _rename2),
    46: ("LSEEK", _lseek),
    47: ("COPY_FILE_RANGE", _copy_file_range),
    48: ("SETUPMAPPING", _unserved(48, "ENOSYS")),
    49: ("REMOVEMAPPING", _unserved(49, "ENOSYS")),
    50: ("SYNCFS", _unserved(50, "ENOSYS")),
    51: ("TMPFILE", _unserved(51, "ENOSYS")),
    52: ("STATX", _unserved(52, "ENOSYS")),
    53: ("COPY_FILE_RANGE_64", _unserved(53, "ENOSYS")),
    4096: ("CUSE_INIT", _unserved(4096, "ENOSYS")),
}
"""Every opcode of linux/fuse.h up to protocol 7.45; INIT and NOTIFY_REPLY are the driver's own."""


def decode(opcode: int, node: int, body: memoryview) -> op.Request:
    """The request of an opcode; ENOSYS for one that is newer than this table."""
    entry = OPCODES.get(opcode)
    return entry[1](node, body) if entry is not None else op.Unserved(opcode, "ENOSYS")
