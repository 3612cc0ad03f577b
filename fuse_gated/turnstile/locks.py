"""POSIX locks and flock. They are taken on the client, so that programs on both sides exclude each other.

A waiting lock is asked for again and again, each time for as long as the client may wait within the request's deadline: so
it has no deadline of its own, and a client that fell silent is still noticed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fuse_gated import operations
from fuse_gated.gate import sandbox
from fuse_gated.operations import Done, Lock
from fuse_gated.turnstile.call import Call
from fuse_gated.turnstile.effects import InvalidateInode
from fuse_gated.wire import messages

if TYPE_CHECKING:
    from fuse_gated.turnstile.turnstile import Turnstile

_UNLOCK: Final = 2
_LONGEST_WAIT: Final = 10_000


def getlk(t: Turnstile, call: Call, request: operations.Getlk) -> None:
    handle = t.handle(request.handle)

    def answered(state: messages.LockState) -> None:
        sandbox.check_lock(state)
        t.answer(call, Lock(state.start, state.end, state.type, 0))

    arguments = messages.Getlk(handle.remote, request.owner, request.start, request.end, request.type)
    t.ask(call, arguments, answered)


def setlk(t: Turnstile, call: Call, request: operations.Setlk) -> None:
    handle = t.handle(request.handle)
    wait = min(_LONGEST_WAIT, int(t.limits.deadline * 500)) if request.wait else 0

    def answered(_result: None) -> None:
        if not request.flock and request.type != _UNLOCK:
            place = handle.node.id if handle.node is not None else handle.path
            t.handles.lock_owners[place, request.owner] = request.pid
        if handle.node is not None and request.type != _UNLOCK:
            # Who holds the lock must see what the last holder wrote, on whichever side it was.
            t.effects.append(InvalidateInode(handle.node.id, pages=False))
        t.answer(call, Done())

    def failed(errno: str) -> None:
        if errno == "EAGAIN" and request.wait and not call.interrupted and t.handles.get(handle.id) is handle:
            setlk(t, call, request)
        else:
            t.fail(call, "EINTR" if errno == "EAGAIN" and call.interrupted else errno)

    arguments = messages.Setlk(
        handle.remote, request.owner, request.start, request.end, request.type, request.flock, wait
    )
    t.ask(call, arguments, answered, failed)
