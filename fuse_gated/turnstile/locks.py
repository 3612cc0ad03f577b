"""POSIX locks and flock. They are taken on the client, so that programs on both sides exclude each other.

A waiting lock is asked for again and again, each time for as long as the client may wait within the request's deadline: so
it has no deadline of its own, and a client that fell silent is still noticed. Only so many wait with the client at once, that
there is always room for the request that gives a lock up; the others ask from time to time.
"""

from typing import Final

from fuse_gated import operations
from fuse_gated.gate import sandbox
from fuse_gated.operations import Done, Lock
from fuse_gated.tree.handles import Handle
from fuse_gated.turnstile import knowing
from fuse_gated.turnstile.call import Call
from fuse_gated.turnstile.desk import Desk
from fuse_gated.turnstile.effects import InvalidateInode
from fuse_gated.wire import messages

_UNLOCK: Final = 2
_LONGEST_WAIT: Final = 10_000
_ASK_AGAIN: Final = 0.1
"""Seconds between the tries of a lock that cannot wait with the client."""


def getlk(t: Desk, call: Call, request: operations.Getlk) -> None:
    handle = _judged(t, call, request)

    def answered(state: messages.LockState) -> None:
        sandbox.check_lock(state)
        pid = 0 if state.type == _UNLOCK else t.handles.locks.holder(handle.place, request.owner, state)
        t.answer(call, Lock(state.start, state.end, state.type, pid))

    arguments = messages.Getlk(handle.remote, request.owner, request.start, request.end, request.type)
    t.ask(call, arguments, answered)


def setlk(t: Desk, call: Call, request: operations.Setlk) -> None:
    handle = _judged(t, call, request)
    if request.type == _UNLOCK and not request.flock and not t.handles.locks.has(handle.place, request.owner):
        # libfuse gives up locks at every close, whether there are any or not.
        t.answer(call, Done())
        return
    wait = _milliseconds(t) if request.wait else 0

    def answered(_result: None) -> None:
        if not request.flock:
            t.handles.locks.changed(handle.place, request)
        if request.type != _UNLOCK:
            t.readahead.wrote(t, handle)
            handle.pinned = None
        if handle.node is not None and request.type != _UNLOCK:
            # Who holds the lock must see what the last holder wrote, on whichever side it was.
            t.cache.changes(t.handles.path(handle))
            knowing.unpin(t, handle.node)
            t.effects.append(InvalidateInode(handle.node.id, pages=False))
        t.answer(call, Done())

    def failed(errno: str) -> None:
        if errno != "EAGAIN" or not request.wait:
            t.fail(call, errno)
            return
        if call.interrupted:
            t.fail(call, "EINTR")
            return
        call.deadline = None
        if wait:
            setlk(t, call, request)
        else:
            t.hold(call, _ASK_AGAIN)

    arguments = messages.Setlk(handle.remote, request.owner, request.start, request.end, request.type, request.flock, wait)
    t.ask(call, arguments, answered, failed)


def _judged(t: Desk, call: Call, request: operations.Getlk | operations.Setlk) -> Handle:
    """The handle, after it was judged again if the policy has changed since. A lock can always be given up."""
    handle = t.handle(request.handle)
    path = t.handles.path(handle)
    if handle.generation != t.generation and request.type != _UNLOCK:
        verdict = t.gate.lock(path)
        if verdict.errno is not None:
            raise t.refused(call, verdict, path)
    t.announce_other(call, path)
    return handle


def _milliseconds(t: Desk) -> int:
    """How long a lock may wait with the client this time."""
    if t.session.count("setlk") * 4 >= t.limits.max_in_flight:
        return 0
    return min(_LONGEST_WAIT, int(t.limits.deadline * 500))
