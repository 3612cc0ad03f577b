"""The messages between a worker and who asks it for file operations over a socket: the process that runs libfuse, or a program
that is attached to the session (edge/fuse_network.py). And what libfuse's process tells the daemon.

The two are joined by a SOCK_SEQPACKET socket pair: one packet, one message, an array in MessagePack. Nodes are paths. Both ends
check what they receive: the worker serves a stranger, and libfuse copies what it is told into buffers of C.
"""

from types import GenericAlias
from typing import Any, Final

import msgspec

from fuse_gated import operations as op
from fuse_gated.errors import ProtocolError
from fuse_gated.operations import Caller, Request
from fuse_gated.paths import components, is_safe_name

GREETING: Final = 0
"""The number of the answer that answers nothing."""
MAX_PACKET: Final = 256 * 2**10
"""Bytes in one message: libfuse 2 reads and writes at most 128 KiB at once."""


class Began(msgspec.Struct, frozen=True, array_like=True, tag="began"):
    """libfuse to the worker, first of all: the mount is there. The protocol's minor version, and the longest WRITE."""

    minor: int
    max_write: int


class _Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    unique: int
    uid: int
    gid: int
    pid: int
    operation: str
    arguments: tuple[Any, ...]


class Asked(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    """libfuse to the worker: a request, whose arguments are still to be decoded."""

    unique: int
    uid: int
    gid: int
    pid: int
    operation: str
    arguments: msgspec.Raw


class _Answer(msgspec.Struct, frozen=True, array_like=True):
    unique: int
    errno: int
    result: Any


class Answered(msgspec.Struct, frozen=True, array_like=True):
    """The worker to libfuse: this machine's errno, or 0 and a result of the kind that the request has."""

    unique: int
    errno: int
    result: msgspec.Raw


class Mounted(msgspec.Struct, frozen=True, tag="mounted"):
    """libfuse's process to the daemon: it is mounted. `warning` is for the operator."""

    path: str
    warning: str = ""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """libfuse's process to the daemon: it could not be mounted."""

    reason: str


ToDaemon = Mounted | Failed
TO_DAEMON: "Final[msgspec.msgpack.Decoder[ToDaemon]]" = msgspec.msgpack.Decoder(ToDaemon)

ListedName = tuple[bytes, int, int, int]
"""Of a listing: (name, inode number, where it goes on after this one, the file type's bits of a mode)."""
ListedEntry = tuple[bytes, int, int, int, op.Attributes | None]
"""Of a listing that was asked for with `plus`: the same, and the attributes where they may be shown."""
FoundLock = tuple[int, int, int, int]
"""(type, start, inclusive end, pid)."""

RESULTS: Final[dict[type[Request], Any]] = {
    op.Lookup: op.Attributes,
    op.Getattr: op.Attributes,
    op.Setattr: op.Attributes,
    op.Readlink: bytes,
    op.Symlink: op.Attributes,
    op.Mknod: op.Attributes,
    op.Mkdir: op.Attributes,
    op.Unlink: None,
    op.Rmdir: None,
    op.Rename: None,
    op.Link: op.Attributes,
    op.Open: int,
    op.Create: int,
    op.Read: bytes,
    op.Write: int,
    op.Flush: None,
    op.Release: None,
    op.Fsync: None,
    op.Opendir: int,
    op.Readdir: tuple[ListedName, ...],
    op.Releasedir: None,
    op.Fsyncdir: None,
    op.Statfs: op.Filesystem,
    op.Access: None,
    op.Getxattr: bytes,
    op.Setxattr: None,
    op.Listxattr: bytes,
    op.Removexattr: None,
    op.Getlk: FoundLock,
    op.Setlk: None,
    op.Lseek: int,
    op.Fallocate: None,
    op.CopyFileRange: int,
    op.Interrupt: None,
}
"""Every request that can be made, and what it is answered. libfuse 2 has no word for lseek, fallocate and
copy_file_range."""

_NAMES: Final = {kind: kind.__name__.lower() for kind in RESULTS}
_KINDS: Final = {name: kind for kind, name in _NAMES.items()}
_PATHS: Final = frozenset(("node", "parent", "new_parent", "to_node"))
_UINT32: Final = 2**32
_UINT64: Final = 2**64

_ENCODER: Final = msgspec.msgpack.Encoder()
_FROM_HOST: Final = msgspec.msgpack.Decoder(Began | Asked)
_FROM_WORKER: Final = msgspec.msgpack.Decoder(Answered)


def _arguments_of(kind: type[Request]) -> "msgspec.msgpack.Decoder[tuple[Any, ...]]":
    types = []
    for field in msgspec.structs.fields(kind):
        # A node is a path here, never a number; data stays where it was received.
        types.append(memoryview if field.name == "data" else bytes if field.name in _PATHS else field.type)
    return msgspec.msgpack.Decoder(GenericAlias(tuple, tuple(types)))


_ARGUMENTS: Final = {kind: _arguments_of(kind) for kind in RESULTS}
_RESULTS: Final = {kind: msgspec.msgpack.Decoder(result) for kind, result in RESULTS.items()}
_LISTING_PLUS: Final = msgspec.msgpack.Decoder(tuple[ListedEntry, ...])


def encode_began(minor: int, max_write: int) -> bytes:
    return _ENCODER.encode(Began(minor, max_write))


def encode_request(unique: int, caller: Caller, request: Request) -> bytes:
    """A request as it travels. `unique` is even (an odd one is the worker's own)."""
    arguments = msgspec.structs.astuple(request)
    return _ENCODER.encode(_Ask(unique, caller.uid, caller.gid, caller.pid, _NAMES[type(request)], arguments))


def decode_request(packet: bytes | memoryview) -> Began | tuple[int, Caller, Request]:
    """What libfuse's process sent. The data of a Write is a view of `packet`.

    Raises ProtocolError for what it cannot have sent.
    """
    try:
        message = _FROM_HOST.decode(packet)
        if isinstance(message, Began):
            return message
        kind = _KINDS[message.operation]
        arguments = _ARGUMENTS[kind].decode(message.arguments)
        # msgspec 0.19 makes views whose shape is not their size; cast() makes them whole.
        request = kind(*(value.cast("B") if isinstance(value, memoryview) else value for value in arguments))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError) as error:
        raise ProtocolError(f"malformed message from libfuse: {error}") from None
    numbers = (message.uid, message.gid, message.pid)
    if not 0 < message.unique < _UINT64 or message.unique % 2 or not all(0 <= number < _UINT32 for number in numbers):
        raise ProtocolError(f"request {message.unique} by {numbers} from libfuse")
    for field in _PATHS:
        path = getattr(request, field, b"")
        if not all(is_safe_name(name) for name in components(path)):
            raise ProtocolError(f"a path from libfuse that is none: {path[:80]!r}")
    return message.unique, Caller(*numbers), request


def encode_answer(unique: int, answer: op.Answer) -> bytes:
    """An answer of the turnstile's as it travels."""
    if isinstance(answer, op.Failed):
        return _ENCODER.encode(_Answer(unique, answer.errno, None))
    return _ENCODER.encode(_Answer(unique, 0, _CONTENT[type(answer)](answer)))


def encode_greeting(errno: int = 0, reason: str = "") -> bytes:
    """What a worker says first to a program that is attached: 0, or why it is not served."""
    return _ENCODER.encode(_Answer(GREETING, errno, reason))


def decode_answer(packet: bytes) -> Answered:
    """Raises ProtocolError for what a worker cannot have sent."""
    try:
        return _FROM_WORKER.decode(packet)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProtocolError(f"malformed answer from the worker: {error}") from None


def decode_greeting(packet: bytes) -> tuple[int, str]:
    """(errno, reason), as `encode_greeting` has them. Raises ProtocolError for what is no greeting."""
    answered = decode_answer(packet)
    try:
        reason = msgspec.msgpack.decode(answered.result, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"malformed greeting from the worker: {error}") from None
    if answered.unique != GREETING:
        raise ProtocolError("the worker answers before it greets")
    return answered.errno, reason


def decode_result(kind: type[Request], result: msgspec.Raw, *, plus: bool = False) -> Any:
    """A result, as `RESULTS[kind]` says; of a Readdir with `plus` a tuple of ListedEntry. Raises ProtocolError for one of
    another kind."""
    try:
        return _LISTING_PLUS.decode(result) if plus else _RESULTS[kind].decode(result)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"malformed result of {_NAMES[kind]}: {error}") from None


_CONTENT: Final[dict[type[op.Answer], Any]] = {
    op.Done: lambda _: None,
    op.Entry: lambda answer: answer.attributes,
    op.Attr: lambda answer: answer.attributes,
    op.Opened: lambda answer: answer.handle,
    op.Created: lambda answer: answer.opened.handle,
    op.Data: lambda answer: answer.data,
    op.Count: lambda answer: answer.count,
    op.Position: lambda answer: answer.offset,
    op.Lock: lambda answer: (answer.type, answer.start, answer.end, answer.pid),
    op.Listing: lambda answer: _listing(answer),
    op.Filesystem: lambda answer: answer,
}


def _listing(answer: op.Listing) -> tuple[ListedName | ListedEntry, ...]:
    if not answer.plus:
        return tuple((entry.name, entry.inode, entry.offset, entry.type) for entry in answer.entries)
    return tuple(
        (listed.name, listed.inode, listed.offset, listed.type, listed.entry.attributes if listed.entry is not None else None)
        for listed in answer.entries
    )
