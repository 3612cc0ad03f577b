"""Effects as data: what the turnstile wants done, in this order. 'Told before it is sent, sent before it is answered' is so
a list's order, and a test can read it."""

import msgspec

from fuse_gated import operations
from fuse_gated.gate.audit import Record
from fuse_gated.tree.journal import Row
from fuse_gated.wire.messages import Ask, Cancel


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send a frame to the client. Its data may be a view of the driver's buffer: encode it before the driver reads on."""

    frame: Ask | Cancel


class Hold(msgspec.Struct, frozen=True, gc=False):
    """Put data where a successor finds it. It may be a view of the driver's buffer, as in a `Send`."""

    at: int
    data: bytes | memoryview


class Keep(msgspec.Struct, frozen=True, gc=False):
    """Put rows where a successor finds them, before anything behind it in the list happens."""

    rows: tuple[Row, ...]


class Answer(msgspec.Struct, frozen=True, gc=False):
    """Answer the kernel's request `request`."""

    request: int
    answer: operations.Answer
    rows: tuple[Row, ...] = ()
    """What a successor must know before anybody hears of the answer."""
    in_order: bool = False
    """Nobody is to hear of it before the kernel has forgotten what it was to forget (as far as that does not take long)."""


class Tell(msgspec.Struct, frozen=True, gc=False):
    """Write an audit record. Nothing behind it in the list may happen before it is written."""

    record: Record


class InvalidateEntry(msgspec.Struct, frozen=True, gc=False):
    """FUSE_NOTIFY_INVAL_ENTRY: the kernel forgets a name, or only asks about it before it uses it again (`expire`)."""

    parent: int
    name: bytes
    expire: bool = False


class InvalidateInode(msgspec.Struct, frozen=True, gc=False):
    """FUSE_NOTIFY_INVAL_INODE: the kernel forgets a node's attributes and, with `pages`, what it holds of the content.
    `awaited`: it is given a moment for that before anything behind it in the list happens."""

    node: int
    pages: bool = True
    awaited: bool = False


class Close(msgspec.Struct, frozen=True, gc=False):
    """End the session: a close code (RFC 6455, 7.4) and a reason for the client's user."""

    code: int
    reason: str


Effect = Send | Hold | Keep | Answer | Tell | InvalidateEntry | InvalidateInode | Close
