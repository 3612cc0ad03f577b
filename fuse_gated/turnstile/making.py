"""Operations that make a name: of a link, a special file, a directory, or one more of a file that there is."""

from collections.abc import Callable
from typing import Final

from fuse_gated import operations
from fuse_gated.gate import sandbox
from fuse_gated.operations import Attributes
from fuse_gated.turnstile import gathering, holding
from fuse_gated.turnstile.call import Call, Failure
from fuse_gated.turnstile.desk import Desk
from fuse_gated.turnstile.names import entry_of, path_of
from fuse_gated.wire import messages

_TARGET_MAX: Final = 4095


def owner_of(t: Desk, call: Call) -> messages.Owner | None:
    """Who shall own what is made: the caller where ownership is passed through, else the client's user."""
    return messages.Owner(call.caller.uid, call.caller.gid) if t.passes_ownership else None


def symlink(t: Desk, call: Call, request: operations.Symlink) -> None:
    if not request.target or len(request.target) > _TARGET_MAX:
        raise Failure("ENAMETOOLONG" if request.target else "ENOENT")
    path = path_of(t, request.parent, request.name)
    arguments = messages.Symlink(path, request.target, owner_of(t, call))
    _make(t, call, request.parent, request.name, path, arguments)


def mknod(t: Desk, call: Call, request: operations.Mknod) -> None:
    path = path_of(t, request.parent, request.name)
    arguments = messages.Mknod(path, request.mode, request.rdev, owner_of(t, call))
    _make(t, call, request.parent, request.name, path, arguments)


def mkdir(t: Desk, call: Call, request: operations.Mkdir) -> None:
    path = path_of(t, request.parent, request.name)
    arguments = messages.Mkdir(path, request.mode & 0o7777, owner_of(t, call))
    made: list[tuple[int, Attributes]] = []
    _make(t, call, request.parent, request.name, path, arguments, lambda found: made.append((t.cache.tick, found)))
    # What is to be put into it is looked up first, each of it: that there is nothing yet is known by then.
    gathering.gather_made(t, path, made)


def _make(
    t: Desk,
    call: Call,
    parent: operations.Node,
    name: bytes,
    path: bytes,
    arguments: messages.Arguments,
    has_made: Callable[[Attributes], None] = lambda _attributes: None,
) -> None:
    verdict = t.gate.create(path)
    if verdict.errno is not None:
        raise t.refused(call, verdict, path)
    if t.tells_changes:
        t.announce(call, path, rule=verdict.rule)

    since = t.cache.renames(path)

    def answered(attributes: Attributes) -> None:
        sandbox.check_attributes(attributes)
        t.cache.changed(path, attributes, since)
        has_made(attributes)
        t.answer(call, entry_of(t, parent, name, path, attributes))

    t.ask(call, arguments, answered)


def link(t: Desk, call: Call, request: operations.Link) -> None:
    target, path, node = t.target(request.node)
    new_path = path_of(t, request.new_parent, request.new_name)
    if (node is not None and t.inodes.gone(node)) or (node is None and isinstance(target, int)):
        # Giving a name back to a file that has none would grant at the new name what the old one denied.
        raise Failure("ENOENT")
    verdict = t.gate.link(path, new_path)
    if verdict.errno is not None:
        raise t.refused(call, verdict, path, new_path)
    if t.tells_changes:
        t.announce(call, path, new_path, rule=verdict.rule)

    since = t.cache.renames(new_path)
    t.cache.changes(path)
    holding.undraft(t, node)

    def answered(attributes: Attributes) -> None:
        # The old name's link count has changed too.
        sandbox.check_attributes(attributes)
        t.cache.changes(path)
        t.cache.changed(new_path, attributes, since)
        siblings = [*t.siblings(node), *([node.id] if node is not None else [])]
        entry = entry_of(t, request.new_parent, request.new_name, new_path, attributes)
        if node is not None:
            t.inodes.has_links(node, attributes)
        t.answer_change(call, entry, siblings)

    t.ask(call, messages.Link(target, new_path), answered)
