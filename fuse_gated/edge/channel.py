"""Typed messages with descriptors between processes of this machine: one packet, one message.

An AF_UNIX SOCK_SEQPACKET socket keeps messages apart and in order, and tells when the other end is gone (unix(7)).
Descriptors travel as SCM_RIGHTS. Whoever reads may trust nothing: what does not decode, and descriptors that nobody asked
for, are a ProtocolError, and none of them stays open.
"""

import array
import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Final, Generic, Self, TypeVar

import msgspec

from fuse_gated.errors import PeerError, ProtocolError

MAX_PACKET: Final = 256 * 2**10
"""Bytes in one message."""
MAX_FDS: Final = 16
"""Descriptors with one message."""

_INT_SIZE: Final = array.array("i").itemsize
_ENCODER: Final = msgspec.msgpack.Encoder()

Received = TypeVar("Received")
Other = TypeVar("Other")


class Channel(Generic[Received]):
    """One end. `decoder` says what it receives (a tagged union of structs), `max_fds` how many descriptors a message may bring.

    The socket becomes the channel's and non-blocking. Not for several threads at once.
    """

    def __init__(self, sock: socket.socket, decoder: "msgspec.msgpack.Decoder[Received]", *, max_fds: int = MAX_FDS) -> None:
        sock.setblocking(False)
        # The default of 208 KiB would not take a packet of the full length.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_PACKET)
        self._socket = sock
        self._decoder = decoder
        # Without room the kernel throws descriptors away before they are ever open here.
        self._control_size = socket.CMSG_SPACE(max_fds * _INT_SIZE) if max_fds else 0
        self._max_fds = max_fds

    @classmethod
    def pair(
        cls, decoder: "msgspec.msgpack.Decoder[Received]", other: "msgspec.msgpack.Decoder[Other]"
    ) -> "tuple[Channel[Received], Channel[Other]]":
        """Two ends joined, both close-on-exec: the first receives what `decoder` says, the second what `other` says."""
        first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Channel(first, decoder), Channel(second, other)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Send one message and copies of `fds`; the caller's stay its own.

        Raises BlockingIOError when there is no room now (nothing was sent), PeerError when the other end is gone, and
        ValueError for what is longer than MAX_PACKET or has more than MAX_FDS descriptors.
        """
        packet = _ENCODER.encode(message)
        if len(packet) > MAX_PACKET or len(fds) > MAX_FDS:
            raise ValueError(f"{type(message).__name__}: {len(packet)} bytes and {len(fds)} descriptors do not fit a packet")
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([packet], control, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            raise PeerError("the process at the other end of the channel is gone") from None

    def receive(self) -> tuple[Received, list[int]] | None:
        """The next message and its descriptors (close-on-exec, and the caller's from now on), or None at end of file.

        Raises BlockingIOError when there is none now, and ProtocolError for what is no message, after which the channel is of
        no further use.
        """
        try:
            packet, control, flags, _ = self._socket.recvmsg(MAX_PACKET, self._control_size, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return None
        fds = _descriptors(control)
        try:
            if flags & socket.MSG_CTRUNC or len(fds) > self._max_fds:
                raise ProtocolError(f"a message with more than {self._max_fds} descriptors")
            if flags & socket.MSG_TRUNC:
                raise ProtocolError(f"a message of more than {MAX_PACKET} bytes")
            if not packet and not fds:
                return None
            return self._decode(packet), fds
        except ProtocolError:
            for fd in fds:
                os.close(fd)
            raise

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decode(self, packet: bytes) -> Received:
        # A hostile nesting ends in RecursionError, which msgspec lets through.
        with contextlib.suppress(RecursionError):
            try:
                return self._decoder.decode(packet)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ProtocolError(f"a message that does not decode: {error}") from None
        raise ProtocolError("a message that is nested too deeply")


def _descriptors(control: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)
