"""What is open on another filesystem than the root's: worked on by threads of its own, locks that are waited for included."""

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuse_gated.edge.answering import Answering
from fuse_gated.edge.files import Export
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.pool import Pool
from fuse_gated.wire import codec
from fuse_gated.wire import messages as wire
from fuse_gated.wire.tables import OPERATION_OF

BOTH = wire.OPEN_READ | wire.OPEN_WRITE


class Server:
    """Asks, and hears the answers. The root is local; of what is opened, `elsewhere` says whether it is."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.elsewhere = True
        self.loop = Loop()
        self.export = Export(root)
        monkeypatch.setattr("fuse_gated.edge.filesystems.Filesystems.is_local", lambda *_: not self.elsewhere)
        self.pools = Pool(self.loop, 1), Pool(self.loop, 1)
        self.answering = Answering(self.loop, self.export, self.pools[0], self._heard, lambda: 0, self.pools[1])
        self.answering.begin(wire.Terms(session="s", resume=b"", mount="/m", max_in_flight=16, max_bytes_in_flight=2**20))
        self.operations: list[str] = []
        self.replies: dict[int, wire.Replied] = {}

    def _heard(self, message: bytearray) -> None:
        for frame in codec.decode_from_client(bytes(message)):
            assert isinstance(frame, wire.Replied)
            self.replies[frame.id] = frame

    def ask(self, arguments: wire.Arguments) -> int:
        self.operations.append(OPERATION_OF[type(arguments)])
        [frame] = codec.decode_from_server(codec.encode(wire.Ask(len(self.operations), self.operations[-1], arguments)))
        assert isinstance(frame, wire.Asked)
        self.answering.asked(frame)
        return frame.id

    def outcome(self, number: int) -> Any:
        while number not in self.replies:
            self.loop.turn()
        reply = self.replies[number]
        return reply.errno or codec.decode_result(self.operations[number - 1], reply.result)

    def do(self, arguments: wire.Arguments) -> Any:
        return self.outcome(self.ask(arguments))

    def open(self, *, elsewhere: bool = True) -> int:
        self.elsewhere = elsewhere
        handle: int = self.do(wire.Open(b"file", BOTH)).handle
        return handle

    def close(self) -> None:
        self.answering.stop()
        assert all(pool.close(10) for pool in self.pools)
        self.export.close()
        self.loop.close()


class Held:
    """A function that waits to be let go."""

    def __init__(self, really: Any) -> None:
        self.begun, self.go, self._really = threading.Event(), threading.Event(), really

    def __call__(self, *arguments: Any) -> Any:
        self.begun.set()
        self.go.wait()
        return self._really(*arguments)


@pytest.fixture
def server(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    (root / "file").write_bytes(b"0123456789")
    server = Server(root, monkeypatch)
    yield server
    server.close()


def test_what_hangs_there_holds_up_no_slow_work_here(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = server.open(), server.open(elsewhere=False)
    held = Held(os.fsync)
    monkeypatch.setattr(os, "fsync", held)
    hanging = server.ask(wire.Fsync(there, False))
    held.begun.wait()
    assert server.do(wire.Fsync(here, True)) is None
    assert server.do(wire.Statfs()).block_size > 0
    assert server.do(wire.Read(here, 0, 4)) == b"0123"
    waiting = server.ask(wire.Read(there, 0, 4))
    server.answering.cancelled(wire.Cancel(waiting))
    assert server.outcome(waiting) == "EINTR"
    assert hanging not in server.replies
    held.go.set()
    assert server.outcome(hanging) is None


def test_a_lock_is_waited_for(server: Server) -> None:
    handle = server.open()
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    assert server.do(wire.Setlk(handle, 2, 0, 9, 1)) == "EAGAIN"
    waiting = server.ask(wire.Setlk(handle, 2, 0, 9, 1, wait=60_000))
    # Tried more than once.
    assert server.do(wire.Getattr(handle)).size == 10
    assert server.do(wire.Setlk(handle, 1, 0, 9, 2)) is None
    assert server.outcome(waiting) is None
    assert server.do(wire.Getlk(handle, 1, 0, 9, 1)) == wire.LockState(1, 0, 9)


def test_a_lock_is_waited_for_no_longer_than_asked(server: Server) -> None:
    handle = server.open()
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    assert server.do(wire.Setlk(handle, 2, 0, 9, 1, wait=20)) == "EAGAIN"


def test_waiting_for_a_lock_is_cancelled_between_two_tries(server: Server) -> None:
    handle = server.open()
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    waiting = server.ask(wire.Setlk(handle, 2, 0, 9, 1, wait=2**63))
    request = server.answering._requests[waiting]
    while request.timer is None:
        server.loop.turn()
    server.answering.cancelled(wire.Cancel(waiting))
    assert server.outcome(waiting) == "EINTR"


def test_a_lock_that_a_thread_is_trying_for_is_not_tried_for_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.open()
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    held = Held(fcntl.fcntl)
    monkeypatch.setattr(fcntl, "fcntl", held)
    waiting = server.ask(wire.Setlk(handle, 2, 0, 9, 1, wait=2**63))
    held.begun.wait()
    server.answering.cancelled(wire.Cancel(waiting))
    held.go.set()
    assert server.outcome(waiting) == "EAGAIN"


def test_waiting_ends_with_the_handle(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while its release waits in a thread, where its descriptor's number may become another file's at any moment."""
    handle, other = server.open(), server.open()
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    waiting = server.ask(wire.Setlk(other, 2, 0, 9, 1, wait=60_000))
    request = server.answering._requests[waiting]
    while request.timer is None:
        server.loop.turn()
    held = Held(os.close)
    monkeypatch.setattr(os, "close", held)
    releasing = server.ask(wire.Release(other))
    held.begun.wait()
    assert server.outcome(waiting) == "EBADF"
    held.go.set()
    assert server.outcome(releasing) is None
