import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fuse_gated.edge import answering as module
from fuse_gated.edge.answering import Answering
from fuse_gated.edge.files import Export
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.pool import Pool
from fuse_gated.errors import ProtocolError
from fuse_gated.operations import Attributes
from fuse_gated.wire import codec
from fuse_gated.wire import messages as wire
from fuse_gated.wire.tables import OPERATION_OF

BOTH = wire.OPEN_READ | wire.OPEN_WRITE


def terms(requests: int = 16, size: int = 2**20) -> wire.Terms:
    return wire.Terms(session="s", resume=b"", mount="/m", max_in_flight=requests, max_bytes_in_flight=size)


class Gate(threading.Event):
    """Holds up a call until it is set; `begun` tells that a call has come."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()


class Server:
    """The other end of an `Answering`: asks, and reads the replies."""

    def __init__(self, root: Path, threads: int = 2, *, watch: bool = True) -> None:
        self.loop = Loop()
        self.export = Export(root, watch=watch)
        self.pool = Pool(self.loop, threads)
        self.messages: list[bytes] = []
        self.unread = 0
        self.operations: dict[int, str] = {}
        self.replies: dict[int, wire.Replied] = {}
        self.order: list[int] = []
        self.answering = Answering(self.loop, self.export, self.pool, self._sent, lambda: self.unread)
        self.answering.begin(terms())
        self._next = 0

    def _sent(self, message: bytearray | codec.Parts) -> None:
        whole = b"".join(message) if isinstance(message, tuple) else bytes(message)
        self.messages.append(whole)
        for frame in codec.decode_from_client(whole):
            assert isinstance(frame, wire.Replied)
            assert frame.id not in self.replies
            self.replies[frame.id] = frame
            self.order.append(frame.id)

    def ask(self, arguments: wire.Arguments) -> int:
        self._next += 1
        self.operations[self._next] = OPERATION_OF[type(arguments)]
        message = bytearray(codec.encode(wire.Ask(self._next, self.operations[self._next], arguments)))
        [frame] = codec.decode_from_server(memoryview(message))
        assert isinstance(frame, wire.Asked)
        self.answering.asked(frame)
        # It lies in the connection's buffer, which the next one overwrites.
        message[:] = bytes(len(message))
        return self._next

    def wait(self, *numbers: int) -> None:
        while not self.replies.keys() >= set(numbers):
            self.loop.turn()

    def outcome(self, number: int) -> Any:
        """The result, or the errno's name."""
        self.wait(number)
        reply = self.replies[number]
        return reply.errno if reply.errno else codec.decode_result(self.operations[number], reply.result)

    def do(self, arguments: wire.Arguments) -> Any:
        return self.outcome(self.ask(arguments))

    def open(self, path: bytes = b"file") -> int:
        handle: int = self.do(wire.Open(path, BOTH)).handle
        return handle

    def slowly(self, monkeypatch: pytest.MonkeyPatch, name: str) -> Gate:
        """From now on os.NAME waits for the gate."""
        gate, really = Gate(), getattr(os, name)

        def waiting(*arguments: Any) -> Any:
            gate.begun.set()
            gate.wait()
            return really(*arguments)

        monkeypatch.setattr(os, name, waiting)
        return gate

    def close(self) -> None:
        self.answering.stop()
        assert self.pool.close(10)
        self.export.close()
        self.loop.close()


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    (root / "file").write_bytes(b"0123456789")
    server = Server(root)
    yield server
    server.close()


@pytest.fixture
def one_thread(root: Path) -> Iterator[Server]:
    (root / "file").write_bytes(b"0123456789")
    server = Server(root, threads=1)
    yield server
    server.close()


def violation(call: Callable[[], Any]) -> tuple[str, int]:
    with pytest.raises(ProtocolError) as raised:
        call()
    return raised.value.message, raised.value.close_code


def test_results_errors_and_unknown_operations(server: Server) -> None:
    assert isinstance(server.do(wire.Getattr(b"file")), Attributes)
    assert server.do(wire.Getattr(b"missing")) == "ENOENT"
    [frame] = codec.decode_from_server(codec.encode(wire.Ask(77, "frobnicate", ())))
    assert isinstance(frame, wire.Asked)
    server.answering.asked(frame)
    server.wait(77)
    assert server.replies[77].errno == "ENOSYS"


def test_long_data_leaves_at_once_behind_what_was_answered(server: Server, root: Path) -> None:
    data = os.urandom(wire.MAX_DATA)
    (root / "file").write_bytes(data)
    handle = server.open()
    server.messages.clear()
    first, second = server.ask(wire.Getattr(b"file")), server.ask(wire.Read(handle, 0, wire.MAX_DATA))
    assert len(server.messages) == 1
    assert server.order[-2:] == [first, second]
    third = server.ask(wire.Read(handle, 10, wire.MAX_DATA))
    assert len(server.messages) == 2
    assert server.outcome(second) == data
    assert server.outcome(third) == data[10:]


def test_what_waits_for_a_thread_or_for_room_is_written_as_it_came(server: Server, root: Path) -> None:
    flags = BOTH | wire.OPEN_SYNC
    handle = server.do(wire.Open(b"file", flags)).handle
    assert server.do(wire.Write(handle, 0, memoryview(b"by a thread"))) == 11
    server.unread = 2**20 + 1
    waiting = server.ask(wire.Write(handle, 11, memoryview(b" and behind unread answers")))
    server.unread = 0
    assert server.outcome(waiting) == 26
    assert (root / "file").read_bytes() == b"by a thread and behind unread answers"


def test_one_turn_leaves_in_one_message(server: Server) -> None:
    handle = server.open()
    before = len(server.messages)
    asked = [server.ask(wire.Read(handle, offset, 2)) for offset in range(5)] + [server.ask(wire.Getattr(b"missing"))]
    assert server.answering.in_flight == 6
    server.loop.turn()
    assert len(server.messages) == before + 1
    assert [bytes(server.outcome(number)) for number in asked[:5]] == [b"01", b"12", b"23", b"34", b"45"]
    assert server.answering.in_flight == 0
    assert (server.answering.operations, server.answering.bytes_read) == (6, 10)


def test_slow_work_does_not_hold_up_the_rest(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.open()
    gate = server.slowly(monkeypatch, "fsync")
    slow = server.ask(wire.Fsync(handle, False))
    assert server.do(wire.Write(handle, 0, memoryview(b"xy"))) == 2
    assert slow not in server.replies
    assert server.answering.in_flight == 1
    gate.set()
    assert server.outcome(slow) is None
    assert server.answering.bytes_written == 2
    large = server.do(wire.Write(handle, 0, memoryview(b"x" * 500_000)))
    assert (large, server.answering.bytes_written) == (500_000, 500_002)


def test_a_slow_failure_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.open()

    def failing(_: int) -> None:
        raise OSError(errno.EDQUOT, "quota")

    monkeypatch.setattr(os, "fsync", failing)
    assert server.do(wire.Fsync(handle, False)) == "EDQUOT"


def test_a_fault_of_ours_is_not_swallowed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.open()

    def broken(_: int) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr(os, "fsync", broken)
    number = server.ask(wire.Fsync(handle, False))
    with pytest.raises(KeyError, match="a fault"):
        server.wait(number)


def test_a_release_waits_for_what_runs(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.open()
    gate = server.slowly(monkeypatch, "fsync")
    slow = [server.ask(wire.Fsync(handle, False)), server.ask(wire.Fsync(handle, False))]
    release = server.ask(wire.Release(handle))
    assert server.do(wire.Read(handle, 0, 1)) == "EBADF"
    assert server.do(wire.Release(handle)) == "EBADF"
    assert release not in server.replies
    gate.set()
    server.wait(release, *slow)
    assert server.order[-1] == release
    assert server.outcome(release) is None
    assert server.export.open_handles == 0
    assert server.do(wire.Getattr(handle)) == "EBADF"


def test_a_directory_is_released_like_a_file(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.do(wire.Opendir(b"")).handle
    gate = server.slowly(monkeypatch, "fsync")
    slow = server.ask(wire.Fsyncdir(handle, False))
    release = server.ask(wire.Releasedir(handle))
    gate.set()
    server.wait(slow, release)
    assert server.order[-2:] == [slow, release]


def test_a_slow_release_shuts_the_handle(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "file").touch()
    monkeypatch.setattr("fuse_gated.edge.filesystems._LOCAL", frozenset())
    server = Server(root)
    handle = server.open()
    gate = threading.Event()
    really = server.export.perform
    monkeypatch.setattr(server.export, "perform", lambda arguments: gate.wait() and really(arguments))
    release = server.ask(wire.Release(handle))
    late = server.ask(wire.Setlk(handle, 1, 0, 0, 1))
    server.loop.turn()
    assert server.replies[late].errno == "EBADF"
    gate.set()
    assert server.outcome(release) is None
    assert server.do(wire.Release(handle)) == "EBADF"
    server.close()


def test_what_has_not_begun_is_cancelled(one_thread: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server = one_thread
    handle = server.open()
    gate = server.slowly(monkeypatch, "fsync")
    first, second = server.ask(wire.Fsync(handle, False)), server.ask(wire.Fsync(handle, False))
    release = server.ask(wire.Release(handle))
    server.answering.cancelled(wire.Cancel(second))
    server.answering.cancelled(wire.Cancel(release))
    server.answering.cancelled(wire.Cancel(999))
    assert server.outcome(second) == "EINTR"
    gate.set()
    assert server.outcome(first) is None
    assert server.outcome(release) is None


def test_a_lock_is_waited_for(server: Server) -> None:
    handle = server.open()
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    assert server.do(wire.Setlk(handle, 2, 0, 9, 1)) == "EAGAIN"
    waiting = server.ask(wire.Setlk(handle, 2, 0, 9, 1, wait=60_000))
    server.loop.turn()
    assert waiting not in server.replies
    assert server.do(wire.Setlk(handle, 1, 0, 9, 2)) is None
    assert server.outcome(waiting) is None
    assert server.do(wire.Getlk(handle, 1, 0, 9, 1)) == wire.LockState(1, 0, 9)


def test_a_lock_is_waited_for_no_longer_than_asked(server: Server) -> None:
    handle = server.open()
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    assert server.do(wire.Setlk(handle, 2, 0, 9, 1, wait=5)) == "EAGAIN"


def test_waiting_for_a_lock_is_cancelled(server: Server) -> None:
    handle = server.open()
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    waiting = server.ask(wire.Setlk(handle, 2, 0, 9, 1, wait=2**63))
    server.answering.cancelled(wire.Cancel(waiting))
    assert server.outcome(waiting) == "EINTR"
    assert server.do(wire.Setlk(handle, 1, 0, 9, 2)) is None
    assert server.do(wire.Getlk(handle, 3, 0, 9, 1)) == wire.LockState(2)


def test_waiting_ends_with_the_handle(server: Server) -> None:
    handle, other = server.open(), server.open()
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    waiting = server.ask(wire.Setlk(other, 2, 0, 9, 1, wait=60_000))
    assert server.do(wire.Release(other)) is None
    assert server.outcome(waiting) == "EBADF"


def test_flock_waits_too(server: Server) -> None:
    handle, other = server.open(), server.open()
    assert server.do(wire.Setlk(handle, 0, 0, 0, 1, flock=True)) is None
    waiting = server.ask(wire.Setlk(other, 0, 0, 0, 1, flock=True, wait=60_000))
    assert server.do(wire.Release(handle)) is None
    assert server.outcome(waiting) is None


def test_a_program_beside_the_files_lets_go(server: Server, root: Path) -> None:
    handle = server.open()
    mine = os.open(root / "file", os.O_RDWR)
    fcntl.fcntl(mine, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", 1, 0, 0, 0, 0))
    waiting = server.ask(wire.Setlk(handle, 1, 0, 9, 1, wait=60_000))
    server.loop.turn()
    os.close(mine)
    assert server.outcome(waiting) is None


def test_terms_are_bounded(server: Server) -> None:
    for bad in (terms(0), terms(module.MOST_IN_FLIGHT + 1), terms(1, 0), terms(1, module.MOST_BYTES_IN_FLIGHT + 1)):
        assert violation(lambda bad=bad: server.answering.begin(bad))[1] == 1008


def test_requests_in_flight_are_bounded(server: Server) -> None:
    server.answering.resume(terms(3))
    for _ in range(3):
        server.ask(wire.Getattr(b"file"))
    assert violation(lambda: server.ask(wire.Getattr(b"file"))) == ("more than 3 requests in flight", 1008)


def test_bytes_in_flight_are_bounded(server: Server) -> None:
    handle = server.open()
    server.answering.resume(terms(16, 1000))
    server.ask(wire.Read(handle, 0, 600))
    server.ask(wire.Read(handle, 0, -5))
    assert violation(lambda: server.ask(wire.Read(handle, 0, 401))) == ("more than 1000 bytes in flight", 1008)
    server.loop.turn()
    # One alone may be larger, else it could never be asked.
    assert server.do(wire.Write(handle, 0, memoryview(b"x" * 2000))) == 2000
    assert server.do(wire.Read(handle, 0, 1000)) == b"x" * 1000


def test_an_id_is_in_flight_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.open()
    gate = server.slowly(monkeypatch, "fsync")
    number = server.ask(wire.Fsync(handle, False))
    server._next = number - 1
    assert violation(lambda: server.ask(wire.Getattr(b"file")))[1] == 1008
    gate.set()
    server.wait(number)


def test_malformed_arguments_are_a_violation(server: Server) -> None:
    [frame] = codec.decode_from_server(codec.encode(wire.Ask(1, "getattr", ("not a path",))))
    assert isinstance(frame, wire.Asked)
    message, code = violation(lambda: server.answering.asked(frame))
    assert code == 1007
    assert "getattr" in message


def test_a_server_that_does_not_read_gets_no_more_answers(server: Server) -> None:
    handle = server.open()
    server.unread = 2**20 + 1
    asked = [server.ask(wire.Read(handle, 0, 3)) for _ in range(15)]
    assert server.answering.in_flight == 15
    server.loop.turn()
    server.loop.turn()
    assert not server.replies.keys() & set(asked)
    server.ask(wire.Getattr(b"file"))
    assert violation(lambda: server.ask(wire.Getattr(b"file")))[1] == 1008
    server.unread = 0
    server.wait(*asked)
    assert bytes(server.outcome(asked[-1])) == b"012"


def test_a_server_that_asks_on_and_on_and_reads_nothing_is_refused(server: Server) -> None:
    """Also where its requests cost nothing: each has an answer."""
    server.unread = 2 * 2**20 + wire.MAX_MESSAGE
    server.ask(wire.Getattr(b"file"))
    server.unread += 1
    message, code = violation(lambda: server.ask(wire.Getattr(b"file")))
    assert code == 1008
    assert "no answer read" in message


def test_a_long_message_leaves_before_the_turn_ends(server: Server, root: Path) -> None:
    (root / "file").write_bytes(b"x" * codec.LONG)
    handle = server.open()
    server.answering.resume(terms(16, 2 * codec.LONG))
    long, short = server.ask(wire.Read(handle, 0, codec.LONG)), server.ask(wire.Read(handle, 0, 1))
    assert server.order[-1] == long
    assert server.answering.in_flight == 1
    server.wait(short)


def test_what_changes_while_nobody_is_there_is_not_told(server: Server) -> None:
    server.answering.suspend()
    before = len(server.messages)
    server.answering._tell(wire.Notice((b"file",)))
    server.loop.soon(lambda: None)
    server.loop.turn()
    assert len(server.messages) == before


def test_nothing_needs_to_be_watched(root: Path) -> None:
    server = Server(root, watch=False)
    server.answering.suspend()
    server.answering.resume(terms())
    assert server.do(wire.Getattr(b"missing")) == "ENOENT"
    server.close()


def test_stopping_answers_nothing_more(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = server.open()
    gate = server.slowly(monkeypatch, "fsync")
    assert server.do(wire.Setlk(handle, 1, 0, 9, 1)) is None
    before = len(server.messages)
    server.ask(wire.Fsync(handle, False))
    server.ask(wire.Setlk(handle, 2, 0, 9, 1, wait=1))
    server.ask(wire.Getattr(b"file"))
    gate.begun.wait()
    server.answering.stop()
    gate.set()
    done: list[None] = []
    server.pool.submit(lambda: None, lambda *_: done.append(None))
    while not done:
        server.loop.turn()
    assert server.pool.close(10)
    server.loop.soon(lambda: None)
    server.loop.turn()
    assert len(server.messages) == before
