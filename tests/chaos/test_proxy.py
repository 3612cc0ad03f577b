"""What the proxy does to a connection (harness/proxy.py), without the product: a fault that is none would prove nothing."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from harness.log import DEADLINE
from harness.proxy import Proxy
from harness.waiting import until

PATIENCE = DEADLINE


class Pair:
    """The two ends of one connection through a proxy."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.proxy = Proxy(self._listener.getsockname()[1])
        self.client, self.server = self.connect()

    def connect(self) -> tuple[socket.socket, socket.socket]:
        links = self.proxy.links
        client = socket.create_connection(("127.0.0.1", self.proxy.port), PATIENCE)
        self._listener.settimeout(PATIENCE)
        server, _ = self._listener.accept()
        until(lambda: self.proxy.links > links, "the proxy knows both ends")
        for end in (client, server):
            end.settimeout(PATIENCE)
        return client, server

    def close(self) -> None:
        self.proxy.close()
        for sock in (self.client, self.server, self._listener):
            sock.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def test_it_passes_everything_on_both_ways_and_the_end(pair: Pair) -> None:
    data = bytes(range(256)) * 4096
    sender = threading.Thread(target=pair.client.sendall, args=(data,))
    sender.start()
    received = b""
    while len(received) < len(data):
        received += pair.server.recv(1 << 16)
    sender.join()
    assert received == data
    pair.server.sendall(b"answer")
    assert pair.client.recv(100) == b"answer"
    pair.client.close()
    assert pair.server.recv(100) == b""
    assert pair.proxy.links == 1, "the other way is still open"


def test_a_cut_resets_both_ends(pair: Pair) -> None:
    assert pair.proxy.cut() == 1
    for end in (pair.client, pair.server):
        with pytest.raises(ConnectionResetError):
            end.recv(100)
    assert pair.proxy.links == 0
    other = pair.connect()
    other[0].sendall(b"new")
    assert other[1].recv(100) == b"new"


@pytest.mark.parametrize("count", [1, 4, 7])
def test_a_cut_in_a_frame_comes_after_so_many_bytes(pair: Pair, count: int) -> None:
    happened = pair.proxy.cut_after("to server", count)
    pair.server.sendall(b"the other way does not count")
    assert pair.client.recv(100)
    before = time.monotonic()
    for byte in b"1234567":
        pair.client.sendall(bytes([byte]))
        if byte - ord("0") == count:
            break
    assert before <= happened.result(PATIENCE) <= time.monotonic()
    with pytest.raises(ConnectionResetError):
        pair.client.recv(100)


def test_half_open_nothing_comes_through_and_nobody_hears_of_it(pair: Pair) -> None:
    pair.proxy.darken()
    for one, other in ((pair.client, pair.server), (pair.server, pair.client)):
        one.sendall(b"lost")
        other.settimeout(0.1)
        with pytest.raises(TimeoutError):
            other.recv(100)
    pair.client.close()
    with pytest.raises(TimeoutError):
        pair.server.recv(100)
    new = pair.connect()
    new[0].sendall(b"sound")
    assert new[1].recv(100) == b"sound"


def test_stalled_one_way_nothing_is_lost(pair: Pair) -> None:
    pair.proxy.stall("to server", 0.3)
    begun = time.monotonic()
    pair.client.sendall(b"late")
    pair.server.sendall(b"at once")
    assert pair.client.recv(100) == b"at once"
    assert pair.server.recv(100) == b"late"
    assert time.monotonic() - begun >= 0.25


def test_delayed_and_slow(pair: Pair) -> None:
    pair.proxy.delay(0.2, PATIENCE)
    begun = time.monotonic()
    pair.client.sendall(b"late")
    assert pair.server.recv(100) == b"late"
    assert time.monotonic() - begun >= 0.2
    pair.proxy.delay(0.0, 0.0)
    pair.proxy.trickle(1000.0, PATIENCE)
    begun = time.monotonic()
    pair.client.sendall(b"x" * 300)
    received = b""
    while len(received) < 300:
        received += pair.server.recv(1000)
    assert received == b"x" * 300
    assert time.monotonic() - begun >= 0.2


def test_who_comes_while_it_refuses_is_reset(pair: Pair) -> None:
    def come() -> bytes:
        with socket.create_connection(("127.0.0.1", pair.proxy.port), PATIENCE) as sock:
            return sock.recv(100)

    pair.proxy.refuse()
    with pytest.raises(ConnectionResetError):
        come()
    pair.proxy.refuse(False)
    new = pair.connect()
    new[1].sendall(b"again")
    assert new[0].recv(100) == b"again"
