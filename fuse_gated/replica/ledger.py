"""What a copy must remember when the process that keeps it is killed: the bases, and what it had begun on the client.

It is a log: a header, then one entry after the other, each with its length and a checksum. What was being written when the
process was killed is the end of it, and is ignored. A header of another copy, another export or another start of the machine
makes all of it void: then nothing is known of what the two sides were, and where they differ both are kept.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import msgspec

from fuse_gated.replica.version import Base, Version

Value = TypeVar("Value", Base, Version)

_FRAME: Final = struct.Struct("<II")
_MOST: Final = 2**20
"""Bytes of one entry: a path, and what it stands for."""


class Header(msgspec.Struct, frozen=True, tag="header"):
    """What the bases are true of. `boot` names the machine's start: on a disk that lost its power names and contents may be of
    different moments. `root` and `export` are (device, inode) of the copy's root and of the export's."""

    boot: str
    root: tuple[int, int]
    export: tuple[int, int]


class Same(msgspec.Struct, frozen=True, tag="same"):
    """Both sides of a path are the same; without a base, nothing is known of it any more."""

    path: bytes
    base: Base | None


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    """On the client, what was at `path` may be at `temporary` by now. With neither `ours` nor `theirs`, only what we write is
    there, and may be cut off. `ours` is what we have written there, `theirs` what we expect to have come from `path`."""

    path: bytes
    temporary: bytes
    ours: Version | None
    theirs: Version | None


class Over(msgspec.Struct, frozen=True, tag="over"):
    """Nothing is at that temporary name any more."""

    temporary: bytes


class Kept(msgspec.Struct, frozen=True, tag="kept"):
    """The client does not take what is at `path`, as long as it is this; None: tried again."""

    path: bytes
    local: Version | None


Entry = Header | Same | Begun | Over | Kept
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: "Final[msgspec.msgpack.Decoder[Entry]]" = msgspec.msgpack.Decoder(Entry)


class Ledger:
    """What the entries say by now."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.bases: dict[bytes, Base] = {}
        self.begun: dict[bytes, Begun] = {}
        """By their temporary names."""
        self.kept: dict[bytes, Version] = {}

    def take(self, entry: Entry) -> None:
        """What is said by an entry holds from now on."""
        match entry:
            case Same(path=path, base=base):
                _set(self.bases, path, base)
            case Kept(path=path, local=local):
                _set(self.kept, path, local)
            case Begun(temporary=temporary):
                self.begun[temporary] = entry
            case Over(temporary=temporary):
                self.begun.pop(temporary, None)
            case _:
                self.header = entry

    def entries(self) -> Iterator[Entry]:
        """All that must be said to know the same."""
        yield self.header
        yield from (Same(path, base) for path, base in self.bases.items())
        yield from (Kept(path, local) for path, local in self.kept.items())
        yield from self.begun.values()


class Book:
    """A ledger that lasts: `write` makes an entry last before it returns."""

    def __init__(self, ledger: Ledger, write: Callable[[Entry], None]) -> None:
        self.ledger = ledger
        self._write = write

    def note(self, entry: Entry) -> None:
        """From now on this holds. What holds already is not written."""
        if isinstance(entry, Same) and self.ledger.bases.get(entry.path) == entry.base:
            return
        if isinstance(entry, Kept) and self.ledger.kept.get(entry.path) == entry.local:
            return
        self._write(entry)
        self.ledger.take(entry)


def encode(entry: Entry) -> bytes:
    """An entry as it stands in the log."""
    body = _ENCODER.encode(entry)
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


def read(log: bytes) -> Ledger | None:
    """What a log says, up to the first entry that is not whole; None if not even its header is."""
    ledger: Ledger | None = None
    for entry in _entries(log):
        if ledger is None:
            if not isinstance(entry, Header):
                return None
            ledger = Ledger(entry)
        ledger.take(entry)
    return ledger


def _entries(log: bytes) -> Iterator[Entry]:
    start = 0
    while len(log) - start >= _FRAME.size:
        length, checksum = _FRAME.unpack_from(log, start)
        start += _FRAME.size
        body = log[start : start + length]
        if length > _MOST or len(body) < length or zlib.crc32(body) != checksum:
            return
        try:
            yield _DECODER.decode(body)
        except msgspec.MsgspecError:
            return
        start += length


def _set(table: dict[bytes, Value], path: bytes, value: Value | None) -> None:
    if value is None:
        table.pop(path, None)
    else:
        table[path] = value
