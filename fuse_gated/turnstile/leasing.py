"""Files that are leased on the client while they are made (fcntl(2), F_SETLEASE): close(2) of them need not wait.

Who opens a file on the client after it was closed on the server is to find all that was written before. Where the client holds a
write lease on it, whoever wants to open it there waits until that is given up, and so nobody can tell whether close(2) has
waited. The client has set room aside for what may be closed so, and nothing else that close(2) would tell of can happen to a
local filesystem but a broken disk. Then the audit says so (settling.py).

The lease ends with RELEASE, which comes behind all that was written (ordering.py). It ends before that when somebody wants the
file: the client says so, we answer behind what is owed by then, and wait at close(2) from there on. A process that goes on with
the session knows of no leases, and the client gives up all with the connection.
"""

from functools import partial
from typing import TYPE_CHECKING, Final

from fuse_gated import operations
from fuse_gated.gate.audit import Record
from fuse_gated.tree.handles import Handle
from fuse_gated.tree.inodes import Identity, Node
from fuse_gated.turnstile import bounds
from fuse_gated.turnstile.owing import key_of
from fuse_gated.wire import messages

if TYPE_CHECKING:
    from fuse_gated.turnstile.desk import Desk

ROOM: Final = 2**16
"""Bytes of a file that may be closed without waiting: most files that are made in great number are smaller."""
CLOSED_BY_THEN: Final = "the client could not write it, and the file was closed by then"
AT_ONCE: Final = 2**17
"""Bytes that may be owed, of all files, where close(2) does not wait: so that they arrive soon after it, also on a slow line."""
MOST: Final = 64
"""Files at once."""
_MOST_FAILED: Final = 1024
_ACCMODE: Final = 0o3


def begin(t: "Desk") -> None:
    """The client can lease what it creates."""
    t.ahead.leases = True
    t.session.on_broken = partial(broken, t)


def wanted(t: "Desk", request: operations.Create) -> int:
    """How much room the client is asked for with the lease; 0: none is wanted."""
    ahead, tenant = t.ahead, t.gate.tenant
    if not (ahead.leases and ahead.serves and ahead.room) or ahead.halted or isinstance(request.parent, bytes):
        return 0
    if tenant.writes != "leased" or tenant.cache.mode == "strict" or len(ahead.leased) >= MOST:
        return 0
    return ROOM if request.flags & _ACCMODE and not request.flags & (bounds.SYNC | bounds.DIRECT) else 0


def covers(t: "Desk", handle: Handle) -> bool:
    """Whether close(2) of it is as good now as when the client has everything."""
    key = key_of(handle)
    if not handle.leased or handle.failed or key is None or t.outage is not None or t.gate.tenant.writes != "leased":
        return False
    if t.ahead.promised > AT_ONCE:
        return False
    for change in t.ahead.of(key):
        arguments = change.arguments
        if not change.kept or change.doomed or change.short:
            return False
        if isinstance(arguments, messages.Write) and (
            arguments.append or arguments.handle != handle.remote or arguments.offset + change.row.size > handle.leased
        ):
            return False
    return True


def granted(t: "Desk", handle: Handle, room: int) -> None:
    """The client leases it, and has room for so many bytes."""
    if room > 0 and handle.remote not in t.ahead.leased:
        handle.leased = room
        t.ahead.leased[handle.remote] = handle


def give_up(t: "Desk", handle: Handle) -> None:
    """Whoever waits on the client may open it, once it has what was written."""
    if handle.leased:
        closed(t, handle)
        t.ask_aside(messages.Unlease(handle.remote))


def closed(t: "Desk", handle: Handle) -> None:
    """It is leased no more, or will not be once the client closes it."""
    if handle.leased:
        handle.leased = 0
        del t.ahead.leased[handle.remote]


def shared(t: "Desk", node: Node | None) -> None:
    """The file is about to be opened again, or changed by its name: that would wait for the lease."""
    if t.ahead.leased:
        for handle in t.open_on(node):
            give_up(t, handle)


def broken(t: "Desk", remote: int) -> None:
    """The client says that somebody wants it. Once it is closed here, RELEASE is on its way."""
    if remote in t.ahead.leased:
        give_up(t, t.ahead.leased[remote])


def leave(t: "Desk") -> None:
    """The connection is lost, and with it the client gives up all leases."""
    for handle in list(t.ahead.leased.values()):
        closed(t, handle)


# What was closed, and the client could not write.


def lost(t: "Desk", file: Identity, errno: str) -> None:
    """Its writer has closed it. Who opens it next hears of it, as on Linux (errseq_t)."""
    if len(t.ahead.failed) >= _MOST_FAILED:
        t.ahead.failed.pop(next(iter(t.ahead.failed)))
    t.ahead.failed[file] = errno


def lost_unheard(t: "Desk", handle: Handle) -> None:
    """It is closed, and no close(2) has told that something failed: that came after the last one was answered."""
    key = key_of(handle)
    if key is not None:
        lost(t, key, handle.failed)
    t.note(
        Record(
            kind="writes-lost", operation="release", path=t.handles.path(handle), decision="failed", errno=handle.failed,
            uid=handle.uid, pid=handle.pid, detail=CLOSED_BY_THEN,
        )
    )  # fmt: skip


def opened(t: "Desk", handle: Handle) -> None:
    """fsync(2) and close(2) of this one tell what was lost."""
    key = key_of(handle)
    if t.ahead.failed and key in t.ahead.failed and handle.flags & _ACCMODE:
        handle.failed = t.ahead.failed.pop(key)
