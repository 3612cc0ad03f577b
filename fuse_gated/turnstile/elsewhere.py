"""Programs that are attached to a session beside its mount (edge/fuse_network.py): what they do is news to the kernel.

They name files by path, so they have no nodes, and what they open has none. To the mount they are what the client's own programs
are: somebody else who changes files.
"""

from fuse_gated import operations
from fuse_gated.operations import Request
from fuse_gated.paths import join, split
from fuse_gated.turnstile.closing import tell_closed
from fuse_gated.turnstile.desk import Desk
from fuse_gated.turnstile.effects import InvalidateEntry, InvalidateInode


def changed(t: Desk, request: Request) -> None:
    """A program has changed a file's contents or attributes, or a name: a mount that shows it forgets what it has read of it."""
    for changed_path in _names(request) if t.cache.room else ():
        parent, name = split(changed_path)
        directory = t.inodes.find(parent)
        if directory is not None:
            t.effects += [InvalidateEntry(directory.id, name, expire=True), InvalidateInode(directory.id, pages=False)]
    path = _path(t, request)
    node = t.inodes.find(path) if path is not None else None
    if node is not None:
        for number in (node.id, *t.siblings(node)):
            t.effects.append(InvalidateInode(number))


def release_orphans(t: Desk, driver: str) -> None:
    """Close what programs had open that were attached to an earlier process of the session: their sockets ended with it."""
    if driver == "libfuse" or t.outage is not None:
        # Libfuse's own files have no nodes either; and a client that is away cannot close anything.
        return
    for handle in [handle for handle in t.handles if handle.node is None]:
        t.handles.remove(handle.id)
        if handle.directory:
            t.give_back(handle)
            continue
        owners = tuple(t.handles.locks.through(handle.place, handle.id))
        for owner in owners:
            t.handles.locks.flushed(handle.place, owner)
        tell_closed(t, handle)
        t.give_back(handle, owners)


def _names(request: Request) -> list[bytes]:
    """The names that a request makes, removes or moves."""
    if isinstance(request, operations.Lookup):
        return []
    pairs = (("parent", "name"), ("new_parent", "new_name"))
    return [
        join(getattr(request, parent), getattr(request, name))
        for parent, name in pairs
        if isinstance(getattr(request, parent, None), bytes)
    ]


def _path(t: Desk, request: Request) -> bytes | None:
    number = getattr(request, "to_handle", None) or getattr(request, "handle", None)
    handle = t.handles.get(number) if number is not None else None
    if handle is not None:
        return t.handles.path(handle)
    node = request.node if isinstance(request, operations.Setattr | operations.Open) else None
    return node if isinstance(node, bytes) else None
