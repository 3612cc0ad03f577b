"""What measures.py has counted, read. Whoever wrote it may have been anyone: it is numbers and nothing else, each bounded.

Figures can be subtracted (what happened between two looks) and added (several sessions together).
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from fuse_gated.turnstile import measures
from fuse_gated.turnstile.measures import AT, BOUNDS, BUCKETS, HEADER, MAGIC, OPERATIONS, SIZE, WORDS

_MOST: Final = 2**53
"""Of any number, so that sums of them stay exact in JSON and in a monitoring system, which count in floats."""


class Operation(msgspec.Struct, frozen=True):
    """One operation's. Sums are in seconds; histograms are counts per bucket (measures.BOUNDS). `faults` are those errors that no
    disk that works has; `asked` is how many of them the client was asked for."""

    name: str
    count: int
    errors: int
    faults: int
    asked: int
    bytes: int
    whole: tuple[int, ...]
    gate: tuple[int, ...]
    held: tuple[int, ...]
    remote: tuple[int, ...]
    gate_seconds: float
    held_seconds: float
    remote_seconds: float
    client_seconds: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.gate_seconds + self.held_seconds + self.remote_seconds


class Figures:
    """A session's, or several together."""

    def __init__(self, words: Sequence[int]) -> None:
        self._words = words

    @classmethod
    def read(cls, block: bytes) -> "Figures":
        """Of a block, or of its beginning; zeros for what is none."""
        words = array("Q")
        words.frombytes(block[: SIZE].ljust(-(-len(block[: SIZE]) // 8) * 8, b"\0"))
        if not words or words[0] != MAGIC:
            return cls([0] * WORDS)
        return cls([word if word < _MOST else _MOST for word in words] + [0] * (WORDS - len(words)))

    @classmethod
    def sum(cls, several: "Iterable[Figures]") -> "Figures":
        """All of them together."""
        total = [0] * WORDS
        for figures in several:
            total = [min(a + b, _MOST) for a, b in zip(total, figures._words, strict=True)]
        return cls(total)

    def since(self, before: "Figures") -> "Figures":
        """What has come since an earlier look. What is of this moment stays; what went back is nothing."""
        words = [now - then if now > then else 0 for now, then in zip(self._words, before._words, strict=True)]
        words[measures.WAITING] = self.waiting
        words[measures.IN_FLIGHT] = self.in_flight
        return Figures(words)

    @property
    def whole(self) -> tuple[int, ...]:
        """The histogram of all operations."""
        return tuple(self._words[measures.WHOLE : measures.WHOLE + BUCKETS])

    @property
    def count(self) -> int:
        """Operations that have ended."""
        return sum(self.whole)

    @property
    def in_flight(self) -> int:
        """Operations that have begun and not ended."""
        return self._words[measures.IN_FLIGHT]

    @property
    def waiting(self) -> int:
        return self._words[measures.WAITING]

    @property
    def bytes_read(self) -> int:
        return self._words[measures.BYTES_READ]

    @property
    def bytes_written(self) -> int:
        return self._words[measures.BYTES_WRITTEN]

    @property
    def bytes_copied(self) -> int:
        return self._words[measures.BYTES_COPIED]

    @property
    def errors(self) -> int:
        return self._words[measures.ERRORS]

    @property
    def faults(self) -> int:
        return self._words[measures.FAULTS]

    @property
    def refused(self) -> int:
        return self._words[measures.REFUSED]

    @property
    def untold(self) -> int:
        return self._words[measures.UNTOLD]

    @property
    def cache_hits(self) -> int:
        return self._words[measures.CACHE_HITS]

    @property
    def cache_misses(self) -> int:
        return self._words[measures.CACHE_MISSES]

    @property
    def slow(self) -> int:
        return self._words[measures.SLOW]

    @property
    def hit_ratio(self) -> float | None:
        """Of the cache; None where it was not asked."""
        asked = self.cache_hits + self.cache_misses
        return self.cache_hits / asked if asked else None

    @property
    def operations(self) -> list[Operation]:
        """Those that there were."""
        words = self._words
        found = []
        for name in OPERATIONS:
            at = AT[name]
            whole = self._histogram(at + measures.OWN_WHOLE)
            count = sum(whole)
            if not count:
                continue
            remote = self._histogram(at + measures.REMOTE)
            seconds = [words[at + word] / 1e9 for word in _TIMES]
            moved = measures.MOVED.get(name)
            gate, held = self._histogram(at + measures.GATE), self._histogram(at + measures.HELD)
            errors, faults = words[at + measures.OWN_ERRORS], words[at + measures.OWN_FAULTS]
            size = words[moved] if moved is not None else 0
            # No more than there were, whatever somebody wrote.
            asked = min(sum(remote), count)
            found.append(Operation(name, count, errors, faults, asked, size, whole, gate, held, remote, *seconds))
        return found

    def _histogram(self, at: int) -> tuple[int, ...]:
        return tuple(self._words[at : at + BUCKETS])


def quantile(histogram: Sequence[int], part: float) -> float | None:
    """The seconds that `part` of all took at most, by straight lines within the buckets, as Prometheus' histogram_quantile()
    does; for the last bucket its lower bound. None where there are none."""
    total = sum(histogram)
    if not total:
        return None
    rank, passed = part * total, 0
    lower = 0.0
    for count, upper in zip(histogram, BOUNDS, strict=False):
        if count and passed + count >= rank:
            return lower + (upper - lower) * max(0.0, rank - passed) / count
        passed += count
        lower = upper
    return lower


_TIMES: Final = (measures.GATE_TIME, measures.HELD_TIME, measures.REMOTE_TIME, measures.CLIENT_TIME)
assert AT[OPERATIONS[-1]] + measures.OPERATION_WORDS <= WORDS
assert measures.WHOLE + BUCKETS <= HEADER
