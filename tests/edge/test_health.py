"""edge/health.py: health checks among upgrades, in one piece and byte by byte."""

import pytest
from websockets.http11 import Request

from fuse_gated.edge.health import Reception

UPGRADE = (
    b"GET /healthz-not HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def read(protocol: Reception, data: bytes, step: int) -> list[Request]:
    for start in range(0, len(data), step):
        protocol.receive_data(data[start : start + step])
    return [event for event in protocol.events_received() if isinstance(event, Request)]


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("path", ["/healthz", "/healthz?verbose=1"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("trouble", "status", "body"), [("", b"200 OK", b"ok\n"), ("draining", b"503 Service Una", b"draining\n")]
)
def test_a_check(method: str, path: str, version: str, step: int, trouble: str, status: bytes, body: bytes) -> None:
    protocol = Reception()
    assert len(read(protocol, f"{method} {path} HTTP/{version}\r\nHost: x\r\n\r\n".encode(), step)) == 1
    assert protocol.checked == method
    protocol.answer_check(trouble)
    said = b"".join(protocol.data_to_send())
    head, _, rest = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert b"\r\nContent-Length: %d" % len(body) in head
    assert b"\r\nConnection: close" in head
    assert rest == (b"" if method == "HEAD" else body)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_an_upgrade(step: int) -> None:
    protocol = Reception()
    (request,) = read(protocol, UPGRADE, step)
    assert (protocol.checked, request.path) == ("", "/healthz-not")
    assert protocol.accept(request).status_code == 101


@pytest.mark.parametrize(
    "line",
    [
        b"POST /healthz HTTP/1.1",
        b"GET /healthz HTTP/2.0",
        b"GET /HEALTHZ HTTP/1.1",
        b"GET  /healthz HTTP/1.1",
        b"GET /healthz/ HTTP/1.1",
    ],
)
def test_what_is_none(line: bytes) -> None:
    protocol = Reception()
    read(protocol, line + b"\r\nHost: x\r\n\r\n", 1000)
    assert protocol.checked == ""


@pytest.mark.parametrize("step", [4096, 100_000])
def test_a_line_without_an_end(step: int) -> None:
    """It is told as `websockets` tells it, and no more is kept of it than its limit."""
    protocol = Reception()
    assert read(protocol, b"GET /" + b"x" * 20_000, step) == []
    assert type(protocol.handshake_exc).__name__ in ("InvalidMessage", "RequestLineTooLong")
    assert protocol.checked == ""


def test_an_end_before_the_line() -> None:
    protocol = Reception()
    protocol.receive_data(b"GET /heal")
    protocol.receive_eof()
    assert protocol.events_received() == []
    assert "connection closed while reading HTTP request line" in str(protocol.handshake_exc.__cause__)
