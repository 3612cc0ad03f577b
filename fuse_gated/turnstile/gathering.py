"""Asking the client for much at once (GATHER), for whoever waits for it and ahead of whoever will.

Only what the policy lets programs see is asked for, and content only of what they may read. What comes is kept like any answer
(knowing.py), and every request that uses it is judged, limited and told by itself.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from fuse_gated.gate import sandbox
from fuse_gated.operations import Attributes
from fuse_gated.paths import join, split
from fuse_gated.tree.cache import LONGEST_PATH
from fuse_gated.tree.handles import Handle
from fuse_gated.tree.inodes import Node, identity_of
from fuse_gated.tree.known import Name
from fuse_gated.turnstile import knowing
from fuse_gated.turnstile.call import Call
from fuse_gated.wire import messages
from fuse_gated.wire.messages import Gathered
from fuse_gated.wire.session import Pending

if TYPE_CHECKING:
    from fuse_gated.turnstile.desk import Desk

SMALL: Final = 128 * 2**10
"""Bytes of a file whose content is brought with its opening."""
ENTRIES: Final = 4096
"""Of a directory, in one answer."""
GLIMPSE: Final = 512
"""Of one in which somebody has only looked up a name."""

_MOST: Final = 2**20
_DIRECTORY: Final = 0o040000
_REGULAR: Final = 0o100000
_TYPE: Final = 0o170000
_BELIEVED: Final = 60.0
_MOST_UNWATCHED: Final = 1024


def may_gather(t: "Desk", directory: bytes) -> bool:
    """Whether it is worth while to ask for what is in a directory."""
    if not t.cache.room or t.outage is not None or len(directory) > LONGEST_PATH:
        return False
    return not t.unwatched or t.unwatched.get(directory, 0.0) <= t.now


def wait(t: "Desk", call: Call, path: bytes) -> None:
    """The call comes to its handler again once what is being gathered is here, or is known not to come."""
    call.waited = True
    t.wait(call)
    t.gathering[path].append(call)


def gather(t: "Desk", paths: Iterable[bytes], *, content: int = 0, entries: int = ENTRIES) -> None:
    """Ask for these paths, as far as that is not being done already."""
    wanted = [path for path in paths if path not in t.gathering]
    for start in range(0, len(wanted), messages.MAX_GATHERED):
        _ask(t, wanted[start : start + messages.MAX_GATHERED], content, entries)


def gather_made(t: "Desk", path: bytes, made: list[tuple[int, Attributes]]) -> None:
    """A directory is being made, and the client was asked for that: it is to watch it and to say what is in it in the same
    breath. `made` is to get what the client has made, and when: from then on the listing holds, if it is that one's."""
    worth_while = path not in t.gathering and t.cache.holds(split(path)[0], t.now) and may_gather(t, path)
    if worth_while and not t.session.would_wait(0) and t.gate.list(path).errno is None:
        _ask(t, [path], 0, GLIMPSE, made)


def _ask(
    t: "Desk", paths: list[bytes], content: int, entries: int, made: list[tuple[int, Attributes]] | None = None
) -> None:
    for path in paths:
        t.gathering[path] = []
    tick = t.cache.tick

    def answered(results: tuple[Gathered, ...]) -> None:
        sandbox.check_gathered(results, len(paths), content, entries)
        for path, found in zip(paths, results, strict=False):
            if made is None:
                _take(t, path, found, tick)
                continue
            for since, attributes in made:
                if found.attributes is not None and identity_of(found.attributes) == identity_of(attributes):
                    _take(t, path, found, since)
        rest = paths[len(results) :] if results else []
        waiting = [(path, t.gathering.pop(path, [])) for path in paths]
        _ask_again(t, rest, waiting, content, entries)

    def failed(_errno: str) -> None:
        _ask_again(t, [], [(path, t.gathering.pop(path, [])) for path in paths], content, entries)

    watch = t.gate.tenant.cache.mode == "watched"
    arguments = messages.Gather(tuple(paths), content, entries, _MOST, watch)
    t.session.ask(Pending(t.session.own_id(), arguments, t.now + t.limits.deadline, answered, failed, _MOST))


def _ask_again(t: "Desk", rest: list[bytes], waiting: list[tuple[bytes, list[Call]]], content: int, entries: int) -> None:
    """What did not fit into the answer is asked for once more; who waited for what did goes on."""
    if rest:
        _ask(t, rest, content, entries)
    for path, calls in waiting:
        if path in t.gathering:
            t.gathering[path] += calls
            continue
        for call in calls:
            if t.goes_on(call):
                t.again(call)
    t.prefetch.arrived(t, [path for path, _calls in waiting if path not in t.gathering])


def _take(t: "Desk", path: bytes, found: Gathered, since: int) -> None:
    if found.attributes is None:
        if found.errno == "ENOENT":
            t.cache.saw(path, None, since)
        else:
            # It lies on another mount, or may not be read.
            _is_unwatched(t, path)
        return
    kind = found.attributes.mode & _TYPE
    directory = path if kind == _DIRECTORY else split(path)[0]
    if not found.watched and t.gate.tenant.cache.mode == "watched":
        if kind == _DIRECTORY or found.attributes.nlink == 1:
            _is_unwatched(t, directory)
        return
    until = knowing.until(t)
    if kind == _DIRECTORY:
        names = (Name(entry.name, entry.inode, entry.type, entry.attributes) for entry in found.entries)
        t.cache.listed(path, found.attributes, names, complete=found.complete, since=since, until=until)
        return
    if not t.cache.holds(directory, t.now):
        t.cache.listed(directory, None, (), complete=False, since=since, until=until)
    t.cache.saw(path, found.attributes, since)
    if found.content is not None and (kind != _REGULAR or len(found.content) == found.attributes.size):
        t.cache.read(path, found.content, since)


def _is_unwatched(t: "Desk", directory: bytes) -> None:
    if len(t.unwatched) >= _MOST_UNWATCHED:
        t.unwatched.clear()
    t.unwatched[directory] = t.now + _BELIEVED
    if directory in t.cache:
        t.cache.evict(directory)


# What is done with it.


def listing_of(t: "Desk", path: bytes, *, names: bool = True) -> tuple[Attributes, tuple[Name, ...]] | None:
    """A directory's attributes and all its entries, where they are known; without `names` the attributes alone."""
    if not t.cache.room:
        return None
    attributes = t.cache.attributes(path, t.now)
    if not names:
        return (attributes, ()) if isinstance(attributes, Attributes) else None
    found = t.cache.names(path, t.now) if isinstance(attributes, Attributes) else None
    return (attributes, found) if isinstance(attributes, Attributes) and found is not None else None


def file_of(t: "Desk", path: bytes) -> tuple[Attributes, bytes] | None:
    """A regular file's attributes and its content, where they are known."""
    content = t.cache.content(path) if t.cache.room else None
    attributes = t.cache.attributes(path, t.now) if content is not None else None
    if content is None or not isinstance(attributes, Attributes) or attributes.mode & _TYPE != _REGULAR:
        return None
    return attributes, content


def content_of(t: "Desk", handle: Handle) -> bytes | None:
    """All that is in an open file, where it is known while the client is away and what is known will do (stale.py)."""
    if t.outage is None or t.outage.mode != "cached" or (handle.node is not None and t.inodes.gone(handle.node)):
        return None
    found = file_of(t, t.handles.path(handle))
    return found[1] if found is not None else None


def kept_file(t: "Desk", node: Node | None, path: bytes) -> Attributes | None:
    """What a regular file is, where the kernel has read of it and nothing has become of it since: what it reads once more it has,
    or else asks for."""
    if node is None or node.kept < 0 or t.tells_everything or t.gate.tenant.cache.mode != "watched":
        return None
    found = t.cache.attributes(path, t.now) if t.cache.unchanged(path, node.kept) else None
    if not isinstance(found, Attributes) or found.mode & _TYPE != _REGULAR or node.identity != identity_of(found):
        return None
    return found


def looked_up(t: "Desk", parent: bytes) -> None:
    """Somebody has looked up a name, and the client was asked: it will not be the last one in that directory."""
    known = t.cache.holds(parent, t.now) or parent in t.gathering
    if not known and may_gather(t, parent) and t.gate.list(parent).errno is None:
        gather(t, [parent], entries=GLIMPSE)


def may_be_read(t: "Desk", directory: bytes, name: Name) -> bool:
    """Whether a file's content is worth asking for ahead: the policy lets it be read, and it is small."""
    if name.type != _REGULAR or name.attributes is None or name.attributes.size > SMALL:
        return False
    return t.gate.read(join(directory, name.name)).errno is None


def may_be_listed(t: "Desk", directory: bytes, name: Name) -> bool:
    """Whether a directory may be asked for ahead."""
    return name.type == _DIRECTORY and t.gate.list(join(directory, name.name)).errno is None
