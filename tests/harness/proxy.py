"""A TCP proxy on loopback whose links fail in the ways in which networks do. It runs on a thread of its own.

Whoever uses it starts other programs with subprocess, not with fork: threads and fork do not mix.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, Literal, TypeVar

Direction = Literal["to server", "to client"]
Value = TypeVar("Value")

_CHUNK: Final = 1 << 16
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: close(2) sends RST (socket(7))."""
_TICK: Final = 0.02


class Link:
    """One connection through the proxy, and what is wrong with it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.sockets = (client, server)
        self.tasks: list[asyncio.Task[None]] = []
        self.dark = False
        """Half-open: nothing comes through any more, and neither end hears of it."""
        self.open: dict[Direction, asyncio.Event] = {"to server": asyncio.Event(), "to client": asyncio.Event()}
        self.delay = 0.0
        self.rate = 0.0
        """Bytes a second; 0: as fast as it goes."""
        self.left: dict[Direction, tuple[int, Future[float]]] = {}
        """After so many bytes more it is cut, of which the future tells when it was."""
        for event in self.open.values():
            event.set()


class Proxy:
    """Passes connections on to 127.0.0.1:`target`. `url` is for a client; all times are seconds."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._links: list[Link] = []
        self._refusing = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Reset everything, and end."""
        self._call(self._shut)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # What can be wrong.

    def cut(self) -> int:
        """RST to both ends of every link. How many there were."""
        return self._call(lambda: sum([self._reset(link) for link in list(self._links)]))

    def cut_after(self, direction: Direction, count: int) -> "Future[float]":
        """The same once `count` bytes more have gone that way, wherever in a frame that is. The future is when that was
        (time.monotonic())."""
        happened: Future[float] = Future()

        def arm() -> None:
            for link in self._links:
                link.left[direction] = (count, happened)

        self._call(arm)
        return happened

    def darken(self) -> None:
        """The links there are go half-open: what is sent is lost, silently. New ones are sound."""

        def dark() -> None:
            for link in self._links:
                link.dark = True

        self._call(dark)

    def stall(self, direction: Direction, seconds: float) -> None:
        """Nothing goes that way for a while; nothing is lost."""

        def close(link: Link) -> None:
            link.open[direction].clear()
            self._loop.call_later(seconds, link.open[direction].set)

        self._call(lambda: [close(link) for link in self._links])

    def flow(self) -> None:
        """What was stalled goes on."""

        def go() -> None:
            for link in self._links:
                for event in link.open.values():
                    event.set()

        self._call(go)

    def delay(self, each: float, seconds: float) -> None:
        """Each piece is late by `each`, for a while."""
        self._shape(seconds, delay=each)

    def trickle(self, rate: float, seconds: float) -> None:
        """So many bytes a second, for a while."""
        self._shape(seconds, rate=rate)

    def refuse(self, refusing: bool = True) -> None:
        """Whoever comes is reset at once, until it is told otherwise."""
        self._refusing = refusing

    @property
    def links(self) -> int:
        """How many connections there are now."""
        return self._call(lambda: len(self._links))

    # On the thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._accepting = self._loop.create_task(self._accept())
        self._loop.run_forever()

    def _call(self, function: Callable[[], Value]) -> Value:
        result: Future[Value] = Future()

        def call() -> None:
            try:
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)

        self._loop.call_soon_threadsafe(call)
        return result.result(10)

    def _shape(self, seconds: float, **shape: float) -> None:
        def apply(link: Link) -> None:
            for name, value in shape.items():
                setattr(link, name, value)
                self._loop.call_later(seconds, setattr, link, name, 0.0)

        self._call(lambda: [apply(link) for link in self._links])

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            server = socket.socket()
            server.setblocking(False)
            try:
                if self._refusing:
                    raise ConnectionRefusedError
                await self._loop.sock_connect(server, ("127.0.0.1", self._target))
            except OSError:
                _abort(client)
                server.close()
                continue
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = Link(client, server)
            self._links.append(link)
            link.tasks = [
                self._loop.create_task(self._pump(link, client, server, "to server")),
                self._loop.create_task(self._pump(link, server, client, "to client")),
            ]

    async def _pump(self, link: Link, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        try:
            while data := await self._loop.sock_recv(source, _CHUNK):
                await self._pass(link, sink, direction, data)
            if not link.dark:
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            if not link.dark:
                self._reset(link)
                return
        if all(task.done() for task in link.tasks if task is not asyncio.current_task()):
            self._forget(link)

    async def _pass(self, link: Link, sink: socket.socket, direction: Direction, data: bytes) -> None:
        await link.open[direction].wait()
        if link.delay:
            await asyncio.sleep(link.delay)
        if direction in link.left:
            count, happened = link.left[direction]
            if len(data) >= count:
                await self._loop.sock_sendall(sink, data[:count])
                if not happened.done():
                    happened.set_result(time.monotonic())
                raise ConnectionResetError
            link.left[direction] = (count - len(data), happened)
        while data and link.rate:
            piece = max(1, int(link.rate * _TICK))
            await self._send(link, sink, data[:piece])
            data = data[piece:]
            await asyncio.sleep(_TICK)
        await self._send(link, sink, data)

    async def _send(self, link: Link, sink: socket.socket, data: bytes) -> None:
        if not link.dark:
            await self._loop.sock_sendall(sink, data)

    def _reset(self, link: Link) -> int:
        for task in link.tasks:
            if task is not _current():
                task.cancel()
        for sock in link.sockets:
            _abort(sock)
        self._links = [other for other in self._links if other is not link]
        return 1

    def _forget(self, link: Link) -> None:
        for sock in link.sockets:
            sock.close()
        self._links = [other for other in self._links if other is not link]

    def _shut(self) -> None:
        self._accepting.cancel()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        for link in list(self._links):
            self._reset(link)


def any_direction(chance: random.Random) -> Direction:
    """One of the two."""
    return chance.choice(("to server", "to client"))


def _current() -> Any:
    with contextlib.suppress(RuntimeError):
        return asyncio.current_task()
    return None


def _abort(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
