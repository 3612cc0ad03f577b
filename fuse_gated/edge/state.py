"""A session's memory outside its process: a memfd that every worker of the session maps in turn (memfd_create(2)).

It holds what a successor must know when a worker is gone from one instruction to the next: what was agreed with the kernel, the
tree as rows (tree/journal.py), and how far the audit has come. Rows are appended to a log in one of two halves; when the log has
grown to several times of what it says, all that counts is written to the other half, and one store makes that the log. What a
process wrote before it was killed is there for the next (the pages are shared, mmap(2)), so nothing is ever synced.

Only workers of the session read it: who took over one of them gains nothing by what it writes here. The daemon copies numbers
from it, unread, for whoever asks what the session does (`look`, turnstile/measures.py).
"""

import contextlib
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from fuse_gated.edge.inbox import SIZE as INBOX_SIZE
from fuse_gated.edge.inbox import Inbox
from fuse_gated.errors import OperatorError
from fuse_gated.gate.audit import Fields
from fuse_gated.tree.journal import AnyRow, Row
from fuse_gated.turnstile.measures import HEADER, SIZE

MAGIC: Final = b"fgstate2"
"""Format and version. Another version's memory is not read: its session ends, and the client opens a new one."""

_LENGTH: Final = struct.Struct("=I")
_AT_MAGIC: Final = 0
_AT_ACTIVE: Final = 8
_AT_LENGTHS: Final = (16, 24)
_AT_EPOCH: Final = 32
_AT_LOST: Final = 40
_AT_TAKEN: Final = 48
_AT_CHOSEN: Final = 56
_AT_SEALED: Final = (64, 128)
"""Of the last sealed records, two in turn: number, hash, length of the record itself."""
_SEALED: Final = struct.Struct("=32sI")
_AT_REQUEST_TAKEN: Final = 192
_WORDS: Final = 256
"""Bytes of the numbers, each of 8 bytes, that stand before everything else."""
_AT_ABOUT: Final = (_WORDS, 2**17)
"""What the session itself is, as it was and as it is; the number at _AT_CHOSEN says which counts."""
_AT_MEASURES: Final = 2**17 - SIZE
"""Behind the first of the two, which needs no more than a hello may have (session.MAX_HELLO)."""
_ABOUT_SIZE: Final = _AT_MEASURES - _WORDS
_AT_RECORDS: Final = (2**18, 2**18 + 2**20)
_RECORD_SIZE: Final = 2**20
_AT_RING: Final = 2**18 + 2 * 2**20
RING_SIZE: Final = 32 * 2**20
"""Bytes of writes that were answered ahead (turnstile/ahead.py), at most; an eighth of a smaller memory."""

_WITH_INBOX: Final = 16 * INBOX_SIZE
"""Bytes of the smallest memory that has room for an inbox: at its end."""

_MOST_ROWS: Final = 2**16
_LONG: Final = 2**24
"""Rows that are read at once, and their bytes: what a hostile worker left must not fill the memory of who reads it."""
_LAST_EPOCH: Final = 2**31
_LAST_SEQUENCE: Final = 2**62

_COMPACT_FROM: Final = 2**20
_COMPACT_AT: Final = 4
_ENCODER: Final = msgspec.msgpack.Encoder()
_ROWS: Final = msgspec.msgpack.Decoder(list[AnyRow])
_FIELDS: Final = msgspec.msgpack.Decoder(list[tuple[str, bytes]])


class Sealed(NamedTuple):
    """The last record that a session's worker sealed: its number, 0 if there is none; its hash; and, where the journal may not
    have it, the rest of it."""

    sequence: int
    head: bytes
    fields: Fields | None


class Full(OperatorError):
    """There is no room for what a successor must know."""


class State:
    """One session's. `descriptor` is the memfd's and may be closed afterwards; `everything` gives all rows that count."""

    def __init__(self, descriptor: int, size: int, everything: Callable[[], Iterable[Row]]) -> None:
        self._map = mmap.mmap(descriptor, size)
        # A number is one store: whoever is killed has written all of it or nothing. (struct fills with zeros first.)
        self._words = memoryview(self._map)[:_WORDS].cast("Q")
        self.ring = min(RING_SIZE, size // 8 // mmap.PAGESIZE * mmap.PAGESIZE)
        """Bytes that `put` has room for."""
        self._ring_used = True
        """As far as anybody knows: an earlier worker may have used it."""
        self._logs = _AT_RING + self.ring
        end = size - INBOX_SIZE if size >= _WITH_INBOX else size
        self._half = (end - self._logs) // 2 // mmap.PAGESIZE * mmap.PAGESIZE
        taken = self._words[_AT_REQUEST_TAKEN // 8 :][:1]
        self.inbox = Inbox(memoryview(self._map)[end:size], taken) if end < size else None
        """Where requests are read into that nobody sends again; None in a memory that is too small for it."""
        self._everything = everything
        self._buffer = bytearray()
        fresh = self._map[: len(MAGIC)] != MAGIC
        if fresh and any(self._map[: len(MAGIC)]):
            raise OperatorError("the session was served by another version of fuse-gated", "its client opens a new one")
        self._map[: len(MAGIC)] = MAGIC
        self._active = self._number(_AT_ACTIVE) & 1
        self._length = self._number(_AT_LENGTHS[self._active])
        self._compact_at = self._when_to_compact(self._length, 1)
        if self._length > self._half:
            raise ValueError("a log that is longer than its room")

    def close(self) -> None:
        if self.inbox is not None:
            self.inbox.release()
        self._words.release()
        self._map.close()

    # What was agreed.

    @property
    def about(self) -> bytes:
        """What was put there last."""
        at = _AT_ABOUT[self._number(_AT_CHOSEN) & 1]
        (length,) = _LENGTH.unpack_from(self._map, at)
        start = at + _LENGTH.size
        return self._map[start : start + min(length, _ABOUT_SIZE - _LENGTH.size)]

    @about.setter
    def about(self, value: bytes) -> None:
        if len(value) > _ABOUT_SIZE - _LENGTH.size:
            raise Full("a session's own description is too long")
        # Beside the one that counts until this one is whole.
        chosen = 1 - (self._number(_AT_CHOSEN) & 1)
        at = _AT_ABOUT[chosen]
        _LENGTH.pack_into(self._map, at, len(value))
        start = at + _LENGTH.size
        self._map[start : start + len(value)] = value
        self._store(_AT_CHOSEN, chosen)

    @property
    def lost_at(self) -> float:
        """When the client was lost (time.monotonic(), which is the machine's); 0 while it is there."""
        return float(struct.unpack_from("=d", self._map, _AT_LOST)[0])

    @lost_at.setter
    def lost_at(self, when: float) -> None:
        struct.pack_into("=d", self._map, _AT_LOST, when)

    def next_epoch(self) -> int:
        """How many workers have served the session, this one included. Raises ValueError for more than there can have been."""
        epoch = self._number(_AT_EPOCH) + 1
        if epoch > _LAST_EPOCH:
            raise ValueError(f"worker number {epoch} of one session")
        self._store(_AT_EPOCH, epoch)
        return epoch

    @property
    def measures(self) -> "memoryview[int]":
        """The words in which the session's workers count what they do."""
        return memoryview(self._map)[_AT_MEASURES : _AT_MEASURES + SIZE].cast("Q")

    # The tree.

    def commit(self, rows: Sequence[Row]) -> None:
        """Append rows. Once this returns they are there for a successor: all of them, or none when the process ended in it.

        Raises Full where all that counts has no room.
        """
        self._length = self._put(self._active, self._length, rows)
        self._store(_AT_LENGTHS[self._active], self._length)

    @property
    def bloated(self) -> bool:
        """Whether `compact` is worth while."""
        return self._length > self._compact_at

    def compact(self) -> None:
        """Write all that counts to the other half, and go on there. For a moment in which every answer has been given: what is
        not yet committed is written as if it had been. Raises Full where it has no room."""
        old, new = self._active, 1 - self._active
        end = 0
        everything = iter(self._everything())
        while chunk := tuple(islice(everything, 1024)):
            end = self._put(new, end, chunk)
        self._store(_AT_LENGTHS[new], end)
        self._store(_AT_ACTIVE, new)
        self._active, self._length = new, end
        self._compact_at = self._when_to_compact(end, _COMPACT_AT)
        with contextlib.suppress(OSError, AttributeError):
            # The pages go back to the machine; without that they only stay as they are.
            self._map.madvise(mmap.MADV_REMOVE, self._logs + old * self._half, self._half)

    def rows(self) -> Iterator[AnyRow]:
        """All that was committed, in its order. Raises ValueError, msgspec.DecodeError and RecursionError for what is none."""
        position = self._logs + self._active * self._half
        end = position + self._length
        while position < end:
            length = _LENGTH.unpack_from(self._map, position)[0] if end - position >= _LENGTH.size else self._half
            position += _LENGTH.size
            if length > end - position:
                raise ValueError("a row that is longer than its log")
            encoded = self._map[position : position + length]
            count = _counted(encoded)
            if count > _MOST_ROWS or (count > 1 and length > _LONG):
                raise ValueError(f"{count} rows at once, in {length} bytes")
            yield from _ROWS.decode(encoded)
            position += length

    # What was written, and is not at the client yet.

    def put(self, at: int, data: bytes | memoryview) -> None:
        """Keep data for a successor."""
        self._map[_AT_RING + at : _AT_RING + at + len(data)] = data
        self._ring_used = True

    def get(self, at: int, size: int) -> bytes:
        """What was put there."""
        return self._map[_AT_RING + at : _AT_RING + at + size]

    def clear_ring(self) -> None:
        """Nothing of it counts any more: the pages go back to the machine."""
        if self._ring_used:
            self._ring_used = False
            with contextlib.suppress(OSError, AttributeError):
                self._map.madvise(mmap.MADV_REMOVE, _AT_RING, self.ring)

    # The audit.

    def sealed(self, sequence: int, head: bytes, encoded: bytes) -> None:
        """Record number `sequence` is about to be written: `head` is its hash, `encoded` the rest of it."""
        slot = sequence & 1
        length = len(encoded)
        if length <= _RECORD_SIZE:
            self._map[_AT_RECORDS[slot] : _AT_RECORDS[slot] + length] = encoded
        at = _AT_SEALED[slot]
        _SEALED.pack_into(self._map, at + 8, head, length)
        self._store(at, sequence)

    def taken(self, sequence: int) -> None:
        """The journal has record number `sequence`."""
        self._store(_AT_TAKEN, sequence)

    def last_sealed(self) -> Sealed:
        """The last record. Raises ValueError, msgspec.DecodeError and RecursionError for what is none."""
        at = max(_AT_SEALED, key=self._number)
        sequence = self._number(at)
        if sequence > _LAST_SEQUENCE:
            raise ValueError(f"record number {sequence}")
        head, length = _SEALED.unpack_from(self._map, at + 8)
        if sequence == 0 or self._number(_AT_TAKEN) >= sequence or not 0 < length <= _RECORD_SIZE:
            return Sealed(sequence, head, None)
        start = _AT_RECORDS[sequence & 1]
        return Sealed(sequence, head, _FIELDS.decode(self._map[start : start + length]))

    def _put(self, half: int, position: int, rows: Sequence[Row]) -> int:
        """Write rows to a half of the log, from `position` on; the position behind them."""
        buffer = self._buffer
        count = len(rows)
        if count <= _MOST_ROWS:
            _ENCODER.encode_into(rows, buffer, _LENGTH.size)
        size = len(buffer)
        if count > 1 and (count > _MOST_ROWS or size - _LENGTH.size > _LONG):
            middle = count // 2
            return self._put(half, self._put(half, position, rows[:middle]), rows[middle:])
        _LENGTH.pack_into(buffer, 0, size - _LENGTH.size)
        end = position + size
        if end > self._half:
            raise Full("the session's memory is full", "lower `inodes` in fuse-gated.yaml")
        start = self._logs + half * self._half + position
        self._map[start : start + size] = buffer
        return end

    def _when_to_compact(self, length: int, times: int) -> int:
        """When a log that is so long is to be written anew: well before its room ends, while anything can be gained by it."""
        return min(max(_COMPACT_FROM + length, times * length), (length + self._half) // 2)

    def _number(self, at: int) -> int:
        return self._words[at // 8]

    def _store(self, at: int, number: int) -> None:
        self._words[at // 8] = number


class Look(NamedTuple):
    """What can be seen of a session without asking its worker: its measures (turnstile/measures.py; zeros at the end are left
    out), and how many records it has sealed, and the journal has taken. Any worker of it may have written anything there."""

    measures: bytes
    sealed: int
    taken: int


def look(descriptor: int, *, brief: bool = False) -> Look:
    """What there is to be seen of the session whose memory it is; with `brief`, its first measures only. Raises OSError."""
    words = struct.unpack(f"={_WORDS // 8}Q", os.pread(descriptor, _WORDS, 0).ljust(_WORDS, b"\0"))
    measures = os.pread(descriptor, 8 * HEADER if brief else SIZE, _AT_MEASURES)
    return Look(measures.rstrip(b"\0"), max(words[at // 8] for at in _AT_SEALED), words[_AT_TAKEN // 8])


def _counted(encoded: bytes) -> int:
    """How many elements the MessagePack array has; 0 for anything else, and for one that is empty."""
    first = encoded[:1]
    if first == b"\xdc" or first == b"\xdd":
        return int.from_bytes(encoded[1 : 3 if first == b"\xdc" else 5], "big")
    return first[0] & 15 if first and first[0] & 0xF0 == 0x90 else 0
