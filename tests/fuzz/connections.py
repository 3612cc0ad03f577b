"""What the targets on a real connection have in common.

The first byte of an input says how far the connection has come when the rest of it arrives: 0, nothing was said; 1, the upgrade
is done; 2, the session is open; in both the rest is messages, cut at 0xC1; 3, as 2, but the rest is bytes of WebSocket frames.
"""

import base64
import contextlib
import hashlib
import socket
import struct

from sans_io import pieces

from fuse_gated.edge.loop import Loop

MOST_TURNS = 60
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


def message(data: bytes, *, masked: bool) -> bytes:
    """A binary WebSocket message of one frame (RFC 6455, 5.2). A mask of zeros changes nothing."""
    length, mask = len(data), b"\0\0\0\0" if masked else b""
    short = length if length < 126 else 126 if length < 2**16 else 127
    size = {126: struct.pack("!H", length & 0xFFFF), 127: struct.pack("!Q", length)}.get(short, b"")
    return bytes([0x82, short | (0x80 if masked else 0)]) + size + mask + data


def said(stage: int, rest: bytes, *, masked: bool) -> bytes:
    """The bytes on the wire that an input stands for."""
    return rest if stage in (0, 3) else b"".join(message(piece, masked=masked) for piece in pieces(rest))


def send(sock: socket.socket, data: bytes) -> None:
    """To the other side, if it listens."""
    # A peer that has closed, or does not read on, misses the rest.
    with contextlib.suppress(OSError):
        sock.sendall(data)


def turn(loop: Loop) -> None:
    """One turn that does not wait."""
    loop.soon(lambda: None)
    loop.turn()


def accepting(request: bytes) -> bytes:
    """A server's answer to a client's upgrade request."""
    key = request.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        + accept + b"\r\nSec-WebSocket-Protocol: fuse-gate.v1\r\n\r\n"
    )  # fmt: skip
