"""A whole client that meets a strange server, and files that it offers."""

import contextlib
import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from connections import MOST_TURNS, accepting, message, said, send, turn
from seeds import WELCOME

from fuse_gated.client import Client, Event
from fuse_gated.edge.destination import Destination, parse_server
from fuse_gated.edge.files import Export
from fuse_gated.edge.loop import Loop
from fuse_gated.errors import GateError
from fuse_gated.persistence import Persistence

_NOBODY = 65534


class _Playground:
    """Where the client works: an export, and beside it what no server may reach, by whatever path or link. As root all of it is
    done as nobody, so that what gets out of hand cannot get far."""

    def __init__(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="fuse-gated-fuzz-"))
        self.top.chmod(0o777)
        self.outside = self.top / "outside"
        self.outside.mkdir()
        self.secret = self.outside / "secret"
        self.secret.write_text("untouched")
        for path in (self.outside, self.secret):
            path.chmod(0o777)
        self.export = self.top / "export"
        self.uses = 0

    def renew(self) -> None:
        """Look whether all is as it was, and begin anew."""
        assert os.listdir(self.outside) == ["secret"], f"outside the export: {os.listdir(self.outside)}"
        assert self.secret.read_text() == "untouched"
        assert self.secret.stat().st_mode & 0o7777 == 0o777
        assert self.outside.stat().st_mode & 0o7777 == 0o777
        self.remove(self.export)
        self.export.mkdir()
        (self.export / "d").mkdir()
        (self.export / "f").write_text("hello")
        (self.export / "escape").symlink_to("../outside")
        (self.export / "absolute").symlink_to(self.outside)

    @staticmethod
    def remove(path: Path) -> None:
        for directory, names, _ in os.walk(path):
            for name in names:
                if not os.path.islink(inner := os.path.join(directory, name)):
                    os.chmod(inner, 0o700)
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _as_nobody() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    os.setegid(_NOBODY)
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


_playground: _Playground | None = None


def client(data: bytes) -> None:
    """Whatever the server sends, nothing outside the export changes, and nothing is raised."""
    global _playground
    if _playground is None:
        # No file of a terabyte.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        if os.geteuid() == 0:
            os.setgroups([])
        os.umask(0)
        _playground = _Playground()
    with _as_nobody():
        if _playground.uses % 200 == 0:
            _playground.renew()
        _playground.uses += 1
        _meet(_playground.export, data[0] % 4 if data else 0, data[1:])


class _Meeting(Loop):
    """The client's loop, on which the server plays its part between two turns, and which never waits."""

    def __init__(self, server: socket.socket, stage: int, rest: bytes) -> None:
        super().__init__()
        self._server = server
        self._play = self._acts(stage, rest)

    def turn(self) -> None:
        turn(super())
        next(self._play)

    def _acts(self, stage: int, rest: bytes) -> Iterator[None]:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            # The client connects on a thread of its own.
            with contextlib.suppress(BlockingIOError):
                request += self._server.recv(65536)
            yield
        if stage:
            send(self._server, accepting(request))
        if stage >= 2:
            send(self._server, message(WELCOME, masked=False))
        yield
        send(self._server, said(stage, rest, masked=False))
        for _ in range(MOST_TURNS):
            with contextlib.suppress(OSError):
                self._server.recv(2**20)
            yield
        self._server.close()
        for _ in range(MOST_TURNS):
            yield
        raise AssertionError("the server is gone, and the client has not noticed")


def _meet(directory: Path, stage: int, rest: bytes) -> None:
    server, theirs = socket.socketpair()
    server.setblocking(False)
    theirs.setblocking(False)
    loop = _Meeting(server, stage, rest)
    destination = Destination(uri=parse_server("ws://127.0.0.1:1"), token="token", name="src")
    events: list[Event] = []
    with server, mock.patch("fuse_gated.connection.connect", return_value=theirs):
        with contextlib.suppress(GateError):
            Client(loop, Export(directory), destination, events.append, Persistence(reconnect=False)).run()
        assert [event.event for event in events].count("closed") == 1
        loop.close()


TARGETS = {"client": client}
