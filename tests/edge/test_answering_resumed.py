"""A session that outlives its connection: what was asked is done once, and answered until the server has heard it."""

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuse_gated.edge.answering import Answering
from fuse_gated.edge.files import Export
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.pool import Pool
from fuse_gated.errors import ProtocolError
from fuse_gated.wire import codec
from fuse_gated.wire import messages as wire
from fuse_gated.wire.tables import OPERATION_OF

BOTH = wire.OPEN_READ | wire.OPEN_WRITE
EXCLUSIVE = BOTH | wire.OPEN_EXCLUSIVE


def terms(requests: int = 16) -> wire.Terms:
    return wire.Terms(session="s", resume=b"", mount="/m", max_in_flight=requests, max_bytes_in_flight=2**20)


class Held:
    """A function that waits to be let go; the first call only, if so wanted."""

    def __init__(self, really: Any, *, once: bool = False) -> None:
        self.begun, self.go, self.calls = threading.Event(), threading.Event(), 0
        self._really, self._once = really, once

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == 1 or not self._once:
            self.begun.set()
            self.go.wait()
        return self._really(*arguments, **options)


class Server:
    """Asks by ids of its choice, and may lose its connection."""

    def __init__(self, root: Path, threads: int = 2, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
        self.loop = Loop()
        self.elsewhere = False
        if monkeypatch is not None:
            monkeypatch.setattr("fuse_gated.edge.filesystems.Filesystems.is_local", lambda *_: not self.elsewhere)
        self.export = Export(root)
        self.pools = Pool(self.loop, threads), Pool(self.loop, threads)
        self.unread = 0
        self.heard: list[wire.Replied] = []
        self.answering = Answering(self.loop, self.export, self.pools[0], self._sent, lambda: self.unread, self.pools[1])
        self.answering.begin(terms())
        self._next = 1000

    def _sent(self, message: bytearray) -> None:
        for frame in codec.decode_from_client(bytes(message)):
            assert isinstance(frame, wire.Replied)
            self.heard.append(frame)

    def ask(self, number: int, arguments: wire.Arguments) -> None:
        [frame] = codec.decode_from_server(codec.encode(wire.Ask(number, OPERATION_OF[type(arguments)], arguments)))
        assert isinstance(frame, wire.Asked)
        self.answering.asked(frame)

    def replies(self, number: int) -> list[wire.Replied]:
        return [reply for reply in self.heard if reply.id == number]

    def outcome(self, number: int, arguments: wire.Arguments) -> Any:
        """Of what was asked last by this id."""
        self.turn_until(lambda: self.replies(number))
        reply = self.replies(number)[-1]
        return reply.errno or codec.decode_result(OPERATION_OF[type(arguments)], reply.result)

    def do(self, arguments: wire.Arguments, number: int | None = None) -> Any:
        if number is None:
            self._next += 2
            number = self._next
        before = len(self.replies(number))
        self.ask(number, arguments)
        self.turn_until(lambda: len(self.replies(number)) > before)
        return self.outcome(number, arguments)

    def open(self, path: bytes = b"file", *, elsewhere: bool = False) -> int:
        self.elsewhere = elsewhere
        handle: int = self.do(wire.Open(path, BOTH)).handle
        return handle

    def turn_until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.loop.turn()

    def settle(self) -> None:
        """Until the threads have nothing left to do, and the loop has heard of it."""
        for pool in self.pools:
            self.turn_until(lambda pool=pool: not pool._outstanding)
        self.loop.soon(lambda: None)
        self.loop.turn()

    def lose(self) -> None:
        """What was said before is as if it had not been heard."""
        self.answering.suspend()
        self.heard.clear()

    def cut(self) -> None:
        self.lose()
        self.answering.resume(terms())

    def close(self) -> None:
        self.answering.stop()
        assert all(pool.close(10) for pool in self.pools)
        self.export.close()
        self.loop.close()


@pytest.fixture
def server(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    (root / "file").write_bytes(b"0123456789")
    server = Server(root, monkeypatch=monkeypatch)
    yield server
    server.close()


@pytest.fixture
def one_thread(root: Path) -> Iterator[Server]:
    (root / "file").write_bytes(b"0123456789")
    server = Server(root, threads=1)
    yield server
    server.close()


def locked(path: Path, kind: int = 1) -> bool:
    """Whether a program beside the files finds a lock on it."""
    fd = os.open(path, os.O_RDWR)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, struct.pack("hhqqi0q", kind, 0, 0, 0, 0))
    finally:
        os.close(fd)
    return bool(struct.unpack("hhqqi0q", answer)[0] != 2)


# What was answered.


@pytest.mark.parametrize(
    ("arguments", "again"),
    [
        (wire.Mkdir(b"new", 0o755), "EEXIST"),
        (wire.Create(b"new", EXCLUSIVE, 0o644), "EEXIST"),
        (wire.Symlink(b"new", b"x"), "EEXIST"),
        (wire.Mknod(b"new", 0o100644, 0), "EEXIST"),
        (wire.Link(b"file", b"new"), "EEXIST"),
        (wire.Unlink(b"file"), "ENOENT"),
        (wire.Rmdir(b"d"), "ENOENT"),
        (wire.Rename(b"file", b"new"), "ENOENT"),
        (wire.Setxattr(b"file", b"user.a", b"1", create=True), "EEXIST"),
        (wire.Removexattr(b"file", b"user.b"), "ENODATA"),
    ],
)
def test_what_was_done_is_not_done_again(server: Server, root: Path, arguments: wire.Arguments, again: str) -> None:
    (root / "d").mkdir()
    os.setxattr(root / "file", "user.b", b"2")
    first = server.do(arguments, 2)
    server.cut()
    assert server.do(arguments, 2) == first
    assert not isinstance(first, str)
    # It would have shown.
    assert server.do(arguments, 4) == again


def test_an_append_is_done_once(server: Server, root: Path) -> None:
    handle = server.open()
    for _ in range(3):
        assert server.do(wire.Write(handle, 0, memoryview(b"more"), append=True), 2) == 4
        server.cut()
    assert (root / "file").read_bytes() == b"0123456789more"
    assert server.answering.bytes_written == 4


def test_errors_are_repeated_too(server: Server, root: Path) -> None:
    assert server.do(wire.Rmdir(b"new"), 2) == "ENOENT"
    server.cut()
    (root / "new").mkdir()
    assert server.do(wire.Rmdir(b"new"), 2) == "ENOENT"
    assert (root / "new").exists()


def test_a_handle_is_opened_once(server: Server) -> None:
    opened = server.do(wire.Open(b"file", BOTH), 2)
    directory = server.do(wire.Opendir(b""), 4)
    server.cut()
    assert server.do(wire.Open(b"file", BOTH), 2) == opened
    assert server.do(wire.Opendir(b""), 4) == directory
    assert server.export.open_handles == 2
    assert server.do(wire.Read(opened.handle, 0, 3)) == b"012"


def test_what_may_be_done_twice_is_done_anew(server: Server, root: Path) -> None:
    assert server.do(wire.Getattr(b"file"), 2).size == 10
    server.cut()
    (root / "file").write_bytes(b"")
    assert server.do(wire.Getattr(b"file"), 2).size == 0


def test_one_call_may_take_two_operations(server: Server) -> None:
    """Such as a look before the leap."""
    for _ in range(2):
        assert server.do(wire.Getattr(b"new"), 2) == "ENOENT"
        assert server.do(wire.Symlink(b"new", b"x"), 2).nlink == 1
        assert server.do(wire.Unlink(b"new"), 2) is None
        server.cut()


def test_the_servers_own_ids_mean_something_new_each_time(server: Server, root: Path) -> None:
    assert server.do(wire.Mkdir(b"a", 0o755), 1).nlink == 2
    server.cut()
    assert server.do(wire.Mkdir(b"a", 0o755), 1) == "EEXIST"
    assert server.do(wire.Mkdir(b"b", 0o755), 1).nlink == 2


def test_an_answer_that_had_not_left_is_given_again(server: Server, root: Path) -> None:
    """The connection goes in the very turn in which it is done."""
    server.ask(2, wire.Mkdir(b"new", 0o755))
    server.ask(4, wire.Getattr(b"file"))
    server.cut()
    server.loop.turn()
    assert server.heard == []
    assert server.do(wire.Mkdir(b"new", 0o755), 2).nlink == 2
    assert server.do(wire.Getattr(b"file"), 4).size == 10
    assert server.answering.in_flight == 0


def test_only_so_many_answers_are_kept(server: Server) -> None:
    server.answering.resume(terms(4))
    for number in range(2, 202, 2):
        server.do(wire.Mkdir(b"d%d" % number, 0o755), number)
    assert server.answering.remembered == 16
    server.lose()
    server.answering.resume(terms(4))
    assert server.do(wire.Mkdir(b"d172", 0o755), 172).nlink == 2
    assert server.do(wire.Mkdir(b"d2", 0o755), 2) == "EEXIST"


# What was in flight.


def test_what_runs_is_not_begun_again_and_is_answered_once(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.open(elsewhere=True)
    held = Held(os.pwritev)
    monkeypatch.setattr(os, "pwritev", held)
    write = wire.Write(handle, 0, memoryview(b"xy"), append=True)
    server.ask(2, write)
    held.begun.wait()
    for _ in range(3):
        server.cut()
        server.ask(2, write)
        assert server.answering.in_flight == 1
    with pytest.raises(ProtocolError, match="in flight already"):
        server.ask(2, write)
    held.go.set()
    assert server.outcome(2, write) == 2
    server.settle()
    assert len(server.replies(2)) == 1
    assert held.calls == 1
    assert (root / "file").read_bytes() == b"0123456789xy"


def test_what_runs_while_nobody_is_there_is_remembered(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.open(elsewhere=True)
    held = Held(os.pwritev)
    monkeypatch.setattr(os, "pwritev", held)
    write = wire.Write(handle, 0, memoryview(b"xy"), append=True)
    server.ask(2, write)
    held.begun.wait()
    server.lose()
    held.go.set()
    server.settle()
    assert server.heard == []
    server.answering.resume(terms())
    assert server.do(write, 2) == 2
    assert (root / "file").read_bytes() == b"0123456789xy"


def test_a_failure_while_nobody_is_there_is_remembered(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    handle = server.open(elsewhere=True)
    held = Held(full)
    monkeypatch.setattr(os, "pwritev", held)
    write = wire.Write(handle, 0, memoryview(b"xy"))
    server.ask(2, write)
    held.begun.wait()
    server.lose()
    held.go.set()
    server.settle()
    server.answering.resume(terms())
    assert server.do(write, 2) == "ENOSPC"
    assert held.calls == 1


def test_a_read_that_runs_may_be_taken_up_or_not(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.open(elsewhere=True)
    held = Held(os.pread)
    monkeypatch.setattr(os, "pread", held)
    server.ask(2, wire.Read(handle, 0, 3))
    server.ask(4, wire.Read(handle, 3, 3))
    held.begun.wait()
    server.cut()
    server.ask(2, wire.Read(handle, 0, 3))
    held.go.set()
    assert server.outcome(2, wire.Read(handle, 0, 3)) == b"012"
    server.settle()
    assert server.replies(4) == []
    assert server.do(wire.Read(handle, 3, 3), 4) == b"345"


def test_what_had_not_begun_is_forgotten(one_thread: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server = one_thread
    handle = server.open()
    held = Held(os.fsync)
    monkeypatch.setattr(os, "fsync", held)
    for number in (2, 4, 6):
        server.ask(number, wire.Fsync(handle, False))
    held.begun.wait()
    server.cut()
    assert server.answering.in_flight == 0
    server.ask(4, wire.Fsync(handle, False))
    assert server.answering.in_flight == 1
    held.go.set()
    server.outcome(4, wire.Fsync(handle, False))
    server.settle()
    assert held.calls == 2
    assert [reply.id for reply in server.heard] == [4]
    assert server.do(wire.Release(handle)) is None
    assert server.export.open_handles == 0


def test_an_id_that_comes_back_as_another_operation_is_a_violation(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.open()
    held = Held(os.fsync)
    monkeypatch.setattr(os, "fsync", held)
    server.ask(2, wire.Fsync(handle, False))
    held.begun.wait()
    server.cut()
    with pytest.raises(ProtocolError, match="was another one"):
        server.ask(2, wire.Statfs())
    held.go.set()


def test_what_a_server_had_not_read_answers_for_is_not_begun(server: Server, root: Path) -> None:
    handle = server.open()
    server.unread = 2**20 + 1
    server.ask(2, wire.Mkdir(b"never", 0o755))
    server.ask(3, wire.Release(handle))
    server.ask(5, wire.Mkdir(b"own", 0o755))
    server.cut()
    assert not (root / "never").exists()
    # Nobody would ask for these again.
    assert (root / "own").exists()
    assert server.export.open_handles == 0
    server.unread = 0
    server.settle()
    assert server.heard == []
    assert server.do(wire.Mkdir(b"never", 0o755), 2).nlink == 2


# Releases.


def test_a_release_that_waits_is_carried_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    handle, other = server.open(), server.open()
    held = Held(os.fsync)
    monkeypatch.setattr(os, "fsync", held)
    server.ask(2, wire.Fsync(handle, False))
    server.ask(4, wire.Fsync(other, False))
    held.begun.wait()
    server.ask(3, wire.Release(handle))
    server.ask(6, wire.Release(other))
    server.cut()
    held.go.set()
    server.settle()
    assert server.export.open_handles == 0
    assert server.heard == []
    assert server.do(wire.Release(other), 6) == "EBADF"
    assert server.do(wire.Read(handle, 0, 1)) == "EBADF"


def test_a_release_that_is_asked_again_while_it_waits_is_answered(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.open()
    held = Held(os.fsync)
    monkeypatch.setattr(os, "fsync", held)
    server.ask(2, wire.Fsync(handle, False))
    held.begun.wait()
    server.ask(4, wire.Release(handle))
    server.cut()
    server.ask(4, wire.Release(handle))
    held.go.set()
    assert server.outcome(4, wire.Release(handle)) is None
    assert server.replies(2) == []


def test_a_release_behind_what_is_withdrawn_is_carried_out(one_thread: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server = one_thread
    handle, other = server.open(), server.open()
    held = Held(os.fsync)
    monkeypatch.setattr(os, "fsync", held)
    server.ask(2, wire.Fsync(handle, False))
    held.begun.wait()
    server.ask(4, wire.Fsync(other, False))
    server.ask(3, wire.Release(other))
    server.cut()
    assert server.export.open_handles == 1
    held.go.set()
    server.settle()
    assert held.calls == 1


def test_what_is_the_servers_own_is_done_unheard(one_thread: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = one_thread
    handle = server.open()
    held = Held(os.fsync, once=True)
    monkeypatch.setattr(os, "fsync", held)
    server.ask(2, wire.Fsync(handle, False))
    held.begun.wait()
    server.ask(3, wire.Fallocate(handle, 0, 20, 0))
    server.cut()
    held.go.set()
    server.settle()
    assert (root / "file").stat().st_size == 20
    assert server.heard == []
    # The number is free for another one.
    assert server.do(wire.Mkdir(b"new", 0o755), 3).nlink == 2


def test_a_handle_that_nobody_will_name_is_released(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_gated.edge.files._SLOW", frozenset({wire.Open, wire.Opendir}))
    held = Held(server.export.perform)
    monkeypatch.setattr(server.export, "perform", held)
    server.ask(3, wire.Open(b"file", BOTH))
    server.ask(5, wire.Opendir(b""))
    held.begun.wait()
    server.lose()
    held.go.set()
    server.settle()
    assert server.export.open_handles == 0


def test_what_goes_on_unheard_is_bounded(one_thread: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that comes again and again, while the disk hangs."""
    server = one_thread
    server.answering.resume(terms(4))
    handle = server.open()
    held = Held(os.fsync)
    monkeypatch.setattr(os, "fsync", held)
    server.ask(2, wire.Fsync(handle, False))
    held.begun.wait()
    for round_ in range(50):
        server.unread = 2**20 + 1 if round_ % 2 else 0
        for number in (1, 3, 5):
            server.ask(number, wire.Fsync(handle, False))
        server.lose()
        server.answering.resume(terms(4))
    assert len(server.answering._unheard) <= 4 * 4 + 4
    assert len(server.answering._left_over) == 1
    assert server.pools[0]._outstanding <= 4 * 4 + 5
    held.go.set()
    server.settle()
    assert not server.answering._unheard


# Locks.


def test_a_lock_that_is_waited_for_is_asked_for_again(server: Server, root: Path) -> None:
    handle = server.open()
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    waiting = wire.Setlk(handle, 2, 0, 9, 1, wait=60_000)
    server.ask(2, waiting)
    server.loop.turn()
    server.lose()
    assert server.answering.in_flight == 0
    server.answering.resume(terms())
    assert server.do(wire.Setlk(handle, 1, 0, 9, 2)) is None
    # Nobody took it meanwhile.
    assert not locked(root / "file")
    assert server.do(waiting, 2) is None
    assert locked(root / "file")


def test_a_lock_that_was_not_got_is_tried_for_again(server: Server) -> None:
    handle = server.open()
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    waiting = wire.Setlk(handle, 2, 0, 9, 1, wait=1)
    assert server.do(waiting, 2) == "EAGAIN"
    assert server.do(wire.Setlk(handle, 1, 0, 9, 2)) is None
    assert server.do(waiting, 2) is None


def test_a_lock_that_was_got_is_not_got_again(server: Server, root: Path) -> None:
    handle = server.open()
    lock = wire.Setlk(handle, 2, 0, 9, 1, wait=10)
    assert server.do(lock, 2) is None
    server.cut()
    assert server.do(wire.Setlk(handle, 2, 0, 9, 2)) is None
    assert server.do(lock, 2) is None
    assert not locked(root / "file")


def test_a_lock_that_a_thread_tries_for_is_not_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.open(elsewhere=True)
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    held = Held(fcntl.fcntl)
    monkeypatch.setattr(fcntl, "fcntl", held)
    waiting = wire.Setlk(handle, 2, 0, 9, 1, wait=60_000)
    server.ask(2, waiting)
    held.begun.wait()
    server.lose()
    held.go.set()
    server.settle()
    calls = held.calls
    server.answering.resume(terms())
    server.settle()
    assert held.calls == calls
    assert server.do(wire.Setlk(handle, 1, 0, 9, 2)) is None
    assert server.do(waiting, 2) is None


def test_a_lock_that_a_thread_tries_for_may_be_taken_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.open(elsewhere=True)
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    held = Held(fcntl.fcntl, once=True)
    monkeypatch.setattr(fcntl, "fcntl", held)
    waiting = wire.Setlk(handle, 2, 0, 9, 1, wait=60_000)
    server.ask(2, waiting)
    held.begun.wait()
    server.cut()
    server.ask(2, waiting)
    held.go.set()
    # It is waited for again, for as long as was asked.
    server.turn_until(lambda: held.calls > 2)
    assert server.replies(2) == []
    assert server.do(wire.Setlk(handle, 1, 0, 9, 2)) is None
    assert server.outcome(2, waiting) is None


def test_what_was_cancelled_stays_cancelled(server: Server) -> None:
    handle = server.open()
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    waiting = wire.Setlk(handle, 2, 0, 9, 1, wait=60_000)
    server.ask(2, waiting)
    server.answering.cancelled(wire.Cancel(2))
    server.cut()
    assert server.do(waiting, 2) == "EINTR"
    server.answering.cancelled(wire.Cancel(2))


# A session that is over.


def test_a_new_session_finds_nothing_of_the_old(server: Server, root: Path) -> None:
    handle, flocked = server.open(), server.open()
    directory = server.do(wire.Opendir(b"")).handle
    made = server.do(wire.Mkdir(b"new", 0o755), 2)
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    assert server.do(wire.Setlk(flocked, 0, 0, 0, 1, flock=True)) is None
    assert locked(root / "file")
    server.lose()
    server.answering.begin(terms())
    assert server.export.open_handles == 0
    assert not locked(root / "file")
    own = os.open(root / "file", os.O_RDWR)
    fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(own)
    assert server.do(wire.Read(handle, 0, 1)) == "EBADF"
    assert server.do(wire.Readdir(directory, 0, 10, False)) == "EBADF"
    assert made.nlink == 2
    assert server.do(wire.Mkdir(b"new", 0o755), 2) == "EEXIST"
    assert server.open() not in (handle, flocked, directory)
    assert server.answering.remembered < 10


def test_what_still_runs_is_over_with_its_session(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptor is closed when it has ended, not before: its number could be another file's."""
    handle = server.open(elsewhere=True)
    held = Held(os.pwritev, once=True)
    monkeypatch.setattr(os, "pwritev", held)
    write = wire.Write(handle, 0, memoryview(b"xy"))
    server.ask(2, write)
    held.begun.wait()
    server.lose()
    server.answering.begin(terms())
    assert server.export.open_handles == 1
    # The same id is another request now.
    again = server.open()
    assert server.do(wire.Write(again, 0, memoryview(b"abc")), 2) == 3
    held.go.set()
    server.settle()
    assert server.export.open_handles == 1
    assert len(server.replies(2)) == 1
    assert (root / "file").read_bytes() == b"xyc3456789"


def test_what_a_dead_session_still_opens_is_closed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_gated.edge.files._SLOW", frozenset({wire.Open}))
    held = Held(server.export.perform, once=True)
    monkeypatch.setattr(server.export, "perform", held)
    server.ask(2, wire.Open(b"file", BOTH))
    held.begun.wait()
    server.lose()
    server.answering.begin(terms())
    held.go.set()
    server.settle()
    assert server.export.open_handles == 0
    assert server.do(wire.Open(b"file", BOTH), 2).handle
    assert server.export.open_handles == 1


def test_locks_elsewhere_are_given_up_without_waiting(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle, other = server.open(elsewhere=True), server.open(elsewhere=True)
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    held = Held(fcntl.fcntl, once=True)
    monkeypatch.setattr(fcntl, "fcntl", held)
    server.ask(2, wire.Setlk(other, 2, 10, 19, 1))
    held.begun.wait()
    server.lose()
    server.answering.begin(terms())
    held.go.set()
    server.settle()
    assert not locked(root / "file")
    assert server.export.open_handles == 0


def test_a_dead_session_takes_no_further_lock(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.open(elsewhere=True)
    held = Held(server.export._locks.of, once=True)
    monkeypatch.setattr(server.export._locks, "of", held)
    before = held._really(server.export._handles.file(handle))
    held._really = lambda _file: before
    server.ask(2, wire.Setlk(handle, 1, 0, 9, 1))
    held.begun.wait()
    server.lose()
    server.answering.begin(terms())
    held.go.set()
    server.settle()
    assert not locked(root / "file")


def test_stopping_while_suspended(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.open()
    held = Held(os.fsync)
    monkeypatch.setattr(os, "fsync", held)
    server.ask(2, wire.Fsync(handle, False))
    held.begun.wait()
    server.lose()
    server.answering.stop()
    held.go.set()
    assert all(pool.close(10) for pool in server.pools)
    server.loop.soon(lambda: None)
    server.loop.turn()
    assert server.heard == []


# Any order.


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["append", "mkdir", "turn", "cut", "cut before the answer"]), max_size=40))
def test_however_often_it_is_cut_each_is_done_once(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    root = tmp_path_factory.mktemp("export")
    (root / "file").touch()
    server = Server(root)
    handle = server.open()
    wanted: dict[int, wire.Arguments] = {}
    answered: dict[int, Any] = {}

    def note() -> None:
        for reply in server.heard:
            if reply.id in wanted:
                assert reply.errno is None
                answered[reply.id] = True
        server.heard.clear()

    number = 0
    for step in [*steps, "cut", "turn", "turn"]:
        if step in ("append", "mkdir") and len(wanted) - len(answered) < 16:
            number += 2
            wanted[number] = (
                wire.Write(handle, 0, memoryview(b"%4d" % number), append=True)
                if step == "append"
                else wire.Mkdir(b"d%d" % number, 0o755)
            )
            server.ask(number, wanted[number])
        elif step == "turn":
            server.loop.soon(lambda: None)
            server.loop.turn()
            note()
        elif step.startswith("cut"):
            if step == "cut":
                note()
            server.cut()
            for known, arguments in wanted.items():
                if known not in answered:
                    server.ask(known, arguments)
    server.settle()
    note()
    assert answered.keys() == wanted.keys()
    appended = [known for known, arguments in wanted.items() if isinstance(arguments, wire.Write)]
    assert (root / "file").read_bytes() == b"".join(b"%4d" % known for known in appended)
    server.close()
