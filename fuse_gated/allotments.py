"""What the sessions of a tenant share of its limits (gate/shares.py): the daemon makes the page, and gives each its number.

A page stays for as long as the daemon does: who ends its sessions and opens them anew finds the limits as used up as they were.
Whoever gets a page can write to all of it, so nobody gets one but the processes that serve this tenant's sessions.
"""

import heapq
import mmap
import os
import struct

from fuse_gated.edge.memory import make_memory
from fuse_gated.gate.shares import SESSIONS, SIZE, Shares


class Allotments:
    """All tenants' pages."""

    def __init__(self) -> None:
        self._pages: dict[str, _Page] = {}

    def give(self, tenant: str) -> int:
        """A number for one more session of the tenant. Raises OSError where there is no memory for its page."""
        page = self._pages.get(tenant)
        if page is None:
            page = self._pages[tenant] = _Page()
        return page.give()

    def take_back(self, tenant: str, number: int) -> None:
        """The session is over. What it has taken stays taken."""
        heapq.heappush(self._pages[tenant].free, number)

    def descriptor(self, tenant: str) -> int:
        """The page's; it stays ours."""
        return self._pages[tenant].descriptor


class _Page:
    """One tenant's."""

    def __init__(self) -> None:
        self.descriptor = make_memory("fuse-gated-shares", SIZE)
        self.free: list[int] = []
        self._given = 0

    def give(self) -> int:
        if self.free:
            return heapq.heappop(self.free)
        # With more sessions than there is room for, some would share a number: their counts would be too low.
        number = min(self._given, SESSIONS - 1)
        self._given += 1
        os.pwrite(self.descriptor, struct.pack("=d", number + 1), 0)
        return number


def view(descriptor: int, number: int) -> Shares:
    """For the process that serves the session. The descriptor is closed. Raises OSError."""
    try:
        page = mmap.mmap(descriptor, SIZE)
    finally:
        os.close(descriptor)
    return Shares(memoryview(page).cast("d"), number)


__all__ = ["Allotments", "view"]
