"""What all sessions of one tenant have taken of its limits together: a page of numbers that all their processes map.

Each process writes its own numbers only, so nothing is locked, nothing is lost, and one that is killed leaves nothing half done.
A bucket that holds `room` seconds of its rate and was full at the clock's zero has, when U seconds' worth have been taken of it,
`now - U - M`: M is what it could not hold because it was full, the most that `now - U - room` has ever been. U is a sum, of what
each session took; M is a maximum, of what each saw, and it grows only while nobody takes anything, so whoever takes next sees it.

The page is of no other tenant's, and hostile sessions of the same one can lift its limits, or use them up, but no more: what is
read is added and compared, whatever it is.
"""

from typing import Final

SESSIONS: Final = 4096
"""For so many there is room."""
COLUMNS: Final = 6
"""Buckets."""
SIZE: Final = 8 * (1 + SESSIONS * (1 + 2 * COLUMNS))
"""Bytes of a page. At first all of them are 0."""

_STALE: Final = 0.001
"""Seconds for which a sum is used again. A thousand numbers are added in some microseconds; an operation takes more than ten."""
_ACTIVE: Final = 1.0
"""Seconds after its last operation for which a session has its part."""
_COUNT_AGAIN: Final = 0.05
_MOMENTS: Final = 1
"""Where each session writes when it took something last."""
_TAKEN: Final = 1 + SESSIONS
_BEYOND: Final = _TAKEN + SESSIONS * COLUMNS


class Shares:
    """One session's view. `page` are SIZE bytes, as numbers (cast to 'd'); `number` says which of them are the session's own. The
    first number, how many sessions there have been at once, is written by whoever gives numbers out."""

    __slots__ = ("_active", "_beyond", "_counted_at", "_number", "_others", "_page", "_summed_at")

    def __init__(self, page: "memoryview[float]", number: int) -> None:
        self._page = page
        self._number = number
        self._summed_at = [-1.0] * COLUMNS
        self._others = [0.0] * COLUMNS
        self._beyond = [0.0] * COLUMNS
        self._active, self._counted_at = 1, -1.0

    def credit(self, column: int, now: float, room: float) -> float:
        """Seconds of its rate that are in the bucket, below 0 for a debt."""
        page = self._page
        if not 0.0 <= now - self._summed_at[column] < _STALE:
            self._sum(column, now)
        own = _BEYOND + column * SESSIONS + self._number
        taken = self._others[column] + page[_TAKEN + column * SESSIONS + self._number]
        beyond = max(self._beyond[column], page[own])
        if now - taken - room > beyond:
            beyond = page[own] = now - taken - room
        return now - taken - beyond

    def spend(self, column: int, seconds: float) -> None:
        """Take so much, or give it back."""
        self._page[_TAKEN + column * SESSIONS + self._number] += seconds

    def active(self, now: float) -> int:
        """How many sessions are taking something, this one among them."""
        page, last = self._page, _MOMENTS + self._number
        page[last] = now
        if not 0.0 <= now - self._counted_at < _COUNT_AGAIN:
            self._counted_at = now
            since = now - _ACTIVE
            self._active = max(1, sum(moment > since for moment in page[_MOMENTS : _MOMENTS + self._sessions()]))
        return self._active

    def _sum(self, column: int, now: float) -> None:
        page, sessions = self._page, self._sessions()
        start = _TAKEN + column * SESSIONS
        self._others[column] = sum(page[start : start + sessions]) - page[start + self._number]
        start = _BEYOND + column * SESSIONS
        self._beyond[column] = max(page[start : start + sessions])
        self._summed_at[column] = now

    def _sessions(self) -> int:
        """Of those who have ever had a number, this one among them."""
        said = self._page[0]
        return max(self._number + 1, int(said) if 0 < said <= SESSIONS else 0)


__all__ = ["COLUMNS", "SESSIONS", "SIZE", "Shares"]
