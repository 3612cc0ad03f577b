"""One request of every operation, on a mount that is ready for it: for tests that hold for all operations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fuse_gated import operations as op
from fuse_gated.operations import Filesystem
from fuse_gated.wire.messages import Listed, ListedEntry, LockState, OpenedFile
from harness.sansio import DIRECTORY, LINK, O_RDONLY, O_RDWR, O_WRONLY, REGULAR, ROOT, Mount, attributes


@dataclass
class Scene:
    """A mount with files f and h (open), a link l, and directories d (open) and e, all in the root; g is free."""

    mount: Mount
    root: op.Node = ROOT

    def __post_init__(self) -> None:
        mount = self.mount
        self.f = self._found(b"f", REGULAR, 21)
        self.h = self._found(b"h", REGULAR, 22)
        self.l = self._found(b"l", LINK, 23)
        self.d = self._found(b"d", DIRECTORY, 24)
        self.e = self._found(b"e", DIRECTORY, 25)
        self.fh = self._opened(op.Open(self.f, O_RDWR), 77, attributes(21))
        self.hh = self._opened(op.Open(self.h, O_RDWR), 78, attributes(22))
        self.dh = self._opened(op.Opendir(self.d, 0), 88, attributes(24, DIRECTORY))
        mount.clear()

    def _found(self, name: bytes, kind: int, inode: int) -> op.Node:
        entry = self.mount.do(op.Lookup(self.root, name), attributes(inode, kind))
        assert isinstance(entry, op.Entry), entry
        return name if isinstance(self.root, bytes) else entry.node

    def _opened(self, request: op.Request, remote: int, found: op.Attributes) -> int:
        opened = self.mount.do(request, OpenedFile(remote, found))
        assert isinstance(opened, op.Opened), opened
        return opened.handle


def scene_by_path(mount: Mount) -> Scene:
    """The same for a driver that names nodes by their paths."""
    return Scene(mount, b"")


@dataclass(frozen=True)
class Case:
    """One request. `about` is the name whose rules decide, `result` what the client answers (ASK_NOT: it is not asked),
    `level` the lowest audit level that tells it when it is allowed ('' none), `denied` and `hidden` the errnos where the rules
    deny or hide that name ('' where they have no say)."""

    name: str
    request: Callable[[Scene], op.Request]
    asks: str
    result: Any
    answer: type[op.Answer]
    level: str
    about: str = "/f"
    denied: str = "EACCES"
    hidden: str = "ENOENT"
    by_name: bool = False

    @property
    def operation(self) -> str:
        return self.name.split()[0]

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


FILE, DIRECTORY_FOUND = attributes(21), attributes(24, DIRECTORY)
MADE = attributes(99)
SPACE = Filesystem(1000, 500, 400, 100, 50, 4096, 255, 4096)
NOBODY = ""

CASES = (
    Case("lookup", lambda s: op.Lookup(s.root, b"f"), "getattr", FILE, op.Entry, "everything", by_name=True),
    Case("getattr", lambda s: op.Getattr(s.f), "getattr", FILE, op.Attr, "everything"),
    Case("getattr of a handle", lambda s: op.Getattr(s.f, s.fh), "getattr", FILE, op.Attr, "everything"),
    Case("setattr", lambda s: op.Setattr(s.f, mode=0o600), "setattr", FILE, op.Attr, "writes", by_name=True),
    Case("setattr of nothing", lambda s: op.Setattr(s.f), "setattr", FILE, op.Attr, "writes", by_name=True),
    Case("setattr of the size", lambda s: op.Setattr(s.f, s.fh, size=3), "setattr", FILE, op.Attr, "writes", by_name=True),
    Case("readlink", lambda s: op.Readlink(s.l), "readlink", b"f", op.Data, "everything", about="/l", by_name=True),
    Case("symlink", lambda s: op.Symlink(s.root, b"g", b"f"), "symlink", attributes(99, LINK), op.Entry, "writes", about="/g",
         hidden="EACCES", by_name=True),
    Case("mknod", lambda s: op.Mknod(s.root, b"g", REGULAR | 0o644, 0, 0), "mknod", MADE, op.Entry, "writes", about="/g",
         hidden="EACCES", by_name=True),
    Case("mkdir", lambda s: op.Mkdir(s.root, b"g", 0o755, 0), "mkdir", attributes(99, DIRECTORY), op.Entry, "writes", about="/g",
         hidden="EACCES", by_name=True),
    Case("unlink", lambda s: op.Unlink(s.root, b"f"), "unlink", None, op.Done, "writes", by_name=True),
    Case("rmdir", lambda s: op.Rmdir(s.root, b"d"), "rmdir", None, op.Done, "writes", about="/d", by_name=True),
    Case("rename", lambda s: op.Rename(s.root, b"f", s.root, b"g", 0), "rename", None, op.Done, "writes", by_name=True),
    Case("rename to it", lambda s: op.Rename(s.root, b"f", s.root, b"g", 0), "rename", None, op.Done, "writes", about="/g",
         hidden="EACCES", by_name=True),
    Case("rename over it", lambda s: op.Rename(s.root, b"f", s.root, b"h", 0), "rename", None, op.Done, "writes", about="/h",
         hidden="EACCES", by_name=True),
    Case("rename exchange", lambda s: op.Rename(s.root, b"f", s.root, b"h", 2), "rename", None, op.Done, "writes", about="/h",
         by_name=True),
    Case("link", lambda s: op.Link(s.f, s.root, b"g"), "link", attributes(21, nlink=2), op.Entry, "writes", by_name=True),
    Case("link to it", lambda s: op.Link(s.f, s.root, b"g"), "link", attributes(21, nlink=2), op.Entry, "writes", about="/g",
         hidden="EACCES", by_name=True),
    Case("open", lambda s: op.Open(s.f, O_RDONLY), "open", OpenedFile(80, FILE), op.Opened, "opens", by_name=True),
    Case("open to write", lambda s: op.Open(s.f, O_WRONLY), "open", OpenedFile(80, FILE), op.Opened, "writes", by_name=True),
    Case("create", lambda s: op.Create(s.root, b"g", O_RDWR, 0o644, 0), "create", OpenedFile(80, MADE), op.Created, "writes",
         about="/g", hidden="EACCES", by_name=True),
    Case("read", lambda s: op.Read(s.f, s.fh, 0, 10), "read", b"hello", op.Data, NOBODY),
    Case("write", lambda s: op.Write(s.f, s.fh, 0, b"hello"), "write", 5, op.Count, NOBODY),
    Case("flush", lambda s: op.Flush(s.f, s.fh, 1), "", None, op.Done, "everything", denied="", hidden=""),
    Case("release", lambda s: op.Release(s.f, s.fh), "release", None, op.Done, NOBODY, denied="", hidden=""),
    Case("fsync", lambda s: op.Fsync(s.f, s.fh, False), "fsync", None, op.Done, "everything", denied="", hidden=""),
    Case("opendir", lambda s: op.Opendir(s.d, 0), "opendir", OpenedFile(81, DIRECTORY_FOUND), op.Opened, "opens", about="/d",
         by_name=True),
    Case("readdir", lambda s: op.Readdir(s.d, s.dh, 0, 4096, False), "readdir", Listed((ListedEntry(b"x", 31, REGULAR),), True),
         op.Listing, "everything", about="/d", by_name=True),
    Case("readdir plus", lambda s: op.Readdir(s.d, s.dh, 0, 4096, True), "readdir",
         Listed((ListedEntry(b"x", 31, REGULAR, attributes(31)),), True), op.Listing, "everything", about="/d", by_name=True),
    Case("releasedir", lambda s: op.Releasedir(s.d, s.dh), "releasedir", None, op.Done, "everything", about="/d",
         denied="", hidden=""),
    Case("fsyncdir", lambda s: op.Fsyncdir(s.d, s.dh, True), "fsyncdir", None, op.Done, "everything", about="/d",
         denied="", hidden=""),
    Case("statfs", lambda s: op.Statfs(s.f), "statfs", SPACE, Filesystem, "everything", denied="", hidden=""),
    Case("access", lambda s: op.Access(s.f, 4), "access", None, op.Done, "everything", by_name=True),
    Case("getxattr", lambda s: op.Getxattr(s.f, b"user.a", 100), "getxattr", b"value", op.Data, "everything", by_name=True),
    Case("setxattr", lambda s: op.Setxattr(s.f, b"user.a", b"value", 0), "setxattr", None, op.Done, "writes", by_name=True),
    Case("listxattr", lambda s: op.Listxattr(s.f, 100), "listxattr", (b"user.a",), op.Data, "everything", by_name=True),
    Case("removexattr", lambda s: op.Removexattr(s.f, b"user.a"), "removexattr", None, op.Done, "writes", by_name=True),
    Case("lseek", lambda s: op.Lseek(s.f, s.fh, 0, 3), "lseek", 0, op.Position, "everything"),
    Case("fallocate", lambda s: op.Fallocate(s.f, s.fh, 0, 100, 0), "fallocate", None, op.Done, "everything"),
    Case("copy_file_range", lambda s: op.CopyFileRange(s.f, s.fh, 0, s.h, s.hh, 0, 5), "copy_file_range", 5, op.Count,
         "everything"),
    Case("copy_file_range to it", lambda s: op.CopyFileRange(s.f, s.fh, 0, s.h, s.hh, 0, 5), "copy_file_range", 5, op.Count,
         "everything", about="/h"),
    Case("getlk", lambda s: op.Getlk(s.f, s.fh, 9, 0, 10, 1, 4321), "getlk", LockState(2), op.Lock, "everything"),
    Case("setlk", lambda s: op.Setlk(s.f, s.fh, 9, 0, 10, 1, 4321, False, False), "setlk", None, op.Done, "everything"),
    Case("setlk waiting", lambda s: op.Setlk(s.f, s.fh, 9, 0, 10, 1, 4321, True, True), "setlk", None, op.Done, "everything"),
)  # fmt: skip
"""Every operation that has an answer, and the ways in which some of them differ."""

ASIDE = ("release", "releasedir")
"""Operations whose caller does not wait for the client."""
