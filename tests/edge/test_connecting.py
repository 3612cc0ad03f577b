import socket
from collections.abc import Iterator
from typing import Any

import pytest

from fuse_gated.edge.connecting import connect

ELSEWHERE = ("127.0.0.2", "127.0.0.3")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def found(*addresses: tuple[int, Any]) -> Any:
    """In place of a name's resolution."""
    return lambda *_, **__: [(family, socket.SOCK_STREAM, 0, "", address) for family, address in addresses]


def test_a_connection_does_not_wait_and_notices_a_dead_link(listener: socket.socket) -> None:
    with connect(*listener.getsockname(), 5.0, 20.0) as sock:
        assert sock.getblocking() is False
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.get_inheritable() is False


def test_all_addresses_are_tried(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    port = listener.getsockname()[1]
    no_such_family = (9999, ("127.0.0.1", port))
    monkeypatch.setattr(
        socket, "getaddrinfo",
        found(no_such_family, (socket.AF_INET, (ELSEWHERE[0], port)), (socket.AF_INET, ("127.0.0.1", port))),
    )  # fmt: skip
    with connect("a.name", port, 5.0, 20.0) as sock:
        assert sock.getpeername() == ("127.0.0.1", port)


def test_a_silent_address_leaves_time_to_the_others(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    port = listener.getsockname()[1]
    with socket.create_server((ELSEWHERE[0], 0), backlog=0) as silent:
        # Its queue is full: further connections hear nothing.
        full = [socket.socket() for _ in range(3)]
        for one in full:
            one.setblocking(False)
            one.connect_ex(silent.getsockname())
        places = found((socket.AF_INET, silent.getsockname()), (socket.AF_INET, ("127.0.0.1", port)))
        monkeypatch.setattr(socket, "getaddrinfo", places)
        with connect("a.name", port, 0.4, 20.0) as sock:
            assert sock.getpeername() == ("127.0.0.1", port)
        monkeypatch.setattr(socket, "getaddrinfo", found((socket.AF_INET, silent.getsockname())))
        with pytest.raises(TimeoutError):
            connect("a.name", port, 0.1, 20.0)
        for one in full:
            one.close()


def test_the_last_failure_is_told(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    port = listener.getsockname()[1]
    monkeypatch.setattr(socket, "getaddrinfo", found(*((socket.AF_INET, (host, port)) for host in ELSEWHERE)))
    with pytest.raises(ConnectionRefusedError):
        connect("a.name", port, 5.0, 20.0)
    monkeypatch.setattr(socket, "getaddrinfo", found())
    with pytest.raises(OSError, match="no address"):
        connect("a.name", port, 5.0, 20.0)


def test_names_that_are_none() -> None:
    with pytest.raises(OSError):
        connect("no-such-name.invalid", 1, 5.0, 20.0)
    with pytest.raises(UnicodeError):
        connect("x" * 70 + ".invalid", 1, 5.0, 20.0)
