"""The daemon's door, with real sockets and a real loop."""

import errno
import resource
import socket
from collections.abc import Iterator

import pytest

from fuse_gated.config.settings import Admission, Proxies, Settings, Tls
from fuse_gated.door import Door
from fuse_gated.edge.loop import Loop

Address = tuple[str, int]


class House:
    """A door, and who was let in. `trouble` is raised for whoever comes next."""

    def __init__(self, settings: Settings) -> None:
        self.loop = Loop()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: Address = self.listener.getsockname()
        self.admitted: list[socket.socket] = []
        self.turned_away: list[tuple[str, str]] = []
        self.trouble: OSError | None = None
        self.door = Door(self.loop, [self.listener], settings, self._admit, self._turned_away)

    def _admit(self, sock: socket.socket, address: str) -> None:
        assert address == "127.0.0.1"
        if self.trouble is not None:
            raise self.trouble
        self.admitted.append(sock)

    def _turned_away(self, address: str, reason: str) -> None:
        self.turned_away.append((address, reason))

    def come(self) -> socket.socket:
        """A stranger who says something at once."""
        stranger = socket.create_connection(self.address, 10)
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        self.loop.turn()
        return stranger

    def close(self) -> None:
        for sock in (*self.admitted, self.listener):
            sock.close()
        self.loop.close()


@pytest.fixture
def house() -> Iterator[House]:
    house = House(Settings(admission=Admission(startups=2, per_address=2)))
    yield house
    house.close()


def said(house: House, stranger: socket.socket) -> bytes:
    """All that the stranger hears, while the loop turns."""
    stranger.setblocking(False)
    heard = b""
    while True:
        try:
            data = stranger.recv(4096)
        except BlockingIOError:
            house.loop.turn()
            continue
        if not data:
            return heard
        heard += data


def test_who_is_let_in(house: House) -> None:
    with house.come(), house.come():
        assert len(house.admitted) == 2
        with house.come() as third:
            answer = said(house, third)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\n\r\n2 connections have not logged in yet, as many as may" in answer
        assert [(address, reason[:13]) for address, reason in house.turned_away] == [("127.0.0.1", "2 connections")]
        house.door.logged_in("127.0.0.1")
        with house.come():
            assert len(house.admitted) == 3


def test_a_worker_that_cannot_be_started(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told, and counts for nothing."""
    house.trouble = OSError(errno.EAGAIN, "Resource temporarily unavailable")
    for _ in range(3):
        with house.come() as stranger:
            assert said(house, stranger).endswith(b"the server cannot start a worker now\n")
    assert "cannot start a worker: Resource temporarily unavailable" in capsys.readouterr().err
    assert house.turned_away == [("127.0.0.1", "the server cannot start a worker now")] * 3
    house.trouble = None
    with house.come():
        assert len(house.admitted) == 1


def test_a_door_that_speaks_tls_says_nothing() -> None:
    tls = Tls(certificate="/server.pem", key="/server.key")
    house = House(Settings(admission=Admission(startups=1, per_address=1), tls=tls))
    try:
        with house.come(), socket.create_connection(house.address, 10) as second:
            house.loop.turn()
            assert second.recv(1) == b""
    finally:
        house.close()


def test_who_does_not_listen_is_let_go(house: House) -> None:
    """A stranger who is turned away and stays costs a socket for two seconds, and no more."""
    with house.come(), house.come(), house.come() as third:
        while third.recv(4096):
            pass
        # Our end is still open, for what the stranger may yet send; it is thrown away.
        third.sendall(b"x" * 100_000)
        while house.door._turned_away:
            house.loop.turn()
        third.sendall(b"what nobody takes any more is answered with a reset")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            third.sendall(b"x")


def test_no_descriptor_is_left(house: House) -> None:
    """The listening socket stays ready, which must not keep the loop busy; later the stranger is let in after all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    stranger = socket.create_connection(house.address, 10)
    with stranger:
        resource.setrlimit(resource.RLIMIT_NOFILE, (stranger.fileno(), hard))
        try:
            house.loop.turn()
            assert house.admitted == []
            assert house.listener.fileno() not in house.loop._callbacks
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        while not house.admitted:
            house.loop.turn()


def test_a_door_that_is_shut(house: House) -> None:
    house.door.shut()
    house.loop.soon(house.loop.stop)
    house.loop.after(0, lambda: None)
    with socket.create_connection(house.address, 10):
        house.loop.turn()
        assert house.admitted == []


def test_a_proxy_is_limited_by_whom_it_passes_on() -> None:
    proxies = Proxies(addresses=("127.0.0.1",), header="proxy-protocol")
    house = House(Settings(admission=Admission(startups=3, per_address=1), proxies=proxies))
    try:
        assert house.door.is_proxy("127.0.0.1")
        assert not house.door.is_proxy("192.0.2.1")
        with house.come(), house.come(), house.come():
            assert len(house.admitted) == 3
            assert house.door.moved("127.0.0.1", "192.0.2.1") is None
            refusal = house.door.moved("127.0.0.1", "192.0.2.1")
            assert refusal is not None
            assert refusal.status == 429
            house.door.logged_in("192.0.2.1")
            assert house.door.moved("127.0.0.1", "192.0.2.1") is None
    finally:
        house.close()
