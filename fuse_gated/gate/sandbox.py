"""The sandbox: what a client answers is checked before any of it reaches the kernel, because a client may be hostile.

Every check either passes or raises `errors.ProtocolError` with what was wrong: a client that sends such a thing is broken or
hostile, and its connection is closed. Where a symbolic link leads is different: an honest client may have links that leave
its export, so those are refused one by one.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from fuse_gated.errors import ProtocolError
from fuse_gated.operations import Attributes, Filesystem
from fuse_gated.paths import components, is_safe_name, shown

FILE_TYPES: Final = frozenset({0o010000, 0o020000, 0o040000, 0o060000, 0o100000, 0o120000, 0o140000})
"""S_IFIFO, S_IFCHR, S_IFDIR, S_IFBLK, S_IFREG, S_IFLNK, S_IFSOCK (inode(7))."""
XATTR_MAX: Final = 65536
"""XATTR_SIZE_MAX and XATTR_LIST_MAX (linux/limits.h)."""
LINK_MAX: Final = 4095
"""Bytes in a symbolic link's target: PATH_MAX without its NUL."""

_TYPE: Final = 0o170000
_U32: Final = 2**32 - 1
_U64: Final = 2**64 - 1
_S63: Final = 2**63 - 1
_MODE: Final = 0o177777
_EARLIEST: Final = -(2**63) * 10**9
_LATEST: Final = 2**63 * 10**9 - 1
_LARGEST_BLOCK: Final = 64 * 2**20
"""Programs take st_blksize as the size of their buffers: no filesystem comes near this, and a larger one could be an attack."""

_ATTRIBUTES: Final = (
    ("device", 0, _U64),
    ("inode", 0, _U64),
    ("mode", 0, _MODE),
    ("nlink", 0, _U32),
    ("uid", 0, _U32),
    ("gid", 0, _U32),
    ("rdev", 0, _U32),
    ("size", 0, _S63),
    ("blocks", 0, _S63),
    ("block_size", 0, _LARGEST_BLOCK),
    ("atime", _EARLIEST, _LATEST),
    ("mtime", _EARLIEST, _LATEST),
    ("ctime", _EARLIEST, _LATEST),
)
"""Each field with the least and the most that the kernel's structures hold (struct fuse_attr, loff_t, timespec64)."""

_FILESYSTEM: Final = (
    ("blocks", 0, _U64),
    ("free", 0, _U64),
    ("available", 0, _U64),
    ("files", 0, _U64),
    ("files_free", 0, _U64),
    ("block_size", 1, _U32),
    ("name_max", 1, _U32),
    ("fragment_size", 0, _U32),
)


class Listed(Protocol):
    """One entry of a listing, as the wire has it."""

    @property
    def name(self) -> bytes: ...
    @property
    def inode(self) -> int: ...
    @property
    def type(self) -> int: ...
    @property
    def attributes(self) -> Attributes | None: ...


class Page(Protocol):
    """A part of a listing, as the wire has it."""

    @property
    def entries(self) -> Sequence[Listed]: ...
    @property
    def end(self) -> bool: ...


class Gathered(Protocol):
    """What was gathered of one path, as the wire has it."""

    @property
    def attributes(self) -> Attributes | None: ...
    @property
    def entries(self) -> Sequence[Listed]: ...
    @property
    def content(self) -> bytes | None: ...


class Lock(Protocol):
    """The answer of a getlk, as the wire has it."""

    @property
    def type(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...


def check_attributes(attributes: Attributes) -> None:
    """Refuses attributes that no file can have."""
    a = attributes
    # One look at the whole, because this is done for every name that is looked up; which field it was is found out after. An
    # int that is the others' bits together is negative if one of them is, and as large as the largest.
    if (
        a.mode & _TYPE in FILE_TYPES
        and 0 <= a.mode <= _MODE
        and 0 <= a.device | a.inode <= _U64
        and 0 <= a.size | a.blocks <= _S63
        and 0 <= a.nlink | a.uid | a.gid | a.rdev <= _U32
        and 0 <= a.block_size <= _LARGEST_BLOCK
        and _EARLIEST <= a.atime <= _LATEST
        and _EARLIEST <= a.mtime <= _LATEST
        and _EARLIEST <= a.ctime <= _LATEST
    ):
        return
    _check_ranges("attributes", attributes, _ATTRIBUTES)
    raise ProtocolError(f"attributes with mode {a.mode:#o}: no file is of that type")


def check_filesystem(filesystem: Filesystem) -> None:
    """Refuses the answer of a statfs that struct fuse_kstatfs cannot hold."""
    _check_ranges("a filesystem", filesystem, _FILESYSTEM)


def check_entry_name(name: bytes) -> None:
    """Refuses a name that is not one safe component."""
    if not is_safe_name(name):
        raise ProtocolError(f"an entry named {shown(name[:64])[1:]!r}, {len(name)} bytes: no file can have that name")


def check_path(path: bytes) -> None:
    """Refuses a path that is not made of safe components (a notice carries such)."""
    for name in components(path):
        if not is_safe_name(name):
            raise ProtocolError(f"a path with the component {shown(name[:64])[1:]!r}: no file can have that name")


def check_listing(page: Page, asked: int) -> None:
    """Refuses a part of a listing that has more than the `asked` entries, an empty one that is not the last, and entries
    whose names or attributes cannot be. A type of 0 means unknown (readdir(3))."""
    check_entries(page.entries, asked)
    if not page.entries and not page.end:
        raise ProtocolError("a listing that is empty and says that more follows: it would never end")


def check_entries(entries: Sequence[Listed], asked: int) -> None:
    """Refuses more entries than were asked for, and any that cannot be."""
    if len(entries) > asked:
        raise ProtocolError(f"a listing of {len(entries)} entries, {asked} were asked for")
    for entry in entries:
        check_entry_name(entry.name)
        if entry.type and entry.type not in FILE_TYPES:
            raise ProtocolError(f"an entry of type {entry.type:#o}: there is none")
        if not 0 <= entry.inode <= _U64:
            raise ProtocolError(f"an entry with inode {entry.inode}: not within 0 and {_U64}")
        if entry.attributes is not None:
            check_attributes(entry.attributes)


def check_gathered(results: Sequence[Gathered], paths: int, content: int, entries: int) -> None:
    """Refuses what no answer to a GATHER of so many paths, with so many bytes and entries of each, can be."""
    if len(results) > paths:
        raise ProtocolError(f"{len(results)} paths gathered, {paths} were asked for")
    for found in results:
        if found.attributes is not None:
            check_attributes(found.attributes)
        check_entries(found.entries, entries)
        if found.content is not None and len(found.content) > max(content, LINK_MAX):
            raise ProtocolError(f"{len(found.content)} bytes of content gathered, {content} were asked for")


def check_handle(handle: int) -> None:
    """Refuses a handle that no client may give out."""
    if not 0 <= handle <= _S63:
        raise ProtocolError(f"a handle {handle}: not within 0 and {_S63}")


def check_data(data: bytes | memoryview, asked: int) -> None:
    """Refuses more data than the `asked` bytes: the kernel would refuse it too, and its caller would hang."""
    if len(data) > asked:
        raise ProtocolError(f"{len(data)} bytes of data, {asked} were asked for")


def check_count(count: int, asked: int) -> None:
    """Refuses a number of bytes written or copied that is negative, or more than `asked`."""
    if not 0 <= count <= asked:
        raise ProtocolError(f"{count} bytes written, of {asked}")


def check_offset(offset: int, least: int = 0) -> None:
    """Refuses a place in a file (lseek) that loff_t cannot hold, or that lies before the one it was searched from."""
    if not least <= offset <= _S63:
        raise ProtocolError(f"an offset of {offset}: not within {least} and {_S63}")


def check_xattr(value: bytes) -> None:
    """Refuses the value of an extended attribute that is longer than any can be."""
    if len(value) > XATTR_MAX:
        raise ProtocolError(f"an extended attribute of {len(value)} bytes: {XATTR_MAX} is the most")


def check_xattr_names(names: Sequence[bytes]) -> None:
    """Refuses names of extended attributes that none can have, and more of them than a list can hold."""
    for name in names:
        if not name or len(name) > 255 or b"\0" in name:
            raise ProtocolError(f"an extended attribute named {shown(name[:64])[1:]!r}, {len(name)} bytes: none can be")
    if sum(len(name) + 1 for name in names) > XATTR_MAX:
        raise ProtocolError(f"names of extended attributes that fill more than {XATTR_MAX} bytes")


def check_lock(lock: Lock) -> None:
    """Refuses the answer of a getlk that is no lock: F_RDLCK (0), F_WRLCK (1) or F_UNLCK (2), with its end not before its
    start."""
    if lock.type not in (0, 1, 2):
        raise ProtocolError(f"a lock of type {lock.type}: there is none")
    if not 0 <= lock.start <= lock.end <= _S63:
        raise ProtocolError(f"a lock from {lock.start} to {lock.end}: no file has that range")


def contained_link(target: bytes, link_path: bytes, export_root: bytes, mode: str) -> bytes | None:
    """What readlink shows of the link at `link_path` that leads to `target`; None: EACCES.

    `mode` is the policy's: 'as-is' shows every target that the kernel can take, 'deny' none. 'inside' shows what cannot leave
    the export: a relative target with '..' only at its beginning, and at most as often as the link lies deep; and an absolute
    one beneath `export_root` (the export's own path on the client; b'' if unknown) in the relative form. A '..' further on
    is refused wherever it leads, because what comes before it may itself be a link.
    """
    if mode == "deny" or not 0 < len(target) <= LINK_MAX or b"\0" in target:
        return None
    if mode == "as-is":
        return target
    depth = link_path.count(b"/")
    if not target.startswith(b"/"):
        names, ups = [name for name in target.split(b"/") if name], levels_up(target)
        return target if ups <= depth and b".." not in names[ups:] else None
    if not export_root.startswith(b"/"):
        return None
    names, root = _names(target), _names(export_root)
    rest = names[len(root) :]
    if names[: len(root)] != root or b".." in names:
        return None
    contained = b"/".join([b".."] * depth + rest) or b"."
    if target.endswith(b"/"):
        # Only a directory can be meant: without the slash a file would do as well.
        contained += b"/"
    return contained if len(contained) <= LINK_MAX else None


def levels_up(target: bytes) -> int:
    """How many levels above its own directory a relative target leads first: its leading '..'."""
    names = [name for name in target.split(b"/") if name]
    return next((index for index, name in enumerate(names) if name != b".."), len(names))


def _names(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def _check_ranges(what: str, values: object, ranges: tuple[tuple[str, int, int], ...]) -> None:
    for field, least, most in ranges:
        value = getattr(values, field)
        if not least <= value <= most:
            raise ProtocolError(f"{what} with {field} {value}: not within {least} and {most}")
