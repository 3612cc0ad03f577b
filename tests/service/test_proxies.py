"""Where a connection comes from, by a proxy's word, and the health check. Real proxies are in tests/docs."""

import contextlib
import ipaddress
import select
import socket
import ssl
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from harness import ALLOW_ALL, Server, Stage
from harness.certificates import Authority
from harness.hostile import HostileClient
from harness.log import DEADLINE
from harness.waiting import told, until, wait_for_record

from fuse_gated import control

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
ADDRESS = "203.0.113.7"
OTHER = "2001:db8::7"
CROWDED = "203.0.113.99"
"""Nobody else comes from there."""
PLACES = 4
"""For those from one address who have not logged in: more than come one after the other before the first is seen to have gone."""
UPGRADE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def line(address: str) -> bytes:
    kind = ipaddress.ip_address(address).version
    return f"PROXY TCP{kind} {address} {'192.0.2.1' if kind == 4 else '2001:db8::1'} 5000 443\r\n".encode()


def binary(address: str, extra: bytes = b"") -> bytes:
    parsed = ipaddress.ip_address(address)
    body = parsed.packed * 2 + struct.pack("!HH", 5000, 443) + extra
    return SIGNATURE + struct.pack("!BBH", 0x21, 0x11 if parsed.version == 4 else 0x21, len(body)) + body


POLICY = {"tenants": {"acme": {"users": ["root"], "rules": ALLOW_ALL}}}
LOCAL = SIGNATURE + b"\x20\0\0\0"


def settings(header: str = "", **changes: Any) -> dict[str, Any]:
    proxies = {"proxies": {"addresses": ["127.0.0.1"], "header": header}} if header else {}
    return {"admission": {"startups": 20, "per_address": PLACES}, **proxies, **changes}


@pytest.fixture(scope="module")
def by_protocol(stage: Stage) -> Server:
    return stage.server(POLICY, settings=settings("proxy-protocol"))


@pytest.fixture(scope="module")
def by_header(stage: Stage) -> Server:
    return stage.server(POLICY, settings=settings("x-forwarded-for"))


@pytest.fixture(scope="module")
def unproxied(stage: Stage) -> Server:
    return stage.server(POLICY, settings=settings())


@contextlib.contextmanager
def connected(server: Server, *parts: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            connection.sendall(part)
        yield connection


def answer(connection: socket.socket) -> bytes:
    """All that it says."""
    heard = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(4096):
            heard += data
    return heard


def mounted(server: Server, client: HostileClient) -> dict[str, Any]:
    """What `fuse-gatectl show` has of its session."""
    client.hello()
    client.pump(lambda: client.terms is not None)
    shown: dict[str, Any] = control.call(str(server.runtime), "show", session=f"acme/{client.export}")
    return shown


@pytest.mark.parametrize(
    "header", [line(ADDRESS), binary(ADDRESS, b"\x04\0\x02xx"), binary(OTHER)], ids=["v1", "v2", "v2 of IPv6"]
)
def test_the_clients_address_is_shown_and_told(by_protocol: Server, header: bytes) -> None:
    before = len(told(by_protocol))
    address = OTHER if header == binary(OTHER) else ADDRESS
    with HostileClient(by_protocol, tenant="acme") as client:
        client.socket.sendall(header)
        # What the client says itself counts for nothing.
        assert client.upgrade(headers=(("X-Forwarded-For", "198.51.100.66"),)) == 101
        assert mounted(by_protocol, client)["address"] == address
        client.leave()
    wait_for_record(by_protocol, before, says=f"from {address},", kind="session-opened")


def test_a_header_that_comes_byte_by_byte(by_protocol: Server) -> None:
    with connected(by_protocol, *(bytes([byte]) for byte in binary(ADDRESS)), UPGRADE) as connection:
        assert answer(connection).startswith(b"HTTP/1.1 401 ")


def test_one_that_stops_in_it(stage: Stage) -> None:
    """The login's deadline holds for the header too."""
    server = stage.server(POLICY, settings=settings("proxy-protocol", admission={"login_deadline": "1s"}))
    with connected(server, line(ADDRESS)[:20]) as connection:
        assert answer(connection).startswith(b"HTTP/1.1 408 ")
    wait_for_record(server, says="no session within 1 s (connecting); from 127.0.0.1", kind="connection-refused")
    server.stop()


def test_the_address_in_the_header(by_header: Server) -> None:
    before = len(told(by_header))
    with HostileClient(by_header, tenant="acme") as client:
        assert client.upgrade(headers=(("X-Forwarded-For", f"198.51.100.66, {ADDRESS}"), ("X-Forwarded-For", "127.0.0.1"))) == 101
        assert mounted(by_header, client)["address"] == ADDRESS
        client.leave()
    wait_for_record(by_header, before, says=f"from {ADDRESS},", kind="session-opened")
    with HostileClient(by_header, tenant="acme") as client:
        assert client.upgrade(authorization="Bearer x", headers=(("X-Forwarded-For", ADDRESS),)) == 401
    wait_for_record(by_header, before, says=f"from {ADDRESS}", kind="login-refused")


def test_a_proxy_that_does_not_say_whose_connection_it_is(by_protocol: Server, by_header: Server) -> None:
    for server, data, reason in (
        (by_protocol, UPGRADE, b"it does not begin with the PROXY protocol: 127.0.0.1 is one of `proxies`"),
        (by_protocol, b"PROXY TCP4 me you 1 2\r\n" + UPGRADE, b"a faulty line of the PROXY protocol: 127.0.0.1 is one of"),
        (by_header, UPGRADE, b"it sent no X-Forwarded-For: 127.0.0.1 is one of `proxies`"),
    ):
        before = len(told(server))
        with connected(server, data) as connection:
            heard = answer(connection)
        assert heard.startswith(b"HTTP/1.1 400 ")
        assert b"\r\n\r\n" + reason in heard
        wait_for_record(server, before, says=reason.decode(), kind="connection-refused")


@pytest.mark.parametrize("header", [line(ADDRESS), binary(ADDRESS)], ids=["v1", "v2"])
def test_nobody_else_is_believed(unproxied: Server, header: bytes) -> None:
    before = len(told(unproxied))
    with connected(unproxied, header + UPGRADE + b"x" * 100_000) as connection:
        heard = answer(connection)
    assert heard.startswith(b"HTTP/1.1 400 ")
    assert (
        b"the PROXY protocol is not expected: if 127.0.0.1 is a proxy of yours, name it in `proxies`" in heard
    )
    wait_for_record(unproxied, before, says="the PROXY protocol is not expected", kind="connection-refused")
    with HostileClient(unproxied, tenant="acme") as client:
        assert client.upgrade(headers=(("X-Forwarded-For", ADDRESS),)) == 101
        assert mounted(unproxied, client)["address"] == "127.0.0.1"
        client.leave()


def test_limits_are_those_of_the_client(by_protocol: Server) -> None:
    """So many strangers from one address are all there may be, whoever passes them on; others come in meanwhile."""
    before = len(told(by_protocol))

    def comes(address: str) -> bytes:
        """What somebody with a wrong token hears: without one, nobody would be asked."""
        token = b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\n\r\n"
        with connected(by_protocol, line(address), token) as connection:
            return answer(connection)

    with contextlib.ExitStack() as stack:
        headers = [line(CROWDED), binary(CROWDED)] * (PLACES // 2) + [line(CROWDED)]
        crowd = [stack.enter_context(connected(by_protocol, header)) for header in headers]
        # One of them is too many, whichever it is that comes last.
        (refused,) = select.select(crowd, [], [], DEADLINE)[0]
        heard = answer(refused)
        assert heard.startswith(b"HTTP/1.1 429 ")
        assert b"\r\nRetry-After: 5\r\n" in heard
        assert b"%d connections from 203.0.113.99 have not logged in yet" % PLACES in heard
        assert comes(CROWDED).startswith(b"HTTP/1.1 429 ")
        assert comes(OTHER).startswith(b"HTTP/1.1 401 ")
        assert comes("203.0.113.8").startswith(b"HTTP/1.1 401 ")
        record = wait_for_record(by_protocol, before, says=f"{PLACES} connections from 203.0.113.99", kind="connection-refused")
        assert " from 203.0.113.99)" in record["MESSAGE"]
        crowd.remove(refused)
        for waiting in crowd:
            waiting.sendall(UPGRADE)
            assert answer(waiting).startswith(b"HTTP/1.1 401 ")
    until(lambda: comes(CROWDED).startswith(b"HTTP/1.1 401 "), "there is room again")


def test_before_tls(stage: Stage) -> None:
    """A proxy that passes on TLS as it is says it before the handshake."""
    authority = Authority(stage.directory)
    pair = authority.issue("proxied")
    tls = {"certificate": str(pair.certificate), "key": str(pair.key)}
    server = stage.server(POLICY, settings=settings("proxy-protocol", tls=tls))
    context = ssl.create_default_context(cafile=str(authority.certificate))
    with HostileClient(server, tenant="acme") as client:
        client.socket.sendall(binary(ADDRESS))
        client.socket = context.wrap_socket(client.socket, server_hostname="localhost")
        assert client.upgrade() == 101
        assert mounted(server, client)["address"] == ADDRESS
        client.leave()
    before = len(told(server))
    with pytest.raises(OSError, match=r"(?i)eof|reset"), connected(server) as plain:
        context.wrap_socket(plain, server_hostname="localhost").recv(1)
    wait_for_record(server, before, says="it does not begin with the PROXY protocol", kind="connection-refused")
    server.stop()


# The health check.


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_health_check(unproxied: Server, version: bytes) -> None:
    before = len(told(unproxied))
    with connected(unproxied, b"GET /healthz HTTP/%b\r\nHost: x\r\n\r\n" % version) as connection:
        heard = answer(connection)
    assert heard.startswith(b"HTTP/1.1 200 OK\r\n")
    assert heard.endswith(b"\r\n\r\nok\n")
    with connected(unproxied, b"HEAD /healthz HTTP/%b\r\nHost: x\r\n\r\n" % version) as connection:
        heard = answer(connection)
    assert heard.startswith(b"HTTP/1.1 200 OK\r\n")
    assert heard.endswith(b"\r\n\r\n")
    # No record of it: what is told next is what comes next.
    with connected(unproxied, UPGRADE) as connection:
        assert answer(connection).startswith(b"HTTP/1.1 401 ")
    wait_for_record(unproxied, before, kind="login-refused")
    assert len(told(unproxied)) == before + 1


def test_a_proxys_own_health_check(by_protocol: Server, by_header: Server) -> None:
    """It speaks for itself, so there is no address to tell."""
    check = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    for server, before in ((by_protocol, LOCAL), (by_protocol, b"PROXY UNKNOWN\r\n"), (by_header, b"")):
        with connected(server, before, check) as connection:
            assert answer(connection).startswith(b"HTTP/1.1 200 OK\r\n")
