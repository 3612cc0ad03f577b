"""Locks between owners on the server, and between them and programs beside the files."""

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import outcome
from harness.leftovers import descriptors

from fuse_gated.edge.files import Export
from fuse_gated.edge.locks import END, NONE, READ, WRITE
from fuse_gated.wire import messages as wire

BOTH = wire.OPEN_READ | wire.OPEN_WRITE
FREE = wire.LockState(NONE)


@pytest.fixture
def file(root: Path) -> Path:
    path = root / "file"
    path.write_bytes(b"0123456789")
    return path


@pytest.fixture
def handle(export: Export, file: Path) -> int:
    return opened(export)


def opened(export: Export, flags: int = BOTH) -> int:
    return export.perform(wire.Open(b"file", flags)).handle


def lock(export: Export, handle: int, owner: int, kind: int, start: int = 0, end: int = END) -> str:
    return outcome(export.perform, wire.Setlk(handle, owner, start, end, kind))


def flock(export: Export, handle: int, kind: int) -> str:
    return outcome(export.perform, wire.Setlk(handle, 0, 0, 0, kind, flock=True))


def held(export: Export, handle: int, owner: int, kind: int = WRITE, start: int = 0, end: int = END) -> wire.LockState:
    return export.perform(wire.Getlk(handle, owner, start, end, kind))


def elsewhere(call: Callable[[], None]) -> str:
    """The outcome of a call in another process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, outcome(call).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    answer = os.read(reader, 100).decode()
    os.close(reader)
    os.close(writer)
    return answer


def outside(path: Path, kind: int, start: int = 0, length: int = 0) -> str:
    """What another program on the client gets for a POSIX lock."""

    def attempt() -> None:
        with path.open("rb+") as file:
            fcntl.fcntl(file, fcntl.F_SETLK, struct.pack("hhqqi", kind, 0, start, length, 0))

    return elsewhere(attempt)


def outside_flock(path: Path, operation: int) -> str:
    def attempt() -> None:
        with path.open("rb+") as file:
            fcntl.flock(file, operation | fcntl.LOCK_NB)

    return elsewhere(attempt)


@pytest.fixture
def foreign(file: Path) -> Iterator[Any]:
    """A program on the client that holds a POSIX lock on bytes 4 to 5."""
    ready, told = os.pipe()
    wait, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end)
        fd = os.open(file, os.O_RDWR)
        fcntl.fcntl(fd, fcntl.F_SETLK, struct.pack("hhqqi", WRITE, 0, 4, 2, 0))
        os.write(told, b"x")
        os.read(wait, 1)
        os._exit(0)
    os.close(wait)
    os.read(ready, 1)
    yield pid
    os.close(end)
    os.waitpid(pid, 0)
    os.close(ready)
    os.close(told)


def test_owners_exclude_each_other_through_one_handle(export: Export, handle: int) -> None:
    assert lock(export, handle, 1, WRITE, 0, 9) == "ok"
    assert lock(export, handle, 2, WRITE, 9, 20) == "EAGAIN"
    assert lock(export, handle, 2, READ, 9, 20) == "EAGAIN"
    assert lock(export, handle, 2, WRITE, 10, 20) == "ok"
    assert lock(export, handle, 1, WRITE, 0, 5) == "ok"
    assert held(export, handle, 1) == wire.LockState(WRITE, 10, 20)
    assert held(export, handle, 2) == wire.LockState(WRITE, 0, 9)
    assert held(export, handle, 3, READ, 5, 5) == wire.LockState(WRITE, 0, 9)
    assert held(export, handle, 2, WRITE, 10, END) == FREE


def test_readers_share(export: Export, handle: int, file: Path) -> None:
    assert lock(export, handle, 1, READ) == "ok"
    assert lock(export, handle, 2, READ) == "ok"
    assert lock(export, handle, 2, WRITE) == "EAGAIN"
    assert held(export, handle, 3, WRITE) == wire.LockState(READ, 0, END)
    assert held(export, handle, 3, READ) == FREE
    assert outside(file, READ) == "ok"
    assert outside(file, WRITE) == "EAGAIN"
    assert lock(export, handle, 1, NONE) == "ok"
    assert lock(export, handle, 2, WRITE) == "ok"
    assert outside(file, READ) == "EAGAIN"


def test_programs_beside_the_files_are_seen(export: Export, handle: int, foreign: int) -> None:
    assert lock(export, handle, 1, WRITE) == "EAGAIN"
    assert held(export, handle, 1) == wire.LockState(WRITE, 4, 5)
    assert lock(export, handle, 1, WRITE, 6) == "ok"


def test_a_range_is_given_up_in_part(export: Export, handle: int, file: Path) -> None:
    assert lock(export, handle, 1, WRITE, 0, 99) == "ok"
    assert lock(export, handle, 1, NONE, 40, 59) == "ok"
    assert lock(export, handle, 2, WRITE, 40, 59) == "ok"
    assert lock(export, handle, 2, WRITE, 39, 39) == "EAGAIN"
    assert outside(file, WRITE, 60, 1) == "EAGAIN"
    assert outside(file, WRITE, 100) == "ok"
    assert lock(export, handle, 9, NONE, 0, 5) == "ok"


def test_any_close_gives_up_all_of_an_owners_locks(export: Export, handle: int, file: Path) -> None:
    other = opened(export)
    assert lock(export, handle, 1, WRITE, 0, 4) == "ok"
    assert lock(export, handle, 2, WRITE, 5, 9) == "ok"
    export.perform(wire.Flush(other, 1))
    assert outside(file, WRITE, 0, 5) == "ok"
    assert outside(file, WRITE, 5, 5) == "EAGAIN"
    export.perform(wire.Flush(other, 1))
    export.perform(wire.Flush(other, 2))
    assert outside(file, WRITE) == "ok"


def test_locks_end_with_the_last_handle(export: Export, handle: int, file: Path) -> None:
    other = opened(export)
    assert lock(export, handle, 1, WRITE, 0, 4) == "ok"
    assert lock(export, handle, 2, WRITE, 5, 9) == "ok"
    export.perform(wire.Release(handle))
    assert outside(file, WRITE) == "EAGAIN"
    export.perform(wire.Release(other))
    assert outside(file, WRITE) == "ok"


def test_locks_end_with_the_export(root: Path, file: Path) -> None:
    export = Export(root)
    handle = opened(export)
    assert lock(export, handle, 1, WRITE, 0, 4) == "ok"
    assert lock(export, handle, 2, WRITE, 5, 9) == "ok"
    assert outside(file, WRITE) == "EAGAIN"
    # The root, mountinfo, the handle and two owners' descriptions, and what watches.
    own = 5 + (export.watches is not None)
    before = len(descriptors())
    export.close()
    assert outside(file, WRITE) == "ok"
    assert len(descriptors()) == before - own


def test_names_do_not_matter(export: Export, handle: int, root: Path) -> None:
    (root / "second").hardlink_to(root / "file")
    other = export.perform(wire.Open(b"second", BOTH)).handle
    (root / "file").unlink()
    (root / "second").unlink()
    assert lock(export, handle, 1, WRITE) == "ok"
    assert lock(export, other, 2, WRITE) == "EAGAIN"
    assert lock(export, other, 1, READ) == "ok"


def test_a_lock_needs_a_handle_that_is_open_for_it(export: Export, file: Path) -> None:
    reader, writer = opened(export, wire.OPEN_READ), opened(export, wire.OPEN_WRITE)
    assert lock(export, reader, 1, WRITE) == "EBADF"
    assert lock(export, writer, 1, READ) == "EBADF"
    assert lock(export, reader, 1, READ) == "ok"
    assert lock(export, 99, 1, READ) == "EBADF"
    assert outcome(export.perform, wire.Getlk(99, 1, 0, 0, WRITE)) == "EBADF"


def test_one_owner_with_a_handle_for_reading_and_one_for_writing(export: Export, file: Path) -> None:
    reader, writer = opened(export, wire.OPEN_READ), opened(export)
    assert lock(export, reader, 1, READ, 0, 99) == "ok"
    assert lock(export, reader, 1, NONE, 20, 29) == "ok"
    assert lock(export, reader, 1, NONE, 20, 29) == "ok"
    assert lock(export, writer, 1, WRITE, 50, 59) == "ok"
    for start, answer in ((10, "EAGAIN"), (20, "ok"), (29, "ok"), (30, "EAGAIN"), (55, "EAGAIN"), (99, "EAGAIN"), (100, "ok")):
        assert outside(file, WRITE, start, 1) == answer
    assert outside(file, READ, 40, 1) == "ok"
    assert outside(file, READ, 50, 1) == "EAGAIN"
    assert lock(export, reader, 1, READ, 50, 59) == "ok"
    assert outside(file, READ, 50, 1) == "ok"


def test_widening_that_fails_keeps_what_there_is(export: Export, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = opened(export, wire.OPEN_READ), opened(export)
    assert lock(export, reader, 1, READ, 0, 9) == "ok"
    really = fcntl.fcntl
    tries = iter(["refuse"])

    def refusing(fd: int, command: int, argument: bytes) -> bytes:
        if command == fcntl.F_OFD_SETLK and next(tries, None):
            raise OSError(errno.ENOLCK, "none left")
        return really(fd, command, argument)

    before = descriptors()
    monkeypatch.setattr(fcntl, "fcntl", refusing)
    assert lock(export, writer, 1, WRITE, 0, 9) == "ENOLCK"
    monkeypatch.undo()
    assert descriptors() == before
    assert outside(file, WRITE) == "EAGAIN"
    assert outside(file, READ) == "ok"


def test_a_handle_that_writes_only_can_lock(export: Export, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = opened(export, wire.OPEN_WRITE)
    really = os.open

    def no_reading(path: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "not for reading")
        return really(path, flags, *arguments, **keywords)

    monkeypatch.setattr(os, "open", no_reading)
    assert lock(export, writer, 1, WRITE) == "ok"
    both = export._handles.file(writer)
    both.readable = True
    assert lock(export, writer, 2, WRITE) == "ENOLCK"


def test_an_ordinary_lock_refusal_is_one_errno(export: Export, handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in ((errno.EACCES, "EAGAIN"), (errno.EAGAIN, "EAGAIN"), (errno.ENOLCK, "ENOLCK")):

        def refusing(*_: Any, number: int = number) -> None:
            raise OSError(number, "refused")

        monkeypatch.setattr(fcntl, "fcntl", refusing)
        assert lock(export, handle, 1, WRITE) == name


def test_a_lease_is_in_the_way_for_a_while(export: Export, handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def leased(*_: Any, **__: Any) -> int:
        raise BlockingIOError(errno.EAGAIN, "leased")

    monkeypatch.setattr(os, "open", leased)
    assert lock(export, handle, 1, WRITE) == "EAGAIN"


def test_owners_are_limited(root: Path, file: Path) -> None:
    export = Export(root, max_handles=3)
    handle = opened(export)
    assert [lock(export, handle, owner, WRITE, owner, owner) for owner in range(4)] == ["ok", "ok", "ok", "ENOLCK"]
    assert lock(export, handle, 1, NONE) == "ok"
    assert lock(export, handle, 3, WRITE, 3, 3) == "ok"
    export.close()


@pytest.mark.parametrize(
    ("start", "end", "kind"), [(-1, 5, 0), (5, 4, 1), (0, 2**63, 1), (0, 5, 3), (0, 5, -1), (2**64 - 1, 2**64 - 1, 0)]
)
def test_locks_that_make_no_sense(export: Export, handle: int, start: int, end: int, kind: int) -> None:
    assert lock(export, handle, 1, kind, start, end) == "EINVAL"
    assert outcome(export.perform, wire.Getlk(handle, 1, start, end, kind)) == "EINVAL"


def test_asking_about_no_lock_makes_no_sense(export: Export, handle: int) -> None:
    assert outcome(export.perform, wire.Getlk(handle, 1, 0, 5, NONE)) == "EINVAL"


def test_flock_excludes_handles_and_programs(export: Export, handle: int, file: Path) -> None:
    other = opened(export, wire.OPEN_READ)
    assert flock(export, handle, WRITE) == "ok"
    assert flock(export, other, READ) == "EAGAIN"
    assert outside_flock(file, fcntl.LOCK_SH) == "EAGAIN"
    assert flock(export, handle, READ) == "ok"
    assert flock(export, other, READ) == "ok"
    assert outside_flock(file, fcntl.LOCK_SH) == "ok"
    assert outside_flock(file, fcntl.LOCK_EX) == "EAGAIN"
    assert flock(export, other, NONE) == "ok"
    export.perform(wire.Release(handle))
    assert outside_flock(file, fcntl.LOCK_EX) == "ok"
    assert flock(export, other, 3) == "EINVAL"


def test_flock_and_posix_locks_do_not_meet(export: Export, handle: int) -> None:
    other = opened(export)
    assert flock(export, handle, WRITE) == "ok"
    assert lock(export, other, 1, WRITE) == "ok"
