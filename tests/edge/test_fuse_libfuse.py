"""edge/fuse_libfuse.py: the worker's end of the libfuse driver, with a socket pair in place of libfuse's process."""

import socket
from collections.abc import Iterator
from errno import EACCES, EIO, ENOENT
from typing import Any

import pytest

from fuse_gated import operations as op
from fuse_gated.edge import hosting
from fuse_gated.edge.fuse_libfuse import LibfuseDriver
from fuse_gated.edge.loop import Loop
from fuse_gated.operations import Attributes, Caller

CALLER = Caller(1000, 1000, 4321)
HIDDEN = b".fuse_hidden0000000200000001"
FOUND = Attributes(7, 5, 0o100644, 0, 500, 501, 0, 5, 8, 4096, 1, 2, 3)
WRITABLE, TRUNCATING = 0o2, 0o1002


class Worker:
    """A driver, and what it said. `host` is the other end of its socket."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.host, self.end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.host.settimeout(10)
        self.requests: list[tuple[int, Caller, op.Request]] = []
        self.events: list[str] = []
        self.driver = LibfuseDriver(
            self.end.fileno(),
            self.loop,
            lambda unique, caller, request: self.requests.append((unique, caller, request)),
            lambda: self.events.append("ready"),
            lambda: self.events.append("end"),
        )

    def begin(self) -> None:
        self.host.send(hosting.encode_began(19, 131072))
        self.driver.ready()
        self.requests.clear()

    def ask(self, unique: int, request: op.Request, caller: Caller = CALLER) -> op.Request | None:
        """libfuse asks; what the driver makes of it, if it asks at all."""
        self.host.send(hosting.encode_request(unique, caller, request))
        self.driver.ready()
        return self.requests.pop()[2] if self.requests else None

    def answered(self, kind: type[op.Request] = op.Unlink) -> Any:
        """The next answer: its errno, or the result."""
        found = hosting.decode_answer(self.host.recv(hosting.MAX_PACKET))
        return found.errno or hosting.decode_result(kind, found.result)

    def close(self) -> None:
        self.host.close()
        self.end.close()
        self.loop.close()


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture
def begun(worker: Worker) -> Worker:
    worker.begin()
    return worker


def test_the_beginning(worker: Worker) -> None:
    assert worker.driver.negotiated is None
    worker.host.send(hosting.encode_began(19, 131072))
    worker.driver.ready()
    negotiated: Any = worker.driver.negotiated
    assert (negotiated.minor, negotiated.flags, negotiated.max_write) == (19, 0, 131072)
    assert worker.events == ["ready"]
    assert worker.requests == [(0, Caller(0, 0, 0), op.Getattr(b""))], "the root is looked at, whoever does not"
    worker.driver.answer(0, op.Attr(FOUND))
    worker.host.setblocking(False)
    with pytest.raises(BlockingIOError):
        worker.host.recv(1)


def test_a_request_and_its_answer(begun: Worker) -> None:
    begun.host.send(hosting.encode_request(2, CALLER, op.Lookup(b"d", b"f")))
    begun.host.send(hosting.encode_request(4, Caller(0, 0, 0), op.Write(b"", 5, 0, b"data")))
    begun.driver.ready()
    (unique, caller, lookup), (_, other, write) = begun.requests
    assert (unique, caller, lookup, other) == (2, CALLER, op.Lookup(b"d", b"f"), Caller(0, 0, 0))
    assert isinstance(write, op.Write)
    begun.driver.answer(2, op.Entry(1, FOUND))
    assert begun.answered(op.Lookup) == FOUND
    begun.driver.answer(4, op.Failed(EIO))
    assert begun.answered() == EIO


def test_many_requests_are_read_a_few_at_a_time(begun: Worker) -> None:
    for number in range(20):
        begun.host.send(hosting.encode_request(2 + 2 * number, CALLER, op.Statfs(b"")))
    begun.driver.ready()
    assert len(begun.requests) == 16
    begun.driver.ready()
    assert len(begun.requests) == 20


def test_a_host_that_is_gone(begun: Worker) -> None:
    begun.host.close()
    begun.driver.answer(2, op.Done())
    begun.driver.ready()
    begun.driver.ready()
    assert begun.events == ["ready", "end"]


def test_a_host_that_was_killed(begun: Worker) -> None:
    """What it had not read makes an error of the end."""
    begun.driver.answer(2, op.Done())
    begun.host.close()
    begun.driver.ready()
    assert begun.events == ["ready", "end"]


@pytest.mark.parametrize(
    "packets",
    [
        [b"\xc1"],
        [hosting.encode_request(2, CALLER, op.Statfs(b""))],
        [hosting.encode_began(19, 1), hosting.encode_began(19, 1)],
    ],
    ids=["nonsense", "a request before the beginning", "two beginnings"],
)
def test_a_host_that_is_not_the_one_it_was(worker: Worker, packets: list[bytes]) -> None:
    for packet in [*packets, hosting.encode_request(4, CALLER, op.Statfs(b""))]:
        worker.host.send(packet)
    worker.driver.ready()
    assert worker.events[-1] == "end"
    assert [request for _, _, request in worker.requests if isinstance(request, op.Statfs)] == []


def test_answers_wait_for_room(begun: Worker) -> None:
    """A host that does not read blocks nobody, and loses nothing."""
    for number in range(100):
        begun.driver.answer(2 + 2 * number, op.Data(bytes([number]) * 65536))
    begun.host.setblocking(False)
    for number in range(100):
        try:
            answer = begun.answered(op.Read)
        except BlockingIOError:
            begun.loop.turn()
            answer = begun.answered(op.Read)
        assert answer == bytes([number]) * 65536
    assert begun.driver.answer_in_order(2, op.Data(b"last")) is None
    assert begun.answered(op.Read) == b"last"


def test_a_host_that_goes_while_answers_wait(begun: Worker) -> None:
    for number in range(100):
        begun.driver.answer(2 + 2 * number, op.Data(bytes(65536)))
    begun.host.close()
    begun.loop.turn()
    assert not begun.driver._outgoing
    begun.driver.ready()
    assert begun.events == ["ready", "end"]


def test_there_is_nothing_to_invalidate(begun: Worker) -> None:
    begun.driver.invalidate_inode(1, pages=True)
    begun.driver.invalidate_entry(1, b"f")
    begun.host.setblocking(False)
    with pytest.raises(BlockingIOError):
        begun.host.recv(1)


# Setuid.


@pytest.mark.parametrize(("flags", "uid", "kills"), [(TRUNCATING, 1000, True), (TRUNCATING, 0, False), (WRITABLE, 1000, False)])
def test_truncating_by_open_drops_setuid(begun: Worker, flags: int, uid: int, kills: bool) -> None:
    assert begun.ask(2, op.Open(b"f", flags), Caller(uid, uid, 1)) == op.Open(b"f", flags, kills)


# Hidden names.


def test_hiding_is_removing(begun: Worker) -> None:
    alias = b"d/" + HIDDEN
    assert begun.ask(2, op.Rename(b"d", b"f", b"d", HIDDEN, 0)) == op.Unlink(b"d", b"f", alias)
    assert begun.ask(4, op.Lookup(b"d", HIDDEN)) == op.Getattr(alias)
    begun.driver.answer(4, op.Attr(FOUND))
    assert begun.answered(op.Lookup).nlink == 1, "libfuse takes one off"
    assert begun.ask(6, op.Lookup(b"d", HIDDEN)) == op.Getattr(alias)
    begun.driver.answer(6, op.Failed(EIO))
    assert begun.answered() == EIO
    assert begun.ask(8, op.Open(alias, 0)) == op.Open(alias, 0)
    assert begun.ask(10, op.Unlink(b"d", HIDDEN)) == op.Unlink(b"d", HIDDEN)


@pytest.mark.parametrize(
    ("request_", "errno"),
    [
        (op.Rmdir(b"d", HIDDEN), ENOENT),
        (op.Rename(b"d", HIDDEN, b"d", b"f", 0), ENOENT),
        (op.Rename(b"d", b"f", b"e", HIDDEN, 0), EACCES),
        (op.Rename(b"d", HIDDEN, b"d", HIDDEN[:-1] + b"2", 0), EACCES),
        (op.Link(b"d/f", b"d", HIDDEN), EACCES),
        (op.Create(b"d", HIDDEN, 0o101, 0o644, 0), EACCES),
        (op.Mkdir(b"d", HIDDEN, 0o755, 0), EACCES),
        (op.Mknod(b"d", HIDDEN, 0o010644, 0, 0), EACCES),
        (op.Symlink(b"d", HIDDEN, b"x"), EACCES),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, op.Request) else "",
)
def test_hidden_names_are_nobodys(begun: Worker, request_: op.Request, errno: int) -> None:
    assert begun.ask(2, request_) is None
    assert begun.answered() == errno


def test_an_attribute_may_have_any_name(begun: Worker) -> None:
    requests = (op.Getxattr(b"f", HIDDEN, 0), op.Setxattr(b"f", HIDDEN, b"", 0), op.Removexattr(b"f", HIDDEN))
    for number, request in enumerate(requests):
        assert begun.ask(2 + 2 * number, request) == request


# What a worker was killed over.


class Killed(BaseException):
    pass


def die(*_: object) -> None:
    raise Killed


def successor(worker: Worker) -> Worker:
    """Another driver of the same socket."""
    after = Worker()
    after.host.close()
    after.end.close()
    after.host, after.end = worker.host, worker.end
    after.driver = LibfuseDriver(
        worker.end.fileno(),
        after.loop,
        lambda unique, caller, request: after.requests.append((unique, caller, request)),
        lambda: after.events.append("ready"),
        lambda: after.events.append("end"),
        worker.driver.negotiated,
    )
    return after


def test_a_request_that_was_read_and_not_kept_is_there_for_a_successor(begun: Worker) -> None:
    begun.driver.on_raw = die
    with pytest.raises(Killed):
        begun.ask(2, op.Unlink(b"", b"f"))
    after = successor(begun)
    after.driver.replay_left({})
    after.driver.ready()
    assert [unique for unique, _, _ in after.requests] == [2]
    after.driver.ready()
    assert [unique for unique, _, _ in after.requests] == [2], "once"
    after.loop.close()


def test_a_request_that_was_kept_and_not_taken_is_not_done_twice(begun: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[int, bytes] = {}
    begun.driver.on_raw = kept.__setitem__
    monkeypatch.setattr(begun.driver, "_take", die)
    with pytest.raises(Killed):
        begun.ask(2, op.Unlink(b"", b"f"))
    begun.host.send(hosting.encode_request(4, CALLER, op.Unlink(b"", b"g")))
    after = successor(begun)
    after.driver.replay_left(kept)
    for raw in kept.values():
        after.driver.replay(raw)
    after.driver.ready()
    assert [unique for unique, _, _ in after.requests] == [2, 4]
    after.loop.close()


def test_a_signal_is_told_before_it_is_taken(begun: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    begun.ask(2, op.Unlink(b"", b"f"))
    monkeypatch.setattr(begun.driver, "_on_request", die)
    with pytest.raises(Killed):
        begun.ask(4, op.Interrupt(2))
    after = successor(begun)
    after.driver.replay_left({2: b""})
    after.driver.ready()
    assert [request for _, _, request in after.requests] == [op.Interrupt(2)]
    after.driver.ready()
    assert len(after.requests) == 1
    after.loop.close()


@pytest.mark.parametrize("left", [None, b"nonsense", hosting.encode_began(19, 131072)])
def test_what_is_no_request_is_left_where_it_is(begun: Worker, left: bytes | None) -> None:
    if left is not None:
        begun.host.send(left)
    begun.driver.replay_left({2: b""})
    begun.driver.ready()
    assert begun.events == (["ready"] if left is None else ["ready", "end"])
