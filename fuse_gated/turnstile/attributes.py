"""Operations on attributes: getattr, setattr, access, statfs and extended attributes; and what is shown of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fuse_gated import operations
from fuse_gated.gate import sandbox
from fuse_gated.operations import Attr, Attributes, Data, Done, Filesystem, XattrSize
from fuse_gated.tree.inodes import Node, identity_of
from fuse_gated.turnstile.call import Call, Failure
from fuse_gated.wire import messages

if TYPE_CHECKING:
    from fuse_gated.turnstile.turnstile import Turnstile

_SET_ID: Final = 0o6000
_REGULAR: Final = 0o100000
_XATTR_PREFIX: Final = b"user."
_MASK64: Final = 2**64 - 1


def shown(t: Turnstile, path: bytes, attributes: Attributes) -> Attributes:
    """What the mount shows of a file.

    Raises ProtocolError for attributes that no file can have: a client that sends them is broken or hostile.
    """
    sandbox.check_attributes(attributes)
    gate = t.gate
    mode = gate.shown_mode(path, attributes.mode)
    if t.passes_ownership:
        uid, gid = attributes.uid, attributes.gid
    else:
        uid, gid = gate.identity.owner_uid, gate.identity.owner_gid
    root = t.inodes.root.identity
    inode = attributes.inode
    if root is not None and attributes.device != root[0]:
        # Another filesystem beneath the export has inode numbers of its own: keep them apart.
        inode = (inode + attributes.device * 0x9E3779B97F4A7C15) & _MASK64
    return Attributes(
        attributes.device,
        inode,
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


def still_same(node: Node | None, attributes: Attributes) -> None:
    """Raises Failure(ESTALE) when the path is another file's by now: the kernel then looks it up again."""
    if node is None:
        return
    if node.identity is None:
        node.identity = identity_of(attributes)
    elif node.identity != identity_of(attributes):
        raise Failure("ESTALE")


def getattr_(t: Turnstile, call: Call, request: operations.Getattr) -> None:
    handle = t.handles.get(request.handle) if request.handle is not None else None
    if handle is not None:
        target: bytes | int = handle.remote
        path, node = t.handles.path(handle), handle.node
    else:
        target, path, node = t.target(request.node)
    verdict = t.gate.see(path)
    if verdict.errno is not None:
        raise t.refused(call, verdict, path)
    if t.tells_everything:
        t.announce(call, path)
    _ask_attributes(t, call, messages.Getattr(target), path, node)


def setattr_(t: Turnstile, call: Call, request: operations.Setattr) -> None:
    handle = t.handles.get(request.handle) if request.handle is not None else None
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
            raise Failure("EPERM")
        uid = gid = None
    if t.tells_changes:
        t.announce(call, path, rule=verdict.rule)
    unchanged = (request.mode, uid, gid, request.size, request.atime, request.mtime) == (None,) * 6
    arguments: messages.Arguments = (
        messages.Getattr(target)
        if unchanged
        else messages.Setattr(
            target, request.mode, uid, gid, request.size, request.atime, request.mtime, request.kill_suidgid
        )
    )
    if request.size is not None:
        t.contents_changed(node)
    _ask_attributes(t, call, arguments, path, node)


def _ask_attributes(t: Turnstile, call: Call, arguments: messages.Arguments, path: bytes, node: Node | None) -> None:
    def answered(attributes: Attributes) -> None:
        visible = shown(t, path, attributes)
        still_same(node, attributes)
        t.answer(call, Attr(visible))

    t.ask(call, arguments, answered)


def access(t: Turnstile, call: Call, request: operations.Access) -> None:
    target, path, node = t.target(request.node)
    directory = node is None or node.identity is None or node.identity[2] == 0o040000
    verdict = t.gate.access(path, request.mask, directory=directory)
    if verdict.errno is not None:
        raise t.refused(call, verdict, path)
    if t.tells_everything:
        t.announce(call, path)
    t.ask(call, messages.Access(target, request.mask & 7), lambda _result: t.answer(call, Done()))


def statfs(t: Turnstile, call: Call, _request: operations.Statfs) -> None:
    if t.tells_everything:
        t.announce(call, b"")

    def answered(filesystem: Filesystem) -> None:
        sandbox.check_filesystem(filesystem)
        t.answer(call, filesystem)

    t.ask(call, messages.Statfs(), answered)


def getxattr(t: Turnstile, call: Call, request: operations.Getxattr) -> None:
    target = _xattr_target(t, call, request.node, request.name, change=False)

    def answered(value: bytes) -> None:
        sandbox.check_xattr(value)
        _answer_sized(t, call, value, request.size)

    t.ask(call, messages.Getxattr(target, request.name), answered)


def setxattr(t: Turnstile, call: Call, request: operations.Setxattr) -> None:
    target = _xattr_target(t, call, request.node, request.name, change=True)
    arguments = messages.Setxattr(target, request.name, request.value, bool(request.flags & 1), bool(request.flags & 2))
    t.ask(call, arguments, lambda _result: t.answer(call, Done()))


def listxattr(t: Turnstile, call: Call, request: operations.Listxattr) -> None:
    target = _xattr_target(t, call, request.node, _XATTR_PREFIX, change=False)

    def answered(names: tuple[bytes, ...]) -> None:
        sandbox.check_xattr_names(names)
        value = b"".join(name + b"\0" for name in names if name.startswith(_XATTR_PREFIX))
        _answer_sized(t, call, value, request.size)

    t.ask(call, messages.Listxattr(target), answered)


def removexattr(t: Turnstile, call: Call, request: operations.Removexattr) -> None:
    target = _xattr_target(t, call, request.node, request.name, change=True)
    t.ask(call, messages.Removexattr(target, request.name), lambda _result: t.answer(call, Done()))


def _xattr_target(t: Turnstile, call: Call, number: operations.Node, name: bytes, *, change: bool) -> bytes | int:
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
    if t.tells_everything or (change and t.tells_changes):
        t.announce(call, path, rule=verdict.rule)
    return target


def _answer_sized(t: Turnstile, call: Call, value: bytes, size: int) -> None:
    if size == 0:
        t.answer(call, XattrSize(len(value)))
    elif len(value) > size:
        raise Failure("ERANGE")
    else:
        t.answer(call, Data(value))


__all__ = ["access", "getattr_", "getxattr", "listxattr", "removexattr", "setattr_", "setxattr", "shown", "statfs"]
