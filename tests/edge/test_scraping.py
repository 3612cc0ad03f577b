"""edge/scraping.py: one page over HTTP, whoever asks for it and however."""

import socket
from collections.abc import Callable, Iterator

import pytest

from fuse_gated.edge import scraping
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.scraping import MOST_CONNECTIONS, Scraping

BODY = b"# HELP x y\n" * 100


class Served:
    """The server in this thread: whoever waits for something turns its loop."""

    def __init__(self, body: bytes = BODY) -> None:
        self.loop = Loop()
        self.accepted: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.body = body
        self.server = Scraping(self.loop, [self.listener], self.page)
        self.peers: list[socket.socket] = []

    def page(self, accept: str) -> tuple[str, bytes]:
        self.accepted.append(accept)
        return "text/x", self.body

    def connect(self, receive: int = 0) -> socket.socket:
        sock = socket.socket()
        if receive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        sock.connect(self.listener.getsockname())
        self.peers.append(sock)
        before = len(self.server)
        self.until(lambda: len(self.server) > before or before >= MOST_CONNECTIONS)
        sock.setblocking(False)
        return sock

    def until(self, condition: Callable[[], bool]) -> None:
        end = self.loop.after(10.0, lambda: pytest.fail("not within 10 s"))
        while not condition():
            self.loop.after(0.005, lambda: None)
            self.loop.turn()
        end.cancel()

    def read(self, sock: socket.socket) -> bytes:
        """Until the peer's end."""
        data = bytearray()
        over: list[bool] = []

        def some() -> bool:
            try:
                piece = sock.recv(2**20)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                piece = b""
            data.extend(piece)
            if not piece:
                over.append(True)
            return bool(over)

        self.until(some)
        return bytes(data)

    def ask(self, request: bytes) -> tuple[str, bytes]:
        """The answer's head and body."""
        before = len(self.server)
        sock = self.connect()
        sock.sendall(request)
        head, _, body = self.read(sock).partition(b"\r\n\r\n")
        sock.close()
        self.until(lambda: len(self.server) == before)
        return head.decode(), body

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self.until(lambda: not len(self.server))
        self.listener.close()
        self.loop.close()


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.close()


def test_the_page(served: Served) -> None:
    head, body = served.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: a/b;q=0.5\r\naccept: c/d\r\n\r\n")
    assert head.split("\r\n") == ["HTTP/1.1 200 OK", "Content-Type: text/x", f"Content-Length: {len(BODY)}", "Connection: close"]
    assert body == BODY
    assert served.accepted == ["a/b;q=0.5, c/d"]


def test_a_question_mark_and_head(served: Served) -> None:
    assert served.ask(b"GET /metrics?debug=1 HTTP/1.0\r\n\r\n")[1] == BODY
    head, body = served.ask(b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert f"Content-Length: {len(BODY)}" in head
    assert body == b""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "405 Method Not Allowed"),
        (b"GET /metrics\r\n\r\n", "400 Bad Request"),
        (b"\x16\x03\x01\xff\r\n\r\n", "400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\n" + b"x" * 9000, "431 Request Header Fields Too Large"),
    ],
)
def test_what_is_no_request_for_it(served: Served, request_: bytes, status: str) -> None:
    head, _ = served.ask(request_)
    assert head.startswith(f"HTTP/1.1 {status}\r\n")
    assert served.accepted == []


def test_a_request_in_pieces(served: Served) -> None:
    sock = served.connect()
    for piece in (b"GET /met", b"rics HTTP/1.1\r\n", b"\r"):
        sock.send(piece)
        served.loop.after(0.0, lambda: None)
        served.loop.turn()
    assert served.accepted == []
    sock.send(b"\n")
    assert served.read(sock).endswith(BODY)


def test_who_says_nothing_or_reads_slowly_keeps_nobody_waiting() -> None:
    served = Served(b"x" * 30_000_000)
    served.connect()
    slow = served.connect(receive=4096)
    slow.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    served.until(lambda: len(served.accepted) == 1)
    served.body = BODY
    assert served.ask(b"GET /metrics HTTP/1.1\r\n\r\n")[1] == BODY
    assert len(served.server) >= 2
    served.close()


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraping, "PATIENCE", 0.05)
    served = Served(b"x" * 30_000_000)
    silent, slow, heard = served.connect(), served.connect(receive=4096), served.connect()
    slow.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    heard.sendall(b"GET / HTTP/1.1\r\n\r\n")
    served.until(lambda: not len(served.server))
    assert served.read(silent) == b""
    served.close()


def test_too_many_at_once_the_oldest_goes(served: Served) -> None:
    first = served.connect()
    others = [served.connect() for _ in range(MOST_CONNECTIONS)]
    assert served.read(first) == b""
    assert len(served.server) == MOST_CONNECTIONS
    others[-1].send(b"GET /metrics HTTP/1.1\r\n\r\n")
    assert served.read(others[-1]).endswith(BODY)


def test_who_goes_before_the_answer(served: Served) -> None:
    served.connect().close()
    served.until(lambda: not len(served.server))
    gone = served.connect()
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    gone.send(b"GET /met")
    gone.close()
    reset = Served(b"x" * 30_000_000)
    sock = reset.connect(receive=4096)
    sock.send(b"GET /metrics HTTP/1.1\r\n\r\n")
    reset.until(lambda: len(reset.accepted) == 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
    reset.close()
    served.until(lambda: not len(served.server))


def test_what_is_said_after_the_request_is_not_heard(served: Served) -> None:
    sock = served.connect()
    sock.send(b"GET /metrics HTTP/1.1\r\n\r\n")
    assert served.read(sock).endswith(BODY)
    sock.send(b"GET /metrics HTTP/1.1\r\n\r\n")
    served.until(lambda: sock.send(b"more") > 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
    served.until(lambda: not len(served.server))
    assert len(served.accepted) == 1


def test_no_descriptors_left_is_no_reason_to_spin(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    rested: list[OSError] = []
    monkeypatch.setattr(scraping, "rest_if_scarce", lambda _loop, _listener, error, _listen: rested.append(error))
    served.server._accept(served.listener)
    assert isinstance(rested[0], BlockingIOError)
