"""edge/network_requests.py: what a program that is attached may ask, and what the turnstile gets of it."""

import errno
import os
import stat
from typing import Final

import pytest

from fuse_gated import operations as op
from fuse_gated.edge import hosting
from fuse_gated.edge.network_requests import MOST_DATA, MOST_LISTING, Asker, Held, vetted
from fuse_gated.errors import ProtocolError

READS, WRITES, BOTH, APPENDS, DIRECTORY, NOBODYS = 1, 2, 3, 4, 5, 6
HANDLES: Final = {
    READS: Held(False, os.O_RDONLY),
    WRITES: Held(False, os.O_WRONLY),
    BOTH: Held(False, os.O_RDWR),
    APPENDS: Held(False, os.O_RDWR | os.O_APPEND),
    DIRECTORY: Held(True),
}
USER: Final = Asker(1000, 4321, 77, HANDLES)
ROOT: Final = Asker(0, 4321, 77, HANDLES)
HIDDEN: Final = b".fuse_hidden0000000200000001"
LAST: Final = 2**63 - 1

AS_THEY_ARE: Final[list[op.Request]] = [
    op.Lookup(b"d", b"f"),
    op.Getattr(b"d/f"),
    op.Getattr(b"", READS),
    op.Readlink(b"l"),
    op.Symlink(b"", b"l", b"../x"),
    op.Unlink(b"", b"f"),
    op.Rmdir(b"", b"d"),
    op.Rename(b"", b"a", b"d", b"b", 2),
    op.Link(b"f", b"d", b"g"),
    op.Read(b"", READS, LAST - MOST_DATA, MOST_DATA),
    op.Read(b"", BOTH, 0, 0),
    op.Release(b"", WRITES),
    op.Fsync(b"", READS, True),
    op.Readdir(b"d", DIRECTORY, LAST, MOST_LISTING, True),
    op.Releasedir(b"", DIRECTORY),
    op.Fsyncdir(b"", DIRECTORY, False),
    op.Statfs(b""),
    op.Access(b"f", 7),
    op.Setxattr(b"f", b"user.a", b"v" * 65536, 2),
    op.Removexattr(b"f", b"user.a"),
    op.Lseek(b"", READS, LAST, 3),
    op.Fallocate(b"", WRITES, 0, LAST, 3),
    op.CopyFileRange(b"", READS, 0, b"", BOTH, 5, LAST - 5),
    op.Open(b"f", os.O_RDWR | os.O_APPEND),
]


@pytest.mark.parametrize("request_", AS_THEY_ARE, ids=lambda request: type(request).__name__)
def test_what_passes_as_it_is(request_: op.Request) -> None:
    assert vetted(request_, USER) == request_


CHANGED: Final[list[tuple[op.Request, op.Request]]] = [
    # Whoever is not root takes setuid away, whatever he says.
    (op.Setattr(b"f", size=5), op.Setattr(b"f", size=5, kill_suidgid=True)),
    (op.Setattr(b"", WRITES, size=5), op.Setattr(b"", WRITES, size=5, kill_suidgid=True)),
    (
        op.Setattr(b"f", None, 0o7777, 2**32 - 2, 0, LAST, op.NOW, 5),
        op.Setattr(b"f", None, 0o7777, 2**32 - 2, 0, LAST, op.NOW, 5, True),
    ),
    (op.Open(b"f", os.O_WRONLY | os.O_TRUNC), op.Open(b"f", os.O_WRONLY | os.O_TRUNC, True)),
    # FMODE_EXEC is the kernel's, and would show a program to who may only run it.
    (op.Open(b"f", 0x20 | os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL, True), op.Open(b"f", os.O_RDONLY)),
    (
        op.Create(b"", b"f", 0x20 | os.O_WRONLY | os.O_EXCL, 0o100644, 0o77),
        op.Create(b"", b"f", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, 0),
    ),
    (op.Write(b"", WRITES, 5, b"data", True), op.Write(b"", WRITES, 5, b"data", False, True)),
    (op.Write(b"", APPENDS, 5, b"data"), op.Write(b"", APPENDS, 5, b"data", False, True, True)),
    (op.Write(b"", BOTH, 5, b"data", append=True), op.Write(b"", BOTH, 5, b"data", False, True, True)),
    # Locks are its own, whoever it says that it is.
    (op.Flush(b"", READS, 5), op.Flush(b"", READS, 77)),
    (op.Getlk(b"", READS, 5, 0, LAST, 1, 1), op.Getlk(b"", READS, 77, 0, LAST, 1, 4321)),
    (op.Setlk(b"", BOTH, 5, 7, 7, 1, 1, True, False), op.Setlk(b"", BOTH, 77, 7, 7, 1, 4321, True, False)),
    (op.Setlk(b"", READS, 5, 0, LAST, 2, 1, False, False), op.Setlk(b"", READS, 77, 0, LAST, 2, 4321, False, False)),
    (op.Setlk(b"", READS, 5, 0, LAST, 1, 1, False, True), op.Setlk(b"", READS, 77, 0, LAST, 1, 4321, False, True)),
    (op.Release(b"f", READS, 5), op.Release(b"", READS)),
    (op.Opendir(b"d", os.O_RDWR), op.Opendir(b"d", os.O_RDONLY)),
    (op.Mknod(b"", b"p", stat.S_IFIFO | 0o644, 7, 0o22), op.Mknod(b"", b"p", stat.S_IFIFO | 0o644, 0, 0)),
    (op.Mknod(b"", b"f", 0o644, 0, 0), op.Mknod(b"", b"f", stat.S_IFREG | 0o644, 0, 0)),
    (op.Mkdir(b"", b"d", 0o40755, 0o22), op.Mkdir(b"", b"d", 0o755, 0)),
    # There is no other answer than the value itself.
    (op.Getxattr(b"f", b"user.a", 0), op.Getxattr(b"f", b"user.a", 65536)),
    (op.Listxattr(b"f", 0), op.Listxattr(b"f", 65536)),
]


@pytest.mark.parametrize(("told", "expected"), CHANGED, ids=lambda value: type(value).__name__)
def test_what_the_kernel_would_say(told: op.Request, expected: op.Request) -> None:
    assert vetted(told, USER) == expected


def test_root_keeps_setuid() -> None:
    assert vetted(op.Setattr(b"f", size=5, kill_suidgid=True), ROOT) == op.Setattr(b"f", size=5)
    assert vetted(op.Write(b"", WRITES, 0, b"x"), ROOT) == op.Write(b"", WRITES, 0, b"x")
    assert vetted(op.Open(b"f", os.O_WRONLY | os.O_TRUNC), ROOT) == op.Open(b"f", os.O_WRONLY | os.O_TRUNC)


FAILING: Final[list[tuple[op.Request, int]]] = [
    (op.Getattr(b"", NOBODYS), errno.EBADF),
    (op.Getattr(b"", DIRECTORY), errno.EBADF),
    (op.Setattr(b"", READS, size=5), errno.EBADF),
    (op.Setattr(b"", WRITES, mode=0o644), errno.EINVAL),
    (op.Read(b"", WRITES, 0, 5), errno.EBADF),
    (op.Read(b"", DIRECTORY, 0, 5), errno.EBADF),
    (op.Read(b"", NOBODYS, 0, 5), errno.EBADF),
    (op.Write(b"", READS, 0, b"x"), errno.EBADF),
    (op.Flush(b"", NOBODYS, 0), errno.EBADF),
    (op.Release(b"", NOBODYS), errno.EBADF),
    (op.Release(b"", DIRECTORY), errno.EBADF),
    (op.Releasedir(b"", READS), errno.EBADF),
    (op.Readdir(b"", READS, 0, 5, False), errno.EBADF),
    (op.Fsync(b"", DIRECTORY, False), errno.EBADF),
    (op.Lseek(b"", NOBODYS, 0, 3), errno.EBADF),
    (op.Fallocate(b"", READS, 0, 5, 0), errno.EBADF),
    (op.Fallocate(b"", WRITES, 0, 0, 0), errno.EINVAL),
    (op.CopyFileRange(b"", WRITES, 0, b"", BOTH, 0, 5), errno.EBADF),
    (op.CopyFileRange(b"", READS, 0, b"", READS, 0, 5), errno.EBADF),
    (op.CopyFileRange(b"", READS, 0, b"", APPENDS, 0, 5), errno.EBADF),
    (op.CopyFileRange(b"", READS, 0, b"", NOBODYS, 0, 5), errno.EBADF),
    (op.Setlk(b"", READS, 0, 0, 5, 1, 0, False, False), errno.EBADF),
    (op.Setlk(b"", WRITES, 0, 0, 5, 0, 0, False, False), errno.EBADF),
    (op.Setlk(b"", DIRECTORY, 0, 0, 5, 2, 0, False, False), errno.EBADF),
    (op.Open(b"f", 3), errno.EINVAL),
    (op.Create(b"", b"f", 3, 0o644, 0), errno.EINVAL),
    (op.Symlink(b"", b"l", b"a\0b"), errno.EINVAL),
    (op.Mknod(b"", b"n", stat.S_IFCHR | 0o666, 0, 0), errno.EPERM),
    (op.Mknod(b"", b"n", stat.S_IFBLK | 0o666, 0, 0), errno.EPERM),
    (op.Access(b"f", 8), errno.EINVAL),
    (op.Access(b"f", -1), errno.EINVAL),
    (op.Getxattr(b"f", b"", 5), errno.EINVAL),
    (op.Getxattr(b"f", b"a\0b", 5), errno.EINVAL),
    (op.Removexattr(b"f", b"a" * 256), errno.ENAMETOOLONG),
    (op.Setxattr(b"f", b"user.a", b"x" * 65537, 0), errno.E2BIG),
    (op.Setxattr(b"f", b"user.a", b"x", 3), errno.EINVAL),
    # libfuse's names are nobody's.
    (op.Lookup(b"d", HIDDEN), errno.ENOENT),
    (op.Getattr(b"d/" + HIDDEN), errno.ENOENT),
    (op.Open(HIDDEN, 0), errno.ENOENT),
    (op.Unlink(b"d", HIDDEN), errno.ENOENT),
    (op.Rename(b"d", HIDDEN, b"d", b"f", 0), errno.ENOENT),
    (op.Rename(b"d", b"f", b"d", HIDDEN, 0), errno.EACCES),
    (op.Link(b"f", b"d", HIDDEN), errno.EACCES),
    (op.Create(b"d", HIDDEN, 1, 0o644, 0), errno.EACCES),
    (op.Mkdir(b"d", HIDDEN, 0o755, 0), errno.EACCES),
    (op.Mkdir(HIDDEN, b"d", 0o755, 0), errno.ENOENT),
]


@pytest.mark.parametrize(("request_", "number"), FAILING, ids=lambda value: type(value).__name__)
def test_what_one_may_try(request_: op.Request, number: int) -> None:
    assert vetted(request_, USER) == op.Failed(number)


WRONG: Final[list[op.Request]] = [
    op.Forget(((1, 1),)),
    op.Destroy(),
    op.Unserved(99, "ENOSYS"),
    op.Unlink(b"", b"f", b"alias"),
    op.Setattr(b"f", size=-1),
    op.Setattr(b"f", size=2**63),
    op.Setattr(b"f", mode=0o100644),
    op.Setattr(b"f", uid=2**32 - 1),
    op.Setattr(b"f", gid=-1),
    op.Mknod(b"", b"n", 2**20, 0, 0),
    op.Rename(b"", b"a", b"", b"b", -1),
    op.Read(b"", READS, -1, 5),
    op.Read(b"", READS, LAST, 1),
    op.Read(b"", READS, 0, MOST_DATA + 1),
    op.Read(b"", READS, 0, -1),
    op.Write(b"", WRITES, -1, b"x"),
    op.Write(b"", WRITES, LAST, b"x"),
    op.Write(b"", WRITES, 0, bytes(MOST_DATA + 1)),
    op.Readdir(b"", DIRECTORY, -1, 5, False),
    op.Readdir(b"", DIRECTORY, 0, 0, False),
    op.Readdir(b"", DIRECTORY, 0, MOST_LISTING + 1, False),
    op.Lseek(b"", READS, -1, 3),
    op.Fallocate(b"", WRITES, 1, LAST, 0),
    op.Fallocate(b"", WRITES, 1, 1, -1),
    op.CopyFileRange(b"", READS, 1, b"", WRITES, 0, LAST),
    op.CopyFileRange(b"", READS, 0, b"", WRITES, 2**63, 1),
    op.Getlk(b"", READS, 0, 5, 4, 0, 0),
    op.Setlk(b"", READS, 0, -1, 4, 0, 0, False, False),
    op.Setlk(b"", READS, 0, 0, 2**63, 0, 0, False, False),
    op.Setlk(b"", READS, 0, 0, 5, 3, 0, False, False),
]


@pytest.mark.parametrize("request_", WRONG, ids=lambda request: type(request).__name__)
def test_what_no_program_sends(request_: op.Request) -> None:
    with pytest.raises(ProtocolError):
        vetted(request_, USER)


def test_every_request_that_can_be_made_is_looked_at() -> None:
    tried = {type(request) for request in AS_THEY_ARE} | {type(request) for request, _ in CHANGED}
    assert tried == set(hosting.RESULTS) - {op.Interrupt}
