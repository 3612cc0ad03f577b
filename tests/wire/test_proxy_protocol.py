"""wire/proxy_protocol.py: both versions, whole and in pieces, right and wrong."""

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_gated.errors import ProtocolError
from fuse_gated.wire.proxy_protocol import MAX_HEADER, Header, begins, parse

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
REST = b"GET / HTTP/1.1\r\n\r\n"
LONGEST_V6 = b"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"


def v2(family_and_transport: int, body: bytes, command: int = 0x21) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family_and_transport, len(body)) + body


def tcp(source: str, destination: str) -> bytes:
    return ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed + struct.pack("!HH", 5000, 443)


@pytest.mark.parametrize(
    ("line", "address"),
    [
        (b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443", "192.168.0.1"),
        (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535", "255.255.255.255"),
        (b"PROXY TCP6 2001:DB8::1 2001:db8::2 0 65535", "2001:db8::1"),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2", "192.0.2.7"),
        (b"PROXY UNKNOWN", None),
        (b"PROXY UNKNOWN ffff anything \n at all", None),
        (b"PROXY UNKNOWN %b %b 65535 65535" % (LONGEST_V6, LONGEST_V6), None),
    ],
)
def test_version_1(line: bytes, address: str | None) -> None:
    assert parse(line + b"\r\n" + REST) == Header(len(line) + 2, address)
    assert begins(line)


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324",
        b"PROXY TCP4 192.168.0.1  192.168.0.11 56324 443",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443 ",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 056324 443",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 65536 443",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 443 65536",
        b"PROXY TCP4 192.168.0.01 192.168.0.11 56324 443",
        b"PROXY TCP4 192.168.0.1 192.168.0.256 56324 443",
        b"PROXY TCP4 ::1 ::1 1 1",
        b"PROXY TCP6 192.168.0.1 192.168.0.11 1 1",
        b"PROXY TCP6 fe80::1%eth0 ::1 1 1",
        b"PROXY TCP5 192.168.0.1 192.168.0.11 1 1",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 1 1\n",
        b"PROXY tcp4 192.168.0.1 192.168.0.11 1 1",
        b"PROXY UNKNOWNS",
        b"PROXY ",
    ],
)
def test_a_faulty_line(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="faulty"):
        parse(line + b"\r\n" + REST)


def test_a_line_that_does_not_end() -> None:
    line = b"PROXY UNKNOWN " + b"x" * 93
    assert len(line) == 107
    assert parse(line[:106]) is None
    for endless in (line, line + b"\r\n"):
        with pytest.raises(ProtocolError, match="within 107 bytes"):
            parse(endless)


@pytest.mark.parametrize(
    ("data", "address"),
    [
        (v2(0x11, tcp("192.0.2.1", "198.51.100.2")), "192.0.2.1"),
        (v2(0x21, tcp("2001:db8::1", "2001:db8::2")), "2001:db8::1"),
        (v2(0x21, tcp("::ffff:192.0.2.1", "::1")), "192.0.2.1"),
        (v2(0x11, tcp("192.0.2.1", "198.51.100.2") + b"\x04\0\x03pad"), "192.0.2.1"),
        (v2(0x12, tcp("192.0.2.1", "198.51.100.2")), None),
        (v2(0x31, b"/client".ljust(108, b"\0") + b"/server".ljust(108, b"\0")), None),
        (v2(0x00, b""), None),
        (v2(0x10, tcp("192.0.2.1", "198.51.100.2")), None),
        # A health check; whatever else it says is ignored.
        (v2(0x00, b"", 0x20), None),
        (v2(0x11, tcp("192.0.2.1", "198.51.100.2"), 0x20), None),
        (v2(0xFF, b"x", 0x20), None),
        (v2(0x11, tcp("192.0.2.1", "198.51.100.2").ljust(MAX_HEADER - 16, b"\0")), "192.0.2.1"),
    ],
)
def test_version_2(data: bytes, address: str | None) -> None:
    assert parse(data + REST) == Header(len(data), address)
    assert begins(data)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (v2(0x11, tcp("192.0.2.1", "192.0.2.2"), 0x11), "version and command 0x11"),
        (v2(0x11, tcp("192.0.2.1", "192.0.2.2"), 0x22), "version and command 0x22"),
        (v2(0x41, b"x" * 99), "family and transport 0x41"),
        (v2(0x13, b"x" * 99), "family and transport 0x13"),
        (v2(0x11, b"x" * 11), "too short"),
        (v2(0x21, b"x" * 35), "too short"),
        (v2(0x11, b"x" * (MAX_HEADER - 15))[:16], "4097 bytes, more than 4096"),
        (SIGNATURE + b"\x21\x11\xff\xff", "65551 bytes"),
    ],
)
def test_a_faulty_header(data: bytes, what: str) -> None:
    with pytest.raises(ProtocolError, match=what):
        parse(data)


@pytest.mark.parametrize("data", [REST, b"\x16\x03\x01", b"PROXX", b"PROXY\n", b"\r\n\r\nx", b"\0"])
def test_what_is_something_else(data: bytes) -> None:
    assert not begins(data)
    with pytest.raises(ProtocolError, match="does not begin with"):
        parse(data)


HEADERS = [b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", v2(0x21, tcp("2001:db8::1", "::1") + b"\x04\0\0")]


@pytest.mark.parametrize("header", HEADERS)
def test_in_pieces(header: bytes) -> None:
    """Whatever is there of it so far, it is incomplete, and not begun before its signature is whole."""
    assert all(parse(header[:length]) is None for length in range(len(header)))
    assert begins(header[:12])
    assert not begins(header[:5])
    assert parse(header) is not None


@given(
    st.one_of(
        st.binary(max_size=200), st.binary(max_size=60).map(lambda tail: SIGNATURE + tail), st.binary().map(b"PROXY ".__add__)
    )
)
def test_anything_at_all(data: bytes) -> None:
    """It is refused, or incomplete, or has a length that is there."""
    try:
        header = parse(data)
    except ProtocolError:
        return
    if header is None:
        assert len(data) < MAX_HEADER
    else:
        assert 0 < header.length <= len(data)
        assert header.address is None or str(ipaddress.ip_address(header.address)) == header.address


@given(st.ip_addresses(), st.integers(0, 65535), st.binary(max_size=50))
def test_both_versions_say_the_same(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, rest: bytes) -> None:
    kind = address.version
    other = "192.0.2.1" if kind == 4 else "2001:db8::1"
    first = f"PROXY TCP{kind} {address} {other} {port} 443\r\n".encode()
    body = address.packed + ipaddress.ip_address(other).packed + struct.pack("!HH", port, 443)
    second = v2(0x11 if kind == 4 else 0x21, body)
    found = [parse(data + rest) for data in (first, second)]
    assert [header and header.length for header in found] == [len(first), len(second)]
    assert len({header and header.address for header in found}) == 1
