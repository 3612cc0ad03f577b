"""Operations on open directories. A listing is asked for page by page and filtered; what the gate hides never reaches the
kernel, neither as a name nor as attributes."""

from typing import Final

from fuse_gated import operations
from fuse_gated.errors import ProtocolError
from fuse_gated.gate import sandbox
from fuse_gated.operations import Attributes, DirectoryEntry, Done, Listing, Opened
from fuse_gated.paths import join, split
from fuse_gated.tree.handles import Handle, Listed
from fuse_gated.tree.inodes import Node, identity_of
from fuse_gated.turnstile import gathering, lazily
from fuse_gated.turnstile.attributes import shown, shown_inode, still_same
from fuse_gated.turnstile.call import Call, Failure
from fuse_gated.turnstile.desk import Desk
from fuse_gated.turnstile.effects import InvalidateInode
from fuse_gated.turnstile.names import child_of, entry_of
from fuse_gated.wire import messages

_DIRECTORY: Final = 0o040000
_DOTS: Final = 2
"""'.' and '..' are offsets 1 and 2; the client's entry at cookie n is offset n + 3."""
_DIRENT: Final = 24
_DIRENT_PLUS: Final = 24 + 128
"""sizeof(struct fuse_dirent) and fuse_direntplus without the name (linux/fuse.h)."""
_NOT_BY_PATH: Final = ("EBADF", "ENOENT", "ENOTDIR")
"""How a client fails to sync a directory by its path: it knows of no such way, or there is none of that name any more."""
_MOST_ENTRIES: Final = 10_000_000
_PAGE: Final = 1024
MOST_PAGES: Final = 128
"""Open directories that keep a page: it may take a megabyte, and one program can have very many open."""


class _Room:
    """What fits into one answer of READDIR: the kernel refuses a longer one."""

    def __init__(self, size: int, plus: bool) -> None:
        self.entries: list[DirectoryEntry] = []
        self._left = size
        self._fixed = _DIRENT_PLUS if plus else _DIRENT

    def fits(self, name: bytes) -> bool:
        return self._size(name) <= self._left

    def add(self, entry: DirectoryEntry) -> None:
        self.entries.append(entry)
        self._left -= self._size(entry.name)

    def _size(self, name: bytes) -> int:
        return self._fixed + len(name) + 7 & ~7


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
    if is_sure and gathering.may_gather(t, path) and _open_here(t, call, node, path):
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
        if call.waited:
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
        _keep(t, handle, names, 0, whole=True)
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
    if is_kept or all(_holds(t, node, number) for number in node.handles):
        node.kept = handle.kept = since
        return is_kept
    node.kept = -1
    return True


def _holds(t: Desk, node: Node, number: int) -> bool:
    """Whether what is read through this handle is as it was when that was opened."""
    handle = t.handle(number)
    return handle.kept < 0 or t.cache.unchanged(t.inodes.path(node), handle.kept)


def readdir(t: Desk, call: Call, request: operations.Readdir) -> None:
    handle = t.handle(request.handle)
    path = t.handles.path(handle)
    if handle.generation != t.generation:
        verdict = t.gate.list(path)
        if verdict.errno is not None:
            raise t.refused(call, verdict, path)
        handle.generation = t.generation
    t.announce_other(call, path)
    if request.offset > _MOST_ENTRIES:
        # The client is not to blame: a program may ask for any position (seekdir(3)).
        raise Failure("EOVERFLOW")
    room = _Room(request.size, request.plus)
    if request.offset < 1:
        room.add(DirectoryEntry(b".", _inode(t, handle.node, path), 1, _DIRECTORY))
    if request.offset < _DOTS:
        parent = handle.node.parent if handle.node is not None else None
        room.add(DirectoryEntry(b"..", _inode(t, parent or handle.node, split(path)[0]), _DOTS, _DIRECTORY))
    _fill(t, call, request, handle, room, max(0, request.offset - _DOTS))


def _fill(t: Desk, call: Call, request: operations.Readdir, handle: Handle, room: _Room, cookie: int) -> None:
    """Answer from the page at hand, or fetch the page that starts at `cookie`. Cookie 0 reads the directory anew."""
    if (handle.page_start < 0 and handle.kept >= 0) if cookie else handle.remote < 0:
        # From the beginning, or from where the kernel's own copy does not go on: that has this order, and the client another.
        _renew(t, handle)
    start = handle.page_start
    if cookie or handle.remote < 0:
        if start <= cookie < start + len(handle.page):
            _answer_from(t, call, request, handle, room, cookie)
            return
        if handle.whole and cookie == len(handle.page):
            # Also where the client has opened it meanwhile: it may list in another order, and list what has come since.
            _answer(t, call, request, handle, room)
            return
    if cookie > _MOST_ENTRIES:
        raise ProtocolError(f"a directory of more than {_MOST_ENTRIES} entries", 1008)

    def answered(result: messages.Listed) -> None:
        sandbox.check_listing(result, _PAGE)
        _keep(t, handle, result.entries, cookie)
        if result.entries:
            _answer_from(t, call, request, handle, room, cookie)
        else:
            _answer(t, call, request, handle, room)

    t.ask(call, messages.Readdir(handle.remote, cookie, _PAGE, request.plus), answered)


def _answer(t: Desk, call: Call, request: operations.Readdir, handle: Handle, room: _Room) -> None:
    """Nothing is the end of the listing: from then on the kernel shows others what it has put together."""
    node = handle.node
    if handle.kept >= 0 and node is not None:
        handle.fills = bool(room.entries)
        if not handle.fills and not _holds(t, node, handle.id):
            t.effects.append(InvalidateInode(node.id))
    t.answer(call, Listing(tuple(room.entries), request.plus))


def _renew(t: Desk, handle: Handle) -> None:
    """It is read from the beginning: as it is now. Where that is not known the client opens it, and is asked."""
    if handle.renewed:
        handle.renewed = False
        return
    names = t.cache.names(t.handles.path(handle), t.now)
    if names is not None:
        _keep(t, handle, names, 0, whole=True)
    else:
        handle.page, handle.page_start, handle.whole = (), -1, False


def _keep(t: Desk, handle: Handle, entries: tuple[Listed, ...], cookie: int, *, whole: bool = False) -> None:
    """A page that is given up for it is asked for again where it is still needed."""
    handle.page, handle.page_start, handle.whole = entries, cookie, whole
    t.pages.pop(handle.id, None)
    if entries:
        t.pages[handle.id] = handle
    if len(t.pages) > MOST_PAGES:
        given_up = t.pages.pop(next(iter(t.pages)))
        given_up.page, given_up.whole = (), False


def _answer_from(t: Desk, call: Call, request: operations.Readdir, handle: Handle, room: _Room, cookie: int) -> None:
    directory = t.handles.path(handle)
    position = cookie
    for listed in handle.page[cookie - handle.page_start :]:
        if t.gate.entry_is_listed(directory, listed.name):
            if not room.fits(listed.name):
                break
            room.add(_entry(t, request, directory, listed, position + 1 + _DOTS))
        position += 1
    if room.entries:
        _answer(t, call, request, handle, room)
    elif position == cookie:
        raise Failure("EINVAL")
    else:
        # Everything on this page is hidden: an empty answer would mean the end.
        _fill(t, call, request, handle, room, position)


def _entry(t: Desk, request: operations.Readdir, directory: bytes, listed: Listed, offset: int) -> DirectoryEntry:
    entry = None
    path = join(directory, listed.name)
    attributes = listed.attributes
    if directory in t.cache:
        known = t.cache.attributes(path, t.now)
        # A page may be older than what became of the name since: then the kernel is to look it up.
        attributes = known if isinstance(known, Attributes) else None
    if request.plus and attributes is not None and t.gate.attributes_may_be_shown(path):
        if isinstance(request.node, bytes):
            entry = operations.Entry(operations.ROOT, shown(t, path, attributes))
        else:
            child = child_of(t, request.node, listed.name)
            # A page may be older than what became of the name since: then the kernel is to look it up.
            if child is None or child.identity == identity_of(attributes):
                entry = entry_of(t, request.node, listed.name, path, attributes)
    inode = entry.attributes.inode if entry is not None and entry.attributes is not None else listed.inode
    return DirectoryEntry(listed.name, inode, offset, listed.type, entry)


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


def _inode(t: Desk, node: Node | None, path: bytes) -> int:
    """The number of a directory: of its node, or where the driver has none of its path."""
    identity = t.by_path.identity(path) if node is None and path else (node or t.inodes.root).identity
    return shown_inode(t, *identity[:2]) if identity is not None else 1
