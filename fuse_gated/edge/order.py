"""The order in which the server wants requests carried out: one that comes after others is not begun before they have ended.

Only what is there already can be waited for, so there are no cycles. A chain may be as long as there are requests in flight, and
each may end the moment it is begun: so a chain is let go in a loop, not by calls within calls.
"""

from collections import deque
from collections.abc import Callable, Collection

from fuse_gated.edge.request import Request


class Order:
    """`begin` is called with each request whose turn has come."""

    def __init__(self, begin: Callable[[Request], None]) -> None:
        self._begin = begin
        self._waits_for: dict[Request, set[Request]] = {}
        self._awaited_by: dict[Request, dict[Request, None]] = {}
        self._due: deque[Request] = deque()
        self._letting_go = False

    def __len__(self) -> int:
        """How many are held."""
        return len(self._waits_for)

    def holds(self, request: Request) -> bool:
        return request in self._waits_for

    def hold(self, request: Request, others: Collection[Request]) -> None:
        """Not to be begun before all of these have ended; there is one at least."""
        self._waits_for[request] = set(others)
        for other in others:
            self._awaited_by.setdefault(other, {})[request] = None

    def leave(self, request: Request) -> set[Request]:
        """It is not to be begun at all. Returns what it still waited for."""
        others = self._waits_for.pop(request)
        for other in others:
            waiting = self._awaited_by[other]
            del waiting[request]
            if not waiting:
                del self._awaited_by[other]
        return others

    def ended(self, request: Request, *, failed: bool) -> None:
        """It was answered, or nobody will hear of it: who waited for nothing else is begun, in the order in which they came."""
        waiting = self._awaited_by.pop(request, None)
        if waiting is None:
            return
        for other in waiting:
            other.comes_after_failure |= failed
            others = self._waits_for[other]
            others.remove(request)
            if not others:
                del self._waits_for[other]
                self._due.append(other)
        if not self._letting_go:
            self._let_go()

    def clear(self) -> None:
        """Nothing is begun any more."""
        self._waits_for.clear()
        self._awaited_by.clear()
        self._due.clear()

    def _let_go(self) -> None:
        self._letting_go = True
        try:
            while self._due:
                self._begin(self._due.popleft())
        finally:
            self._letting_go = False
