"""Operations on attributes: getattr, setattr, access, statfs and extended attributes; and what is shown of a file."""

from collections.abc import Callable
from typing import Final

from fuse_gated import operations
from fuse_gated.gate import sandbox
from fuse_gated.gate.verdict import Verdict
from fuse_gated.operations import Attr, Attributes, Data, Done, Filesystem, XattrSize
from fuse_gated.tree.handles import Handle
from fuse_gated.tree.inodes import Node, identity_of
from fuse_gated.turnstile import ahead, drafting, holding, knowing, leasing
from fuse_gated.turnstile.call import Call, Failure
from fuse_gated.turnstile.desk import Desk
from fuse_gated.wire import messages

_DIRECTORY: Final = 0o040000
_XATTR_PREFIX: Final = b"user."
_MASK64: Final = 2**64 - 1
ALLOWED: Final = 60.0
"""Seconds after which the client is asked again what its user may do with a file whose mode and owner are the same: of an access
control list nobody tells."""
FILESYSTEM: Final = 1.0
"""Seconds for which what was said of the filesystem's room will do (find(1) asks for it each time it begins)."""
_MOST_ALLOWED: Final = 1024
_NEVER: Final = ((), 0.0)
_CHOWN: Final = Verdict("EPERM", "ownership", "everything belongs to the tenant's first user and group")


def shown(t: Desk, path: bytes, attributes: Attributes) -> Attributes:
    """What the mount shows of a file.

    Raises ProtocolError for attributes that no file can have: a client that sends them is broken or hostile.
    """
    sandbox.check_attributes(attributes)
    if t.readahead.files:
        t.readahead.saw(t, attributes)
    gate = t.gate
    mode = gate.shown_mode(path, attributes.mode)
    if t.passes_ownership:
        uid, gid = attributes.uid, attributes.gid
    else:
        uid, gid = gate.identity.owner_uid, gate.identity.owner_gid
    return Attributes(
        attributes.device,
        shown_inode(t, attributes.device, attributes.inode),
        mode,
        attributes.nlink,
        uid,
        gid,
        attributes.rdev,
        attributes.size,
        attributes.blocks,
        attributes.block_size,
        attributes.atime,
        attributes.mtime,
        attributes.ctime,
    )


def shown_inode(t: Desk, device: int, inode: int) -> int:
    """The inode number that is shown: another filesystem beneath the export has numbers of its own, which are kept apart."""
    root = t.inodes.root.identity
    return inode if root is None or device == root[0] else (inode + device * 0x9E3779B97F4A7C15) & _MASK64


def still_same(t: Desk, node: Node | None, attributes: Attributes) -> None:
    """Raises Failure(ESTALE) when the path is another file's by now: the kernel then looks it up again."""
    if node is None:
        return
    if node.identity is None:
        t.inodes.identified(identity_of(attributes))
    elif node.identity != identity_of(attributes):
        raise Failure("ESTALE")


def getattr_(t: Desk, call: Call, request: operations.Getattr) -> None:
    handle = _handle(t, request)
    if handle is not None and (handle.remote >= 0 or handle.node is None):
        target: bytes | int = handle.remote
        path, node = t.handles.path(handle), handle.node
    else:
        # What is only open here has its name, by which it may be known.
        target, path, node = t.target(request.node)
        if handle is not None and handle.was is not None and node is not None:
            known = t.cache.attributes(path, t.now)
            if known is not None and (not isinstance(known, Attributes) or identity_of(known) != node.identity):
                # The name is another file's by now, and the kernel has not heard of that: it asks in the midst of a read(2).
                target = handle.remote
    verdict = t.gate.see(path)
    if verdict.errno is not None:
        raise t.refused(call, verdict, path)
    t.announce_other(call, path, rule=verdict.rule)
    drafted = drafting.like(t, node)
    if drafted is not None:
        t.answer(call, Attr(shown(t, path, drafted), 0.0))
        return
    if isinstance(target, int) and node is not None and node.handles and not node.lost:
        # What is known of its name is what it is like: the client tells of every change.
        target = path if holding.is_followed(t, t.handle(node.handles[0])) else target
    _ask_attributes(t, call, messages.Getattr(target), path, node, lambda answer: t.answer(call, answer))


def setattr_(t: Desk, call: Call, request: operations.Setattr) -> None:
    handle = _handle(t, request)
    if handle is not None and request.size is not None:
        target: bytes | int = handle.remote
        path, node = t.handles.path(handle), handle.node
    else:
        target, path, node = t.target(request.node, writable=request.size is not None)
    verdict = t.gate.write(path)
    if verdict.errno is not None:
        raise t.refused(call, verdict, path)
    limit = t.gate.tenant.limits.file_size
    if request.size is not None and limit is not None and request.size > limit:
        raise t.limited(call, "EFBIG", path, f"a file of {request.size} bytes, the policy allows {limit}")
    uid, gid = request.uid, request.gid
    if not t.passes_ownership:
        identity = t.gate.identity
        if uid not in (None, identity.owner_uid) or gid not in (None, identity.owner_gid):
            raise t.refused(call, _CHOWN, path)
        uid = gid = None
    if t.tells_changes:
        t.announce(call, path, rule=verdict.rule)
    values = (request.mode, uid, gid, request.size, request.atime, request.mtime)
    # Nothing to set is a chown(2) that names neither owner nor group, and that alone drops setuid and setgid.
    nothing = values == (None,) * 6
    if nothing and node is not None and node.identity is not None and node.identity[2] == _DIRECTORY:
        # A directory keeps setuid and setgid (chown(2)), so nothing becomes of it.
        _ask_attributes(t, call, messages.Getattr(target), path, node, lambda answer: t.answer(call, answer))
        return
    arguments = messages.Setattr(target, *values, clear_setid=request.kill_suidgid or nothing)
    contents = request.size is not None
    made = ahead.set_attributes(t, call, node, arguments)
    if made is not None:
        t.answer_change(call, Attr(shown(t, path, made)), t.siblings(node))
        return

    if contents and not isinstance(target, int):
        leasing.shared(t, node)

    def answer(attr: Attr) -> None:
        t.answer_change(call, attr, t.siblings(node), contents=contents)

    _ask_attributes(t, call, arguments, path, node, answer)


def _handle(t: Desk, request: operations.Getattr | operations.Setattr) -> Handle | None:
    """The open file that a request names. Raises Failure(EBADF) where it names nothing else."""
    if request.handle is None:
        return None
    handle = t.handles.get(request.handle)
    if handle is None and isinstance(request.node, bytes):
        raise Failure("EBADF")
    return handle


def _ask_attributes(
    t: Desk, call: Call, arguments: messages.Arguments, path: bytes, node: Node | None, answer: Callable[[Attr], None]
) -> None:
    def answered(attributes: Attributes) -> None:
        fresh = 0.0
        visible = shown(t, path, attributes)
        if node is not None and node.identity not in (None, identity_of(attributes)) and ask_by_handle():
            return
        still_same(t, node, attributes)
        t.saw(node, attributes)
        if isinstance(arguments, messages.Setattr):
            if isinstance(arguments.target, bytes):
                t.cache.changed(path, attributes, since)
            else:
                # An open file may have no name any more.
                t.cache.changes(path)
            t.readahead.changed(t, identity_of(attributes))
            holding.changed_here(t, node, path)
        elif node is not None and isinstance(arguments, messages.Getattr) and isinstance(arguments.target, int):
            attributes = knowing.saw_open(t, path, attributes, asked)
            fresh = knowing.fresh(t)
        answer(Attr(visible, max(fresh, knowing.validity(t, path, attributes)[1])))

    def ask_by_handle() -> bool:
        """Its name is gone, or another file's by now; what is open is not."""
        if node is None or not node.handles or not isinstance(arguments, messages.Getattr) or isinstance(arguments.target, int):
            return False
        t.ask(call, messages.Getattr(t.handle(node.handles[0]).remote), of_what_is_open)
        return True

    def of_what_is_open(attributes: Attributes) -> None:
        still_same(t, node, attributes)
        answered(attributes)

    def failed(errno: str) -> None:
        if errno != "ENOENT" or not ask_by_handle():
            t.fail(call, errno)

    since = t.cache.changes(path) if isinstance(arguments, messages.Setattr) else 0
    asked = t.cache.tick
    t.ask(call, arguments, answered, failed)


def access(t: Desk, call: Call, request: operations.Access) -> None:
    target, path, node = t.target(request.node)
    identity = node.identity if node is not None else t.by_path.identity(path)
    directory = identity is None or identity[2] == _DIRECTORY
    verdict = t.gate.access(path, request.mask, directory=directory)
    if verdict.errno is not None:
        raise t.refused(call, verdict, path)
    t.announce_other(call, path, rule=verdict.rule)
    mask = request.mask & 7
    rights = _rights(t, path)
    known, until = t.allowed.get((path, mask), _NEVER)
    if rights is not None and known == rights and t.now < until:
        t.cache.hits += 1
        t.answer(call, Done())
        return

    def answered(_result: None) -> None:
        if rights is not None and _rights(t, path) == rights:
            if len(t.allowed) >= _MOST_ALLOWED:
                t.allowed.clear()
            t.allowed[path, mask] = (rights, t.now + ALLOWED)
        t.answer(call, Done())

    t.ask(call, messages.Access(target, mask), answered)


def _rights(t: Desk, path: bytes) -> tuple[int, ...] | None:
    """What the client's kernel goes by when it says what may be done with a file, where that is watched."""
    if not t.cache.room or t.outage is not None or t.gate.tenant.cache.mode != "watched":
        return None
    found = t.cache.attributes(path, t.now)
    return (found.device, found.inode, found.mode, found.uid, found.gid) if isinstance(found, Attributes) else None


def statfs(t: Desk, call: Call, _request: operations.Statfs) -> None:
    t.announce_other(call, b"")
    known = t.ledger.known.filesystem
    if known is not None and t.now < t.filesystem_until and t.outage is None:
        t.cache.hits += 1
        t.answer(call, known)
        return

    def answered(filesystem: Filesystem) -> None:
        sandbox.check_filesystem(filesystem)
        t.ledger.saw_filesystem(filesystem)
        if t.cache.room and t.outage is None:
            t.filesystem_until = t.now + FILESYSTEM
        t.answer(call, filesystem)

    t.ask(call, messages.Statfs(), answered)


def getxattr(t: Desk, call: Call, request: operations.Getxattr) -> None:
    target = _xattr_target(t, call, request.node, request.name, change=False)

    def answered(value: bytes) -> None:
        sandbox.check_xattr(value)
        _answer_sized(t, call, value, request.size)

    t.ask(call, messages.Getxattr(target, request.name), answered)


def setxattr(t: Desk, call: Call, request: operations.Setxattr) -> None:
    target = _xattr_target(t, call, request.node, request.name, change=True)
    arguments = messages.Setxattr(target, request.name, request.value, bool(request.flags & 1), bool(request.flags & 2))
    t.ask(call, arguments, lambda _result: t.answer(call, Done()))


def listxattr(t: Desk, call: Call, request: operations.Listxattr) -> None:
    target = _xattr_target(t, call, request.node, _XATTR_PREFIX, change=False)

    def answered(names: tuple[bytes, ...]) -> None:
        sandbox.check_xattr_names(names)
        value = b"".join(name + b"\0" for name in names if name.startswith(_XATTR_PREFIX))
        _answer_sized(t, call, value, request.size)

    t.ask(call, messages.Listxattr(target), answered)


def removexattr(t: Desk, call: Call, request: operations.Removexattr) -> None:
    target = _xattr_target(t, call, request.node, request.name, change=True)
    t.ask(call, messages.Removexattr(target, request.name), lambda _result: t.answer(call, Done()))


def _xattr_target(t: Desk, call: Call, number: operations.Node, name: bytes, *, change: bool) -> bytes | int:
    """Only user.* is served: the other namespaces would give the server a say in the client's own security."""
    target, path, _node = t.target(number)
    verdict = t.gate.write(path) if change else t.gate.see(path)
    if verdict.errno is not None:
        raise t.refused(call, verdict, path)
    if not name.startswith(_XATTR_PREFIX):
        raise Failure("EOPNOTSUPP")
    if not change:
        verdict = t.gate.read(path)
        if verdict.errno is not None:
            raise t.refused(call, verdict, path)
    if change:
        t.cache.changes(path)
        if t.tells_changes:
            t.announce(call, path, rule=verdict.rule)
    t.announce_other(call, path, rule=verdict.rule)
    return target


def _answer_sized(t: Desk, call: Call, value: bytes, size: int) -> None:
    if size == 0:
        t.answer(call, XattrSize(len(value)))
    elif len(value) > size:
        raise Failure("ERANGE")
    else:
        t.answer(call, Data(value))
