"""Operations on names that there are: lookup, removing and renaming."""

from typing import Final

from fuse_gated import operations
from fuse_gated.gate import sandbox
from fuse_gated.gate.verdict import Verdict
from fuse_gated.operations import Attributes, Data, Done, Entry
from fuse_gated.paths import NAME_MAX, is_safe_name, join, split
from fuse_gated.tree.by_path import is_hidden_name
from fuse_gated.tree.inodes import Node, identity_of
from fuse_gated.turnstile import climbing, contested, gathering, holding, knowing, lazily
from fuse_gated.turnstile.attributes import shown
from fuse_gated.turnstile.call import Call, Failure
from fuse_gated.turnstile.desk import Desk
from fuse_gated.turnstile.naming import MAX_PATH
from fuse_gated.wire import messages

_DIRECTORY: Final = 0o040000
_NOREPLACE: Final = 1
_EXCHANGE: Final = 2

LOOKUP_VALID: Final = 0.001
"""Seconds for which the attributes of a LOOKUP are valid: so that the GETATTR of the same stat(2) need not ask again. The
kernel rounds it up to its clock's tick. Taking a lock ends it (locks.py)."""

MOST_LOOKS: Final = 16
"""Times that one LOOKUP asks the client, if others find another file by that name each time."""

_LINK_LEAVES: Final = Verdict("EACCES", "symlinks", "the link's target leaves the export")


def path_of(t: Desk, parent: operations.Node, name: bytes, place: bytes | None = None) -> bytes:
    """The path of a name in a directory, which may be said to lie in `place`. Raises Failure for a name that is none."""
    if not is_safe_name(name):
        raise Failure("ENAMETOOLONG" if len(name) > NAME_MAX else "EINVAL")
    path = join(t.place(parent) if place is None else place, name)
    if len(path) > MAX_PATH:
        raise Failure("ENAMETOOLONG")
    return path


def entry_of(t: Desk, parent: operations.Node, name: bytes, path: bytes, attributes: Attributes) -> Entry:
    """Checks what the client says of a name and makes the kernel's entry of it; the lookup is counted."""
    visible = shown(t, path, attributes)
    directory = t.node(parent)
    if directory is None:
        t.by_path.saw(path, attributes)
        return Entry(operations.ROOT, visible, 0.0, LOOKUP_VALID)
    node = t.inodes.known(directory, name, attributes)
    if t.remembers:
        node.attributes = attributes
    t.prune()
    named, valid = knowing.validity(t, path, attributes)
    if valid <= LOOKUP_VALID:
        # What is open is followed to the letter: a log that the client's programs write to is read as it grows.
        valid = 0.0 if node.handles else LOOKUP_VALID
    return Entry(node.id, visible, named, valid)


def lookup(t: Desk, call: Call, request: operations.Lookup) -> None:
    place, looks = contested.place_of(t, call, request.parent) if t.contested else None, 0
    path = path_of(t, request.parent, request.name, place)
    verdict = t.gate.see(path)
    if verdict.errno is not None:
        raise t.refused(call, verdict, path)
    t.announce_other(call, path, rule=verdict.rule)
    before = child_of(t, request.parent, request.name)
    parent = split(path)[0]
    if t.gathering and parent in t.gathering and not call.waited and t.cache.attributes(path, t.now) is None:
        gathering.wait(t, call, parent)
        return

    def look() -> None:
        if not (t.contested and contested.opens(t, call, path, opened, failed, ask)):
            ask()

    def ask() -> None:
        t.ask(call, messages.Getattr(path), answered, failed)

    def answered(attributes: Attributes) -> None:
        if not crosses(attributes):
            t.answer(call, entry(attributes))

    def opened(result: messages.OpenedFile, directory: bool) -> None:
        if crosses(result.attributes):
            t.close(result.handle, directory=directory)
            return
        found = entry(result.attributes)
        contested.hold(t, found.node, result, directory=directory)
        t.answer(call, found)

    def crosses(attributes: Attributes) -> bool:
        """Whether the name has become another file's by another request, maybe after the client had looked: it looks again."""
        nonlocal before, looks
        now = child_of(t, request.parent, request.name)
        if now is None or now is before or now.identity == identity_of(attributes):
            return False
        before, looks = now, looks + 1
        if looks == MOST_LOOKS:
            raise Failure("ESTALE")
        look()
        return True

    def entry(attributes: Attributes) -> Entry:
        found = entry_of(t, request.parent, request.name, path, attributes)
        if t.contested:
            t.contested.looked_up(t.now, path, call.caller.pid)
        # Of what lies in a directory that has lost its name no notice tells.
        return found if place is None else Entry(found.node, found.attributes, 0.0, LOOKUP_VALID)

    def failed(errno: str) -> None:
        if errno == "ENOENT" and before is not None and child_of(t, request.parent, request.name) is before:
            t.inodes.removed(before)
        if errno == "ENOENT" and isinstance(request.parent, int) and knowing.is_missing(t, path):
            t.answer(call, Entry(0, None, knowing.MISSING_VALID))
            return
        t.fail(call, errno)

    misses = t.cache.misses
    look()
    if t.cache.misses != misses:
        t.prefetch.missed(t, parent)


def readlink(t: Desk, call: Call, request: operations.Readlink) -> None:
    node = t.node(request.node)
    # One that another link has taken the place of a moment ago is answered with where that one leads: to look again might meet
    # the next one.
    path = t.inodes.path(node) if node is not None and node.lost == "ESTALE" else t.place(request.node)
    verdict = t.gate.read(path)
    if verdict.errno is not None:
        raise t.refused(call, verdict, path)
    t.announce_other(call, path, rule=verdict.rule)

    def answered(target: bytes) -> None:
        if node is not None and t.inodes.path(node) != path:
            # It was moved while the client was asked, and what is inside depends on how deep it lies.
            raise Failure("ESTALE")
        contained = sandbox.contained_link(target, path, t.export_root, t.gate.tenant.symlinks)
        if contained is None or not climbing.shows(t, t.node(request.node), contained):
            raise t.refused(call, _LINK_LEAVES, path)
        t.answer(call, Data(contained))

    def failed(errno: str) -> None:
        raise Failure("ESTALE" if node is not None and node.lost else errno)

    t.ask(call, messages.Readlink(path), answered, failed)


def unlink(t: Desk, call: Call, request: operations.Unlink) -> None:
    path = path_of(t, request.parent, request.name)
    if isinstance(request.parent, bytes) and is_hidden_name(request.name):
        # libfuse is done with the alias of a file that was removed long ago.
        t.by_path.forget(path)
        t.answer(call, Done())
        return
    if request.alias is not None and not t.by_path.may_be_hidden(path, t.now):
        raise Failure("EACCES")
    _remove(t, call, request.parent, request.name, path, messages.Unlink(path), request.alias)


def rmdir(t: Desk, call: Call, request: operations.Rmdir) -> None:
    path = path_of(t, request.parent, request.name)
    _remove(t, call, request.parent, request.name, path, messages.Rmdir(path))


def _remove(
    t: Desk,
    call: Call,
    parent: operations.Node,
    name: bytes,
    path: bytes,
    arguments: messages.Arguments,
    alias: bytes | None = None,
) -> None:
    verdict = t.gate.remove(path)
    if verdict.errno is not None:
        raise t.refused(call, verdict, path)
    if t.tells_changes:
        t.announce(call, path, rule=verdict.rule)

    since = 0

    def answered(_result: None) -> None:
        t.cache.changed(path, None, since)
        node = child_of(t, parent, name)
        holding.undraft(t, node)
        if node is not None:
            t.inodes.removed(node)
        else:
            t.by_path.removed(path, alias)
        t.answer_change(call, Done(), t.siblings(node))

    def go_on() -> None:
        nonlocal since
        since = t.cache.renames(path)
        t.ask(call, arguments, answered)

    lazily.before_it_goes(t, call, child_of(t, parent, name), path, go_on)


def rename(t: Desk, call: Call, request: operations.Rename) -> None:
    if request.flags & ~(_NOREPLACE | _EXCHANGE) or request.flags == _NOREPLACE | _EXCHANGE:
        raise Failure("EINVAL")
    path = path_of(t, request.parent, request.name)
    new_path = path_of(t, request.new_parent, request.new_name)
    exchange, no_replace = bool(request.flags & _EXCHANGE), bool(request.flags & _NOREPLACE)
    moved = child_of(t, request.parent, request.name)
    replaced = child_of(t, request.new_parent, request.new_name)
    verdict = t.gate.rename(
        path,
        new_path,
        directory=_may_be_directory(t, path, moved) or (exchange and _may_be_directory(t, new_path, replaced)),
        replaces=replaced is not None and not no_replace and not exchange,
        exchange=exchange,
    )
    if verdict.errno is not None:
        raise t.refused(call, verdict, path, new_path)
    if not (climbing.may_move(t, moved, new_path) and (not exchange or climbing.may_move(t, replaced, path))):
        raise t.refused(call, climbing.LEADS_OUT, path, new_path)
    if t.node(request.parent) is not None and (moved is None or (exchange and replaced is None)):
        # The kernel has looked up what it renames. If the client has said since that it is gone, it looks again: a directory
        # that is not known would be moved without regard for the links in it.
        raise Failure("ESTALE")
    # What the client has at the new name may be newer than what the kernel looked up: it is replaced only where the policy
    # allows that, whether we know of it or not.
    removal = t.gate.remove(new_path)
    guarded = not exchange and not no_replace and removal.errno is not None
    if t.tells_changes:
        t.announce(call, path, new_path, rule=verdict.rule)

    since = 0

    def answered(_result: None) -> None:
        t.cache.renames(new_path)
        if exchange or _may_be_one_file(t, (moved, path), (child_of(t, request.new_parent, request.new_name), new_path)):
            # Of two names of one file both stay (rename(2)).
            t.cache.renames(path)
        else:
            t.cache.changed(path, None, since)
        parent, new_parent = t.node(request.parent), t.node(request.new_parent)
        replaced = None if exchange else child_of(t, request.new_parent, request.new_name)
        holding.undraft(t, moved, child_of(t, request.new_parent, request.new_name))
        if parent is not None and new_parent is not None:
            knowing.settle(t)  # While what lay beneath still has its names.
            t.inodes.renamed(parent, request.name, new_parent, request.new_name, exchange=exchange)
            knowing.has_moved(t, moved)
            knowing.has_moved(t, child_of(t, request.parent, request.name))
            climbing.has_moved(t, request, (moved, path), (child_of(t, request.parent, request.name), new_path))
        else:
            t.by_path.renamed(path, new_path)
        t.answer_change(call, Done(), t.siblings(replaced))

    def failed(errno: str) -> None:
        if errno == "EEXIST" and guarded:
            t.fail(call, t.refused(call, removal, path, new_path).errno)
        else:
            t.fail(call, errno)

    def go_on() -> None:
        nonlocal since
        since = t.cache.renames(path)
        t.cache.renames(new_path)
        knowing.settle(t)
        climbing.moves(t, call, moved, new_path)
        if exchange:
            climbing.moves(t, call, replaced, path)
        t.ask(call, messages.Rename(path, new_path, no_replace or guarded, exchange), answered, failed)

    if exchange:
        go_on()
    else:
        lazily.before_it_goes(t, call, replaced, new_path, go_on)


def _may_be_one_file(t: Desk, *named: tuple[Node | None, bytes]) -> bool:
    """Whether both names may be one file's: as far as is known, or because the first has more names somewhere."""
    node = named[0][0]
    one, other = (node.identity if node is not None else t.by_path.identity(path) for node, path in named)
    return one is not None and (one == other or (node is not None and bool(t.siblings(node))))


def child_of(t: Desk, parent: operations.Node, name: bytes) -> Node | None:
    """The node of a name, if it has one."""
    directory = t.node(parent)
    return None if directory is None else directory.children.get(name)


def _may_be_directory(t: Desk, path: bytes, node: Node | None) -> bool:
    """What is not known is judged as a directory, the stricter case."""
    identity = node.identity if node is not None else t.by_path.identity(path)
    return identity is None or identity[2] == _DIRECTORY
