"""Requests that come after others: begun when those have ended, and a WRITE not at all behind one that failed."""

import errno
import fcntl
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuse_gated.edge.answering import MOST_IN_FLIGHT, Answering
from fuse_gated.edge.files import Export
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.pool import Pool
from fuse_gated.errors import ProtocolError
from fuse_gated.wire import codec
from fuse_gated.wire import messages as wire
from fuse_gated.wire.tables import OPERATION_OF

BOTH = wire.OPEN_READ | wire.OPEN_WRITE
UNREAD = 2**20 + 1


def terms(requests: int = 16) -> wire.Terms:
    return wire.Terms(session="s", resume=b"", mount="/m", max_in_flight=requests, max_bytes_in_flight=2**20)


class Held:
    """A function that waits to be let go, and fails then if so wanted."""

    def __init__(self, really: Callable[..., Any]) -> None:
        self.begun, self.go, self.calls, self.failure = threading.Event(), threading.Event(), 0, 0
        self._really = really

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        self.begun.set()
        self.go.wait()
        if self.failure:
            raise OSError(self.failure, os.strerror(self.failure))
        return self._really(*arguments)


class Server:
    """Asks by ids of its choice, and may lose its connection. `fsync` is held up: the way to have something that takes long."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, threads: int = 3) -> None:
        self.loop = Loop()
        self.elsewhere = False
        monkeypatch.setattr("fuse_gated.edge.filesystems.Filesystems.is_local", lambda *_: not self.elsewhere)
        self.fsync = Held(os.fsync)
        monkeypatch.setattr(os, "fsync", self.fsync)
        self.export = Export(root)
        self.pools = Pool(self.loop, threads), Pool(self.loop, threads)
        self.unread = 0
        self.heard: list[wire.Replied] = []
        self.messages = 0
        self.answering = Answering(self.loop, self.export, self.pools[0], self._sent, lambda: self.unread, self.pools[1])
        self.answering.begin(terms())
        self._next = 2**20

    def _sent(self, message: bytearray) -> None:
        self.messages += 1
        for frame in codec.decode_from_client(bytes(message)):
            assert isinstance(frame, wire.Replied)
            self.heard.append(frame)

    def ask(self, number: int, arguments: wire.Arguments, *after: int) -> None:
        operation = OPERATION_OF[type(arguments)]
        message = bytearray(codec.encode(wire.Ask(number, operation, arguments, after)))
        [frame] = codec.decode_from_server(memoryview(message))
        assert isinstance(frame, wire.Asked)
        self.answering.asked(frame)
        # It lies in the connection's buffer, which the next one overwrites.
        message[:] = bytes(len(message))

    def cancel(self, number: int) -> None:
        self.answering.cancelled(wire.Cancel(number))

    @property
    def replies(self) -> list[tuple[int, str | None]]:
        return [(reply.id, reply.errno) for reply in self.heard]

    @property
    def holds_nothing(self) -> bool:
        order = self.answering._order
        return not (len(order) or order._awaited_by or self.answering._requests)

    def wait(self, *numbers: int) -> None:
        self.turn_until(lambda: {reply.id for reply in self.heard} >= set(numbers))

    def do(self, arguments: wire.Arguments) -> Any:
        self._next += 2
        self.ask(self._next, arguments)
        self.wait(self._next)
        reply = self.heard.pop()
        return reply.errno or codec.decode_result(OPERATION_OF[type(arguments)], reply.result)

    def open(self, path: bytes = b"file", *, elsewhere: bool = False) -> int:
        self.elsewhere = elsewhere
        handle: int = self.do(wire.Open(path, BOTH)).handle
        return handle

    def slow(self, number: int, handle: int, *after: int) -> None:
        """Something that has begun, and takes until `let_go`."""
        self.ask(number, wire.Fsync(handle, False), *after)
        if not after:
            self.fsync.begun.wait()

    def let_go(self, *numbers: int, failure: int = 0) -> None:
        self.fsync.failure = failure
        self.fsync.go.set()
        self.wait(*numbers)

    def turn(self) -> None:
        self.loop.soon(lambda: None)
        self.loop.turn()

    def turn_until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.loop.turn()

    def settle(self) -> None:
        """Until the threads have nothing left to do, and the loop has heard of it."""
        for pool in self.pools:
            self.turn_until(lambda pool=pool: not pool._outstanding)
        self.turn()

    def lose(self) -> None:
        self.answering.suspend()
        self.heard.clear()

    def cut(self, requests: int = 16) -> None:
        """What was said before is as if it had not been heard."""
        self.lose()
        self.answering.resume(terms(requests))

    def close(self) -> None:
        self.fsync.go.set()
        self.answering.stop()
        assert all(pool.close(10) for pool in self.pools)
        self.export.close()
        self.loop.close()


@pytest.fixture
def server(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    (root / "file").write_bytes(b"0123456789")
    server = Server(root, monkeypatch)
    yield server
    server.close()


@pytest.fixture
def one_thread(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    (root / "file").write_bytes(b"0123456789")
    server = Server(root, monkeypatch, threads=1)
    yield server
    server.close()


def text(handle: int, data: bytes, offset: int = 0) -> wire.Write:
    return wire.Write(handle, offset, memoryview(data))


def violation(call: Callable[[], Any]) -> str:
    with pytest.raises(ProtocolError) as raised:
        call()
    assert raised.value.close_code == 1008
    return raised.value.message


# The order.


def test_what_comes_after_another_is_not_begun_before_that_has_ended(server: Server, root: Path) -> None:
    handle = server.open()
    server.slow(2, handle)
    server.ask(4, text(handle, b"xy"), 2)
    server.ask(6, wire.Mkdir(b"new", 0o755), 2)
    server.ask(8, wire.Getattr(b"file"), 2, 4)
    server.ask(10, wire.Getattr(b"file"))
    server.turn()
    assert server.replies == [(10, None)]
    assert server.answering.in_flight == 4
    assert (root / "file").read_bytes() == b"0123456789"
    assert not (root / "new").exists()
    before = server.messages
    server.let_go(2, 4, 6, 8)
    assert server.replies[1:] == [(2, None), (4, None), (6, None), (8, None)]
    assert server.messages == before + 1
    assert (root / "file").read_bytes() == b"xy23456789"
    assert server.answering.in_flight == 0
    assert server.holds_nothing


def test_slow_ones_are_carried_out_one_after_the_other(server: Server, root: Path) -> None:
    """Threads would take them in any order."""
    handle = server.open(elsewhere=True)
    server.slow(2, handle)
    for number in range(4, 30, 2):
        server.ask(number, wire.Write(handle, 0, memoryview(b"%3d" % number), append=True), number - 2)
    server.let_go(*range(2, 30, 2))
    assert [number for number, _ in server.replies] == list(range(2, 30, 2))
    assert (root / "file").read_bytes() == b"0123456789" + b"".join(b"%3d" % number for number in range(4, 30, 2))


def test_a_release_that_comes_after_writes_waits_for_them(server: Server, root: Path) -> None:
    handle = server.open(elsewhere=True)
    server.slow(2, handle)
    server.ask(4, text(handle, b"xy"), 2)
    server.ask(1, wire.Release(handle), 4)
    server.let_go(2, 4, 1)
    assert server.replies == [(2, None), (4, None), (1, None)]
    assert (root / "file").read_bytes() == b"xy23456789"
    assert server.export.open_handles == 0


def test_what_is_not_known_has_ended(server: Server) -> None:
    handle = server.open()
    server.ask(2, text(handle, b"a"))
    server.ask(4, text(handle, b"b"), 2, 4, 0, 2**63 - 1)
    server.ask(6, wire.Mkdir(b"new", 0o755), 6, 8)
    assert server.holds_nothing
    server.wait(2, 4, 6)
    assert server.replies == [(2, None), (4, None), (6, None)]


def test_an_operation_that_is_not_known_waits_for_nothing(server: Server) -> None:
    server.slow(2, server.open())
    [frame] = codec.decode_from_server(codec.encode(wire.Ask(4, "frobnicate", (), (2,))))
    assert isinstance(frame, wire.Asked)
    server.answering.asked(frame)
    server.wait(4)
    assert server.replies == [(4, "ENOSYS")]


def test_what_waits_for_a_lock_is_waited_for(server: Server) -> None:
    handle = server.open()
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    server.ask(2, wire.Setlk(handle, 2, 0, 9, 1, wait=60_000))
    server.ask(4, wire.Getattr(b"file"), 2)
    server.turn()
    assert server.replies == []
    assert server.do(wire.Setlk(handle, 1, 0, 9, 2)) is None
    server.wait(2, 4)
    assert server.replies == [(2, None), (4, None)]


# Failures.


def test_a_write_behind_a_failure_is_not_carried_out(server: Server, root: Path) -> None:
    handle, other = server.open(), server.open()
    server.slow(2, handle)
    server.ask(4, text(handle, b"4"), 2)
    server.ask(6, text(handle, b"6"), 4)
    server.ask(8, wire.Mkdir(b"new", 0o755), 2, 6)
    server.ask(10, text(other, b"10"), 8)
    server.let_go(2, 4, 6, 8, 10, failure=errno.EDQUOT)
    assert server.replies == [(2, "EDQUOT"), (4, "ECANCELED"), (6, "ECANCELED"), (8, None), (10, None)]
    assert (root / "file").read_bytes() == b"1023456789"
    assert (root / "new").is_dir()
    # What comes later is as good as what was there.
    server.ask(12, text(handle, b"12"), 6)
    server.ask(14, text(handle, b"14"), 10)
    server.wait(12, 14)
    assert server.replies[-2:] == [(12, "ECANCELED"), (14, None)]
    assert server.answering.bytes_written == 4
    assert server.holds_nothing


def test_one_failure_among_many_is_enough(server: Server) -> None:
    handle = server.open()
    server.slow(2, handle)
    server.ask(4, wire.Rmdir(b"missing"))
    server.ask(6, text(handle, b"6"), 4, 2)
    server.let_go(2, 4, 6)
    assert server.replies == [(4, "ENOENT"), (2, None), (6, "ECANCELED")]


def test_a_failure_that_has_been_answered_is_known(server: Server) -> None:
    handle = server.open()
    server.ask(2, wire.Rmdir(b"missing"))
    server.ask(3, wire.Rmdir(b"missing"))
    server.wait(2, 3)
    server.ask(4, text(handle, b"4"), 2)
    server.ask(6, wire.Getattr(b"file"), 2)
    server.ask(8, text(handle, b"8"), 3)
    server.wait(4, 6, 8)
    # Of the server's own ids, which mean something else next time, nothing is kept.
    assert server.replies[2:] == [(4, "ECANCELED"), (6, None), (8, None)]


def test_a_failure_of_what_changes_nothing_counts_until_it_is_answered(server: Server) -> None:
    handle = server.open()
    server.slow(2, handle)
    server.ask(4, text(handle, b"4"), 2)
    server.let_go(2, 4, failure=errno.EIO)
    server.ask(6, text(handle, b"6"), 2)
    server.wait(6)
    assert server.replies == [(2, "EIO"), (4, "ECANCELED"), (6, None)]


# Cancellation.


def test_what_waits_for_its_turn_is_cancelled(server: Server, root: Path) -> None:
    handle = server.open()
    server.slow(2, handle)
    server.ask(4, text(handle, b"4"), 2)
    server.ask(6, text(handle, b"6"), 4)
    server.ask(8, wire.Mkdir(b"new", 0o755), 4)
    server.ask(10, wire.Mkdir(b"later", 0o755), 4, 2)
    server.cancel(4)
    server.cancel(4)
    server.wait(4, 6, 8)
    assert server.replies == [(4, "EINTR"), (6, "ECANCELED"), (8, None)]
    assert not (root / "later").exists()
    server.let_go(2, 10)
    assert server.replies[3:] == [(2, None), (10, None)]
    assert (root / "file").read_bytes() == b"0123456789"
    assert server.holds_nothing


def test_what_waits_for_a_thread_is_cancelled_and_others_go_on(one_thread: Server) -> None:
    server = one_thread
    handle = server.open()
    server.slow(2, handle)
    server.ask(4, wire.Fallocate(handle, 0, 20, 0))
    server.ask(6, text(handle, b"6"), 4)
    server.ask(8, wire.Getattr(b"file"), 4)
    server.cancel(4)
    server.wait(4, 6, 8)
    assert server.replies == [(4, "EINTR"), (6, "ECANCELED"), (8, None)]


def test_what_is_cancelled_leaves_nothing_behind(server: Server) -> None:
    """However often, while what it came after takes long."""
    handle = server.open()
    server.slow(2, handle)
    for number in range(4, 400, 2):
        server.ask(number, text(handle, b"x" * 1000), 2)
        server.cancel(number)
        server.turn()
        assert len(server.answering._order) == 0
        assert not server.answering._order._awaited_by
    assert {errno for _, errno in server.replies} == {"EINTR"}


# A connection that is lost.


def test_what_waits_is_forgotten_and_asked_again(server: Server, root: Path) -> None:
    handle = server.open()
    server.slow(2, handle)
    server.ask(4, text(handle, b"4"), 2)
    server.cut()
    assert server.holds_nothing
    # What was begun counts as going on, whether it has been asked again or not.
    server.ask(4, text(handle, b"4"), 2)
    server.ask(6, text(handle, b"6"), 4)
    server.ask(2, wire.Fsync(handle, False))
    server.turn()
    assert server.replies == []
    assert (root / "file").read_bytes() == b"0123456789"
    server.let_go(2, 4, 6)
    assert server.replies == [(2, None), (4, None), (6, None)]
    assert (root / "file").read_bytes() == b"6123456789"


def test_what_is_left_over_is_waited_for_though_nobody_asks_again(server: Server) -> None:
    handle = server.open()
    server.slow(2, handle)
    server.cut()
    server.ask(4, text(handle, b"4"), 2)
    server.turn()
    assert server.replies == []
    server.let_go(4)
    assert server.replies == [(4, None)]


def test_a_failure_is_known_after_the_connection_was_lost(
    server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = server.open(elsewhere=True)
    full = Held(os.pwritev)
    full.failure = errno.ENOSPC
    monkeypatch.setattr(os, "pwritev", full)
    server.ask(2, text(handle, b"2"))
    full.begun.wait()
    server.ask(4, text(handle, b"4"), 2)
    server.lose()
    full.go.set()
    server.settle()
    assert server.heard == []
    for _ in range(2):
        server.answering.resume(terms())
        server.ask(2, text(handle, b"2"))
        server.ask(4, text(handle, b"4"), 2)
        server.ask(6, text(handle, b"6"), 4)
        server.wait(2, 4, 6)
        assert server.replies == [(2, "ENOSPC"), (4, "ECANCELED"), (6, "ECANCELED")]
        server.lose()
    assert full.calls == 1
    assert (root / "file").read_bytes() == b"0123456789"


def test_writes_are_done_once(server: Server, root: Path) -> None:
    """An older one that was done again would overwrite a newer one."""
    handle = server.open()
    for _ in range(2):
        server.ask(2, text(handle, b"older"))
        server.wait(2)
        server.ask(4, text(handle, b"newer"), 2)
        server.wait(2, 4)
        server.cut()
    assert (root / "file").read_bytes() == b"newer56789"
    assert server.answering.bytes_written == 10


def test_an_answer_that_is_repeated_waits_for_its_turn(server: Server, root: Path) -> None:
    handle = server.open()
    server.fsync.go.set()
    server.ask(2, wire.Fsync(handle, False))
    server.ask(4, wire.Mkdir(b"new", 0o755), 2)
    server.ask(6, wire.Rmdir(b"missing"), 2)
    server.wait(2, 4, 6)
    server.fsync.go.clear()
    server.fsync.begun.clear()
    server.cut(4)
    server.slow(2, handle)
    server.ask(4, wire.Mkdir(b"new", 0o755), 2)
    server.ask(6, wire.Rmdir(b"missing"), 2)
    for number in range(10, 60, 2):
        # So many that no other answer is kept any more.
        server.ask(number, wire.Rmdir(b"missing"))
        server.turn()
    server.heard.clear()
    server.ask(8, text(handle, b"8"), 6)
    # It has been done, so there is nothing to be ended.
    server.cancel(4)
    (root / "missing").mkdir()
    server.turn()
    assert server.replies == []
    server.let_go(2, 4, 6, 8)
    assert server.replies == [(2, None), (4, None), (6, "ENOENT"), (8, "ECANCELED")]
    assert (root / "missing").exists()
    assert server.holds_nothing


def test_an_answer_that_is_repeated_says_what_was_done(server: Server) -> None:
    """Whatever has become since of what it came after."""
    handle = server.open()
    server.ask(4, text(handle, b"4"), 2)
    server.ask(2, wire.Rmdir(b"missing"))
    server.wait(4, 2)
    server.cut()
    server.ask(2, wire.Rmdir(b"missing"))
    server.ask(4, text(handle, b"4"), 2)
    server.wait(2, 4)
    assert server.replies == [(2, "ENOENT"), (4, None)]


# What is the server's own, and never asked again.


def test_the_servers_own_is_carried_out_in_its_order(server: Server, root: Path) -> None:
    handle, other = server.open(), server.open()
    server.slow(2, handle)
    server.ask(1, wire.Mkdir(b"own", 0o755), 2)
    server.ask(3, wire.Rmdir(b"own"), 1)
    server.ask(5, wire.Release(other), 3)
    server.ask(4, wire.Mkdir(b"never", 0o755), 2)
    server.cut()
    assert not (root / "own").exists()
    assert server.export.open_handles == 2
    # These ids are free by now.
    server.ask(1, wire.Getattr(b"file"))
    server.wait(1)
    server.fsync.go.set()
    server.settle()
    assert server.export.open_handles == 1
    assert not (root / "own").exists()
    assert not (root / "never").exists()
    assert server.replies == [(1, None)]
    assert server.holds_nothing
    assert not server.answering._unheard


def test_the_servers_own_writes_stay_behind_a_failure(server: Server, root: Path) -> None:
    handle = server.open()
    server.slow(2, handle)
    server.ask(1, text(handle, b"1"), 2)
    server.ask(3, wire.Mkdir(b"own", 0o755), 1)
    server.cut()
    server.fsync.failure = errno.EIO
    server.fsync.go.set()
    server.settle()
    assert (root / "file").read_bytes() == b"0123456789"
    assert (root / "own").exists()


def test_a_handle_is_not_released_before_what_is_asked_again(server: Server, root: Path) -> None:
    handle, other = server.open(), server.open()
    server.slow(2, other)
    server.ask(4, text(handle, b"4"), 2)
    server.ask(1, wire.Flush(handle, 7), 4)
    server.ask(3, wire.Release(handle), 1)
    server.ask(5, wire.Mkdir(b"own", 0o755), 4)
    server.cut()
    # The directory concerns no handle; the release is asked for again too, by another id.
    assert (root / "own").exists()
    assert server.export.open_handles == 2
    server.ask(4, text(handle, b"4"), 2)
    server.ask(7, wire.Release(handle), 4)
    server.let_go(4, 7)
    assert server.replies == [(4, None), (7, None)]
    assert (root / "file").read_bytes() == b"4123456789"
    assert server.export.open_handles == 1


def test_nor_behind_what_waited_for_a_thread_or_a_lock(one_thread: Server) -> None:
    server = one_thread
    handle, locking, other = server.open(), server.open(), server.open()
    assert server.do(wire.Setlk(other, 1, 0, 9, 1)) is None
    server.slow(2, other)
    server.ask(4, wire.Fallocate(handle, 0, 20, 0))
    server.ask(6, wire.Setlk(locking, 2, 0, 9, 1, wait=60_000))
    server.ask(1, wire.Release(handle), 4)
    server.ask(3, wire.Release(locking), 6)
    server.ask(5, wire.Mkdir(b"own", 0o755), 4, 6)
    server.cut()
    assert server.export.open_handles == 3
    assert server.do(wire.Rmdir(b"own")) is None


def test_what_is_of_no_use_keeps_nothing_waiting(server: Server) -> None:
    handle = server.open()
    server.slow(2, server.open())
    server.ask(1, wire.Read(handle, 0, 3), 2)
    server.ask(3, wire.Release(handle), 1)
    server.cut()
    assert server.export.open_handles == 1


def test_what_waits_unheard_is_done_however_often_the_connection_is_lost(
    server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock is being tried for, is taken up by the next connection, waits there, and is forgotten with that one."""
    handle = server.open(elsewhere=True)
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    trying = Held(fcntl.fcntl)
    monkeypatch.setattr(fcntl, "fcntl", trying)
    waiting = wire.Setlk(handle, 2, 0, 9, 1, wait=60_000)
    server.ask(2, waiting)
    trying.begun.wait()
    server.elsewhere = False
    server.ask(1, wire.Mkdir(b"own", 0o755), 2)
    server.cut()
    server.ask(2, waiting)
    trying.go.set()
    server.turn_until(lambda: server.answering._requests[2].timer)
    assert not (root / "own").exists()
    server.cut()
    assert (root / "own").exists()
    assert server.holds_nothing


def test_what_waits_unheard_is_bounded(server: Server) -> None:
    """A server that comes again and again, while the disk hangs."""
    handle = server.open()
    server.slow(2, handle)
    for _ in range(50):
        for number in (1, 3, 5):
            server.ask(number, wire.Mkdir(b"d", 0o755), 2)
        server.cut(4)
    assert len(server.answering._unheard) <= 4 * 4 + 1
    assert len(server.answering._order) <= 4 * 4 + 1
    server.fsync.go.set()
    server.settle()
    assert not server.answering._unheard
    assert server.holds_nothing


# A server that does not read.


def test_what_is_let_go_waits_for_a_server_that_does_not_read(server: Server, root: Path) -> None:
    handle = server.open()
    server.slow(2, handle)
    server.ask(4, wire.Mkdir(b"new", 0o755), 2)
    server.ask(6, wire.Mkdir(b"new/d", 0o755), 4)
    server.ask(8, wire.Rmdir(b"missing"))
    server.ask(10, text(handle, b"x"), 2, 8)
    server.ask(12, text(handle, b"x"), 10)
    server.wait(8)
    server.unread = UNREAD
    server.let_go(2)
    server.turn()
    server.ask(14, text(handle, b"x"), 8)
    server.turn()
    assert server.replies == [(8, "ENOENT"), (2, None)]
    assert server.answering.in_flight == 5
    assert not (root / "new").exists()
    server.cancel(4)
    server.unread = 0
    server.wait(4, 6, 10, 12, 14)
    assert dict(server.replies[2:]) == {4: None, 6: None, 10: "ECANCELED", 12: "ECANCELED", 14: "ECANCELED"}
    assert server.holds_nothing


def test_what_waits_is_let_go_while_some_is_unread(server: Server) -> None:
    """The queue fills again while it is being worked off."""
    server.unread = UNREAD
    server.ask(2, wire.Mkdir(b"d", 0o755))
    server.ask(4, wire.Mkdir(b"d/e", 0o755), 2)
    queue = [0, UNREAD, UNREAD]
    server.answering._queued = lambda: queue.pop(0) if queue else 0
    server.wait(2, 4)
    assert server.replies == [(2, None), (4, None)]
    assert queue == []


def test_what_is_unread_when_the_connection_is_lost_keeps_its_order(server: Server, root: Path) -> None:
    handle = server.open()
    server.unread = UNREAD
    server.ask(1, wire.Mkdir(b"own", 0o755))
    server.ask(3, wire.Mkdir(b"own/d", 0o755), 1)
    server.ask(2, text(handle, b"2"))
    server.ask(5, wire.Release(handle), 2)
    server.cut()
    assert (root / "own" / "d").is_dir()
    assert server.export.open_handles == 1
    assert server.holds_nothing


# Limits.


def test_what_waits_is_in_flight(server: Server) -> None:
    handle = server.open()
    server.answering.resume(terms(4))
    server.slow(2, handle)
    for number in (4, 6, 8):
        server.ask(number, wire.Getattr(b"file"), number - 2)
    assert violation(lambda: server.ask(10, wire.Getattr(b"file"), 2)) == "more than 4 requests in flight"
    assert violation(lambda: server.ask(8, wire.Getattr(b"file"), 2)) == "request 8 is in flight already"


def test_the_data_of_what_waits_is_in_flight(server: Server) -> None:
    handle = server.open()
    server.slow(2, handle)
    server.ask(4, text(handle, b"x" * 2**19), 2)
    assert "bytes in flight" in violation(lambda: server.ask(6, text(handle, b"x" * (2**19 + 1)), 2))
    server.let_go(2, 4)
    server.ask(6, text(handle, b"x" * 2**20), 4)
    server.wait(6)


def test_a_chain_as_long_as_may_be(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.open()
    server.answering.resume(terms(MOST_IN_FLIGHT))
    server.slow(2, handle)
    last = 2 * MOST_IN_FLIGHT
    for number in range(4, last + 1, 2):
        server.ask(number, text(handle, b"x", number), number - 2)
    depth = 0

    def deepest(*_: Any) -> int:
        nonlocal depth
        frame, here = sys._getframe(), 0
        while frame.f_back is not None:
            frame, here = frame.f_back, here + 1
        depth = max(depth, here)
        return 1

    monkeypatch.setattr(os, "pwritev", deepest)
    allowed = sys.getrecursionlimit() // 2
    server.let_go(last)
    assert [number for number, _ in server.replies] == list(range(2, last + 1, 2))
    assert 0 < depth < allowed
    assert server.holds_nothing


def test_a_chain_that_breaks_at_its_head(server: Server) -> None:
    handle = server.open()
    server.answering.resume(terms(MOST_IN_FLIGHT))
    server.slow(2, handle)
    last = 2 * MOST_IN_FLIGHT
    for number in range(4, last + 1, 2):
        server.ask(number, text(handle, b"x"), number - 2)
    server.cancel(4)
    server.wait(last)
    assert server.replies == [(4, "EINTR"), *((number, "ECANCELED") for number in range(6, last + 1, 2))]


def test_as_many_as_may_be_that_name_as_many_as_may_be(server: Server) -> None:
    handle = server.open()
    server.answering.resume(terms(MOST_IN_FLIGHT))
    server.slow(2, handle)
    last = 2 * MOST_IN_FLIGHT
    for number in range(4, last + 1, 2):
        server.ask(number, wire.Getattr(b"file"), *range(max(2, number - 2 * wire.MAX_AFTER), number, 2))
    server.let_go(last)
    assert [number for number, _ in server.replies] == list(range(2, last + 1, 2))
    assert server.holds_nothing


def test_a_hostile_server_makes_nothing_grow(server: Server) -> None:
    """Thousands that name themselves, each other, and what is not there yet, with connections lost in between."""
    handle = server.open()
    server.slow(2, handle)
    for number in range(3, 6003):
        if server.answering.in_flight == 16:
            if number % 3:
                server.cut()
            else:
                for waiting in list(server.answering._requests):
                    server.cancel(waiting)
                server.turn()
        server.ask(number, text(handle, b"x"), 2, number, number + 1, *range(max(number - 20, 0), number))
        order = server.answering._order
        assert len(order) <= 16 + 4 * 16 + 1
        assert sum(len(waiting) for waiting in order._awaited_by.values()) <= wire.MAX_AFTER * len(order)
        assert server.answering.remembered <= 4 * 16
    server.fsync.go.set()
    server.settle()
    assert server.holds_nothing
    assert not server.answering._unheard


# The end.


def test_stopping_forgets_what_waits(server: Server, root: Path) -> None:
    server.slow(2, server.open())
    server.ask(4, wire.Mkdir(b"new", 0o755), 2)
    server.ask(6, wire.Mkdir(b"new", 0o755), 4)
    server.answering.stop()
    assert server.holds_nothing
    server.fsync.go.set()
    server.settle()
    assert server.heard == []
    assert not (root / "new").exists()


def test_a_session_that_is_over_leaves_nothing_waiting(server: Server, root: Path) -> None:
    handle = server.open()
    server.slow(2, handle)
    server.ask(4, wire.Mkdir(b"never", 0o755), 2)
    server.ask(1, wire.Mkdir(b"own", 0o755), 2)
    server.ask(3, text(handle, b"3"), 1)
    server.lose()
    server.answering.begin(terms())
    # The ids are others' now.
    server.ask(4, wire.Getattr(b"file"), 2)
    server.wait(4)
    server.fsync.go.set()
    server.settle()
    assert (root / "own").exists()
    assert not (root / "never").exists()
    assert (root / "file").read_bytes() == b"0123456789"
    assert server.export.open_handles == 0
    assert server.holds_nothing
    assert not server.answering._unheard


# Any order.

STEPS = st.lists(st.tuples(st.sampled_from(["write", "write", "look", "turn", "cut", "settle"]), st.integers(0, 3)), max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_writes_that_follow_each_other_are_done_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    """On threads, with connections lost at any time, as a server asks that does not wait for answers."""
    root = tmp_path_factory.mktemp("export")
    (root / "file").touch()
    with pytest.MonkeyPatch.context() as monkeypatch:
        server = Server(root, monkeypatch, threads=4)
        handle = server.open(elsewhere=True)
        wanted: dict[int, tuple[wire.Arguments, tuple[int, ...]]] = {}
        order: list[int] = []

        def note() -> None:
            for reply in server.heard:
                assert reply.errno is None
                wanted.pop(reply.id, None)
                order.append(reply.id)
            server.heard.clear()

        number, written = 0, []
        for what, back in [*steps, ("cut", 0), ("settle", 0), ("settle", 0)]:
            if what in ("write", "look") and len(wanted) < 16:
                number += 2
                if what == "write":
                    data = memoryview(b"%4d" % number)
                    wanted[number] = wire.Write(handle, 0, data, append=True), tuple(written[-1 - back :])
                    written.append(number)
                else:
                    wanted[number] = wire.Getattr(handle), tuple(written[-1:])
                server.ask(number, *_flat(wanted[number]))
            elif what == "turn":
                server.turn()
                note()
            elif what == "settle":
                server.settle()
                note()
            elif what == "cut":
                server.cut()
                for known, request in wanted.items():
                    server.ask(known, *_flat(request))
        server.turn_until(lambda: not server.answering.in_flight)
        note()
        assert not wanted
        assert (root / "file").read_bytes() == b"".join(b"%4d" % known for known in written)
        assert [known for known in order if known in written] == written
        assert server.holds_nothing
        server.close()


def _flat(request: tuple[wire.Arguments, tuple[int, ...]]) -> tuple[Any, ...]:
    return (request[0], *request[1])
