"""Operations on open directories, but for reading them (listing.py)."""

from typing import Final

from fuse_gated import operations
from fuse_gated.gate import sandbox
from fuse_gated.operations import Attributes, Done, Opened
from fuse_gated.tree.handles import Handle
from fuse_gated.tree.inodes import Node, identity_of
from fuse_gated.turnstile import gathering, lazily
from fuse_gated.turnstile.attributes import shown, still_same
from fuse_gated.turnstile.call import Call, Failure
from fuse_gated.turnstile.desk import Desk
from fuse_gated.turnstile.listing import holds, keep_whole
from fuse_gated.wire import messages

_NOT_BY_PATH: Final = ("EBADF", "ENOENT", "ENOTDIR")
"""How a client fails to sync a directory by its path: it knows of no such way, or there is none of that name any more."""


def opendir(t: Desk, call: Call, request: operations.Opendir) -> None:
    node = t.node(request.node)
    held = t.handles.held_on(node, directory=True) if node is not None and t.handles.held else None
    path = t.place(request.node) if node is None or held is None else t.inodes.path(node)
    verdict = t.gate.list(path)
    if verdict.errno is not None:
        raise t.refused(call, verdict, path)
    t.take_place(call, path)
    if t.tells_opens:
        t.announce(call, path, rule=verdict.rule)
    generation = t.generation
    if held is not None:
        remote = t.handles.releasing[held].remote
        t.handles.released(held)
        handle = t.handles.add(node, path, remote, 0, directory=True)
        handle.generation = generation
        t.answer(call, Opened(handle.id))
        return
    # What came before the client may have opened: it answers that once more.
    is_sure = not call.before and not t.contested.covers(t.now, path, call.caller.pid)
    if is_sure and (t.outage is not None or gathering.may_gather(t, path)) and _open_here(t, call, node, path):
        return

    def answered(result: messages.OpenedFile) -> None:
        sandbox.check_handle(result.handle)
        try:
            shown(t, path, result.attributes)
            still_same(t, node, result.attributes)
        except Failure:
            t.close(result.handle, directory=True)
            raise
        handle = t.handles.add(node, path, result.handle, 0, directory=True)
        handle.generation = generation
        keeps = node is not None and path in t.cache and _keeps(t, node, handle, since)
        t.answer(call, Opened(handle.id, keep_cache=keeps, cache_listing=handle.kept >= 0))

    since = t.cache.tick
    t.ask(call, messages.Opendir(path), answered)


def _open_here(t: Desk, call: Call, node: Node | None, path: bytes) -> bool:
    """Open it without asking, if all that is in it is known or is coming."""
    is_kept = node is not None and node.kept >= 0 and path in t.cache and t.cache.unchanged(path, node.kept)
    found = gathering.listing_of(t, path, names=not is_kept)
    if found is None:
        if call.waited or t.outage is not None:
            return False
        t.cache.misses += 1
        gathering.gather(t, [path])
        gathering.wait(t, call, path)
        return True
    attributes, names = found
    shown(t, path, attributes)
    still_same(t, node, attributes)
    handle = t.handles.add(node, path, None, 0, directory=True)
    handle.generation = t.generation
    handle.opened_at = t.now
    handle.identity = identity_of(attributes)
    handle.was = (attributes, None)
    if not is_kept:
        keep_whole(t, handle, names)
        handle.renewed = True
    keeps = node is not None and _keeps(t, node, handle, t.cache.tick, is_kept=is_kept)
    lazily.opened_here(t, handle)
    t.cache.hits += 1
    t.answer(call, Opened(handle.id, keep_cache=keeps, cache_listing=handle.kept >= 0))
    t.prefetch.visited(t, path)
    return True


def _keeps(t: Desk, node: Node, handle: Handle, since: int, *, is_kept: bool = False) -> bool:
    """Settles whether the kernel may keep the listing that is read through this handle, and answer from it whoever opens the
    directory until it changes (FOPEN_CACHE_DIR). It would not notice that the half it has is old and the other half new: while
    somebody may still be putting an old one together, nobody's is kept. Whether it is to go on with what it has: taken away
    while it puts it together, it never begins anew (fs/fuse/readdir.c)."""
    if t.tells_everything or t.gate.tenant.cache.mode != "watched":
        return False
    if is_kept or all(holds(t, node, number) for number in node.handles):
        node.kept = handle.kept = since
        return is_kept
    node.kept = -1
    return True


def releasedir(t: Desk, call: Call, request: operations.Releasedir) -> None:
    handle = t.handles.remove(request.handle)
    if handle is None:
        raise Failure("EBADF")
    t.pages.pop(handle.id, None)
    t.announce_other(call, t.handles.path(handle))
    t.give_back(handle)
    t.answer(call, Done())


def fsyncdir(t: Desk, call: Call, request: operations.Fsyncdir) -> None:
    """Most of them follow upon an opendir(3) that is for nothing else: what is only open here need not be opened for it."""
    handle = t.handle(request.handle)
    path = t.handles.path(handle)
    t.announce_other(call, path)

    def ask() -> None:
        t.ask(call, messages.Fsyncdir(handle.remote, request.data_only), lambda _result: t.answer(call, Done()))

    def answered(attributes: Attributes | None) -> None:
        # What has the name by now may be another directory: that this one has it no more tells who tries to open it.
        if attributes is not None:
            sandbox.check_attributes(attributes)
        if attributes is not None and handle.node is not None and identity_of(attributes) == handle.node.identity:
            t.answer(call, Done())
        else:
            ask()

    def failed(errno: str) -> None:
        if errno == "EBADF":
            t.syncs_by_path = False
        if errno in _NOT_BY_PATH:
            ask()
        else:
            t.fail(call, errno)

    if handle.remote < 0 and t.syncs_by_path and handle.node is not None and not t.inodes.gone(handle.node):
        t.ask(call, messages.Fsyncdir(0, request.data_only, path), answered, failed)
    else:
        ask()
