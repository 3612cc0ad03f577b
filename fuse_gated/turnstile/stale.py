"""What of a client that is away is known well enough: mode `cached` (outage.py), and what needs no client in any mode.

The cache (tree/cache.py) goes on for as long as the process does whose client is away: nobody tells it of changes, and so what is
answered from it may be stale, which is counted and told. Whoever comes after that process begins without it.
"""

from typing import TYPE_CHECKING

from fuse_gated import operations
from fuse_gated.operations import Attributes, Request
from fuse_gated.turnstile import files, gathering, knowing, listing
from fuse_gated.turnstile.call import Failure

if TYPE_CHECKING:
    from fuse_gated.turnstile.desk import Desk


def suspended(t: "Desk") -> None:
    """The client is away from now on."""
    assert t.outage is not None
    if t.cache.room and t.outage.mode == "cached":
        knowing.expire_all(t, names=False, contents=False)
        t.gathering.clear()
    elif t.cache.room:
        # Names when the client is there again: who holds the locks for that waits for it, and a successor for the kernel.
        t.forget_all_that_is_watched(names=False)
    # What was asked before stays with whom it was asked.
    t.outage.knows = lambda request: _knows(t, request)


def _knows(t: "Desk", request: Request) -> bool:
    """Whether its handler answers without the client."""
    if isinstance(request, operations.Flush):
        handle = t.handles.get(request.handle)
        return handle is not None and not handle.unflushed and not t.handles.locks.has(handle.place, request.owner)
    if isinstance(request, operations.Release | operations.Releasedir):
        handle = t.handles.get(request.handle)
        return handle is not None and handle.remote < 0
    if t.outage is None or t.outage.mode != "cached" or not t.cache.room:
        return False
    try:
        known = _is_known(t, request)
    except Failure:
        # It has lost its name, or is no open file.
        return False
    t.outage.stale += known
    return known


def _is_known(t: "Desk", request: Request) -> bool:
    match request:
        case operations.Open():
            return not files.writes(request.flags) and gathering.file_of(t, t.place(request.node)) is not None
        case operations.Opendir():
            return gathering.listing_of(t, t.place(request.node)) is not None
        case operations.Readlink():
            path = t.place(request.node)
            return isinstance(t.cache.attributes(path, t.now), Attributes) and t.cache.content(path) is not None
        case operations.Read():
            handle = t.handle(request.handle)
            return handle.pinned is not None or gathering.content_of(t, handle) is not None
        case operations.Readdir():
            return listing.is_known(t, request)
    return False
