"""edge/fuse_callbacks.py: each of fusepy's callbacks is one request, and its answer is passed on."""

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fuse_gated import operations as op
from fuse_gated.edge.fuse_callbacks import Callbacks, _Flock
from fuse_gated.edge.libfuse import Timespecs
from fuse_gated.operations import Attributes, Filesystem

FOUND = Attributes(7, 5, 0o100644, 2, 500, 501, 9, 5, 8, 4096, 1, 2, 3)
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
LATIN = "d/\xff\xe9"
BYTES = b"d/\xff\xe9"


class Worker:
    """Answers what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[op.Request] = []
        self.answers: list[Any] = []
        self.largest: list[int] = []
        self.told: list[op.Request] = []
        self.callbacks = Callbacks(self._ask, self.told.append, self.largest.append)

    def _ask(self, request: op.Request) -> Any:
        self.asked.append(request)
        return self.answers.pop(0) if self.answers else None


@pytest.fixture
def worker() -> Worker:
    return Worker()


def file(**fields: int) -> SimpleNamespace:
    return SimpleNamespace(**{"flags": 0o100002, "fh": 5, "lock_owner": 9, "writepage": 0, **fields})


CALLS: list[tuple[Callable[[Callbacks], Any], op.Request]] = [
    (lambda c: c.symlink("/" + LATIN, "x/\xff"), op.Symlink(b"d", b"\xff\xe9", b"x/\xff")),
    (lambda c: c.mknod("/p", 0o010644, 3), op.Mknod(b"", b"p", 0o010644, 3, 0)),
    (lambda c: c.mkdir("/d/e", 0o40755), op.Mkdir(b"d", b"e", 0o755, 0)),
    (lambda c: c.unlink("/" + LATIN), op.Unlink(b"d", b"\xff\xe9")),
    (lambda c: c.rmdir("/d"), op.Rmdir(b"", b"d")),
    (lambda c: c.rename("/d/a", "/b"), op.Rename(b"d", b"a", b"", b"b", 0)),
    (lambda c: c.link("/e/new", "/d/old"), op.Link(b"d/old", b"e", b"new")),
    (lambda c: c.chmod("/f", 0o100711), op.Setattr(b"f", mode=0o711)),
    (lambda c: c.chown("/f", -1, 7), op.Setattr(b"f", gid=7)),
    (lambda c: c.chown("/f", 6, -1), op.Setattr(b"f", uid=6)),
    (lambda c: c.truncate("/f", 3), op.Setattr(b"f", size=3)),
    (lambda c: c.truncate(None, 3, file()), op.Setattr(b"", 5, size=3)),
    (lambda c: c.utimens("/f", Timespecs((1, 2), (0, OMIT))), op.Setattr(b"f", atime=1_000_000_002)),
    (lambda c: c.utimens("/f", Timespecs((0, NOW), (-1, 999_999_999))), op.Setattr(b"f", atime=op.NOW, mtime=-2)),
    (lambda c: c.utimens("/f", Timespecs((2**40, 0), (0, OMIT))), op.Setattr(b"f", atime=op.LATEST)),
    (lambda c: c.access("/", 4), op.Access(b"", 4)),
    (lambda c: c.setxattr("/f", "user.\xff", b"\0", 2), op.Setxattr(b"f", b"user.\xff", b"\0", 2)),
    (lambda c: c.removexattr("/f", "user.a"), op.Removexattr(b"f", b"user.a")),
    (lambda c: c.flush(None, file()), op.Flush(b"", 5, 9)),
    (lambda c: c.fsync(None, 1, file()), op.Fsync(b"", 5, True)),
    (lambda c: c.fsyncdir(None, 0, 6), op.Fsyncdir(b"", 6, False)),
]


@pytest.mark.parametrize(("call", "expected"), CALLS, ids=[repr(request) for _, request in CALLS])
def test_what_has_no_result(worker: Worker, call: Callable[[Callbacks], Any], expected: op.Request) -> None:
    assert call(worker.callbacks) == 0
    assert worker.asked == [expected]


def test_nobody_waits_for_a_release(worker: Worker) -> None:
    assert worker.callbacks.release(None, file()) == 0
    assert worker.callbacks.releasedir(None, 6) == 0
    assert worker.told == [op.Release(b"", 5), op.Releasedir(b"", 6)]
    assert worker.asked == []


def test_fusepy_calls_by_name(worker: Worker) -> None:
    worker.callbacks("unlink", "/f")
    assert worker.asked == [op.Unlink(b"", b"f")]
    worker.callbacks("init", 131072)
    assert worker.largest == [131072]


@pytest.mark.parametrize(
    ("path", "opened", "expected"),
    [
        ("/", None, op.Getattr(b"")),
        ("/" + LATIN, None, op.Lookup(b"d", b"\xff\xe9")),
        (None, file(), op.Getattr(b"", 5)),
        ("/f", file(), op.Getattr(b"", 5)),
    ],
)
def test_getattr(worker: Worker, path: str | None, opened: Any, expected: op.Request) -> None:
    worker.answers = [FOUND]
    assert worker.callbacks.getattr(path, opened) == {
        "st_ino": 5, "st_mode": 0o100644, "st_nlink": 2, "st_uid": 500, "st_gid": 501, "st_rdev": 9, "st_size": 5,
        "st_blocks": 8, "st_blksize": 4096, "st_atime": 1, "st_mtime": 2, "st_ctime": 3,
    }  # fmt: skip
    assert worker.asked == [expected]


def test_readlink(worker: Worker) -> None:
    worker.answers = [b"x/\xff"]
    assert worker.callbacks.readlink("/" + LATIN) == "x/\xff"
    assert worker.asked == [op.Readlink(BYTES)]


def test_statfs(worker: Worker) -> None:
    worker.answers = [Filesystem(1000, 500, 400, 100, 50, 4096, 255, 512)]
    assert worker.callbacks.statfs("/") == {
        "f_bsize": 4096, "f_frsize": 512, "f_blocks": 1000, "f_bfree": 500, "f_bavail": 400, "f_files": 100, "f_ffree": 50,
        "f_favail": 50, "f_namemax": 255,
    }  # fmt: skip


def test_extended_attributes(worker: Worker) -> None:
    worker.answers = [b"\0value", b"user.a\0user.\xff\0", b""]
    assert worker.callbacks.getxattr("/f", "user.\xff") == b"\0value"
    assert worker.callbacks.listxattr("/f") == ["user.a", "user.\xff"]
    assert worker.callbacks.listxattr("/f") == []
    assert worker.asked[:2] == [op.Getxattr(b"f", b"user.\xff", 65536), op.Listxattr(b"f", 65536)]


def test_capabilities_are_asked_of_nobody(worker: Worker) -> None:
    """The kernel asks for them before every write."""
    with pytest.raises(OSError, match="not supported") as raised:
        worker.callbacks.getxattr("/f", "security.capability")
    assert raised.value.errno == errno.EOPNOTSUPP
    assert worker.asked == []


def test_open_and_create_set_the_handle(worker: Worker) -> None:
    worker.answers = [71, 72, 73]
    opened, created = file(flags=-1), file(flags=0o101)
    assert worker.callbacks.open("/f", opened) == 0
    assert worker.callbacks.create("/d/g", 0o100640, created) == 0
    assert (opened.fh, created.fh) == (71, 72)
    assert worker.callbacks.opendir("/d") == 73
    assert worker.asked == [op.Open(b"f", 2**32 - 1), op.Create(b"d", b"g", 0o101, 0o640, 0), op.Opendir(b"d", 0)]


def test_read_and_write(worker: Worker) -> None:
    worker.answers = [b"data", b"more than was asked for", 4]
    assert worker.callbacks.read(None, 10, 2**40, file()) == b"data"
    with pytest.raises(OSError, match="Input/output"):
        worker.callbacks.read(None, 10, 0, file())
    assert worker.callbacks.write(None, b"data", 7, file(writepage=1)) == 4
    assert worker.asked[0] == op.Read(b"", 5, 2**40, 10)
    assert worker.asked[2] == op.Write(b"", 5, 7, b"data", True)
    worker.answers = [4]
    assert worker.callbacks.write(None, b"data", 0, file(flags=os.O_WRONLY | os.O_APPEND)) == 4
    assert worker.asked[3] == op.Write(b"", 5, 0, b"data", append=True)


def struct_flock(kind: int, start: int, length: int) -> _Flock:
    return _Flock(kind, 0, start, length, 4321)


@pytest.mark.parametrize(
    ("command", "kind", "start", "length", "expected"),
    [
        (fcntl.F_SETLK, fcntl.F_WRLCK, 0, 0, op.Setlk(b"", 5, 9, 0, 2**63 - 1, 1, 4321, False, False)),
        (fcntl.F_SETLKW, fcntl.F_RDLCK, 10, 5, op.Setlk(b"", 5, 9, 10, 14, 0, 4321, True, False)),
        (fcntl.F_SETLK, fcntl.F_UNLCK, 10, 1, op.Setlk(b"", 5, 9, 10, 10, 2, 4321, False, False)),
    ],
)
def test_setlk(worker: Worker, command: int, kind: int, start: int, length: int, expected: op.Request) -> None:
    flock = struct_flock(kind, start, length)
    assert worker.callbacks.lock(None, file(), command, ctypes.addressof(flock)) == 0
    assert worker.asked == [expected]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((1, 10, 14, 77), (fcntl.F_WRLCK, 10, 5, 77)),
        ((0, 3, 2**63 - 1, 0), (fcntl.F_RDLCK, 3, 0, 0)),
        ((2, 0, 0, 0), (fcntl.F_UNLCK, 0, 1, 0)),
    ],
)
def test_getlk(worker: Worker, answer: Any, expected: tuple[int, ...]) -> None:
    worker.answers = [answer]
    flock = struct_flock(fcntl.F_WRLCK, 0, 0)
    assert worker.callbacks.lock(None, file(), fcntl.F_GETLK, ctypes.addressof(flock)) == 0
    assert worker.asked == [op.Getlk(b"", 5, 9, 0, 2**63 - 1, 1, 4321)]
    assert (flock.l_type, flock.l_start, flock.l_len, flock.l_pid) == expected


ENTRIES = ((b".", 1, 1, 0o040000), (b"\xff", 5, 3, 0o100000))


def test_readdir_fills_what_there_is(worker: Worker) -> None:
    worker.answers = [ENTRIES]
    filled: list[Any] = []
    assert worker.callbacks.readdir(6, 0, lambda *entry: filled.append(entry) is None)
    assert filled == [(b".", 1, 0o040000, 1), (b"\xff", 5, 0o100000, 3)]
    assert worker.asked == [op.Readdir(b"", 6, 0, 32768, False)]


def test_readdir_stops_where_there_is_no_more_room(worker: Worker) -> None:
    worker.answers = [ENTRIES]
    filled: list[Any] = []

    def fill(*entry: Any) -> bool:
        filled.append(entry)
        return False

    assert worker.callbacks.readdir(6, 0, fill)
    assert len(filled) == 1


def test_readdir_tells_the_end(worker: Worker) -> None:
    worker.answers = [()]
    assert not worker.callbacks.readdir(6, 3, lambda *_entry: True)
