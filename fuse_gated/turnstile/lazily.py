"""Files and directories that are only open here: opened by what is known of them, and at the client once it is needed.

Most files are opened, read and closed within moments. Where their content is known (tree/cache.py) the client need not hear of
it. Whoever does more with one, such as taking a lock, has it opened there first; so has one that stays open, because what the
client's programs remove or replace cannot be opened any more. It must still be the same file: if it is another one by now,
that is ESTALE.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from fuse_gated.gate import sandbox
from fuse_gated.operations import Attributes
from fuse_gated.tree.handles import Handle
from fuse_gated.tree.inodes import Node, identity_of
from fuse_gated.turnstile import leasing
from fuse_gated.turnstile.call import Call, Failure, ignored
from fuse_gated.wire import messages
from fuse_gated.wire.messages import Arguments
from fuse_gated.wire.session import Pending
from fuse_gated.wire.tables import OPERATION_OF

if TYPE_CHECKING:
    from fuse_gated.turnstile.desk import Desk

LINGERS: Final = 0.2
"""Seconds after which the client opens what is still open here."""
_FIELDS: Final = {
    kind: tuple(field for field in ("handle", "to_handle", "target") if field in kind.__struct_fields__)
    for kind in OPERATION_OF
}


def unopened_in(t: "Desk", arguments: Arguments) -> tuple[str, Handle] | None:
    """The first handle in `arguments` that is only open here, and the field that names it."""
    for field in _FIELDS[type(arguments)]:
        value = getattr(arguments, field)
        if isinstance(value, int) and value < 0:
            handle = t.handles.get(-value)
            if handle is None:
                raise Failure("EBADF")
            return field, handle
    return None


def ask(
    t: "Desk",
    call: Call,
    arguments: Arguments,
    unopened: tuple[str, Handle],
    answered: Callable[[Any], None],
    failed: Callable[[str], None] | None,
    size: int,
) -> None:
    """Ask the client once it has opened what the arguments name."""
    field, handle = unopened

    def opened() -> None:
        if t.goes_on(call):
            fixed = msgspec.structs.replace(arguments, **{field: handle.remote})
            try:
                t.ask(call, fixed, answered, failed, size)
            except Failure as failure:
                t.fail(call, failure.errno)

    def not_opened(errno: str) -> None:
        if not t.goes_on(call):
            return
        found = _as_it_was(handle, arguments) if errno == "ESTALE" else None
        try:
            if found is None:
                raise Failure(errno)
            answered(found)
        except Failure as failure:
            t.fail(call, failure.errno)

    t.wait(call)
    open_at_client(t, handle, opened, not_opened)


def open_at_client(t: "Desk", handle: Handle, opened: Callable[[], None], not_opened: Callable[[str], None]) -> None:
    """Have the client open it too; then one of the two is called."""
    handle.waiting.append((opened, not_opened))
    if len(handle.waiting) > 1:
        return
    node, path = handle.node, t.handles.path(handle)
    if node is not None and t.inodes.gone(node):
        _is_gone(t, handle, path)
        return
    arguments = _opening(handle, path)
    leasing.shared(t, node)

    def answered(result: messages.OpenedFile) -> None:
        sandbox.check_handle(result.handle)
        sandbox.check_attributes(result.attributes)
        is_open = t.handles.get(handle.id) is handle
        if is_open and _is_same(handle, result.attributes):
            t.handles.opened(handle, result.handle)
            _ended(handle, "")
            return
        t.close(result.handle, directory=handle.directory)
        if is_open:
            _is_gone(t, handle, path)
        else:
            _ended(handle, "EBADF")

    def failed(errno: str) -> None:
        if errno == "ENOENT":
            _is_gone(t, handle, path)
        else:
            _ended(handle, errno)

    number = t.session.lasting_id(handle.id)
    if t.session.known(number) is not None:
        # It was given up, and its late answer will be given back.
        _ended(handle, "EIO")
        return
    t.session.ask(Pending(number, arguments, t.now + t.limits.deadline, answered, failed))


def before_it_goes(t: "Desk", call: Call, node: Node | None, path: bytes, then: Callable[[], None]) -> None:
    """Call `then` once the client has opened what is open on a file that is about to lose its name. What it cannot open is gone
    already."""
    unopened: list[Handle] = []
    if t.handles.unopened:
        unopened = [
            handle
            for handle in ([t.handle(number) for number in node.handles] if node is not None else t.handles)
            if handle.remote < 0 and handle.node is node and (node is not None or handle.path == path)
        ]
    if not unopened:
        then()
        return
    left = len(unopened)

    def one_less(_errno: str = "") -> None:
        nonlocal left
        left -= 1
        if left:
            return
        if t.goes_on(call):
            try:
                then()
            except Failure as failure:
                t.fail(call, failure.errno)

    t.wait(call)
    for handle in unopened:
        open_at_client(t, handle, one_less, one_less)


def opened_here(t: "Desk", handle: Handle) -> None:
    """Should it stay open, the client is to open it too."""
    t.lingering.append((t.now + LINGERS, handle))


def closed_here(t: "Desk", handle: Handle) -> None:
    """It is closed, and was only open here. Whoever has it opened there just now closes it again, this process or a successor."""
    while t.lingering and t.handles.get(t.lingering[0][1].id) is None:
        # Most are closed at once: a timer for each would cost more than the rest of it.
        t.lingering.popleft()
    number = t.session.lasting_id(handle.id)
    pending = t.session.known(number)
    if pending is not None:
        # It may wait for room still, and then be sent; or the client did it for a process before this one.
        t.ledger.leftovers.may_be_done(pending)
    elif handle.inherited:
        arguments = _opening(handle, t.handles.path(handle))
        pending = Pending(number, arguments, t.now + t.limits.deadline, ignored, ignored)
        t.ledger.leftovers.may_be_done(pending)
        if t.outage is None:
            t.session.ask_for_nobody(pending)


def look_after(t: "Desk") -> None:
    """To be called when the first of `lingering` is due: what is still open here alone is opened at the client."""
    while t.lingering and t.lingering[0][0] <= t.now:
        handle = t.lingering.popleft()[1]
        if t.outage is None and t.handles.get(handle.id) is handle and handle.remote < 0 and not handle.waiting:
            open_at_client(t, handle, _nothing, ignored)


def _opening(handle: Handle, path: bytes) -> Arguments:
    return messages.Opendir(path) if handle.directory else messages.Open(path, messages.OPEN_READ)


def _is_same(handle: Handle, attributes: Attributes) -> bool:
    identity = handle.identity if handle.node is None else handle.node.identity
    return identity is None or identity == identity_of(attributes)


def _as_it_was(handle: Handle, arguments: Arguments) -> Any:
    """What the client would say of a file that has lost its name before it was opened there; None where nobody can say."""
    if handle.was is None:
        return None
    attributes, content = handle.was
    if isinstance(arguments, messages.Getattr):
        return msgspec.structs.replace(attributes, nlink=0)
    if isinstance(arguments, messages.Read) and content is not None:
        return memoryview(content)[arguments.offset : arguments.offset + arguments.size]
    return None


def _is_gone(t: "Desk", handle: Handle, path: bytes) -> None:
    """It has another name, or none. Whoever opens the next file of that name is to be sure of it."""
    t.contested.add(t.now, path)
    _ended(handle, "ESTALE")


def _ended(handle: Handle, errno: str) -> None:
    waiting, handle.waiting = handle.waiting, []
    for opened, not_opened in waiting:
        if errno:
            not_opened(errno)
        else:
            opened()


def _nothing() -> None:
    """Nobody waits."""
