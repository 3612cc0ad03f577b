"""Every request that has an answer of its own: what it is called, how the limiter counts it, and who handles it."""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from fuse_gated import operations
from fuse_gated.operations import Request
from fuse_gated.turnstile import attributes, closing, directories, files, listing, locks, making, names, writing
from fuse_gated.turnstile.call import Call
from fuse_gated.turnstile.desk import Desk


class Row(msgspec.Struct, frozen=True):
    """`name` is the operation's, as records have it. `kind` is the limiter's class; '' is exempt, so that what is open can
    always be closed. `by_name`: the caller's uid is checked, because a program asks here for something new; what comes through
    an open file may come from the kernel itself, as root. `handle` does the rest."""

    name: str
    kind: str
    by_name: bool
    handle: Callable[[Desk, Call, Any], None]


TABLE: Final[dict[type[Request], Row]] = {
    operations.Lookup: Row("lookup", "other", True, names.lookup),
    operations.Getattr: Row("getattr", "other", False, attributes.getattr_),
    operations.Setattr: Row("setattr", "other", True, attributes.setattr_),
    operations.Readlink: Row("readlink", "other", True, names.readlink),
    operations.Symlink: Row("symlink", "other", True, making.symlink),
    operations.Mknod: Row("mknod", "other", True, making.mknod),
    operations.Mkdir: Row("mkdir", "other", True, making.mkdir),
    operations.Unlink: Row("unlink", "other", True, names.unlink),
    operations.Rmdir: Row("rmdir", "other", True, names.rmdir),
    operations.Rename: Row("rename", "other", True, names.rename),
    operations.Link: Row("link", "other", True, making.link),
    operations.Open: Row("open", "other", True, files.open_),
    operations.Create: Row("create", "other", True, files.create),
    operations.Read: Row("read", "read", False, files.read),
    operations.Write: Row("write", "write", False, writing.write),
    operations.Flush: Row("flush", "", False, closing.flush),
    operations.Release: Row("release", "", False, closing.release),
    operations.Fsync: Row("fsync", "other", False, files.fsync),
    operations.Opendir: Row("opendir", "other", True, directories.opendir),
    operations.Readdir: Row("readdir", "other", True, listing.readdir),
    operations.Releasedir: Row("releasedir", "", False, directories.releasedir),
    operations.Fsyncdir: Row("fsyncdir", "other", False, directories.fsyncdir),
    operations.Statfs: Row("statfs", "other", False, attributes.statfs),
    operations.Access: Row("access", "other", True, attributes.access),
    operations.Getxattr: Row("getxattr", "other", True, attributes.getxattr),
    operations.Setxattr: Row("setxattr", "other", True, attributes.setxattr),
    operations.Listxattr: Row("listxattr", "other", True, attributes.listxattr),
    operations.Removexattr: Row("removexattr", "other", True, attributes.removexattr),
    operations.Lseek: Row("lseek", "other", False, files.lseek),
    operations.Fallocate: Row("fallocate", "write", False, writing.fallocate),
    operations.CopyFileRange: Row("copy_file_range", "write", False, writing.copy_file_range),
    operations.Getlk: Row("getlk", "other", False, locks.getlk),
    operations.Setlk: Row("setlk", "other", False, locks.setlk),
}
