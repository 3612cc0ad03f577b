"""edge/inbox.py: a request that was read, by somebody who ended before anything was done about it."""

import contextlib
import errno
import os
import select
import signal
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from harness import need
from harness.hostile import Child
from harness.log import DEADLINE
from harness.waiting import until

from fuse_gated import operations as op
from fuse_gated.edge import fuse_kernel, inbox, mounts
from fuse_gated.edge.fuse_kernel import FLAGS, KernelDriver, Negotiated
from fuse_gated.edge.fuse_requests import IN_HEADER, OPCODES, decode
from fuse_gated.edge.inbox import Inbox
from fuse_gated.edge.keeping import STATE_SIZE
from fuse_gated.edge.memory import make_state
from fuse_gated.edge.notifying import Notifier
from fuse_gated.edge.state import State
from fuse_gated.errors import KernelError
from fuse_gated.tree.journal import Asked

NUMBERS = {name: number for number, (name, _) in OPCODES.items()} | {"INIT": 26, "NOTIFY_REPLY": 41}
WITHOUT = Negotiated(45, sum(FLAGS.values()) & ~FLAGS["HAS_RESEND"], 2**20)
PAGE = os.sysconf("SC_PAGE_SIZE")


def noted() -> None:
    """What the mount's beginning and end are told to."""


class Killed(BaseException):
    pass


class Worker:
    """One after the other: each maps the memory anew."""

    def __init__(self, fd: int, memory: int, notifier: Notifier, negotiated: Negotiated | None = WITHOUT) -> None:
        self.state = State(memory, STATE_SIZE, list)
        self.requests: list[tuple[int, op.Request]] = []
        self.ended = 0
        self.answer: Callable[[op.Request], op.Answer | None] = lambda _: None
        self.driver = KernelDriver(fd, notifier, self._request, self.read_into, self._ended, negotiated, ("resend",))
        if negotiated is not None:
            self.read_into()

    def read_into(self) -> None:
        assert self.driver.keeps_requests
        assert self.state.inbox is not None
        self.driver.read_into(self.state.inbox)

    def left(self) -> int:
        assert self.state.inbox is not None
        return self.state.inbox.left()

    def _request(self, unique: int, _caller: op.Caller, request: op.Request) -> None:
        if isinstance(request, op.Write):
            request = msgspec.structs.replace(request, data=bytes(request.data))
        self.requests.append((unique, request))
        answer = self.answer(request)
        if answer is not None:
            self.driver.answer(request.unique if isinstance(request, op.Interrupt) else unique, answer)

    def _ended(self) -> None:
        self.ended += 1


class Scene:
    """The kernel's end of a socket, and what goes from worker to worker."""

    def __init__(self, notifier: Notifier) -> None:
        self.kernel, self._device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.setblocking(False)
        self.memory = make_state()
        self._notifier = notifier

    def worker(self) -> Worker:
        return Worker(self._device.fileno(), self.memory, self._notifier)

    def send(self, name: str, body: bytes = b"", unique: int = 2) -> None:
        self.kernel.send(header(name, unique, IN_HEADER.size + len(body)) + body)

    def leave(self, data: bytes) -> None:
        os.pwrite(self.memory, data, STATE_SIZE - inbox.SIZE)

    def asked(self) -> int:
        """Of which request somebody has asked whether it is waited for."""
        length, error, unique = struct.unpack("=IiQ", self.kernel.recv(2**21))
        assert (length, error) == (16, 0)
        return int(unique)

    def close(self) -> None:
        self.kernel.close()
        self._device.close()
        os.close(self.memory)


def header(name: str, unique: int, length: int) -> bytes:
    return IN_HEADER.pack(length, NUMBERS[name], unique, 1, 1000, 1001, 4321, 0, 0)


def write(data: bytes) -> bytes:
    return struct.pack("=QQIIQII", 7, 0, len(data), 0, 0, 0, 0) + data


@pytest.fixture
def notifier() -> Iterator[Notifier]:
    notifier = Notifier()
    yield notifier
    notifier.stop()


@pytest.fixture
def scene(notifier: Notifier) -> Iterator[Scene]:
    scene = Scene(notifier)
    yield scene
    scene.close()


# What is left in it.


def test_a_fresh_one_has_nothing(scene: Scene) -> None:
    assert scene.worker().left() == 0


def test_what_was_read_is_left_until_it_is_taken() -> None:
    room, taken = bytearray(100), memoryview(bytearray(8)).cast("Q")
    box = Inbox(memoryview(room), taken)
    for unique in (2, 2**63 + 4, 2**64 - 1):
        room[:40] = header("GETATTR", unique, 40 + unique % 3)
        assert box.left() == 40 + unique % 3
        box.take(unique)
        assert (box.left(), taken[0]) == (0, unique)
    box.release()
    room.clear()


@pytest.mark.parametrize("length", [0, 39, 101, 2**31, 2**32 - 1])
def test_what_is_no_request(length: int) -> None:
    room = bytearray(header("GETATTR", 2, length).ljust(100, b"\0"))
    with pytest.raises(ValueError, match=f"a request of {length} bytes was left"):
        Inbox(memoryview(room), memoryview(bytearray(8)).cast("Q")).left()


def test_it_has_room_for_the_largest_request() -> None:
    assert inbox.SIZE >= fuse_kernel._BUFFER
    assert inbox.SIZE % 2**16 == 0, "whole pages, also of 64 KiB"


# In the state.


def test_it_is_there_for_the_next(scene: Scene) -> None:
    scene.leave(header("GETATTR", 8, 56))
    first = scene.worker()
    assert first.left() == 56
    assert first.state.inbox is not None
    first.state.inbox.take(8)
    assert scene.worker().left() == 0


def test_it_is_in_nobodys_way(scene: Scene) -> None:
    """Neither of the logs' two halves nor the numbers."""
    state = State(scene.memory, STATE_SIZE, list)
    assert state.inbox is not None
    state.inbox.room[:] = b"\xff" * inbox.SIZE
    state.inbox.take(2**64 - 1)
    state.commit([Asked(2, b"raw")])
    room = state._logs + 2 * state._half
    assert 0 <= STATE_SIZE - inbox.SIZE - room < 2 * PAGE
    again = State(scene.memory, STATE_SIZE, list)
    assert list(again.rows()) == [Asked(2, b"raw")]
    assert (again.about, again.last_sealed().sequence, again.next_epoch()) == (b"", 0, 1)
    again.compact()
    assert bytes(state.inbox.room) == b"\xff" * inbox.SIZE
    state.close()
    again.close()


def test_it_takes_no_memory_before_it_is_used(scene: Scene) -> None:
    worker = scene.worker()
    before = os.fstat(scene.memory).st_blocks
    scene.send("GETATTR", bytes(16))
    worker.driver.ready()
    assert worker.requests
    assert (os.fstat(scene.memory).st_blocks - before) * 512 == PAGE


def test_a_small_memory_has_none(scene: Scene) -> None:
    state = State(scene.memory, 8 * 2**20, list)
    assert state.inbox is None
    state.close()


# In the driver.


def test_what_is_taken_over_is_not_replayed(scene: Scene) -> None:
    worker = scene.worker()
    for unique, (name, body) in enumerate(
        [("GETATTR", bytes(16)), ("WRITE", write(b"data")), ("FORGET", bytes(8)), ("INTERRUPT", bytes(8)), ("NOTIFY_REPLY", b"")]
    ):
        scene.send(name, body, unique=2 * unique + 2)
        worker.driver.ready()
        next_one = scene.worker()
        if name != "NOTIFY_REPLY":
            assert worker.requests[-1][0] == 2 * unique + 2
            assert next_one.left() == 0
        next_one.driver.replay_left(())
        assert next_one.requests == []


@pytest.mark.parametrize(
    ("name", "body", "asked"),
    [
        ("WRITE", write(b"data" * 2**15), [9]),
        ("STATFS", b"", [9]),
        ("FORGET", struct.pack("=Q", 3), []),
        ("BATCH_FORGET", struct.pack("=II2Q", 1, 0, 5, 7), []),
        ("INTERRUPT", struct.pack("=Q", 6), []),
    ],
)
def test_what_is_not_taken_over_is_replayed_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, name: str, body: bytes, asked: list[int]
) -> None:
    scene.send(name, body, unique=8)

    def die(*_: object) -> None:
        raise Killed

    first = scene.worker()
    with monkeypatch.context() as patch:
        patch.setattr(fuse_kernel, "decode", die)
        with pytest.raises(Killed):
            first.driver.ready()
    second = scene.worker()
    second.driver.replay_left(())
    [(unique, request)] = second.requests
    assert (unique, type(request).__name__.upper()) == (8, name.removeprefix("BATCH_"))
    if isinstance(request, op.Write):
        assert request.data == b"data" * 2**15
    assert [scene.asked() for _ in asked] == asked
    third = scene.worker()
    third.driver.replay_left(())
    assert (third.requests, first.requests) == ([], [])


def test_it_is_kept_before_it_is_taken_over_and_taken_over_before_it_is_done(scene: Scene) -> None:
    """An INTERRUPT, of which nothing is kept, is done before."""
    order: list[tuple[str, int]] = []
    worker = scene.worker()
    worker.driver.on_raw = lambda unique, _: order.append(("kept", worker.left() and unique))
    worker.answer = lambda request: order.append((type(request).__name__, worker.left()))
    scene.send("GETATTR", bytes(16), unique=8)
    scene.send("FORGET", bytes(8), unique=10)
    scene.send("INTERRUPT", struct.pack("=Q", 8), unique=9)
    worker.driver.ready()
    assert order == [("kept", 8), ("Getattr", 0), ("Forget", 0), ("Interrupt", 48)]
    assert worker.left() == 0


def test_what_is_kept_in_another_way_is_not_replayed_twice(scene: Scene) -> None:
    scene.leave(header("GETATTR", 8, 56) + bytes(16))
    worker = scene.worker()
    worker.driver.replay_left({8: b""})
    assert worker.requests == []


def test_what_others_have_kept_is_replayed_without_touching_what_is_left(scene: Scene) -> None:
    """Whoever replays may be killed as well."""
    scene.leave(header("GETATTR", 8, 56) + bytes(16))
    worker = scene.worker()
    worker.driver.replay(header("STATFS", 4, 40))
    assert worker.requests == [(4, op.Statfs(1))]
    successor = scene.worker()
    successor.driver.replay_left({4: b""})
    assert successor.requests == [(8, op.Getattr(1, None))]


def test_a_request_that_nobody_waits_for_may_not_be_whole(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reader was killed while the kernel copied it, which has told the caller: what is here is partly of another."""
    scene.leave(header("WRITE", 8, 40 + 40 + 4) + write(b"data"))
    refused = OSError(errno.ENOENT, "no such request")

    def refuse(*_: object) -> int:
        raise refused

    worker = scene.worker()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        worker.driver.replay_left(())
    assert worker.requests == []


@pytest.mark.parametrize(("pages", "replayed"), [(1, 1), (2, 0)])
def test_what_nobody_ever_waits_for_is_whole_on_one_page(scene: Scene, pages: int, replayed: int) -> None:
    """Of names that are not forgotten too many are counted, which is safe."""
    count = (pages * PAGE - 48) // 16
    body = struct.pack("=II", count, 0) + struct.pack("=QQ", 5, 1) * count
    scene.leave(header("BATCH_FORGET", 8, 40 + len(body)) + body)
    worker = scene.worker()
    worker.driver.replay_left(())
    assert [len(request.nodes) for _, request in worker.requests if isinstance(request, op.Forget)] == [count] * replayed


GARBAGE = {
    "shorter than a header": header("GETATTR", 8, 39),
    "longer than its room": header("WRITE", 8, inbox.SIZE + 1),
    "without a body": header("GETATTR", 8, 40),
    "without an end": header("LOOKUP", 8, 44) + b"name",
    "what is settled": header("INIT", 8, 104) + struct.pack("=IIII", 7, 45, 2**20, 0),
    "many that are not there": header("BATCH_FORGET", 8, 48) + struct.pack("=II", 2**31, 0),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage(scene: Scene, name: str) -> None:
    scene.leave(GARBAGE[name])
    worker = scene.worker()
    with pytest.raises((ValueError, struct.error, KernelError)):
        worker.driver.replay_left(())
    assert worker.requests == []


def test_without_an_inbox_nothing_is_left(scene: Scene, notifier: Notifier) -> None:
    scene.leave(header("GETATTR", 8, 56) + bytes(16))
    seen: list[object] = []
    driver = KernelDriver(scene.kernel.fileno(), notifier, lambda *request: seen.append(request), noted, noted, WITHOUT)
    driver.replay_left(())
    assert seen == []


# With a real kernel.


def attributes(inode: int, mode: int) -> op.Attributes:
    return op.Attributes(7, inode, mode, 1, 0, 0, 0, 0, 0, 4096, 10**9, 2 * 10**9, 3 * 10**9)


ROOT, FILE = attributes(1, stat.S_IFDIR | 0o755), attributes(2, stat.S_IFREG | 0o644)


def answer(request: op.Request) -> op.Answer | None:
    match request:
        case op.Lookup():
            return op.Entry(2, FILE)
        case op.Getattr(node) | op.Setattr(node):
            return op.Attr(ROOT if node == 1 else FILE)
        case op.Open():
            return op.Opened(40)
        case op.Write(data=data):
            return op.Count(len(data))
        case op.Forget() | op.Destroy() | op.Fsync():
            return None
        case op.Interrupt():
            return op.Failed(errno.EINTR)
        case op.Unserved():
            return op.Failed(errno.ENOSYS)
    return op.Done()


@pytest.fixture
def point(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    need("root", "fuse")
    point = tmp_path / "point"
    point.mkdir()
    directory = os.open(point, os.O_PATH | os.O_DIRECTORY)
    device = mounts.mount_fuse(directory, source="fuse-gated-test")
    os.close(directory)
    yield point, device
    with contextlib.suppress(KernelError):
        mounts.unmount(str(point))
    os.close(device)
    assert mounts.mounts_beneath(str(tmp_path)) == []


def work(device: int, memory: int, notifier: Notifier, last: int) -> None:
    """As a worker, until a request of this opcode is read: before anything is done about it, this process is no more."""

    def decode_or_die(opcode: int, node: int, body: memoryview) -> op.Request:
        if opcode == last:
            os._exit(9)
        return decode(opcode, node, body)

    pytest.MonkeyPatch().setattr(fuse_kernel, "decode", decode_or_die)
    worker = Worker(device, memory, notifier, None)
    worker.answer = answer

    def keep(unique: int, raw: bytes) -> None:
        worker.state.commit([Asked(unique, raw)])

    worker.driver.on_raw = keep
    while not worker.ended and select.select([device], [], [], DEADLINE)[0]:
        worker.driver.ready()


def write_f(path: Path, data: bytes) -> int:
    with open(path, "wb", buffering=0) as file:
        return int(file.write(data))


def sync_f(path: Path) -> None:
    with open(path, "wb") as file:
        os.fsync(file.fileno())


@pytest.mark.parametrize("name", ["WRITE", "INTERRUPT", "FORGET"])
def test_a_worker_that_is_gone_between_reading_and_keeping(
    point: tuple[Path, int], scene: Scene, notifier: Notifier, name: str
) -> None:
    """The kernel does not send it again, and its caller would wait for ever."""
    path, device = point
    data = os.urandom(2**20)
    functions = {"WRITE": (write_f, path / "f", data), "INTERRUPT": (sync_f, path / "f"), "FORGET": (os.unlink, path / "f")}
    with Child(work, device, scene.memory, notifier, NUMBERS[name]) as first, Child(*functions[name]) as caller:
        if name == "INTERRUPT":
            until(lambda: any(opcode(row.raw) == NUMBERS["FSYNC"] for row in kept(scene)), "it waits for its fsync")
            caller.send(signal.SIGINT)
        assert first.wait(DEADLINE)
        assert first.reap() == 9
        numbers = {row.request: opcode(row.raw) for row in kept(scene)}
        successor = Worker(device, scene.memory, notifier, WITHOUT)
        successor.answer = answer
        assert successor.left() > 0
        successor.driver.replay_left(numbers)
        [(unique, request)] = successor.requests
        while not caller.wait(0):
            assert select.select([device, caller], [], [], DEADLINE)[0], "its caller waits for ever"
            successor.driver.ready()
        if name == "WRITE":
            assert isinstance(request, op.Write)
            assert request.data == data
            assert caller.result() == len(data)
        elif name == "INTERRUPT":
            assert isinstance(request, op.Interrupt)
            assert numbers[request.unique] == NUMBERS["FSYNC"]
            assert caller.reap() == -signal.SIGINT
        else:
            assert request == op.Forget(((2, 1),))
            assert caller.result() is None
        # Whatever the number says: the kernel knows of what it does not wait for.
        assert successor.state.inbox is not None
        third = Worker(device, scene.memory, notifier, WITHOUT)
        third.driver.replay_left(())
        if name == "WRITE":
            successor.state.inbox.take(0)
            assert third.left() > 0
            third.driver.replay_left(())
        assert third.requests == []
    assert sum(found == unique for found, _ in successor.requests) == 1


def kept(scene: Scene) -> list[Asked]:
    state = State(scene.memory, STATE_SIZE, list)
    rows = [row for row in state.rows() if isinstance(row, Asked)]
    state.close()
    return rows


def opcode(raw: bytes) -> int:
    return int(IN_HEADER.unpack_from(raw)[1])
