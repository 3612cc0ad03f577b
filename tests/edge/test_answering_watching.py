"""edge/answering.py: what changes is told between the answers, on the connection on which it was asked for."""

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
from fuse_gated.errors import ProtocolError
from fuse_gated.wire import codec
from fuse_gated.wire import messages as wire
from fuse_gated.wire.tables import OPERATION_OF

TERMS = wire.Terms(session="s", resume=b"", mount="/m", max_in_flight=16, max_bytes_in_flight=2**20)
DIRECTORY = wire.Gather((b"d", b"d/file"), 4096, 100, 65536, True)


class Server:
    """Asks, and keeps the messages that come."""

    def __init__(self, root: Path) -> None:
        self.loop = Loop()
        self.export = Export(root)
        self.pool = Pool(self.loop, 1)
        self.messages: list[list[wire.FromClient]] = []
        self.short = 0
        self.answering = Answering(self.loop, self.export, self.pool, self._sent, lambda: 0, None, self._short)

    def _sent(self, message: bytearray) -> None:
        self.messages.append(codec.decode_from_client(bytes(message)))

    def _short(self) -> None:
        self.short += 1

    @property
    def watched(self) -> int:
        assert self.export.watches is not None
        return len(self.export.watches)

    @property
    def notices(self) -> list[wire.Notice]:
        return [frame for message in self.messages for frame in message if isinstance(frame, wire.Notice)]

    def ask(self, number: int, arguments: wire.Arguments) -> None:
        operation = OPERATION_OF[type(arguments)]
        [frame] = codec.decode_from_server(codec.encode(wire.Ask(number, operation, arguments)))
        assert isinstance(frame, wire.Asked)
        self.answering.asked(frame)

    def answer(self, number: int, operation: str = "gather") -> Any:
        while True:
            for message in self.messages:
                for frame in message:
                    if isinstance(frame, wire.Replied) and frame.id == number:
                        return frame.errno or codec.decode_result(operation, frame.result)
            self.loop.turn()

    def told(self) -> wire.Notice:
        """The next notice."""
        before = len(self.notices)
        while len(self.notices) == before:
            self.loop.turn()
        return self.notices[before]

    def close(self) -> None:
        self.answering.stop()
        assert self.pool.close(10)
        self.export.close()
        self.loop.close()


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    (root / "d").mkdir()
    (root / "d" / "file").write_bytes(b"content")
    server = Server(root)
    yield server
    server.close()


class Held:
    """os.pread waits until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()
        self._really = os.pread
        monkeypatch.setattr(os, "pread", self._read)

    def _read(self, *arguments: Any) -> bytes:
        self.begun.set()
        assert self.let_go.wait(30)
        return self._really(*arguments)


def test_what_was_gathered_is_told_of_when_it_changes(server: Server, root: Path) -> None:
    server.answering.begin(TERMS)
    server.ask(2, DIRECTORY)
    assert [found.watched for found in server.answer(2)] == [True, True]
    assert server.answering.bytes_read == 7
    (root / "d" / "file").write_bytes(b"changed")
    notice = server.told()
    assert notice.paths == (b"d/file",)
    [now] = notice.attributes
    assert now is not None
    assert now.mtime == (root / "d" / "file").stat().st_mtime_ns
    server.ask(3, wire.Unwatch((b"d",)))
    assert server.answer(3, "unwatch") is None
    assert server.watched == 0


def test_a_notice_leaves_with_the_answers_of_its_turn(server: Server, root: Path) -> None:
    server.answering.begin(TERMS)
    server.ask(2, DIRECTORY)
    server.answer(2)
    (root / "d" / "new").touch()
    server.ask(4, wire.Getattr(b"d/new"))
    server.loop.turn()
    reply, notice = server.messages[-1]
    assert isinstance(reply, wire.Replied)
    assert reply.id == 4
    assert isinstance(notice, wire.Notice)
    assert set(notice.paths) == {b"d", b"d/new"}


def test_what_is_gathered_weighs_what_it_may_bring(server: Server) -> None:
    server.answering.begin(TERMS)
    server.ask(2, wire.Gather((b"d", b"d/file"), 0, 0, 2**20, False))
    with pytest.raises(ProtocolError, match="bytes in flight"):
        server.ask(4, wire.Gather((b"d",), 0, 0, 1, False))
    server.answer(2)
    server.ask(6, wire.Gather((b"d",), 0, 0, 2**20, False))


def test_nothing_is_told_before_the_welcome(server: Server, root: Path) -> None:
    assert server.export.watches is not None
    server.export.watches.watch(b"d")
    (root / "d" / "new").touch()
    server.loop.turn()
    assert server.messages == []
    server.answering.begin(TERMS)
    assert server.watched == 0


def test_with_its_connection_a_session_loses_what_was_watched(server: Server, root: Path) -> None:
    server.answering.begin(TERMS)
    server.ask(2, DIRECTORY)
    server.answer(2)
    server.answering.suspend()
    assert server.watched == 0
    server.answering.resume(TERMS)
    (root / "d" / "file").write_bytes(b"changed")
    server.messages.clear()
    server.ask(2, DIRECTORY)
    assert [found.watched for found in server.answer(2)] == [True, True]
    assert server.notices == []
    (root / "d" / "file").write_bytes(b"again")
    assert server.told().paths == (b"d/file",)


def test_what_was_watched_for_a_lost_connection_is_not_for_the_next(
    server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server asks again while it is still being gathered: what became of it meanwhile was told to nobody."""
    held = Held(monkeypatch)
    server.answering.begin(TERMS)
    server.ask(2, DIRECTORY)
    assert held.begun.wait(30)
    server.answering.suspend()
    server.answering.resume(TERMS)
    server.ask(2, DIRECTORY)
    held.let_go.set()
    directory, file = server.answer(2)
    assert (directory.watched, file.watched, file.content) == (False, False, b"content")


def test_what_had_not_begun_is_of_no_use_any_more(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    server.answering.begin(TERMS)
    server.ask(2, DIRECTORY)
    assert held.begun.wait(30)
    server.ask(3, wire.Gather((b"", b"d"), 0, 0, 100, True))
    server.answering.suspend()
    held.let_go.set()
    assert server.pool.close(10)
    server.loop.turn()
    assert server.watched == 0


def test_a_shortage_is_said(server: Server) -> None:
    assert server.export.watches is not None
    server.export.watches.most = 1
    server.answering.begin(TERMS)
    server.ask(2, DIRECTORY)
    assert [found.watched for found in server.answer(2)] == [False, False]
    assert server.short == 1


# With a lock.


def opened(server: Server, path: bytes = b"d/file") -> int:
    server.ask(4, wire.Open(path, wire.OPEN_READ | wire.OPEN_WRITE))
    return int(server.answer(4, "open").handle)


def lock(server: Server, number: int, handle: int, **other: Any) -> Any:
    arguments = wire.Setlk(**{"handle": handle, "owner": 1, "start": 0, "end": 9, "type": 1, "current": True, **other})
    server.ask(number, arguments)
    return server.answer(number, "setlk")


def test_who_gets_a_lock_hears_first_what_was_changed_before(server: Server, root: Path) -> None:
    server.answering.begin(TERMS)
    server.ask(2, DIRECTORY)
    server.answer(2)
    handle = opened(server)
    for number, content in enumerate((b"one", b"thirteen", b"", b"twenty"), 3):
        (root / "d" / "file").write_bytes(content)
        (root / "d" / "other").write_bytes(content)
        server.messages.clear()
        found = lock(server, 2 * number, handle)
        assert (found.size, found.mtime) == (len(content), (root / "d" / "file").stat().st_mtime_ns)
        frames = [frame for message in server.messages for frame in message]
        answered = next(index for index, frame in enumerate(frames) if isinstance(frame, wire.Replied))
        told = [notice for notice in frames[:answered] if isinstance(notice, wire.Notice)]
        assert {b"d/file", b"d/other"} <= {path for notice in told for path in notice.paths}
        assert lock(server, 100 + 2 * number, handle, type=2, current=False) is None


def test_who_does_not_want_to_know_is_not_told(server: Server) -> None:
    server.answering.begin(TERMS)
    assert lock(server, 6, opened(server), current=False) is None


def test_what_is_said_again_is_not_said_to_be_current(server: Server) -> None:
    server.answering.begin(TERMS)
    handle = opened(server)
    assert lock(server, 6, handle).size == 7
    server.answering.suspend()
    server.answering.resume(TERMS)
    server.messages.clear()
    assert lock(server, 6, handle) is None


def test_where_that_cannot_be_said_nothing_is(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answering.begin(TERMS)
    handle = opened(server)
    attempt = server.export.attempt

    def fails(arguments: wire.Arguments) -> Any:
        if isinstance(arguments, wire.Getattr):
            raise OSError(5, "a disk at fault")
        return attempt(arguments)

    monkeypatch.setattr(server.export, "attempt", fails)
    assert lock(server, 6, handle) is None
    monkeypatch.undo()
    assert server.answering._watching is not None
    monkeypatch.setattr(server.answering._watching, "catch_up", lambda: False)
    assert lock(server, 8, handle) is None


def test_a_lock_that_is_not_given_says_nothing(server: Server) -> None:
    server.answering.begin(TERMS)
    handle = opened(server)
    lock(server, 6, handle)
    server.ask(8, wire.Setlk(handle, 2, 0, 9, 1, current=True))
    assert server.answer(8, "setlk") == "EAGAIN"
