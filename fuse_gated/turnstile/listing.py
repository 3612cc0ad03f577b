"""READDIR: a listing is asked for page by page, or answered from what is known, and filtered; what the gate hides never reaches
the kernel, neither as a name nor as attributes."""

from bisect import bisect_right
from typing import Final

from fuse_gated import operations
from fuse_gated.errors import ProtocolError
from fuse_gated.gate import sandbox
from fuse_gated.operations import Attributes, DirectoryEntry, Listing
from fuse_gated.paths import join, split
from fuse_gated.tree import telldir
from fuse_gated.tree.handles import Handle, Listed
from fuse_gated.tree.inodes import Node, identity_of
from fuse_gated.tree.known import Name
from fuse_gated.turnstile import gathering
from fuse_gated.turnstile.attributes import shown, shown_inode
from fuse_gated.turnstile.call import Call, Failure
from fuse_gated.turnstile.desk import Desk
from fuse_gated.turnstile.effects import InvalidateInode
from fuse_gated.turnstile.names import child_of, entry_of
from fuse_gated.wire import messages

_DIRECTORY: Final = 0o040000
_DOTS: Final = 2
"""'.' and '..' are offsets 1 and 2; the client's entry at cookie n is offset n + 3. What is listed from here has offsets that no
cookie reaches (tree/telldir.py)."""
_DIRENT: Final = 24
_DIRENT_PLUS: Final = 24 + 128
"""sizeof(struct fuse_dirent) and fuse_direntplus without the name (linux/fuse.h)."""
_MOST_ENTRIES: Final = 10_000_000
_MOST_RELISTED: Final = 100_000
"""More than a listing ever has that is answered from here."""
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


def readdir(t: Desk, call: Call, request: operations.Readdir) -> None:
    handle = t.handle(request.handle)
    path = t.handles.path(handle)
    if handle.generation != t.generation:
        verdict = t.gate.list(path)
        if verdict.errno is not None:
            raise t.refused(call, verdict, path)
        handle.generation = t.generation
    t.announce_other(call, path)
    if _MOST_ENTRIES < request.offset < telldir.OURS or request.offset > telldir.LAST:
        # The client is not to blame: a program may ask for any position (seekdir(3)).
        raise Failure("EOVERFLOW")
    room = _Room(request.size, request.plus)
    if request.offset < 1:
        room.add(DirectoryEntry(b".", _inode(t, handle.node, path), 1, _DIRECTORY))
    if request.offset < _DOTS:
        parent = handle.node.parent if handle.node is not None else None
        room.add(DirectoryEntry(b"..", _inode(t, parent or handle.node, split(path)[0]), _DOTS, _DIRECTORY))
    if request.offset < telldir.OURS:
        _fill(t, call, request, handle, room, max(0, request.offset - _DOTS))
    else:
        _go_on(t, call, request, handle, room)


# What others use of it.


def holds(t: Desk, node: Node, number: int) -> bool:
    """Whether what is read through this handle is as it was when that was opened."""
    handle = t.handle(number)
    return handle.kept < 0 or t.cache.unchanged(t.inodes.path(node), handle.kept)


def is_known(t: Desk, request: operations.Readdir) -> bool:
    """Whether it is answered from here."""
    handle = t.handle(request.handle)
    from_here = request.offset >= telldir.OURS or (request.offset <= _DOTS and handle.remote < 0)
    return from_here and (handle.positions is not None or _names(t, handle) is not None)


def keep_whole(t: Desk, handle: Handle, entries: tuple[Listed, ...]) -> list[int]:
    """All of it, in the order of telldir.py; where each entry stands."""
    _keep(t, handle, entries, 0)
    positions = handle.positions = telldir.positions(entry.name for entry in entries)
    return positions


# Details.


def _fill(t: Desk, call: Call, request: operations.Readdir, handle: Handle, room: _Room, cookie: int) -> None:
    """Answer from the page at hand, or fetch the page that starts at `cookie`. Cookie 0 reads the directory anew: where it is
    only open here, as it is known."""
    if not cookie and handle.remote < 0:
        _renew(t, handle)
        if handle.positions is not None:
            _answer_from_here(t, call, request, handle, room, handle.positions)
            return
    start = handle.page_start
    if cookie and handle.positions is None and start <= cookie < start + len(handle.page):
        _answer_from(t, call, request, handle, room, cookie)
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


def _go_on(t: Desk, call: Call, request: operations.Readdir, handle: Handle, room: _Room) -> None:
    """Answer what comes after a name in a listing that was answered from here: maybe by another process, or long ago."""
    positions = handle.positions
    if positions is None:
        names = _names(t, handle)
        path = t.handles.path(handle)
        if names is None and not call.waited and gathering.may_gather(t, path):
            t.cache.misses += 1
            gathering.gather(t, [path])
            gathering.wait(t, call, path)
            return
        if names is None:
            _list_again(t, call, request, handle, room)
            return
        positions = keep_whole(t, handle, names)
    _answer_from_here(t, call, request, handle, room, positions)


def _list_again(t: Desk, call: Call, request: operations.Readdir, handle: Handle, room: _Room) -> None:
    """Have the client list all of it, and then go on."""
    found: dict[bytes, Listed] = {}

    def ask(cookie: int) -> None:
        def answered(result: messages.Listed) -> None:
            sandbox.check_listing(result, _PAGE)
            found.update((entry.name, entry) for entry in result.entries)
            if len(found) > _MOST_RELISTED:
                raise Failure("EIO")
            if not result.end:
                ask(cookie + len(result.entries))
                return
            positions = keep_whole(t, handle, tuple(found[name] for name in telldir.in_order(found)))
            _answer_from_here(t, call, request, handle, room, positions)

        t.ask(call, messages.Readdir(handle.remote, cookie, _PAGE, False), answered)

    ask(0)


def _answer(t: Desk, call: Call, request: operations.Readdir, handle: Handle, room: _Room) -> None:
    """Nothing is the end of the listing: from then on the kernel shows others what it has put together."""
    node = handle.node
    if handle.kept >= 0 and node is not None:
        handle.fills = bool(room.entries)
        if not handle.fills and not holds(t, node, handle.id):
            t.effects.append(InvalidateInode(node.id))
    t.answer(call, Listing(tuple(room.entries), request.plus))


def _renew(t: Desk, handle: Handle) -> None:
    """It is read from the beginning: as it is now. Where that is not known the client opens it, and is asked."""
    if handle.renewed:
        handle.renewed = False
        return
    names = _names(t, handle)
    if names is not None:
        keep_whole(t, handle, names)
    else:
        handle.page, handle.page_start, handle.positions = (), -1, None


def _names(t: Desk, handle: Handle) -> tuple[Name, ...] | None:
    """All that is in it, where that is known."""
    if handle.node is not None and t.inodes.gone(handle.node):
        return None
    return t.cache.names(t.handles.path(handle), t.now)


def _keep(t: Desk, handle: Handle, entries: tuple[Listed, ...], cookie: int) -> None:
    """A page that is given up for it is asked for again where it is still needed."""
    handle.page, handle.page_start, handle.positions = entries, cookie, None
    t.pages.pop(handle.id, None)
    if entries:
        t.pages[handle.id] = handle
    if len(t.pages) > MOST_PAGES:
        given_up = t.pages.pop(next(iter(t.pages)))
        given_up.page, given_up.positions = (), None


def _answer_from_here(
    t: Desk, call: Call, request: operations.Readdir, handle: Handle, room: _Room, positions: list[int]
) -> None:
    directory = t.handles.path(handle)
    for at in range(bisect_right(positions, request.offset), len(positions)):
        listed = handle.page[at]
        if not t.gate.entry_is_listed(directory, listed.name):
            continue
        if not room.fits(listed.name):
            if not room.entries:
                raise Failure("EINVAL")
            break
        room.add(_entry(t, request, directory, listed, positions[at]))
    _answer(t, call, request, handle, room)


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


def _inode(t: Desk, node: Node | None, path: bytes) -> int:
    """The number of a directory: of its node, or where the driver has none of its path."""
    identity = t.by_path.identity(path) if node is None and path else (node or t.inodes.root).identity
    return shown_inode(t, *identity[:2]) if identity is not None else 1
