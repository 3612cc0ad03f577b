"""POSIX locks and flock. They are taken on the client, so that programs on both sides exclude each other.

A waiting lock is asked for again and again, each time for as long as the client may wait within the request's deadline: so
it has no deadline of its own, and a client that fell silent is still noticed. Only so many wait with the client at once, that
there is always room for the request that gives a lock up; the others ask from time to time.
"""

from typing import Final

from fuse_gated import operations
from fuse_gated.gate import sandbox
from fuse_gated.operations import Attributes, Done, Lock
from fuse_gated.tree.handles import Handle
from fuse_gated.tree.inodes import identity_of
from fuse_gated.tree.known import look_alike
from fuse_gated.turnstile import belated, holding, knowing, leasing, unlocking
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

    leasing.shared(t, handle.node)
    arguments = messages.Getlk(handle.remote, request.owner, request.start, request.end, request.type)
    t.ask(call, arguments, answered)


def setlk(t: Desk, call: Call, request: operations.Setlk) -> None:
    handle = _judged(t, call, request)
    gives_up = request.type == _UNLOCK
    if gives_up and not request.flock and not t.handles.locks.has(handle.place, request.owner):
        # libfuse gives up locks at every close, whether there are any or not.
        t.answer(call, Done())
        return
    later = belated.keeps_waiting(t, handle, request.owner, request.flock)
    if later:
        t.hold(call, later)
        return
    if unlocking.gives_up(t, call, handle, request):
        t.handles.locks.changed(handle.place, request)
        t.answer(call, Done())
        return
    wait = _milliseconds(t) if request.wait else 0
    if not request.flock:
        # For it the client opens the file once more.
        leasing.shared(t, handle.node)
        t.handles.locks.wants(handle.place)

    def answered(attributes: Attributes | None) -> None:
        if request.flock:
            handle.flock = request.type
        else:
            t.handles.locks.changed(handle.place, request)
        belated.settle(t)
        if not gives_up:
            _is_current(t, handle, attributes)
        t.answer(call, Done(), in_order=not gives_up)

    def failed(errno: str) -> None:
        belated.settle(t)
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

    asks = not gives_up and handle.node is not None and t.cache.room > 0 and t.gate.tenant.cache.mode == "watched"
    place = (handle.remote, request.owner, request.start, request.end, request.type, request.flock)
    t.ask(call, messages.Setlk(*place, wait, asks), answered, failed)


def _is_current(t: Desk, handle: Handle, attributes: Attributes | None) -> None:
    """Who holds the lock must see what the last holder wrote, on whichever side it was. What the kernel remembers of the file is
    asked for again; `attributes`, where the client has said what it is like now, will do for the answer. Its pages go as well,
    unless it is as it was: what is mapped (mmap(2)) nobody asks for."""
    t.readahead.wrote(t, handle)
    handle.pinned = None
    node = handle.node
    if node is None:
        return
    path = t.handles.path(handle)
    before = t.cache.attributes(path, t.now)
    since = t.cache.changes(path)
    holding.unpin(t, node)
    t.effects.append(InvalidateInode(node.id, pages=False))
    if attributes is None:
        return
    sandbox.check_attributes(attributes)
    if node.identity == identity_of(attributes):
        knowing.saw_open(t, path, attributes, since)
    if not (isinstance(before, Attributes) and look_alike(before, attributes)):
        t.effects.append(InvalidateInode(node.id))


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
