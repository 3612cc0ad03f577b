"""The frames of the wire, version 1, and the arguments and results of every operation that the client is asked for.

A WebSocket message is a MessagePack array of frames. A frame is an array whose first element is its tag. Arguments and
results are arrays (docs/api/fuse-operations.md lists them), so fields are only ever added at the end. A target is a path
relative to the export's root (bytes) or a handle that the client gave out (int). Times are nanoseconds since the epoch.
"""

from typing import Annotated, Any, Final

import msgspec

from fuse_gated.operations import Attributes

SUBPROTOCOL: Final = "fuse-gate.v1"
MAX_MESSAGE: Final = 4 * 2**20
"""Bytes in one message, either way; a longer one closes the connection with 1009."""
MAX_DATA: Final = 2**20
"""Bytes of file data in one READ or WRITE."""
MAX_GATHERED: Final = 1024
"""Paths in one GATHER or UNWATCH."""
WATCHES: Final = "watches"
"""The capability of a client that serves GATHER and UNWATCH, and tells of changes."""
MAX_AFTER: Final = 64
"""Requests that one request may be told to wait for."""
AFTER: Final = "after"
"""The capability of a client that begins a request only when those have ended that its `after` names."""
LEASES: Final = "leases"
"""The capability of a client that leases what it creates (Create.lease), and says so when somebody wants it (Broken)."""

Target = bytes | int

# open flags, the wire's own: open(2)'s numbers differ by architecture.
OPEN_READ: Final = 1
OPEN_WRITE: Final = 2
OPEN_TRUNCATE: Final = 4
OPEN_EXCLUSIVE: Final = 8
OPEN_SYNC: Final = 16
OPEN_DSYNC: Final = 32


class Frame(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The base of all frames."""


class Offer(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What the client says of itself in its hello. `root` is the export's absolute path on the client: an absolute link
    beneath it is shown in relative form. `token` is for a browser, which cannot set the Authorization header."""

    export: str
    program: str = ""
    root: bytes = b""
    capabilities: tuple[str, ...] = ()
    resume: bytes | None = None
    token: str | None = None


class Terms(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What the server answers: the session's name, the secret that resumes it, its limits and the path it is mounted at.
    `max_in_flight` requests and `max_bytes_in_flight` bytes are what the client may have to hold at once. `resumed`: the
    session of the offer's `resume` goes on. `grace`: seconds that the server keeps it for a client that is away. `driver` is what
    serves it there: kernel, libfuse, network (there is no mount), or local (a copy is in its place)."""

    session: str
    resume: bytes
    mount: str
    max_in_flight: int
    max_bytes_in_flight: int
    max_data: int = MAX_DATA
    deadline: float = 30.0
    resumed: bool = False
    grace: float = 0.0
    driver: str = ""


class Hello(Frame, frozen=True, gc=False, tag="hello"):
    offer: Offer


class Welcome(Frame, frozen=True, gc=False, tag="welcome"):
    terms: Terms


class Ask(Frame, frozen=True, gc=False, tag="ask"):
    """A request: `arguments` is the structure of `tables.ARGUMENTS[operation]`. It is not begun before the requests `after` have
    ended, at most MAX_AFTER; only a client with the capability AFTER may be sent any. (codec.py leaves the field out where it
    is empty.)"""

    id: int
    operation: str
    arguments: Any
    after: tuple[int, ...] = ()


class Asked(Frame, frozen=True, gc=False, tag="ask"):
    """An `Ask` as it is received: its arguments are still to be decoded, by its operation."""

    id: int
    operation: str
    arguments: msgspec.Raw
    after: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)], ...], msgspec.Meta(max_length=MAX_AFTER)] = ()


class Cancel(Frame, frozen=True, gc=False, tag="cancel"):
    """The caller of request `id` was interrupted: end it if that is possible. It is answered all the same."""

    id: int


class Reply(Frame, frozen=True, gc=False, tag="reply"):
    """`errno` by name, or none; then `result` is of the kind in `tables.RESULTS[operation]`. `usec`: microseconds from the
    request's arrival until this; 0 from who does not say."""

    id: int
    errno: str | None
    result: Any = None
    usec: int = 0


class Replied(Frame, frozen=True, gc=False, tag="reply"):
    """A `Reply` as it is received."""

    id: int
    errno: str | None
    result: msgspec.Raw = msgspec.Raw(b"\xc0")
    usec: int = 0


class Notice(Frame, frozen=True, gc=False, tag="notice"):
    """Paths that changed on the client. `attributes`, where there are any, are as many as the paths and say what became of
    each: nil, that it is gone. `overflow`: more changed than can be told; nothing that was told before holds, and nothing is
    watched any more. A directory that is told of as gone, or as another one, is not watched any more, nor is what was beneath."""

    paths: tuple[bytes, ...]
    attributes: tuple[Attributes | None, ...] = ()
    overflow: bool = False


class Broken(Frame, frozen=True, gc=False, tag="broken"):
    """Somebody wants to open the file that is leased for this handle (fcntl(2), F_SETLEASE), or it was leased for long enough:
    the server is to answer with UNLEASE, behind what it owes."""

    handle: int


FromServer = Welcome | Asked | Cancel
FromClient = Hello | Replied | Notice | Broken


class Owner(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Who shall own what is made, where ownership is passed through (the client can chown)."""

    uid: int
    gid: int


class Arguments(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The base of all arguments."""


class Getattr(Arguments, frozen=True, gc=False):
    target: Target


class Setattr(Arguments, frozen=True, gc=False):
    """What is nil stays as it is; a time of -1 is the client's now. `clear_setid`, here and elsewhere: a regular file that is
    changed by somebody without CAP_FSETID loses setuid and, if its group may execute it, setgid."""

    target: Target
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None
    clear_setid: bool = False


class Readlink(Arguments, frozen=True, gc=False):
    path: bytes


class Symlink(Arguments, frozen=True, gc=False):
    path: bytes
    target: bytes
    owner: Owner | None = None


class Mknod(Arguments, frozen=True, gc=False):
    path: bytes
    mode: int
    rdev: int
    owner: Owner | None = None


class Mkdir(Arguments, frozen=True, gc=False):
    path: bytes
    mode: int
    owner: Owner | None = None


class Unlink(Arguments, frozen=True, gc=False):
    path: bytes


class Rmdir(Arguments, frozen=True, gc=False):
    path: bytes


class Rename(Arguments, frozen=True, gc=False):
    path: bytes
    new_path: bytes
    no_replace: bool = False
    exchange: bool = False


class Link(Arguments, frozen=True, gc=False):
    target: Target
    new_path: bytes


class Open(Arguments, frozen=True, gc=False):
    """A target that is a handle is opened anew: the same file, whatever its name is now."""

    target: Target
    flags: int
    clear_setid: bool = False


class Create(Arguments, frozen=True, gc=False):
    """`lease`: bytes that the server wants to write and close without waiting for them."""

    path: bytes
    flags: int
    mode: int
    owner: Owner | None = None
    lease: int = 0


class Read(Arguments, frozen=True, gc=False):
    handle: int
    offset: int
    size: int


class Write(Arguments, frozen=True, gc=False):
    """`append`: at the file's end, whatever `offset` says (RWF_APPEND); with `most`, EFBIG if the file were longer than that
    afterwards."""

    handle: int
    offset: int
    data: memoryview
    append: bool = False
    clear_setid: bool = False
    most: int | None = None


class Flush(Arguments, frozen=True, gc=False):
    """close(2) of one descriptor: tells write errors, and gives up the POSIX locks of `owner` on the file."""

    handle: int
    owner: int


class Release(Arguments, frozen=True, gc=False):
    handle: int


class Unlease(Arguments, frozen=True, gc=False):
    handle: int


class Fsync(Arguments, frozen=True, gc=False):
    handle: int
    data_only: bool


class Opendir(Arguments, frozen=True, gc=False):
    path: bytes


class Readdir(Arguments, frozen=True, gc=False):
    """At most `count` entries from position `cookie` on; 0 reads the directory anew. '.' and '..' are left out. With
    `attributes` each entry carries its own."""

    handle: int
    cookie: int
    count: int
    attributes: bool


class Gather(Arguments, frozen=True, gc=False):
    """Much at once, in one answer: of each path its attributes, and with them a directory's entries, at most `entries` of each;
    the content of a regular file of at most `content` bytes; a link's target. The answer carries about `most` bytes: what does
    not fit is left out at its end, but for the first path. Directories are watched before they are looked at, and so is the
    directory that anything else lies in (`watch`)."""

    paths: tuple[bytes, ...]
    content: int
    entries: int
    most: int
    watch: bool


class Unwatch(Arguments, frozen=True, gc=False):
    """Changes in these directories are not to be told any more."""

    paths: tuple[bytes, ...]


class Releasedir(Arguments, frozen=True, gc=False):
    handle: int


class Fsyncdir(Arguments, frozen=True, gc=False):
    """With `path`, of the directory that has it now; `handle` is 0 then, which none is. It need not be opened for that alone."""

    handle: int
    data_only: bool
    path: bytes | None = None


class Statfs(Arguments, frozen=True, gc=False):
    pass


class Access(Arguments, frozen=True, gc=False):
    target: Target
    mask: int


class Getxattr(Arguments, frozen=True, gc=False):
    target: Target
    name: bytes


class Setxattr(Arguments, frozen=True, gc=False):
    target: Target
    name: bytes
    value: bytes
    create: bool = False
    replace: bool = False


class Listxattr(Arguments, frozen=True, gc=False):
    target: Target


class Removexattr(Arguments, frozen=True, gc=False):
    target: Target
    name: bytes


class Lseek(Arguments, frozen=True, gc=False):
    """The next data at or after `offset`, or with `hole` the next hole."""

    handle: int
    offset: int
    hole: bool


class Fallocate(Arguments, frozen=True, gc=False):
    """`mode`: FALLOC_FL_KEEP_SIZE (1), PUNCH_HOLE (2), COLLAPSE_RANGE (8), ZERO_RANGE (16), INSERT_RANGE (32)."""

    handle: int
    offset: int
    length: int
    mode: int
    clear_setid: bool = False


class CopyFileRange(Arguments, frozen=True, gc=False):
    handle: int
    offset: int
    to_handle: int
    to_offset: int
    length: int
    clear_setid: bool = False


class Getlk(Arguments, frozen=True, gc=False):
    """`type`: 0 a read lock, 1 a write lock, 2 none; `end` is inclusive, 2**63-1 the file's end wherever it is."""

    handle: int
    owner: int
    start: int
    end: int
    type: int


class Setlk(Arguments, frozen=True, gc=False):
    """Takes or gives up a POSIX lock of `owner`, or with `flock` the flock of the handle. Waits for it at most `wait`
    milliseconds, then EAGAIN; the server asks again for as long as its caller waits. `current`: the answer is to say what the
    file is like, once every change before it has been told."""

    handle: int
    owner: int
    start: int
    end: int
    type: int
    flock: bool = False
    wait: int = 0
    current: bool = False


class OpenedFile(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """`silent`: close(2) of it has no error to tell, so that it need not be asked for one. `made`: it was not there before.
    `leased`: nobody else on the client can open it, and there is room for so many bytes from its beginning on."""

    handle: int
    attributes: Attributes
    silent: bool = False
    made: bool = False
    leased: int = 0


class ListedEntry(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """`type` is the file type's bits of a mode."""

    name: bytes
    inode: int
    type: int
    attributes: Attributes | None = None


class Listed(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The entries from the cookie on; `end` says that none follow. The next cookie is the old one plus their number."""

    entries: tuple[ListedEntry, ...]
    end: bool


class Gathered(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What GATHER found of one path: an errno by name, or attributes and one of the rest. `watched`: every change after this
    will be told by a notice: of a directory, of its entries and of itself; of anything else, by the watch on its directory.
    `entries` without `complete` are only the first ones, and were read before anything else was."""

    errno: str | None
    attributes: Attributes | None = None
    watched: bool = False
    entries: tuple[ListedEntry, ...] = ()
    complete: bool = False
    content: bytes | None = None


class LockState(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The lock in the way, or type 2 for none."""

    type: int
    start: int = 0
    end: int = 0
