"""Bytes to frames and back, typed: what does not fit the types never gets further than here.

A message is a MessagePack array of frames. Frames are encoded one by one into a batch, as the turn of the loop produces
them, so that the data of a WRITE is copied straight out of the driver's buffer.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from fuse_gated.errors import ProtocolError
from fuse_gated.wire.messages import MAX_MESSAGE, Arguments, Ask, Asked, Frame, FromClient, FromServer, Reply, Write
from fuse_gated.wire.tables import ARGUMENTS, RESULTS

MAX_FRAMES: Final = 4096
"""Frames in one message."""

LONG: Final = 2**20
"""Bytes in a message for which nothing more is to be waited for."""

LONG_DATA: Final = 256 * 2**10
"""Bytes of file data that are worth a message in parts (`Batch.take_with`). Less is copied in the time of another message."""

Parts = tuple[bytes | bytearray | memoryview, ...]
"""One message in pieces."""

_ARRAY16: Final = 0xDC
_ARRAY32: Final = 0xDD  # MessagePack's array with a length of four bytes: its header's size does not depend on the length.
_HEADER: Final = 5
_MALFORMED: Final = 1007
_LONGEST_REASON: Final = 200
_FAULTS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be: text that is not UTF-8 and deep nesting have their own."""

_from_client = msgspec.msgpack.Decoder(list[FromClient])
_from_server = msgspec.msgpack.Decoder(list[FromServer])
_encoder = msgspec.msgpack.Encoder()
_arguments: dict[str, msgspec.msgpack.Decoder[Any]] = {name: msgspec.msgpack.Decoder(kind) for name, kind in ARGUMENTS.items()}
_results: dict[str, Callable[[msgspec.Raw], Any]] = {
    name: msgspec.msgpack.Decoder(kind).decode for name, kind in RESULTS.items() if name != "read"
}
_BINARY32: Final = b"\xc6"
_DATA_AT: Final = Write.__struct_fields__.index("data")
_BINARY_HEADERS: Final = {0xC4: 2, 0xC5: 3, 0xC6: 5}
"""MessagePack's bin 8, bin 16 and bin 32, and the length of their headers."""


class Batch:
    """Frames on their way out, encoded as they are added. `take` gives the message, or messages where one would be too long."""

    __slots__ = ("_buffer", "_count", "_done")

    def __init__(self) -> None:
        self._done: list[bytearray] = []
        self._buffer = bytearray((_ARRAY32, 0, 0, 0, 0))
        self._count = 0

    @property
    def is_long(self) -> bool:
        """Whether it is to be taken at once, so that it leaves while the next message is being made."""
        return len(self._buffer) >= LONG

    def add(self, frame: Frame) -> None:
        start = len(self._buffer)
        if type(frame) is Ask and not frame.after:
            # As `_without_after` does, but not by a call: most frames come here.
            _encoder.encode_into(("ask", frame.id, frame.operation, frame.arguments), self._buffer, -1)
        else:
            _encoder.encode_into(frame, self._buffer, -1)
        self._count += 1
        if self._count > 1 and (len(self._buffer) > MAX_MESSAGE or self._count > MAX_FRAMES):
            last = self._buffer[start:]
            del self._buffer[start:]
            self._count -= 1
            self._finish()
            self._buffer += last
            self._count = 1

    def take(self) -> list[bytearray]:
        """The messages since the last call; none where nothing was added."""
        if self._count:
            self._finish()
        done, self._done = self._done, []
        return done

    def take_with(self, frame: Ask | Reply) -> Parts | None:
        """A message of what was added and, at its end, this frame, whose file data stays where it is: so it is to be sent, or
        copied, before anybody overwrites that. None for a frame with less data than is worth it: it is to be added."""
        data = _data_of(frame)
        if data is None or len(data) < LONG_DATA or self._done or self._count >= MAX_FRAMES:
            return None
        buffer = self._buffer
        if len(buffer) + len(data) + LONG > MAX_MESSAGE:
            return None
        self._count += 1
        buffer[1:_HEADER] = self._count.to_bytes(4, "big")
        before, behind = _around_data(frame)
        buffer += before + _BINARY32 + len(data).to_bytes(4, "big")
        self._buffer = bytearray((_ARRAY32, 0, 0, 0, 0))
        self._count = 0
        return buffer, data, behind

    def _finish(self) -> None:
        self._buffer[1:_HEADER] = self._count.to_bytes(4, "big")
        self._done.append(self._buffer)
        self._buffer = bytearray((_ARRAY32, 0, 0, 0, 0))
        self._count = 0


def encode(*frames: Frame) -> bytes:
    """One message of these frames."""
    return _encoder.encode([_without_after(frame) if type(frame) is Ask and not frame.after else frame for frame in frames])


def decode_from_client(message: bytes | bytearray | memoryview) -> list[FromClient]:
    """The frames of a message that a client sent.

    Raises ProtocolError for what is not a list of well-formed frames.
    """
    _check_frames(message)
    try:
        return _from_client.decode(message)
    except _FAULTS as error:
        raise _malformed("message", error) from None


def decode_from_server(message: bytes | bytearray | memoryview) -> list[FromServer]:
    """The frames of a message that a server sent.

    Raises ProtocolError for what is not a list of well-formed frames.
    """
    _check_frames(message)
    try:
        return _from_server.decode(message)
    except _FAULTS as error:
        raise _malformed("message", error) from None


def decode_arguments(asked: Asked) -> Arguments | None:
    """The arguments of a request; None for an operation that this version does not know (it is answered ENOSYS).

    Raises ProtocolError for arguments that do not fit their operation.
    """
    decoder = _arguments.get(asked.operation)
    if decoder is None:
        return None
    try:
        arguments: Arguments = decoder.decode(asked.arguments)
    except _FAULTS as error:
        raise _malformed(f"arguments of {asked.operation}", error) from None
    if isinstance(arguments, Write):
        # msgspec 0.19 makes views that say to be longer than they are.
        return msgspec.structs.replace(arguments, data=arguments.data.cast("B"))
    return arguments


def decode_result(operation: str, result: msgspec.Raw) -> Any:
    """What a client answered, as `RESULTS[operation]` says ('read': a memoryview of the message).

    Raises ProtocolError for a result of another kind.
    """
    try:
        return _results[operation](result)
    except _FAULTS as error:
        raise _malformed(f"result of {operation}", error) from None


def _binary(result: msgspec.Raw) -> memoryview:
    """File data stays where it was received: a view, not a copy. Not msgspec's, whose 0.19 counts the header of long data as
    data."""
    view = memoryview(result)
    size = _BINARY_HEADERS.get(view[0]) if view else None
    if size is None:
        raise msgspec.ValidationError("Expected `bytes`")
    return view[size:]


_results["read"] = _binary


def _data_of(frame: Ask | Reply) -> bytes | memoryview | None:
    if isinstance(frame, Reply):
        data = frame.result
        return data if type(data) is memoryview or type(data) is bytes else None
    arguments = frame.arguments
    return arguments.data if type(arguments) is Write else None


def _around_data(frame: Ask | Reply) -> tuple[bytes, bytes]:
    """What stands before the header of its file data, and behind that data."""
    if isinstance(frame, Reply):
        return _array(5) + _encoded("reply", frame.id, None), _encoded(frame.usec)
    fields = msgspec.structs.astuple(frame.arguments)
    after = frame.after
    before = _array(5 if after else 4) + _encoded("ask", frame.id, frame.operation) + _array(len(fields))
    behind = _encoded(*fields[_DATA_AT + 1 :])
    return before + _encoded(*fields[:_DATA_AT]), behind + _encoded(after) if after else behind


def _array(count: int) -> bytes:
    """The header of a MessagePack array of less than 16 elements."""
    return bytes((0x90 | count,))


def _encoded(*values: Any) -> bytes:
    return b"".join(map(_encoder.encode, values))


def _without_after(frame: Ask) -> tuple[str, int, str, Any]:
    """Whoever does not know `after` is not to meet it, not even empty. (msgspec leaves defaults out of maps only.)"""
    return "ask", frame.id, frame.operation, frame.arguments


def _check_frames(message: bytes | bytearray | memoryview) -> None:
    """Too many frames are refused before they are decoded: decoded they take many times their bytes."""
    if len(message) <= MAX_FRAMES:
        return  # A frame takes a byte at least.
    first = message[0] if message else 0
    size = 2 if first == _ARRAY16 else 4 if first == _ARRAY32 else 0
    count = int.from_bytes(message[1 : 1 + size], "big")
    if count > MAX_FRAMES:
        raise ProtocolError(f"{count} frames in one message, {MAX_FRAMES} are allowed", 1008)


def _malformed(what: str, error: Exception) -> ProtocolError:
    # msgspec quotes what it found, which may be as long as the message.
    return ProtocolError(f"malformed {what}: {str(error)[:_LONGEST_REASON]}", _MALFORMED)
