"""Changes that are answered before the client has carried them out.

A WRITE has been judged, limited and told. Its request goes to the client, its data to where a successor finds it (edge/state.py),
and its answer to the caller, in this order. From there on it is owed (owing.py): the client's reply settles it. So a program
writes at the line's speed, and not one round trip after the other. The same of times and mode of a file that was just created.

Nobody meets a file as it was before: whatever the client is asked while anything is owed names what it comes `after`
(wire/messages.Ask), and what is known of such a file is not used (tree/cache.py). An error is told to each open file that has
written before it: by its next write, and by each close until an fsync has told it. So whoever has closed a file without an error
has it at the client.

A killed worker, a lost connection or an upgrade lose nothing: the successor asks again, under the same numbers, and the client
remembers what it has done. With the session itself goes what is still owed, and the audit says so.
"""

from typing import TYPE_CHECKING, Final

import msgspec

from fuse_gated import operations
from fuse_gated.operations import Attributes, Count
from fuse_gated.tree.handles import Handle
from fuse_gated.tree.inodes import Identity, Node
from fuse_gated.tree.journal import Owed
from fuse_gated.turnstile import bounds, drafting, leasing, ordering, settling, unlocking
from fuse_gated.turnstile.call import Call, Failure
from fuse_gated.turnstile.effects import Hold
from fuse_gated.turnstile.owing import Arguments, Change, key_of
from fuse_gated.wire import messages
from fuse_gated.wire.tables import OPERATION_OF

if TYPE_CHECKING:
    from fuse_gated.turnstile.desk import Desk

_EXCL: Final = 0o200
_SETID: Final = 0o6000
_NOTHING: Final = memoryview(b"")
_ENCODER: Final = msgspec.msgpack.Encoder()


def write(t: "Desk", call: Call, handle: Handle, request: operations.Write) -> bool:
    """Answer a WRITE ahead, or not: then it goes the usual way."""
    size = len(request.data)
    if request.from_cache or not size or (request.append and t.gate.tenant.limits.file_size is not None):
        # The kernel keeps what is dirty until it is answered; and whether an append fits only the client knows.
        return False
    arguments = messages.Write(handle.remote, request.offset, _NOTHING, request.append, request.kill_suidgid)
    change = _begin(t, call, handle, arguments, memoryview(request.data))
    if change is None:
        return False
    before, draft = handle.made, handle.draft
    settling.unmake(t, handle.node)
    if before is not None and not request.append:
        handle.made = msgspec.structs.replace(before, size=max(before.size, request.offset + size))
    if draft is not None and draft.write(None if request.append else request.offset, request.data):
        handle.draft = draft
    t.ahead.waiting.append(change)
    settling.answer_waiting(t)
    return True


def set_attributes(t: "Desk", call: Call, node: Node | None, arguments: messages.Setattr) -> Attributes | None:
    """What a file is like after a SETATTR that need not be waited for: that of times or of the mode of a file that was just
    created, which is the client's user's own. None for any other, which goes the usual way."""
    if node is None or not node.handles:
        return None
    handle, alone = t.handle(node.handles[0]), len(node.handles) == 1 and not t.siblings(node) and not t.inodes.gone(node)
    before, draft = handle.made, handle.draft
    settling.unmake(t, node)
    if before is None or not alone or arguments.target != handle.remote:
        return None
    mode = before.mode if arguments.mode is None else before.mode & ~0o7777 | arguments.mode & 0o7777
    if (arguments.uid, arguments.gid, arguments.size) != (None, None, None) or (before.mode | mode) & _SETID:
        # Who loses setuid and setgid is the client's to say.
        return None
    change = _begin(t, call, handle, arguments, _NOTHING)
    if change is None:
        return None
    handle.made = msgspec.structs.replace(
        before,
        mode=mode,
        atime=before.atime if arguments.atime in (None, -1) else arguments.atime,
        mtime=before.mtime if arguments.mtime in (None, -1) else arguments.mtime,
    )
    if draft is not None:
        draft.attributes = msgspec.structs.replace(handle.made, blocks=draft.attributes.blocks)
        handle.draft = draft
    handle.unflushed = True
    t.ahead.keep(change)
    call.back, call.usec = t.now, 0
    return handle.made


def made(t: "Desk", handle: Handle, attributes: Attributes, *, anew: bool) -> None:
    """A file was opened by creating it. If the client says that it made it `anew`, or O_EXCL does, it is its creator's: only some
    filesystems of the client refuse a mode or a time to a file's owner (vfat); of those it has not said that closing a file
    cannot fail."""
    drafting.begin(t, handle, attributes)
    if t.ahead.serves and handle.silent and (anew or handle.flags & _EXCL):
        handle.made = attributes


def saw(t: "Desk", node: Node, attributes: Attributes) -> None:
    """The client has said what an open file is like. If somebody else has changed it, it is its creator's alone no more."""
    for number in node.handles:
        handle = t.handle(number)
        if handle.made is not None and handle.made.size != attributes.size:
            handle.made = None


def warned(handle: Handle) -> None:
    """Raises Failure with the error of a change that was answered before it failed, once: for a write."""
    if handle.warns:
        errno, handle.warns = handle.warns, ""
        raise Failure(errno)


def told(t: "Desk", handle: Handle, *, by_fsync: bool) -> None:
    """The same for close(2) and fsync(2). Only fsync is sure to be called by who has written: what a child process inherits it
    closes as well, and does not look. So that is told each time, until an fsync has been."""
    if handle.failed:
        errno, handle.unheard = handle.failed, False
        if by_fsync:
            handle.failed = handle.warns = ""
            t.handles.changed.add(handle.id)
        raise Failure(errno)


def waits_for_owed(t: "Desk", call: Call, handle: Handle) -> bool:
    """Whether anything was owed of this file when it came: then the request comes to its handler again when that is over. What
    others have written meanwhile it need not wait for."""
    key = key_of(handle) if t.ahead and not call.waited else None
    owed = t.ahead.of(key) if key is not None else []
    if owed:
        call.waited = True
        settling.wait(t, call, owed[-1])
    return bool(owed)


def waits_for_rest(t: "Desk", call: Call, handle: Handle) -> bool:
    """The same where the client has done what was asked: of which it had written a part only by then."""
    key = key_of(handle) if t.ahead else None
    written = t.ahead.of(key) if key is not None else []
    unfinished = [change for change in written if change.short or change.number != change.row.request]
    if unfinished:
        settling.wait(t, call, unfinished[-1])
    return bool(unfinished)


# A session's life.


def ask_again(t: "Desk") -> None:
    """What a process before this one owed. To be called before the client is asked anything else."""
    ordering.adjust(t)
    for change in t.ahead:
        change.since = t.now
        t.cache.hold(change.key[1])
        settling.ask(t, change, memoryview(t.ahead.read_back(change.row.at, change.row.size)))
    unlocking.ask_again(t)


def came_again(t: "Desk", call: Call) -> bool:
    """The kernel sends a request again that a process before this one has answered. False for any other."""
    change = t.ahead.get(call.id)
    if change is None or (t.outage is not None and not isinstance(change.arguments, messages.Write)):
        return False
    if isinstance(change.arguments, messages.Write):
        t.answer(call, Count(change.row.size))
    else:
        # What was answered is not known any more. The client says it again, once it has said it.
        settling.wait(t, call, change)
    return True


def hurry(t: "Desk", number: int) -> bool:
    """The caller of a write got a signal, and is answered whatever the window says. False for another request."""
    change = t.ahead.get(number)
    if change is None or change.kept or change.doomed or change.call is None:
        return False
    t.ahead.keep(change)
    settling.acknowledge(t, change, change.call, change.row.size)
    return True


def is_owed(t: "Desk", number: int) -> bool:
    """Whether a request's caller was answered ahead."""
    change = t.ahead.get(number)
    return change is not None and change.kept


def withdrawn(t: "Desk", number: int) -> bool:
    """It cannot be sent, because its record cannot be written. False for another request."""
    change = t.ahead.get(number)
    if change is None:
        return False
    settling.failed(t, change, "EIO", sure=False)
    return True


def leave(t: "Desk") -> None:
    """The connection is lost. Who waits is answered by a successor, to whom the kernel sends the request again."""
    leasing.leave(t)
    t.ahead.waiting.clear()
    for change in t.ahead:
        if not change.kept:
            t.ahead.remove(change)
    t.session.after = None


def lose(t: "Desk") -> None:
    """The session is over: what is still owed is lost."""
    lost: dict[Identity, list[Change]] = {}
    for change in t.ahead:
        if change.kept and change.row.size and not change.doomed:
            lost.setdefault(change.key, []).append(change)
        t.ahead.remove(change)
    t.unlocks.clear()
    ordering.adjust(t)
    t.ahead.waiting.clear()
    for changes in lost.values():
        size = sum(change.row.size for change in changes)
        detail = f"{size} bytes that were written, and neither closed nor synced"
        settling.note(t, "writes-lost", changes[0], "EIO", size, len(changes), detail)


# Details.


def _begin(t: "Desk", call: Call, handle: Handle, arguments: Arguments, data: memoryview) -> Change | None:
    """Ask the client, and put it where a successor finds it. None where its caller is to wait for it."""
    ahead, tenant, size, key = t.ahead, t.gate.tenant, len(data), key_of(handle)
    if not ahead.serves or not ahead.room or ahead.halted or t.outage is not None or call.interrupted:
        return None
    if tenant.writes == "through" or tenant.cache.mode == "strict" or t.session.known(call.id) is not None:
        return None
    if key is None or handle.remote < 0 or handle.flags & (bounds.SYNC | bounds.DIRECT) or t.session.would_wait(size):
        return None
    at = ahead.place(key, size)
    if at is None:
        return None
    path = t.handles.path(handle)
    row = Owed(call.id, handle.id, key, path, OPERATION_OF[type(arguments)], _ENCODER.encode(arguments), at, size)
    change = Change(row, arguments, handle, key, path, t.now)
    change.call = call
    ahead.add(change)
    ordering.adjust(t)
    t.cache.hold(key[1])
    call.deadline = t.now + t.limits.deadline
    call.asked = t.measures.clock()
    settling.ask(t, change, data)
    if size:
        t.effects.append(Hold(at, data))
    return change
