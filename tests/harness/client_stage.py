"""A client and a server made by hand, on one loop."""

import contextlib
import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from fuse_gated.client import Client, Event
from fuse_gated.edge.destination import Destination, parse_server
from fuse_gated.edge.files import Export
from fuse_gated.edge.loop import Loop
from fuse_gated.errors import GateError
from fuse_gated.persistence import Persistence
from fuse_gated.wire import codec
from fuse_gated.wire import messages as wire
from harness.scripted_server import Script, ScriptedServer

ONCE: Final = Persistence(reconnect=False)


class Stage:
    """A client and a server on one loop."""

    def __init__(self, root: Path) -> None:
        self.loop = Loop()
        self.root = root
        self.events: list[Event] = []
        self.when: dict[str, Callable[[Event], object]] = {}
        """What to do when an event happens."""
        self.server: ScriptedServer | None = None
        self.client: Client | None = None

    def set(self, script: Script | None = None, tls: ssl.SSLContext | None = None) -> ScriptedServer:
        self.server = ScriptedServer(self.loop, script, tls)
        self.server.on_end = lambda: self.client and self.client.goodbye()
        return self.server

    def make(
        self, scheme: str = "ws", port: int | None = None, persistence: Persistence | None = ONCE, **options: Any
    ) -> Client:
        assert self.server is not None or port is not None
        uri = parse_server(f"{scheme}://127.0.0.1:{port or self.server.port}")
        destination = Destination(uri=uri, token="secret-token", name="export", **options)
        self.client = Client(self.loop, Export(self.root), destination, self._happened, persistence)
        return self.client

    def run(self, scheme: str = "ws", **options: Any) -> None:
        self.make(scheme, **options).run()

    def failure(self, scheme: str = "ws", **options: Any) -> GateError:
        with pytest.raises(GateError) as raised:
            self.run(scheme, **options)
        return raised.value

    def _happened(self, event: Event) -> None:
        self.events.append(event)
        if event.event in self.when:
            self.when[event.event](event)

    def turn_until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.loop.turn()

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
        self.loop.close()


@contextlib.contextmanager
def one_file(directory: Path) -> Iterator[Stage]:
    """A stage whose export has a file of ten bytes. What is made there has the mode that the server asks for."""
    root = directory / "export"
    root.mkdir()
    (root / "file").write_bytes(b"0123456789")
    before = os.umask(0)
    stage = Stage(root)
    yield stage
    stage.close()
    os.umask(before)


def result(operation: str, reply: wire.Replied) -> Any:
    """A reply's errno, or what it brings."""
    return reply.errno or codec.decode_result(operation, reply.result)
