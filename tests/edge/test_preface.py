"""edge/preface.py, on real sockets."""

import socket
from collections.abc import Iterator

import pytest

from fuse_gated.edge.preface import Preface
from fuse_gated.errors import ProtocolError
from fuse_gated.wire.proxy_protocol import MAX_HEADER

LINE = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
REST = b"GET / HTTP/1.1\r\n\r\n"


class Visit:
    def __init__(self, *, expected: bool) -> None:
        self.peer, self.ours = socket.socketpair()
        self.ours.setblocking(False)
        self.told: list[str | None] = []
        self.preface = Preface(expected, self.told.append)

    def read(self) -> bool:
        return self.preface(self.ours)

    def left(self) -> bytes:
        """What stays in the socket for whoever reads next."""
        try:
            return self.ours.recv(2**16)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self.peer.close()
        self.ours.close()


@pytest.fixture
def proxy() -> Iterator[Visit]:
    visit = Visit(expected=True)
    yield visit
    visit.close()


@pytest.fixture
def stranger() -> Iterator[Visit]:
    visit = Visit(expected=False)
    yield visit
    visit.close()


def test_a_header_and_what_follows(proxy: Visit) -> None:
    assert not proxy.read()
    proxy.peer.sendall(LINE + REST)
    assert proxy.read()
    assert (proxy.told, proxy.left()) == (["192.0.2.1"], REST)


def test_byte_by_byte(proxy: Visit) -> None:
    """Nothing stays in the socket meanwhile: it would keep the loop awake."""
    for byte in LINE[:-1]:
        proxy.peer.sendall(bytes([byte]))
        assert not proxy.read()
        assert proxy.left() == b""
    proxy.peer.sendall(LINE[-1:] + REST)
    assert proxy.read()
    assert (proxy.told, proxy.left()) == (["192.0.2.1"], REST)


def test_a_proxy_that_says_nothing_of_the_client(proxy: Visit) -> None:
    proxy.peer.sendall(b"PROXY UNKNOWN\r\n")
    assert proxy.read()
    assert proxy.told == [None]


def test_a_header_as_long_as_may_be(proxy: Visit) -> None:
    header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + (MAX_HEADER - 16).to_bytes(2, "big")
    proxy.peer.sendall(header + bytes([192, 0, 2, 1]) * 2 + bytes(MAX_HEADER - 24))
    assert proxy.read()
    assert (proxy.told, proxy.left()) == (["192.0.2.1"], b"")


@pytest.mark.parametrize("data", [REST, b"\x16\x03\x01\x02\0", b"PROXY TCP9 \r\n"])
def test_a_proxy_that_sends_something_else(proxy: Visit, data: bytes) -> None:
    proxy.peer.sendall(data)
    with pytest.raises(ProtocolError, match="PROXY protocol"):
        proxy.read()
    assert proxy.told == []


def test_a_proxy_that_leaves(proxy: Visit) -> None:
    proxy.peer.sendall(LINE[:20])
    assert not proxy.read()
    proxy.peer.close()
    with pytest.raises(EOFError):
        proxy.read()


@pytest.mark.parametrize("data", [REST, b"P", b"PROX", b"\r\n\r\n\0\r\nQUIT", b"\x16\x03\x01"])
def test_a_stranger(stranger: Visit, data: bytes) -> None:
    assert not stranger.read()
    stranger.peer.sendall(data)
    assert stranger.read()
    assert (stranger.told, stranger.left()) == ([], data)


@pytest.mark.parametrize("data", [LINE, b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"])
def test_a_stranger_who_claims_to_be_somebody_else(stranger: Visit, data: bytes) -> None:
    stranger.peer.sendall(data)
    with pytest.raises(ProtocolError, match="the PROXY protocol is not expected"):
        stranger.read()
    assert stranger.told == []


def test_a_stranger_who_leaves(stranger: Visit) -> None:
    stranger.peer.close()
    assert stranger.read()
