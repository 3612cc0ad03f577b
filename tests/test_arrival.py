"""arrival.py: whose word counts, and what the operator is told."""

import socket

import pytest
from websockets.datastructures import Headers

from fuse_gated.arrival import Arrival
from fuse_gated.config.settings import Proxies
from fuse_gated.errors import ProtocolError

LINE = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
BY_PROTOCOL = Proxies(addresses=("127.0.0.1", "unix"), header="proxy-protocol")
BY_HEADER = Proxies(addresses=("127.0.0.1", "unix"), header="x-forwarded-for")


def come(proxies: Proxies | None, address: str, data: bytes, *forwarded: str) -> list[str]:
    """The addresses that were told, once the connection has said `data` and its upgrade."""
    told: list[str] = []
    arrival = Arrival(proxies, address, told.append)
    peer, ours = socket.socketpair()
    with peer, ours:
        ours.setblocking(False)
        peer.sendall(data + b"GET /")
        assert arrival.preface(ours)
        assert ours.recv(100) == b"GET /"
    arrival.asked(Headers([("X-Forwarded-For", value) for value in forwarded]))
    return told


@pytest.mark.parametrize("address", ["127.0.0.1", ""])
def test_a_proxy(address: str) -> None:
    assert come(BY_PROTOCOL, address, LINE, "198.51.100.66") == ["192.0.2.1"]
    assert come(BY_PROTOCOL, address, b"PROXY UNKNOWN\r\n", "198.51.100.66") == []
    assert come(BY_HEADER, address, b"", "198.51.100.66, 192.0.2.1") == ["192.0.2.1"]


@pytest.mark.parametrize("proxies", [None, BY_PROTOCOL, BY_HEADER])
def test_nobody_else_is_believed(proxies: Proxies | None) -> None:
    assert come(proxies, "127.0.0.2", b"", "198.51.100.66") == []
    with pytest.raises(ProtocolError, match=r"not expected: if 127\.0\.0\.2 is a proxy of yours, name it in `proxies`"):
        come(proxies, "127.0.0.2", LINE)


@pytest.mark.parametrize(("address", "shown"), [("127.0.0.1", "127.0.0.1"), ("", "unix")])
def test_a_proxy_that_does_not_say(address: str, shown: str) -> None:
    for data in (b"", b"PROXY nonsense\r\n"):
        with pytest.raises(
            ProtocolError, match=f": {shown} is one of `proxies` in fuse-gated.yaml, so turn it on there"
        ):
            come(BY_PROTOCOL, address, data)
    with pytest.raises(ProtocolError, match=f"no X-Forwarded-For: {shown} is one of `proxies` in fuse-gated.yaml, so it must"):
        come(BY_HEADER, address, b"")
    with pytest.raises(ProtocolError, match="'unknown', which is no address: "):
        come(BY_HEADER, address, b"", "unknown")
    with pytest.raises(
        ProtocolError, match="not expected: `proxies` in fuse-gated"
    ):
        come(BY_HEADER, address, LINE)
