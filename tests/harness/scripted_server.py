"""A server made by hand, which can break every rule, for the client's tests. It runs on a loop, by a script.

A script is a generator: it yields what to send (frames, raw messages, or calls to make) and is given what the client says
next, frame by frame. When it ends, so does the client: it says goodbye, or the server closes, as the test chooses.
"""

import http
import socket
import ssl
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, Final

from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from fuse_gated.edge.loop import Loop
from fuse_gated.edge.websocket import WebSocket
from fuse_gated.wire import codec
from fuse_gated.wire.messages import SUBPROTOCOL, Arguments, Ask, Frame, Terms, Welcome
from fuse_gated.wire.tables import OPERATION_OF

MOUNT: Final = "/run/fuse-gated/mnt/acme/export"

Step = Frame | bytes | Callable[["ScriptedServer"], None]
Script = Callable[[], Generator[Iterable[Step], Any, None]]


def welcome(requests: int = 64, size: int = 2**26, mount: str = MOUNT, **more: Any) -> Welcome:
    """`more`: of the terms."""
    known = {"session": "session-1", "resume": b"r" * 32, "mount": mount, "max_in_flight": requests, "max_bytes_in_flight": size}
    return Welcome(Terms(**{**known, **more}))


def asks(*arguments: Arguments, first: int = 1) -> list[Ask]:
    """Requests with ids from `first` on."""
    return [Ask(number, OPERATION_OF[type(one)], one) for number, one in enumerate(arguments, first)]


class ScriptedServer:
    """Listens on a port of 127.0.0.1 and serves one connection after the other. `answer` is the upgrade's: None accepts.
    `on_accept` is called with the connection's number, from 0 on, before it is served."""

    def __init__(
        self, loop: Loop, script: Script | None = None, tls: ssl.SSLContext | None = None, port: int = 0
    ) -> None:
        self.loop = loop
        self.script = script
        self.answer: tuple[int, str] | None = None
        self.subprotocols: list[str] | None = [SUBPROTOCOL]
        self.headers: dict[str, str] = {}
        self.requests: list[Request] = []
        self.closed: list[tuple[int, str]] = []
        self.ended = threading.Event()
        self.websocket: WebSocket | None = None
        self.connection: socket.socket | None = None
        self.on_end: Callable[[], None] = lambda: None
        self.on_accept: Callable[[int], None] = lambda _: None
        self.websockets: list[WebSocket] = []
        self._tls = tls
        self._play: Generator[Iterable[Step], Any, None] | None = None
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        loop.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        self.loop.forget(self._listener.fileno())
        self._listener.close()
        for websocket in self.websockets:
            websocket.abort()

    def send(self, *steps: Step) -> None:
        """Frames that follow one another go as one message; bytes are a message as they are."""
        assert self.websocket is not None
        batch = codec.Batch()
        for step in steps:
            if isinstance(step, Frame):
                batch.add(step)
                continue
            for message in batch.take():
                self.websocket.send(message)
            if isinstance(step, bytes):
                self.websocket.send(step)
            else:
                step(self)
        for message in batch.take():
            self.websocket.send(message)

    def fall_silent(self) -> None:
        """Neither read nor write any more, not even pongs."""
        assert self.connection is not None
        self.loop.forget(self.connection.fileno())

    def on_request(self, request: Request) -> None:
        assert self.websocket is not None
        self.requests.append(request)
        protocol = self.websocket.protocol
        assert isinstance(protocol, ServerProtocol)
        if self.answer is not None:
            protocol.send_response(protocol.reject(http.HTTPStatus(self.answer[0]), self.answer[1]))
        else:
            response = protocol.accept(request)
            response.headers.update(self.headers)
            protocol.send_response(response)
        self.websocket.flush_soon()

    def on_response(self, response: Response) -> None:
        """A server gets none."""

    def on_message(self, data: bytes | bytearray) -> None:
        for frame in codec.decode_from_client(bytes(data)):
            self._say(frame)

    def on_closed(self, code: int, reason: str) -> None:
        self.closed.append((code, reason))
        self.ended.set()

    def _accept(self, _events: int) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        self.on_accept(len(self.websockets))
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        subprotocols = None if self.subprotocols is None else [Subprotocol(name) for name in self.subprotocols]
        self.connection = connection
        self.websocket = WebSocket(self.loop, connection, ServerProtocol(subprotocols=subprotocols, max_size=None), self)
        self.websockets.append(self.websocket)
        if self.script is not None:
            self._play = self.script()
            assert next(self._play) == ()

    def _say(self, frame: Any) -> None:
        if self._play is None:
            return
        try:
            self.send(*self._play.send(frame))
        except StopIteration:
            self._play = None
            self.on_end()
