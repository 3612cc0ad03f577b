"""The PROXY protocol, versions 1 and 2: what a proxy says before everything else of whose connection it passes on.

Only the source address is taken of it. Extensions (TLV) are skipped, which the specification allows, the checksum among them.

Source: HAProxy's doc/proxy-protocol.txt.
"""

import ipaddress
import re
from typing import Final

import msgspec

from fuse_gated.errors import ProtocolError

MAX_HEADER: Final = 4096
"""Bytes of a header. Those of version 2 are made to fit 536, but extensions may carry the names of a certificate."""
_V1: Final = b"PROXY "
_V1_LONGEST: Final = 107
_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V2_FIXED: Final = 16
_PROXY, _LOCAL = 1, 0
_STREAM: Final = 1
_SIZES: Final = {1: 4, 2: 16}
"""Bytes of an address of AF_INET and AF_INET6, by the protocol's own numbers."""
_AF_UNIX: Final = 3
_DGRAM: Final = 2
_PORTS: Final = 4
_LINE: Final = re.compile(rb"PROXY TCP([46]) ([0-9A-Fa-f:.]{2,39}) ([0-9A-Fa-f:.]{2,39}) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})")
_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN( .*)?", re.DOTALL)


class Header(msgspec.Struct, frozen=True):
    """A whole header of `length` bytes. `address` is None where the proxy speaks for itself (a health check), or for somebody
    of whom it can say nothing: then it counts as what it is."""

    length: int
    address: str | None


def begins(data: bytes) -> bool:
    """Whether `data` begins with the signature of either version."""
    return data.startswith((_V1, _V2))


def parse(data: bytes) -> Header | None:
    """The header with which `data` begins; None while it is incomplete. Raises ProtocolError where there is none, or a faulty
    one."""
    if data.startswith(_V2):
        return _parse_v2(data)
    if data.startswith(_V1):
        return _parse_v1(data)
    if _V1.startswith(data) or _V2.startswith(data):
        return None
    raise ProtocolError("it does not begin with the PROXY protocol")


def _parse_v1(data: bytes) -> Header | None:
    end = data.find(b"\r\n", 0, _V1_LONGEST)
    if end < 0:
        if len(data) >= _V1_LONGEST:
            raise ProtocolError(f"a line of the PROXY protocol that does not end within {_V1_LONGEST} bytes")
        return None
    line = data[:end]
    if _UNKNOWN.fullmatch(line):
        return Header(end + 2, None)
    found = _LINE.fullmatch(line)
    if found is None or int(found[4]) > 65535 or int(found[5]) > 65535:
        raise ProtocolError("a faulty line of the PROXY protocol")
    kind = ipaddress.IPv4Address if found[1] == b"4" else ipaddress.IPv6Address
    try:
        source, _destination = kind(found[2].decode()), kind(found[3].decode())
    except ValueError:
        raise ProtocolError("a faulty address in a line of the PROXY protocol") from None
    return Header(end + 2, shown(source))


def _parse_v2(data: bytes) -> Header | None:
    if len(data) < _V2_FIXED:
        return None
    version, command = divmod(data[12], 16)
    family, transport = divmod(data[13], 16)
    length = _V2_FIXED + int.from_bytes(data[14:16], "big")
    if version != 2 or command not in (_LOCAL, _PROXY):
        raise ProtocolError(f"version and command {data[12]:#04x} of the PROXY protocol, which has none such")
    if command == _PROXY and (family > _AF_UNIX or transport > _DGRAM):
        raise ProtocolError(f"family and transport {data[13]:#04x} of the PROXY protocol, which has none such")
    if length > MAX_HEADER:
        raise ProtocolError(f"a header of the PROXY protocol of {length} bytes, more than {MAX_HEADER}")
    if len(data) < length:
        return None
    size = _SIZES.get(family)
    if command == _LOCAL or size is None or transport != _STREAM:
        return Header(length, None)
    if length < _V2_FIXED + 2 * size + _PORTS:
        raise ProtocolError("a header of the PROXY protocol that is too short for its addresses")
    return Header(length, shown(ipaddress.ip_address(data[_V2_FIXED : _V2_FIXED + size])))


def shown(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Its text. An IPv4 address mapped into IPv6 (RFC 4291) is shown as what it is, so that a client has one address whatever
    it came by."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
