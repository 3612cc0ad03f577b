"""The limiter: token buckets for the operations and bytes of a session, or of all of a tenant's sessions together (shares.py),
with the clock as an argument.

A bucket holds at most what its rate gives in a second, and one operation at least. Whoever takes more than there is takes it
all the same and is told how long to wait, so those who come later wait behind: the order stays fair (golang.org/x/time/rate
calls this a reservation). What is larger than the bucket goes when the bucket is full, so nothing waits for ever.
"""

import math
from typing import Final

from fuse_gated.gate.shares import Shares
from fuse_gated.gate.tenant import Limits

REFUSED: Final = -1.0
"""The answer where the policy says `on_excess: refuse`: EAGAIN, and nothing was taken."""

_SLACK: Final = 1e-9
"""Seconds: what adding up floats may be off by, and no reason to wait or refuse."""


class Limiter:
    """The buckets of one session. `now` is in seconds, of a clock that does not go back; `unlimited` says that `take` never
    asks anyone to wait. `shares` is what the tenant's sessions have in common, where limits may be for all of them together; its
    clock must be the same in all of their processes.

    Raises ValueError for a rate that is not above 0.
    """

    __slots__ = ("_buckets", "_byte_buckets", "_every", "_every_byte", "_refuses", "_shared", "_shares", "unlimited")

    def __init__(self, limits: Limits, now: float, shares: Shares | None = None) -> None:
        self._shares = shares
        self._shared: Shares | None = None
        self._buckets: dict[str, Bucket] = {}
        self._byte_buckets: dict[str, Bucket] = {}
        self.change(limits, now)

    def change(self, limits: Limits, now: float) -> None:
        """New limits: a bucket is afterwards as full, in parts of itself, as it was, and a debt takes as long to work off."""
        shared = self._shares if limits.scope == "tenant" else None
        if shared is not self._shared:
            # What one session has used says nothing about all of them.
            self._shared, self._buckets, self._byte_buckets = shared, {}, {}
        self._buckets = _changed(self._buckets, limits.operations, now, shared, 0)
        self._byte_buckets = _changed(self._byte_buckets, limits.bytes, now, shared, len(_CLASSES))
        self._every, self._every_byte = self._buckets.get("*"), self._byte_buckets.get("*")
        self._refuses = limits.on_excess == "refuse"
        self.unlimited = not self._buckets and not self._byte_buckets

    def take(self, now: float, kind: str, bytes: int = 0, *, longest: float = math.inf) -> float:
        """Take one operation of class `kind` ('read', 'write', 'other') with so many bytes: the seconds to wait before it is
        carried out, 0.0 to go on at once, or REFUSED, also where it would wait more than `longest` seconds. It counts for its
        own class and for '*', where they have limits."""
        if self.unlimited:
            return 0.0
        wait = 0.0
        takes = self._takes(kind, bytes)
        for bucket, amount in takes:
            wait = max(wait, bucket.wait(now, amount))
        if wait <= _SLACK:
            wait = 0.0
        elif self._refuses or wait > longest:
            return REFUSED
        for bucket, amount in takes:
            bucket.spend(amount)
        return wait

    def give_back(self, kind: str, bytes: int = 0) -> None:
        """What was taken is not used: whoever waited for it does not wait any more."""
        for bucket, amount in self._takes(kind, bytes):
            bucket.put_back(amount)

    def _takes(self, kind: str, bytes: int) -> "list[tuple[Bucket, int]]":
        own, own_bytes = self._buckets.get(kind), self._byte_buckets.get(kind)
        buckets = ((own, 1), (self._every, 1), (own_bytes, bytes), (self._every_byte, bytes))
        return [(bucket, amount) for bucket, amount in buckets if bucket is not None and amount > 0]


class Bucket:
    """Credit in seconds of its rate, below zero for a debt: so a change of the rate leaves it as full as it was.

    Raises ValueError for a rate that is not above 0.
    """

    __slots__ = ("credit", "rate", "room", "updated")

    def __init__(self, rate: float, now: float) -> None:
        self.updated = now
        self.set_rate(rate)
        self.credit = self.room

    def set_rate(self, rate: float) -> None:
        if not rate > 0:
            raise ValueError(f"a limit of {rate:g} a second: it must be above 0")
        self.rate = rate
        self.room = max(1.0, 1.0 / rate)

    def advance(self, now: float) -> None:
        if now > self.updated:
            self.credit = min(self.room, self.credit + now - self.updated)
            self.updated = now

    def wait(self, now: float, amount: float) -> float:
        """How long until `amount` may be taken; below zero if there is more than enough."""
        self.advance(now)
        return min(amount / self.rate, self.room) - self.credit

    def reserve(self, now: float, longest: float) -> float:
        """Take one, whatever there is: the seconds to wait for it, at most `longest`."""
        wait = self.wait(now, 1)
        if wait >= longest:
            return longest  # It goes together with others, so nobody's debt grows.
        self.spend(1)
        return 0.0 if wait <= _SLACK else wait

    def spend(self, amount: float) -> None:
        self.credit -= amount / self.rate

    def put_back(self, amount: float) -> None:
        self.credit = min(self.room, self.credit + amount / self.rate)


class SharedBucket(Bucket):
    """One that all sessions of a tenant take from, `column` of what they share.

    Whoever takes less than its even part of the rate never waits for those who take more: what it takes makes them wait longer.
    What nobody takes is for everybody, first come, first served. (Its own part is a bucket of its own, this one's base.)
    """

    __slots__ = ("_column", "_shares", "_whole")

    def __init__(self, rate: float, now: float, shares: Shares, column: int) -> None:
        self._shares, self._column = shares, column
        super().__init__(rate, now)
        # Whoever comes and goes would have a full one each time.
        self.credit = 0.0

    def set_rate(self, rate: float) -> None:
        super().set_rate(rate)
        self._whole = rate

    def wait(self, now: float, amount: float) -> float:
        whole, active = self._whole, self._shares.active(now)
        room = max(1.0, 1.0 / whole)
        among_all = min(amount / whole, room) - self._shares.credit(self._column, now, room)
        super().set_rate(whole / active)
        return min(among_all, super().wait(now, amount))

    def spend(self, amount: float) -> None:
        self._shares.spend(self._column, amount / self._whole)
        # What is taken beyond its own part is everybody's, and no debt for ever.
        self.credit = max(-self.room, self.credit - amount / self.rate)

    def put_back(self, amount: float) -> None:
        self._shares.spend(self._column, -amount / self._whole)
        super().put_back(amount)


_CLASSES: Final = ("read", "write", "*")


def _changed(
    buckets: dict[str, Bucket], rates: dict[str, float], now: float, shared: Shares | None, first: int
) -> dict[str, Bucket]:
    changed = {}
    for name, rate in rates.items():
        bucket = buckets.get(name)
        if bucket is None:
            bucket = Bucket(rate, now) if shared is None else SharedBucket(rate, now, shared, first + _CLASSES.index(name))
        bucket.advance(now)
        full = bucket.credit / bucket.room
        bucket.set_rate(rate)
        bucket.credit = full * bucket.room
        changed[name] = bucket
    return changed
