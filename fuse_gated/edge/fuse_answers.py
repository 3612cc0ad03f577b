"""Answers for the kernel, encoded: `operations` to linux/fuse.h's structures, in the machine's own byte order."""

import struct
from collections.abc import Callable
from typing import Any, Final

from fuse_gated import operations as op

OUT_HEADER: Final = struct.Struct("=IiQ")
"""struct fuse_out_header: len, error, unique."""

_HEADER_SIZE: Final = OUT_HEADER.size
_ATTR = struct.Struct("=QQQqqqIIIIIIIIII")
_ENTRY = struct.Struct("=QQQQII")
_ATTR_OUT = struct.Struct("=QII")
_OPEN = struct.Struct("=QIi")
_U32_2 = struct.Struct("=II")
_U64 = struct.Struct("=Q")
_LOCK = struct.Struct("=QQII")
_STATFS = struct.Struct("=QQQQQIIII24x")
_DIRENT = struct.Struct("=QQII")
_INVAL_INODE = struct.Struct("=Qqq")
_INVAL_ENTRY = struct.Struct("=QII")

_NOTIFY_INVAL_INODE: Final = 2
_NOTIFY_INVAL_ENTRY: Final = 3
_NOTIFY_RESEND: Final = 7
_SECOND: Final = 1_000_000_000
_NO_ATTRIBUTES: Final = bytes(88)

Parts = tuple[bytes | memoryview, ...]


def _attributes(a: op.Attributes) -> bytes:
    atime, atime_ns = divmod(a.atime, _SECOND)
    mtime, mtime_ns = divmod(a.mtime, _SECOND)
    ctime, ctime_ns = divmod(a.ctime, _SECOND)
    return _ATTR.pack(
        a.inode, a.size, a.blocks, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
        a.mode, a.nlink, a.uid, a.gid, a.rdev, a.block_size, 0,
    )  # fmt: skip


def _valid(seconds: float) -> tuple[int, int]:
    if not seconds:
        return 0, 0
    whole = int(seconds)
    return whole, int((seconds - whole) * _SECOND)


def _entry(e: op.Entry) -> bytes:
    names, names_ns = _valid(e.entry_valid)
    attributes, attributes_ns = _valid(e.attributes_valid)
    head = _ENTRY.pack(e.node, 0, names, attributes, names_ns, attributes_ns)
    return head + (_attributes(e.attributes) if e.attributes is not None else _NO_ATTRIBUTES)


def _attr(a: op.Attr) -> bytes:
    seconds, nanoseconds = _valid(a.valid)
    return _ATTR_OUT.pack(seconds, nanoseconds, 0) + _attributes(a.attributes)


def _opened(o: op.Opened) -> bytes:
    flags = (1 if o.direct_io else 0) | (2 if o.keep_cache else 0) | (8 if o.cache_listing else 0) | (32 if o.no_flush else 0)
    return _OPEN.pack(o.handle, flags, 0)


def _listing(listing: op.Listing) -> bytes:
    return b"".join(_dirent(entry, listing.plus) for entry in listing.entries)


def _dirent(e: op.DirectoryEntry, plus: bool) -> bytes:
    name = e.name
    record = _DIRENT.pack(e.inode, e.offset, len(name), e.type >> 12) + name + bytes(-len(name) % 8)
    if not plus:
        return record
    return (_entry(e.entry) if e.entry is not None else bytes(128)) + record


_ENCODERS: Final[dict[type[op.Answer], Callable[[Any], bytes | memoryview]]] = {
    op.Done: lambda _answer: b"",
    op.Entry: _entry,
    op.Attr: _attr,
    op.Opened: _opened,
    op.Created: lambda a: _entry(a.entry) + _opened(a.opened),
    op.Data: lambda a: a.data,
    op.Count: lambda a: _U32_2.pack(a.count, 0),
    op.XattrSize: lambda a: _U32_2.pack(a.size, 0),
    op.Position: lambda a: _U64.pack(a.offset),
    op.Lock: lambda a: _LOCK.pack(a.start, a.end, a.type, a.pid),
    op.Listing: _listing,
    op.Filesystem: lambda a: _STATFS.pack(
        a.blocks, a.free, a.available, a.files, a.files_free, a.block_size, a.name_max, a.fragment_size, 0
    ),
}


def encode(unique: int, answer: op.Answer) -> Parts:
    """The parts of one answer, to be written in one writev(2)."""
    if type(answer) is op.Failed:
        return (OUT_HEADER.pack(_HEADER_SIZE, -answer.errno, unique),)
    body = _ENCODERS[type(answer)](answer)
    if not body:
        return (OUT_HEADER.pack(_HEADER_SIZE, 0, unique),)
    return (OUT_HEADER.pack(_HEADER_SIZE + len(body), 0, unique), body)


def invalidate_inode(node: int, *, pages: bool) -> bytes:
    """FUSE_NOTIFY_INVAL_INODE; a negative offset leaves the pages alone."""
    body = _INVAL_INODE.pack(node, 0 if pages else -1, 0)
    return OUT_HEADER.pack(_HEADER_SIZE + len(body), _NOTIFY_INVAL_INODE, 0) + body


def resend() -> bytes:
    """FUSE_NOTIFY_RESEND (Linux 6.9): every request that was read and not answered comes again."""
    return OUT_HEADER.pack(_HEADER_SIZE, _NOTIFY_RESEND, 0)


def invalidate_entry(parent: int, name: bytes, *, expire: bool = False) -> bytes:
    """FUSE_NOTIFY_INVAL_ENTRY; with FUSE_EXPIRE_ONLY the kernel only asks again."""
    body = _INVAL_ENTRY.pack(parent, len(name), int(expire)) + name + b"\0"
    return OUT_HEADER.pack(_HEADER_SIZE + len(body), _NOTIFY_INVAL_ENTRY, 0) + body
