"""Leases are a connection's: what a server is told of them is true for the connection on which it is told."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fuse_gated.edge import leases as module
from fuse_gated.edge.answering import Answering
from fuse_gated.edge.files import Export
from fuse_gated.edge.leases import ROOM, Leases
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.pool import Pool
from fuse_gated.wire import codec
from fuse_gated.wire import messages as wire
from fuse_gated.wire.tables import OPERATION_OF

TERMS = wire.Terms(session="s", resume=b"", mount="/m", max_in_flight=16, max_bytes_in_flight=2**20)
CREATE = wire.Create(b"file", wire.OPEN_READ | wire.OPEN_WRITE, 0o644, None, ROOM)


class Client:
    """`quick`: what is asked is done at once, and not on a thread."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, *, quick: bool) -> None:
        local = quick
        monkeypatch.setattr("fuse_gated.edge.filesystems.Filesystems.is_local", lambda *_: local)
        self.loop = Loop()
        self.leases = Leases(self.loop)
        self.export = Export(root, leases=self.leases)
        local = True
        self.pool = Pool(self.loop, 2)
        self.said: list[Any] = []
        self.answering = Answering(self.loop, self.export, self.pool, self._sent, lambda: 0)
        self.answering.begin(TERMS)

    def _sent(self, message: bytearray) -> None:
        self.said += codec.decode_from_client(bytes(message))

    def ask(self, number: int, arguments: wire.Arguments) -> None:
        [frame] = codec.decode_from_server(codec.encode(wire.Ask(number, OPERATION_OF[type(arguments)], arguments)))
        assert isinstance(frame, wire.Asked)
        self.answering.asked(frame)

    def create(self, number: int = 2) -> wire.OpenedFile:
        self.ask(number, CREATE)
        return self.created(number)

    def created(self, number: int = 2) -> wire.OpenedFile:
        """What the server is told last."""
        self.turn_until(lambda: any(isinstance(frame, wire.Replied) and frame.id == number for frame in self.said))
        reply = [frame for frame in self.said if isinstance(frame, wire.Replied) and frame.id == number][-1]
        assert reply.errno is None
        made: wire.OpenedFile = codec.decode_result("create", reply.result)
        return made

    def turn_until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.loop.turn()

    def lose(self) -> None:
        self.answering.suspend()
        self.said.clear()

    def close(self) -> None:
        self.answering.stop()
        assert self.pool.close(10)
        self.export.close()
        self.loop.close()


@pytest.fixture
def made(root: Path, no_umask: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], Client]]:
    before = signal.getsignal(signal.SIGIO)
    clients: list[Client] = []

    def make(quick: bool) -> Client:
        clients.append(Client(root, monkeypatch, quick=quick))
        return clients[-1]

    yield make
    monkeypatch.undo()
    for client in clients:
        client.close()
    signal.signal(signal.SIGIO, before)


@pytest.mark.parametrize("quick", [True, False])
def test_the_server_is_told_when_somebody_wants_it(made: Callable[[bool], Client], quick: bool, root: Path) -> None:
    client = made(quick)
    file = client.create()
    assert file.leased == ROOM
    with pytest.raises(BlockingIOError):
        os.open(root / "file", os.O_RDONLY | os.O_NONBLOCK)
    client.turn_until(lambda: wire.Broken(file.handle) in client.said)
    client.ask(3, wire.Unlease(file.handle))
    os.close(os.open(root / "file", os.O_RDONLY | os.O_NONBLOCK))


def test_they_go_with_the_connection(made: Callable[[bool], Client], root: Path) -> None:
    client = made(True)
    file = client.create()
    client.lose()
    os.close(os.open(root / "file", os.O_RDONLY | os.O_NONBLOCK))
    client.answering.resume(TERMS)
    again = client.create()
    assert (again.handle, again.leased) == (file.handle, 0), "the same answer, but for what is not so any more"


def test_nobody_is_told_while_there_is_no_connection(made: Callable[[bool], Client], root: Path) -> None:
    client = made(True)
    file = client.create()
    client.answering._connected = False
    with pytest.raises(BlockingIOError):
        os.open(root / "file", os.O_RDONLY | os.O_NONBLOCK)
    client.turn_until(lambda: not client.leases.holds(file.handle))


class Held:
    """A function that waits to be let go, before or after what it does."""

    def __init__(self, really: Any, *, after: bool) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self._really, self._after = really, after

    def __call__(self, *arguments: Any) -> Any:
        result = self._really(*arguments) if self._after else None
        self.begun.set()
        self.go.wait()
        return result if self._after else self._really(*arguments)


@pytest.mark.parametrize("after", [False, True], ids=["not yet leased", "leased"])
@pytest.mark.parametrize("asked", ["before it ends", "after it has ended"])
def test_what_is_created_while_the_connection_is_lost(
    made: Callable[[bool], Client], monkeypatch: pytest.MonkeyPatch, asked: str, after: bool
) -> None:
    client = made(False)
    held = Held(Leases.take, after=after)
    monkeypatch.setattr(module.Leases, "take", lambda *arguments: held(*arguments))
    client.ask(2, CREATE)
    held.begun.wait()
    client.lose()
    if asked == "after it has ended":
        held.go.set()
        client.turn_until(lambda: not client.answering._left_over)
        assert not len(client.leases)
        client.answering.resume(TERMS)
        assert client.create().leased == 0
        return
    client.answering.resume(TERMS)
    client.ask(2, CREATE)
    held.go.set()
    file = client.created()
    assert file.leased == (0 if after else ROOM)
    assert client.leases.holds(file.handle) == (not after)
