"""What becomes of a change that was answered ahead (ahead.py): the client has done it, a part of it, or not; and who is told.

Whoever waits is told at once. Of what was answered before, each open file that had something owed is told by its next write, and
by each close until an fsync has told it; what came after a change that failed counts as failed with it, and nobody asks for it
again.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from fuse_gated.gate import sandbox
from fuse_gated.gate.audit import Record
from fuse_gated.operations import Count
from fuse_gated.tree.handles import Handle
from fuse_gated.tree.inodes import Node
from fuse_gated.turnstile import holding, leasing, ordering
from fuse_gated.turnstile.call import Call
from fuse_gated.turnstile.owing import Change, key_of
from fuse_gated.wire import messages
from fuse_gated.wire.session import Pending

if TYPE_CHECKING:
    from fuse_gated.turnstile.desk import Desk

CANCELLED: Final = "ECANCELED"
"""What the client says of a write that came after a change that failed: that one's error has been noted."""
_TRY_AGAIN: Final = ("EINTR", "EAGAIN")
_CHANGED: Final[dict[type[messages.Arguments], str]] = {
    messages.Write: "handle",
    messages.Setattr: "target",
    messages.Fallocate: "handle",
    messages.CopyFileRange: "to_handle",
    messages.Open: "target",
}
"""What changes a file's content, and the field that names it."""


def unmake(t: "Desk", node: Node | None) -> None:
    """What the file is like now only the client knows."""
    for handle in t.open_on(node):
        handle.made = handle.draft = None


def ask(t: "Desk", change: Change, data: memoryview) -> None:
    """Ask the client."""
    arguments = change.arguments
    if isinstance(arguments, messages.Write):
        arguments = msgspec.structs.replace(arguments, data=data)
    deadline = t.now + t.limits.deadline
    t.session.ask(
        Pending(
            change.row.request, arguments, deadline, partial(_answered, t, change), partial(failed, t, change), change.row.size
        )
    )


def _answered(t: "Desk", change: Change, result: Any) -> None:
    count = change.row.size
    if isinstance(change.arguments, messages.Write):
        sandbox.check_count(result, count)
        if result < count and change.kept:
            _did_a_part(t, change, change.arguments, result)
            return
        count = result
    else:
        sandbox.check_attributes(result)
    _settled(t, change, count)


def _did_a_part(t: "Desk", change: Change, arguments: messages.Write, count: int) -> None:
    """A disk is full, most likely. What comes after it is told why; if nothing does, the rest is tried."""
    row = change.row
    if change.doomed:
        failed(t, change, "EIO")
        return
    if t.ahead.of(change.key)[-1] is not change:
        change.short = True
        return
    if arguments.append or _is_followed(t, change):
        # The rest may not belong there any more.
        failed(t, change, "EIO")
        return
    rest = t.ahead.read_back(row.at + count, row.size - count)

    def answered(more: int) -> None:
        sandbox.check_count(more, len(rest))
        if more < len(rest):
            failed(t, change, "EIO")
        else:
            _settled(t, change, row.size)

    further = msgspec.structs.replace(arguments, offset=arguments.offset + count, data=memoryview(rest))
    number, deadline = t.session.rest_id(row.request), t.now + t.limits.deadline
    t.session.ask(Pending(number, further, deadline, answered, partial(failed, t, change), len(rest)))
    t.ahead.renumber(change, number)


def _is_followed(t: "Desk", change: Change) -> bool:
    """Whether somebody who waits for the client is changing the file as well."""
    open_on = {handle.remote for handle in t.handles if key_of(handle) == change.key}
    for arguments in t.session.asked():
        named = getattr(arguments, _CHANGED.get(type(arguments), ""), None)
        if isinstance(named, int) and named in open_on:
            return True
    return False


def _settled(t: "Desk", change: Change, count: int) -> None:
    for earlier in t.ahead.of(change.key):
        if earlier.short:
            # Nobody has told why, and it cannot be made good: what came after it is done.
            _over(t, earlier)
            unmake(t, earlier.handle.node if earlier.handle is not None else None)
            _blame(t, earlier, "EIO")
            _note_failure(t, earlier, "EIO")
            _go_on(t, earlier)
    t.statistics.bytes_written += count
    if not change.kept and change.call is not None:
        # It was quicker than the window; so its caller can be told how much it was.
        change.call.usec = t.session.usec
        acknowledge(t, change, change.call, count)
    _over(t, change)
    t.ahead.adapt(t.now - change.since)
    _go_on(t, change)


def failed(t: "Desk", change: Change, errno: str, *, sure: bool = True) -> None:
    """All who have written to the file, and were told that it was done, are to hear of it. If it is `sure`, the client does
    nothing of what comes after it."""
    rest = [other for other in t.ahead.of(change.key) if not (other is change or change.doomed)]
    _over(t, change)
    handle = change.handle
    unmake(t, handle.node if handle is not None else None)
    if change.kept and errno in _TRY_AGAIN:
        # Whoever hears that tries again, and hears nothing more of what was not done.
        errno = "EIO"
    if errno == CANCELLED:
        # Unless a process before this one has heard why.
        errno = (handle.failed if handle is not None else "") or "EIO"
    told = _tell_caller(t, change, errno)
    if not change.doomed:
        if sure and t.session.known(change.number) is None:
            t.ahead.unorder(change.key)
        _note_failure(t, change, errno)
        for other in [change, *rest]:
            if not other.doomed:
                _blame(t, other, errno, warned=other.handle is told)
            if other is not change:
                t.ahead.doom(other)
    for other in rest:
        if other.short:
            _over(t, other)
            _go_on(t, other)
    _go_on(t, change)


def _blame(t: "Desk", change: Change, errno: str, *, warned: bool = False) -> None:
    """The open file's next fsync and close are to be told; and its next write, unless one has just been `warned`."""
    handle = change.handle
    if change.kept and handle is not None:
        handle.unheard = handle.unheard or not handle.failed
        handle.failed = handle.failed or errno
        handle.warns = handle.warns or ("" if warned else errno)
        t.handles.changed.add(handle.id)


def _note_failure(t: "Desk", change: Change, errno: str) -> None:
    handle = change.handle
    if change.kept and (handle is None or t.handles.get(handle.id) is not handle):
        # It was leased (leasing.py), or its caller did not wait for close(2).
        note(t, "writes-lost", change, errno, change.row.size, 1, leasing.CLOSED_BY_THEN)
        leasing.lost(t, change.key, errno)
    elif change.kept and t.tells_changes:
        detail = "it was answered before; the next write, fsync and close tell"
        note(t, "failed", change, errno, change.row.size, None, detail)


def _tell_caller(t: "Desk", change: Change, errno: str) -> Handle | None:
    """Whoever waits for it is told. The open file whose next write need not be told once more."""
    handle = change.handle
    calls = [change.call] if not change.kept and change.call is not None else change.waiting
    for call in [call for call in calls if call.id == change.row.request]:
        if handle is not None and handle.warns:
            errno, handle.warns = handle.warns, ""
        t.fail(call, errno)
        return handle
    return None


def _over(t: "Desk", change: Change) -> None:
    t.ahead.remove(change)
    t.cache.let_go(change.key[1])
    handle = change.handle
    if handle is not None and t.handles.get(handle.id) is handle:
        holding.written(t, handle)
    else:
        t.cache.changes(change.path if handle is None else t.handles.path(handle))
    ordering.adjust(t)


def wait(t: "Desk", call: Call, change: Change) -> None:
    """The request comes to its handler again when that is over."""
    t.wait(call)
    change.waiting.append(call)


def _go_on(t: "Desk", change: Change) -> None:
    """It is over, and its file has been told."""
    answer_waiting(t)
    for call in change.waiting:
        if t.goes_on(call):
            t.again(call)


def answer_waiting(t: "Desk") -> None:
    """As many as the window has room for; one in any case."""
    ahead = t.ahead
    while ahead.waiting:
        first = ahead.waiting[0]
        assert first.call is not None
        if ahead.get(first.row.request) is first and not (first.kept or first.doomed or t.is_answered(first.call)):
            if ahead.promised and ahead.promised + first.row.size > ahead.window:
                return
            ahead.keep(first)
            acknowledge(t, first, first.call, first.row.size)
        ahead.waiting.popleft()


def acknowledge(t: "Desk", change: Change, call: Call, count: int) -> None:
    """Its caller is told that so many bytes are written."""
    handle = change.handle
    assert handle is not None
    call.back = t.now
    if count < change.row.size:
        unmake(t, handle.node)
    handle.writes += 1
    handle.bytes_written += count
    holding.written(t, handle)
    t.answer_change(call, Count(count), t.siblings(handle.node), contents=True)


def note(t: "Desk", kind: str, change: Change, errno: str, size: int, count: int | None, detail: str) -> None:
    """Tell the audit."""
    uid, pid = (change.handle.uid, change.handle.pid) if change.handle is not None else (None, None)
    t.note(
        Record(
            kind=kind, operation=change.row.operation, path=change.path, decision="failed", errno=errno, uid=uid, pid=pid,
            bytes=size, count=count, detail=detail,
        )
    )  # fmt: skip
