"""Whether the client is still there: how often it is asked, and what wakes us meanwhile."""

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from fuse_gated import pulse
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.websocket import WebSocket
from fuse_gated.pulse import Pulse


class Nobody:
    """Handlers of a connection on which nothing is said."""

    def on_request(self, request: Request) -> None: ...
    def on_response(self, response: Response) -> None: ...
    def on_message(self, data: bytes | bytearray) -> None: ...
    def on_closed(self, code: int, reason: str) -> None: ...


class Scene:
    """A connection, and a clock that the test moves: nothing waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.loop = Loop()
        self.loop.now = self.now
        ours, self.client = socket.socketpair()
        ours.setblocking(False)
        self.client.setblocking(False)
        self.socket = WebSocket(self.loop, ours, ServerProtocol(state=State.OPEN), Nobody())
        self.lost: list[str] = []
        Pulse(self.loop, self.socket, self._lose)
        self.woken = 0

    def _lose(self, reason: str) -> None:
        self.lost.append(reason)
        self.socket.abort()

    def says(self, opcode: Opcode) -> None:
        self.client.sendall(Frame(opcode, b"").serialize(mask=True))
        self.loop.turn()
        self.loop.soon(lambda: None)
        self.loop.turn()

    def pass_(self, seconds: float) -> None:
        """So much time, in steps in which a timer that is due runs; how often one was is counted."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.25)
            live = [timer for timer in self.loop._timers if timer.callback is not None and timer.when <= self.now]
            self.woken += len(live)
            self.loop.soon(lambda: None)
            self.loop.turn()

    def heard(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            return self.client.recv(4096)
        return b""


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    made = Scene(monkeypatch)
    yield made
    if not made.socket.closed:
        made.socket.abort()
    made.client.close()
    made.loop.close()


PING = bytes([0x80 | Opcode.PING, 0])
PONG = bytes([0x80 | Opcode.PONG, 0])


def test_a_client_that_asks_is_not_asked_and_wakes_nobody_twice(scene):
    for _ in range(100):
        scene.pass_(11.0)
        scene.says(Opcode.PING)
        assert scene.heard() == PONG
    assert scene.woken == 0
    assert scene.lost == []


def test_a_client_that_only_answers_is_asked_in_time(scene):
    for _ in range(10):
        scene.pass_(pulse.ASK_AFTER)
        assert scene.heard() == PING
        scene.says(Opcode.PONG)
    assert scene.lost == []
    assert scene.woken == 10, "the answer is not looked for as well"


def test_a_client_that_answers_late_is_not_given_up(scene):
    scene.pass_(pulse.DEAD_AFTER - 0.5)
    scene.says(Opcode.PONG)
    scene.pass_(pulse.ASK_AFTER - 1.0)
    assert scene.lost == []
    scene.pass_(pulse.DEAD_AFTER - pulse.ASK_AFTER + 2.0)
    assert len(scene.lost) == 1, "but counted from then"


def test_a_client_that_is_silent_is_given_up(scene):
    scene.pass_(pulse.DEAD_AFTER - 0.5)
    assert scene.lost == []
    scene.pass_(1.0)
    assert scene.lost == ["nothing heard from the client for 20 s"]
    scene.pass_(100.0)
    assert len(scene.lost) == 1


def test_who_was_stopped_itself_asks_first(scene):
    scene.now += 1000.0
    scene.pass_(0.25)
    assert scene.heard() == PING
    assert scene.lost == []
    scene.says(Opcode.PONG)
    scene.pass_(pulse.ASK_AFTER - 1.0)
    assert scene.lost == []


def test_a_client_that_asks_without_end_costs_no_timers(scene):
    for _ in range(5000):
        scene.says(Opcode.PING)
        scene.heard()
    assert len(scene.loop._timers) < 100


def test_it_ends_with_the_socket(scene):
    scene.socket.abort()
    scene.pass_(100.0)
    assert scene.lost == []
    assert [timer for timer in scene.loop._timers if timer.callback is not None] == []
