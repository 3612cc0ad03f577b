"""What the chain of a session's audit records shows: records that are missing, altered, told twice or out of their order.

It cannot show a tail that was cut off, nor a chain that was written anew as a whole (see fuse_gated.gate.audit).
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import msgspec

from fuse_gated.gate.audit import SEALED, Fields, digest, first_head

FaultKind = Literal["missing", "altered", "duplicate", "reordered"]


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with record `sequence` of a session, or with those from it up to `last`. The sequence is 0 where the record
    does not say which one it is."""

    session: str
    kind: FaultKind
    sequence: int
    last: int
    message: str


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of one session: `records` of them, the lowest numbered `first`, the highest `last`. `notes` are for people:
    what is not wrong by itself, but limits what was verified."""

    session: str
    tenant: str
    export: str
    records: int
    first: int
    last: int
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]


def verify(records: Iterable[Mapping[str, bytes]], *, beginning: str = "") -> list[Verified]:
    """Every session of `records`, in the order in which they first occur. The records are journal entries or lines of the
    audit file, in the order in which they were written; fields that are not the record's own do not matter.

    `beginning` says why a session's first records may rightly be gone, such as 'the journal was rotated': then that is a note.
    Without it, it is a fault."""
    sessions: dict[bytes, _Session] = {}
    for record in records:
        name = record.get("FUSE_GATED_SESSION", b"")
        if name not in sessions:
            sessions[name] = _Session(_text(name))
        sessions[name].add(record)
    return [session.verified(beginning) for session in sessions.values()]


class _Seen(NamedTuple):
    sequence: int
    fields: Fields
    claimed: bytes


class _Gap(NamedTuple):
    """Between record `after` (whose hash is one of `heads`) and the record `then` something was left out."""

    after: int
    heads: tuple[bytes, ...]
    then: _Seen


class _Session:
    """Follows one session's records. What comes in order is checked and forgotten; only what does not is kept until the end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tenant = self._export = ""
        self._records = 0
        self._first = 0
        self._last = 0
        # What the last record's hash may be: as the record says, and, if that is wrong, as it should be. Then an altered hash
        # does not make the record after it look altered too. Empty: nothing is known.
        self._heads: tuple[bytes, ...] = (first_head(name),)
        self._opened = False
        self._last_kind = b""
        self._previous: _Seen | None = None
        self._gaps: list[_Gap] = []
        self._late: dict[int, list[_Seen]] = {}
        self._faults: list[Fault] = []
        self._notes: list[str] = []

    def add(self, record: Mapping[str, bytes]) -> None:
        self._records += 1
        seen = _read(record)
        if seen is None:
            self._fault("altered", 0, 0, "a record carries no sequence number or no hash that could be read")
            return
        self._tenant = self._tenant or _text(record.get("FUSE_GATED_TENANT", b""))
        self._export = self._export or _text(record.get("FUSE_GATED_EXPORT", b""))
        kind = record.get("FUSE_GATED_KIND", b"")
        self._opened = self._opened or kind == b"session-opened"
        self._first = min(self._first or seen.sequence, seen.sequence)
        if seen == self._previous:
            self._told_again(seen.sequence)
            return
        self._previous = seen
        if seen.sequence <= self._last:
            self._late.setdefault(seen.sequence, []).append(seen)
            return
        if seen.sequence == self._last + 1:
            self._heads = self._check(seen, self._heads)
        else:
            self._gaps.append(_Gap(self._last, self._heads, seen))
            self._heads = (seen.claimed,)
        self._last = seen.sequence
        self._last_kind = kind

    def _told_again(self, sequence: int) -> None:
        """Who goes on with a session cannot always know whether its last record was written, and writes it again as it was. It
        says nothing that is not there already."""
        note = f"record {sequence} is there twice in succession, the same both times: another worker went on from there"
        if note not in self._notes:
            self._notes.append(note)

    def verified(self, beginning: str) -> Verified:
        late = sorted(self._late)
        for gap in self._gaps:
            inside = late[bisect_right(late, gap.after) : bisect_left(late, gap.then.sequence)]
            self._fill(gap, [self._late[sequence].pop(0) for sequence in inside], beginning)
        for again in self._late.values():
            for seen in again:
                self._fault("duplicate", seen.sequence, seen.sequence, f"record {seen.sequence} is there more than once")
        if self._opened and self._last_kind != b"session-closed":
            self._notes.append("it does not end with session-closed: it is still open, or its last records were cut off")
        return Verified(
            session=self._name,
            tenant=self._tenant,
            export=self._export,
            records=self._records,
            first=self._first,
            last=self._last,
            faults=tuple(sorted(self._faults, key=lambda fault: fault.sequence)),
            notes=tuple(self._notes),
        )

    def _fill(self, gap: _Gap, moved: list[_Seen], beginning: str) -> None:
        """Judge a gap by what of it came later."""
        expected, heads = gap.after + 1, gap.heads
        for seen in (*moved, gap.then):
            if seen.sequence > expected:
                self._missing(expected, seen.sequence - 1, beginning)
                heads = ()
            heads = self._check(seen, heads)
            expected = seen.sequence + 1
        for first, last in _runs([seen.sequence for seen in moved]):
            message = f"{_which(first, last, 'stands', 'stand')} after record {gap.then.sequence}"
            self._fault("reordered", first, last, message)

    def _missing(self, first: int, last: int, beginning: str) -> None:
        which = _which(first, last, "is", "are")
        if first == 1 and beginning:
            self._notes.append(f"{which} not there ({beginning}), so record {last + 1} cannot be checked")
        else:
            self._fault("missing", first, last, f"{which} missing, so record {last + 1} cannot be checked")

    def _check(self, seen: _Seen, heads: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Compare a record's hash with what it should be after any of `heads`; returns what the next one may be chained to."""
        should_be = [digest(head, seen.fields) for head in heads]
        if not heads or seen.claimed in should_be:
            return (seen.claimed,)
        message = f"record {seen.sequence} was altered: its hash is not that of its contents"
        self._fault("altered", seen.sequence, seen.sequence, message)
        return (seen.claimed, should_be[0])

    def _fault(self, kind: FaultKind, first: int, last: int, message: str) -> None:
        self._faults.append(Fault(session=self._name, kind=kind, sequence=first, last=last, message=message))


def _runs(sequences: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers as (first, last) of those that follow each other."""
    runs: list[tuple[int, int]] = []
    for sequence in sequences:
        if runs and runs[-1][1] == sequence - 1:
            runs[-1] = (runs[-1][0], sequence)
        else:
            runs.append((sequence, sequence))
    return runs


def _which(first: int, last: int, one: str, many: str) -> str:
    return f"record {first} {one}" if first == last else f"records {first} to {last} {many}"


def _read(record: Mapping[str, bytes]) -> _Seen | None:
    number = record.get("FUSE_GATED_SEQUENCE", b"")
    if not (number.isdigit() and len(number) < 20 and int(number) > 0):
        return None
    chain = record.get("FUSE_GATED_CHAIN", b"")
    if _HASH.fullmatch(chain) is None:
        return None
    # A field of ours that no record has was put there by someone else: it is hashed along, and so found.
    foreign = sorted(name for name in record if name.startswith("FUSE_GATED_") and name not in _OURS)
    fields = [(name, record[name]) for name in (*SEALED, *foreign) if name in record]
    return _Seen(int(number), fields, bytes.fromhex(chain.decode("ascii")))


_HASH = re.compile(rb"[0-9a-f]{64}")
_OURS = frozenset({*SEALED, "FUSE_GATED_CHAIN"})


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
