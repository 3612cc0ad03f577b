"""Operations on open directories. A listing is asked for page by page and filtered; what the gate hides never reaches the
kernel, neither as a name nor as attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fuse_gated import operations
from fuse_gated.errors import ProtocolError
from fuse_gated.gate import sandbox
from fuse_gated.operations import DirectoryEntry, Done, Listing, Opened
from fuse_gated.paths import join
from fuse_gated.tree.handles import Handle
from fuse_gated.turnstile.attributes import shown, still_same
from fuse_gated.turnstile.call import Call, Failure
from fuse_gated.turnstile.names import entry_of
from fuse_gated.wire import messages

if TYPE_CHECKING:
    from fuse_gated.turnstile.turnstile import Turnstile

_DOTS: Final = 2
"""'.' and '..' are offsets 1 and 2; the client's entry at cookie n is offset n + 3."""
_DIRENT: Final = 24
_DIRENT_PLUS: Final = 24 + 128
"""sizeof(struct fuse_dirent) and fuse_direntplus without the name (linux/fuse.h)."""
_MOST_ENTRIES: Final = 10_000_000
_PAGE: Final = 1024


def opendir(t: Turnstile, call: Call, request: operations.Opendir) -> None:
    path = t.place(request.node)
    node = t.node(request.node)
    verdict = t.gate.list(path)
    if verdict.errno is not None:
        raise t.refused(call, verdict, path)
    most = t.gate.tenant.limits.open_files
    if most is not None and len(t.handles) >= most:
        raise t.limited(call, "EMFILE", path, f"{most} files are open, as many as the policy allows")
    if t.tells_opens:
        t.announce(call, path, rule=verdict.rule)

    def answered(result: messages.OpenedFile) -> None:
        try:
            shown(t, path, result.attributes)
            still_same(node, result.attributes)
        except Failure:
            t.ask_aside(messages.Releasedir(result.handle))
            raise
        handle = t.handles.add(node, path, result.handle, 0, directory=True)
        handle.generation = t.generation
        handle.opened_at = t.now
        t.answer(call, Opened(handle.id))

    t.ask(call, messages.Opendir(path), answered)


def readdir(t: Turnstile, call: Call, request: operations.Readdir) -> None:
    handle = t.handle(request.handle)
    path = t.handles.path(handle)
    if handle.generation != t.generation:
        verdict = t.gate.list(path)
        if verdict.errno is not None:
            raise t.refused(call, verdict, path)
        handle.generation = t.generation
    if t.tells_everything:
        t.announce(call, path)
    room = _Room(request.size, request.plus)
    if request.offset < 1:
        room.add(DirectoryEntry(b".", _inode(handle), 1, 0o040000))
    if request.offset < _DOTS:
        room.add(DirectoryEntry(b"..", _parent_inode(handle), _DOTS, 0o040000))
    _fill(t, call, request, handle, room, max(0, request.offset - _DOTS))


def _fill(t: Turnstile, call: Call, request: operations.Readdir, handle: Handle, room: _Room, cookie: int) -> None:
    """Answer from the page at hand, or fetch the page that starts at `cookie`. Cookie 0 reads the directory anew."""
    start = handle.page_start
    if cookie and start >= 0 and start <= cookie < start + len(handle.page):
        _answer_from(t, call, request, handle, room, cookie)
        return
    if cookie > _MOST_ENTRIES:
        raise ProtocolError(f"a directory of more than {_MOST_ENTRIES} entries", 1008)

    def answered(result: messages.Listed) -> None:
        sandbox.check_listing(result, _PAGE)
        handle.page, handle.page_start = result.entries, cookie
        if not result.entries:
            t.answer(call, Listing(tuple(room.entries), request.plus))
            return
        _answer_from(t, call, request, handle, room, cookie)

    t.ask(call, messages.Readdir(handle.remote, cookie, _PAGE, request.plus), answered)


def _answer_from(
    t: Turnstile, call: Call, request: operations.Readdir, handle: Handle, room: _Room, cookie: int
) -> None:
    directory = t.handles.path(handle)
    position = cookie
    for listed in handle.page[cookie - handle.page_start :]:
        position += 1
        name = listed.name
        if not t.gate.entry_is_listed(directory, name):
            continue
        if not room.fits(name):
            break
        path = join(directory, name)
        entry = None
        if request.plus and listed.attributes is not None and t.gate.attributes_may_be_shown(path):
            if isinstance(request.node, bytes):
                entry = operations.Entry(operations.ROOT, shown(t, path, listed.attributes))
            else:
                entry = entry_of(t, request.node, name, path, listed.attributes)
        inode = entry.attributes.inode if entry is not None and entry.attributes is not None else listed.inode
        room.add(DirectoryEntry(name, inode, position + _DOTS, listed.type, entry))
    if room.entries:
        t.answer(call, Listing(tuple(room.entries), request.plus))
    else:
        # Everything on this page is hidden: an empty answer would mean the end.
        _fill(t, call, request, handle, room, position)


def releasedir(t: Turnstile, call: Call, request: operations.Releasedir) -> None:
    handle = t.handles.remove(request.handle)
    if handle is None:
        raise Failure("EBADF")
    t.ask_aside(messages.Releasedir(handle.remote))
    t.answer(call, Done())


def fsyncdir(t: Turnstile, call: Call, request: operations.Fsyncdir) -> None:
    handle = t.handle(request.handle)
    t.ask(call, messages.Fsyncdir(handle.remote, request.data_only), lambda _result: t.answer(call, Done()))


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


def _inode(handle: Handle) -> int:
    node = handle.node
    return node.identity[1] if node is not None and node.identity is not None else 1


def _parent_inode(handle: Handle) -> int:
    parent = handle.node.parent if handle.node is not None else None
    return parent.identity[1] if parent is not None and parent.identity is not None else _inode(handle)
