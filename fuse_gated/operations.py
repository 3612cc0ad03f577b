"""What a program on the server asks of a mount, and what it is answered: frozen requests, replies and the caller.

The names are FUSE's (linux/fuse.h). A driver makes these out of what the kernel sends, the turnstile reads them, and the
driver writes the answers back. A node is the kernel's nodeid (an int; 1 is the root) or, from a driver that has none
(libfuse's high-level interface), the path itself. Times are nanoseconds since the epoch, sizes and offsets bytes.
"""

from typing import Final

import msgspec

Node = int | bytes

ROOT: Final = 1
"""FUSE_ROOT_ID."""

NOW: Final = -1
"""In `Setattr`: the time at which the client carries it out (UTIME_NOW)."""


EARLIEST: Final = -(2**63)
LATEST: Final = 2**64 - 1
"""The times that MessagePack's integers carry, in nanoseconds: from 1677 to 2554. What lies outside becomes the nearest."""


def carried(time: int) -> int:
    """The nearest time to `time` that can travel."""
    return EARLIEST if time < EARLIEST else LATEST if time > LATEST else time


class Caller(msgspec.Struct, frozen=True, gc=False):
    """Who asked: ids on the server. A pid of 0 means the kernel itself."""

    uid: int
    gid: int
    pid: int


class Request(msgspec.Struct, frozen=True, gc=False):
    """The base of all requests."""


class Lookup(Request, frozen=True, gc=False):
    parent: Node
    name: bytes


class Forget(Request, frozen=True, gc=False):
    """FORGET and BATCH_FORGET: (node, lookups to take back). It has no answer."""

    nodes: tuple[tuple[int, int], ...]


class Getattr(Request, frozen=True, gc=False):
    node: Node
    handle: int | None = None


class Setattr(Request, frozen=True, gc=False):
    """What is None stays as it is. `truncates_open` is an O_TRUNC or ftruncate through `handle`."""

    node: Node
    handle: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None
    kill_suidgid: bool = False


class Readlink(Request, frozen=True, gc=False):
    node: Node


class Symlink(Request, frozen=True, gc=False):
    parent: Node
    name: bytes
    target: bytes


class Mknod(Request, frozen=True, gc=False):
    parent: Node
    name: bytes
    mode: int
    rdev: int
    umask: int


class Mkdir(Request, frozen=True, gc=False):
    parent: Node
    name: bytes
    mode: int
    umask: int


class Unlink(Request, frozen=True, gc=False):
    """`alias`: libfuse goes on naming the open file by this path (tree/by_path.py)."""

    parent: Node
    name: bytes
    alias: bytes | None = None


class Rmdir(Request, frozen=True, gc=False):
    parent: Node
    name: bytes


class Rename(Request, frozen=True, gc=False):
    """`flags`: RENAME_NOREPLACE (1) and RENAME_EXCHANGE (2) of renameat2(2)."""

    parent: Node
    name: bytes
    new_parent: Node
    new_name: bytes
    flags: int


class Link(Request, frozen=True, gc=False):
    node: Node
    new_parent: Node
    new_name: bytes


class Open(Request, frozen=True, gc=False):
    """`flags` are this machine's open(2) flags; 0x20 (FMODE_EXEC) marks an execve."""

    node: Node
    flags: int
    kill_suidgid: bool = False


class Create(Request, frozen=True, gc=False):
    parent: Node
    name: bytes
    flags: int
    mode: int
    umask: int


class Read(Request, frozen=True, gc=False):
    node: Node
    handle: int
    offset: int
    size: int


class Write(Request, frozen=True, gc=False):
    """`from_cache`: the kernel writes back pages of an mmap; the handle need not be the writer's. `append`: the descriptor
    has O_APPEND now, which fcntl(2) can set and take away after it was opened."""

    node: Node
    handle: int
    offset: int
    data: bytes | memoryview
    from_cache: bool = False
    kill_suidgid: bool = False
    append: bool = False


class Flush(Request, frozen=True, gc=False):
    node: Node
    handle: int
    owner: int


class Release(Request, frozen=True, gc=False):
    """`flock_owner`: the open file's flock goes with it."""

    node: Node
    handle: int
    flock_owner: int | None = None


class Fsync(Request, frozen=True, gc=False):
    node: Node
    handle: int
    data_only: bool


class Opendir(Request, frozen=True, gc=False):
    node: Node
    flags: int


class Readdir(Request, frozen=True, gc=False):
    """READDIR, and with `plus` READDIRPLUS. `offset` is what an earlier entry carried, or 0; `size` bounds the packed answer."""

    node: Node
    handle: int
    offset: int
    size: int
    plus: bool


class Releasedir(Request, frozen=True, gc=False):
    node: Node
    handle: int


class Fsyncdir(Request, frozen=True, gc=False):
    node: Node
    handle: int
    data_only: bool


class Statfs(Request, frozen=True, gc=False):
    node: Node


class Access(Request, frozen=True, gc=False):
    """`mask`: R_OK (4), W_OK (2), X_OK (1)."""

    node: Node
    mask: int


class Getxattr(Request, frozen=True, gc=False):
    """`size` 0 asks for the value's length."""

    node: Node
    name: bytes
    size: int


class Setxattr(Request, frozen=True, gc=False):
    """`flags`: XATTR_CREATE (1), XATTR_REPLACE (2)."""

    node: Node
    name: bytes
    value: bytes
    flags: int


class Listxattr(Request, frozen=True, gc=False):
    node: Node
    size: int


class Removexattr(Request, frozen=True, gc=False):
    node: Node
    name: bytes


class Lseek(Request, frozen=True, gc=False):
    """`whence`: SEEK_DATA (3) or SEEK_HOLE (4)."""

    node: Node
    handle: int
    offset: int
    whence: int


class Fallocate(Request, frozen=True, gc=False):
    node: Node
    handle: int
    offset: int
    length: int
    mode: int


class CopyFileRange(Request, frozen=True, gc=False):
    node: Node
    handle: int
    offset: int
    to_node: Node
    to_handle: int
    to_offset: int
    length: int


class Getlk(Request, frozen=True, gc=False):
    """`type`: F_RDLCK (0), F_WRLCK (1), F_UNLCK (2); `end` is inclusive, 2**63-1 for 'to the end'."""

    node: Node
    handle: int
    owner: int
    start: int
    end: int
    type: int
    pid: int


class Setlk(Request, frozen=True, gc=False):
    """SETLK, and with `wait` SETLKW; with `flock` the lock is flock(2)'s."""

    node: Node
    handle: int
    owner: int
    start: int
    end: int
    type: int
    pid: int
    wait: bool
    flock: bool


class Interrupt(Request, frozen=True, gc=False):
    """The caller of request `unique` got a signal. It has no answer of its own."""

    unique: int


class Destroy(Request, frozen=True, gc=False):
    """The mount is gone."""


class Unserved(Request, frozen=True, gc=False):
    """An opcode that is answered from the driver's table: `errno` by name."""

    opcode: int
    errno: str


# What goes back.


class Attributes(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """inode(7), as it travels on the wire and, after the gate, to the kernel. `mode` includes the file type. `device` and
    `inode` say which file it is; `rdev` is Linux's 32-bit encoding (new_encode_dev)."""

    device: int
    inode: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    block_size: int
    atime: int
    mtime: int
    ctime: int


class Answer(msgspec.Struct, frozen=True, gc=False):
    """The base of all answers."""


class Done(Answer, frozen=True, gc=False):
    """Success without a value."""


class Failed(Answer, frozen=True, gc=False):
    """`errno` is this machine's number."""

    errno: int


class Entry(Answer, frozen=True, gc=False):
    """LOOKUP, MKDIR, …: a node with its attributes. Node 0 says that the name does not exist and may be remembered so.
    The valid times are seconds."""

    node: int
    attributes: Attributes | None
    entry_valid: float = 0.0
    attributes_valid: float = 0.0


class Attr(Answer, frozen=True, gc=False):
    attributes: Attributes
    valid: float = 0.0


class Opened(Answer, frozen=True, gc=False):
    """`keep_cache`, `direct_io`, `cache_listing` and `no_flush` are FOPEN_KEEP_CACHE, FOPEN_DIRECT_IO, FOPEN_CACHE_DIR and
    FOPEN_NOFLUSH."""

    handle: int
    keep_cache: bool = False
    direct_io: bool = False
    cache_listing: bool = False
    no_flush: bool = False


class Created(Answer, frozen=True, gc=False):
    entry: Entry
    opened: Opened


class Data(Answer, frozen=True, gc=False):
    """READ, READLINK, and the value of GETXATTR and LISTXATTR."""

    data: bytes | memoryview


class Count(Answer, frozen=True, gc=False):
    """Bytes written or copied (WRITE, COPY_FILE_RANGE)."""

    count: int


class XattrSize(Answer, frozen=True, gc=False):
    size: int


class Position(Answer, frozen=True, gc=False):
    """LSEEK."""

    offset: int


class Lock(Answer, frozen=True, gc=False):
    """GETLK."""

    start: int
    end: int
    type: int
    pid: int


class DirectoryEntry(msgspec.Struct, frozen=True, gc=False):
    """`offset` is where the listing goes on after this entry; `type` is the file type's bits of a mode; `entry` is there
    in a READDIRPLUS where the name's attributes may be shown."""

    name: bytes
    inode: int
    offset: int
    type: int
    entry: Entry | None = None


class Listing(Answer, frozen=True, gc=False):
    """`plus`: the answer of a READDIRPLUS, whose entries have another form."""

    entries: tuple[DirectoryEntry, ...]
    plus: bool = False


class Filesystem(Answer, frozen=True, gc=False, array_like=True):
    """STATFS, as statvfs(3) names it."""

    blocks: int
    free: int
    available: int
    files: int
    files_free: int
    block_size: int
    name_max: int
    fragment_size: int
