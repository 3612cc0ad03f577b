"""What is known of the client's files without asking (tree/cache.py): used, learnt, and forgotten when it changes.

A handler has judged, limited and told its request before it asks (desk.ask); only then may what is known take the client's
part. What the kernel is told to remember holds for as long as that is known: when the client tells of a change, the kernel is
told as well.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from fuse_gated.errors import ProtocolError
from fuse_gated.gate import sandbox
from fuse_gated.operations import Attributes, Getattr
from fuse_gated.paths import split
from fuse_gated.tree.handles import Handle
from fuse_gated.tree.inodes import Node, identity_of
from fuse_gated.tree.known import Missing
from fuse_gated.turnstile import holding
from fuse_gated.turnstile.effects import InvalidateEntry, InvalidateInode
from fuse_gated.wire import messages
from fuse_gated.wire.messages import Arguments, Notice

if TYPE_CHECKING:
    from fuse_gated.turnstile.desk import Desk

KERNEL: Final = 3600.0
"""Seconds for which the kernel may remember what the client watches."""
MISSING_VALID: Final = 1.0
"""Seconds for which it may remember that a name does not exist. It is told when one comes, but a successor of ours would not
know of which."""
MOST_MISSING: Final = 4096
"""Names that it may remember so at once."""
MAX_NOTICES: Final = 4096
"""Changed paths in one message."""
_TYPE: Final = 0o170000
_REGULAR: Final = 0o100000
_DIRECTORY: Final = 0o040000


def answers(
    t: "Desk", arguments: Arguments, answered: Callable[[Any], None], failed: Callable[[str], None] | None
) -> bool:
    """Answer in the client's place, if what it would say is known. Raises Failure as those two do."""
    found: Attributes | Missing | bytes | None
    if isinstance(arguments, messages.Getattr):
        if isinstance(arguments.target, int):
            return False
        found = t.cache.attributes(arguments.target, t.now)
    elif isinstance(arguments, messages.Readlink):
        known = isinstance(t.cache.attributes(arguments.path, t.now), Attributes)
        found = t.cache.content(arguments.path) if known else None
    else:
        return False
    if found is None:
        t.cache.misses += 1
        return False
    t.cache.hits += 1
    if not isinstance(found, Missing):
        answered(found)
    else:
        assert failed is not None, "whoever asks for a name hears that there is none"
        failed("ENOENT")
    return True


def learnt(t: "Desk", arguments: Arguments, result: Any, since: int) -> None:
    """The client has answered; an errno's name where it failed."""
    if isinstance(arguments, messages.Getattr) and isinstance(arguments.target, bytes):
        path = arguments.target
        if path in t.cache or (path and split(path)[0] in t.cache):
            if result == "ENOENT":
                t.cache.saw(path, None, since)
            elif not isinstance(result, str):
                sandbox.check_attributes(result)
                t.cache.saw(path, result, since)
    elif isinstance(arguments, messages.Readlink) and isinstance(result, bytes):
        t.cache.read(arguments.path, result, since)


def saw_open(t: "Desk", path: bytes, attributes: Attributes, since: int) -> Attributes:
    """The client has said what an open file is. As long as the path still stands for it, that is what is known of the path. What
    was known, if nothing has changed but the time of the last reading, which nobody tells; else what the client has said."""
    if not t.cache.room:
        return attributes
    before = t.cache.attributes(path, t.now)
    if isinstance(before, Attributes) and msgspec.structs.replace(before, atime=attributes.atime) == attributes:
        return before
    if t.cache.until(path, attributes)[0] > t.now:
        t.cache.saw(path, attributes, since)
    return attributes


def until(t: "Desk") -> float:
    """Until when what the client says of a directory now is to be believed."""
    cache = t.gate.tenant.cache
    return math.inf if cache.mode == "watched" else t.now + cache.ttl


def validity(t: "Desk", path: bytes, attributes: Attributes) -> tuple[float, float]:
    """Seconds for which the kernel may take the path for this file, and these attributes for its own, without asking."""
    if t.tells_everything or not t.cache.room:
        return 0.0, 0.0
    name, own = t.cache.until(path, attributes)
    return _seconds(name - t.now), _seconds(own - t.now)


def fresh(t: "Desk") -> float:
    """Seconds for which the kernel may believe what the client has just said of an open file, whatever is kept of it."""
    cache = t.gate.tenant.cache
    return cache.ttl if cache.mode == "ttl" and t.cache.room and not t.tells_everything else 0.0


def is_missing(t: "Desk", path: bytes) -> bool:
    """Whether the kernel may remember for a moment that there is no such name."""
    while t.missing and (t.missing[0][0] <= t.now):
        t.missing.popleft()
    if t.tells_everything or not t.cache.room or len(t.missing) >= MOST_MISSING:
        return False
    if not isinstance(t.cache.attributes(path, t.now), Missing):
        return False
    t.missing.append((t.now + MISSING_VALID, path))
    return True


def _seconds(left: float) -> float:
    return max(0.0, min(left, KERNEL))


def on_notice(t: "Desk", notice: Notice) -> None:
    """The client tells of changes. Raises ProtocolError for what cannot be."""
    t.noticed += len(notice.paths)
    if t.noticed > MAX_NOTICES:
        raise ProtocolError(f"{t.noticed} changed paths in one message, {MAX_NOTICES} are allowed", 1008)
    if notice.attributes and len(notice.attributes) != len(notice.paths):
        raise ProtocolError(f"a notice of {len(notice.paths)} paths with {len(notice.attributes)} attributes", 1008)
    if notice.overflow:
        expire_all(t)
        t.cache.clear()
    pinned = holding.pinned_by_path(t)
    for index, path in enumerate(notice.paths):
        sandbox.check_path(path)
        if not notice.attributes:
            t.cache.renames(path)
            _show_nothing(t, path, pinned)
            continue
        attributes = notice.attributes[index]
        if attributes is not None:
            sandbox.check_attributes(attributes)
            t.readahead.changed(t, identity_of(attributes))
        if t.cache.told(path, attributes):
            _show_anew(t, path, attributes, pinned)
        elif t.drafts:
            # An answer may have said the same before, of which its maker has not heard.
            holding.says(t, t.inodes.find(path), attributes)


def _show_nothing(t: "Desk", path: bytes, pinned: dict[bytes, list[Handle]]) -> None:
    holding.unpin_path(path, pinned)
    _unkeep(t, t.inodes.find(split(path)[0]) if path else None)
    node = t.inodes.find(path)
    if node is not None:
        holding.unpin(t, node)
        t.forget_what_was_shown(node)


def _show_anew(t: "Desk", path: bytes, attributes: Attributes | None, pinned: dict[bytes, list[Handle]]) -> None:
    """The kernel is not to go on showing what it has remembered."""
    if attributes is not None:
        holding.unpin_path(path, pinned, attributes)
    node = t.inodes.find(path)
    if node is None:
        parent = t.inodes.find(split(path)[0]) if path else None
        _unkeep(t, parent)
        if parent is not None and parent.lookups:
            # It may have remembered that the name does not exist.
            t.effects.append(InvalidateEntry(parent.id, split(path)[1]))
        return
    if attributes is None or (node.identity is not None and node.identity != identity_of(attributes)):
        _unkeep(t, node.parent)
        holding.undraft(t, node)
        _forget(t, node)
        return
    holding.unpin(t, node, attributes)
    _unkeep(t, node)
    t.effects.append(InvalidateInode(node.id, pages=attributes.mode & _TYPE == _REGULAR))


def _forget(t: "Desk", node: Node) -> None:
    """Its name is gone, or another file's. Of what is only open here nobody else may have the content that the kernel has."""
    is_left = any(t.handle(number).remote < 0 for number in node.handles)
    if is_left:
        node.kept = -1
    t.forget_what_was_shown(node, pages=not is_left)


def _unkeep(t: "Desk", node: Node | None, *, everywhere: bool = False) -> None:
    """What the kernel keeps of a listing or a file is not as it is any more, nor what it is reading. It is told of a file by
    whoever calls this. A directory's listing it forgets: that its attributes are forgotten does not do, because it might find
    the same time of last change. What somebody is still putting together goes when that is done (listing.py), unless it goes
    `everywhere`."""
    if node is None or node.kept < 0:
        return
    node.kept = -1
    fills = False
    for number in node.handles:
        handle = t.handle(number)
        handle.kept = min(handle.kept, 0)
        fills |= handle.fills
    if (node.identity is None or node.identity[2] == _DIRECTORY) and (everywhere or not fills):
        t.effects.append(InvalidateInode(node.id))


def expire_all(t: "Desk", *, names: bool = True, contents: bool = True) -> None:
    """The kernel is to ask again before it uses what it has remembered: nobody tells us of changes any more. What it holds of
    files' content it keeps only while they are the same (FUSE_AUTO_INVAL_DATA). `names`: those too, which takes locks in the
    kernel, whose holders may wait for an answer of ours. `contents`: what open files were when they were opened does not count
    any more."""
    t.readahead.changed(t, *t.readahead.files)
    for node in t.inodes:
        if names and node.parent is not None and not node.lost:
            t.effects.append(InvalidateEntry(node.parent.id, node.name, expire=True))
        _unkeep(t, node, everywhere=True)
    while names and t.missing:
        path = t.missing.popleft()[1]
        parent = t.inodes.find(split(path)[0])
        if parent is not None:
            t.effects.append(InvalidateEntry(parent.id, split(path)[1]))
    for handle in t.handles:
        handle.draft = None
        if contents:
            handle.pinned = None
    if t.awaits_requests:
        t.expires_later = True
    else:
        _expire_attributes(t)


def all_sent_again(t: "Desk") -> None:
    """Whatever a process before this one had read is here: it is known who asks for attributes."""
    t.awaits_requests = False
    if t.expires_later:
        t.expires_later = False
        _expire_attributes(t)


def _expire_attributes(t: "Desk") -> None:
    """The kernel is to ask for them again. Where it is asking it has none; told to forget them it would also forget the answer
    (fs/fuse/inode.c, attr_version), and the read(2) that waits for that would go by what was there before."""
    asked = {call.request.node for call in t.calls if isinstance(call.request, Getattr)}
    for node in t.inodes:
        if node.id not in asked:
            t.effects.append(InvalidateInode(node.id, pages=False))


def has_moved(t: "Desk", node: Node | None) -> None:
    """The kernel goes on with what it was told of a name that was moved, and where it is now nobody may watch."""
    if t.cache.room and node is not None and node.parent is not None:
        t.effects.append(InvalidateEntry(node.parent.id, node.name, expire=True))
        t.effects.append(InvalidateInode(node.id, pages=False))


def settle(t: "Desk") -> None:
    """To be called after each message. What was found to be different the kernel is not to go on showing. What is not kept any
    more the client need not watch, and the kernel must not count on it."""
    if not t.cache.settle():
        return
    pinned = holding.pinned_by_path(t)
    news, t.cache.news = t.cache.news, []
    for path, attributes in news:
        _show_anew(t, path, attributes, pinned)
    evicted, t.cache.evicted = t.cache.evicted, []
    unwatched = [path for path, _names in evicted if path not in t.cache]
    if t.gate.tenant.cache.mode == "watched":
        for start in range(0, len(unwatched), messages.MAX_GATHERED):
            _unwatch(t, tuple(unwatched[start : start + messages.MAX_GATHERED]))
    beneath = {path for path, _names in evicted}
    for path in [path for path in pinned if split(path)[0] in beneath]:
        holding.unpin_path(path, pinned)
    for path, names in evicted:
        directory = t.inodes.find(path)
        if directory is None:
            continue
        t.effects.append(InvalidateInode(directory.id, pages=False))
        _unkeep(t, directory)
        for name in names:
            node = directory.children.get(name)
            if node is not None:
                t.effects.append(InvalidateInode(node.id, pages=False))
                holding.unpin(t, node)
            t.effects.append(InvalidateEntry(directory.id, name, expire=True))


def _unwatch(t: "Desk", paths: tuple[bytes, ...]) -> None:
    def ended(_outcome: Any) -> None:
        # The client may have done it after it was asked to watch them anew.
        for path in paths:
            t.cache.evict(path)

    t.ask_aside(messages.Unwatch(paths), ended)
