"""The end of an open file: close(2) of each of its descriptors, and of the last one."""

from fuse_gated import operations
from fuse_gated.gate.audit import Record
from fuse_gated.operations import Done
from fuse_gated.tree.handles import Handle
from fuse_gated.turnstile import ahead, leasing
from fuse_gated.turnstile.call import Call, Failure
from fuse_gated.turnstile.desk import Desk
from fuse_gated.wire import messages


def flush(t: Desk, call: Call, request: operations.Flush) -> None:
    """close(2) of one descriptor. Where nothing was written and no POSIX lock taken there is nothing that could fail, and
    the client is not asked."""
    handle = t.handle(request.handle)
    t.announce_other(call, t.handles.path(handle))
    if not t.handles.locks.has(handle.place, request.owner) and (handle.silent or not handle.unflushed):
        if leasing.covers(t, handle) or not ahead.waits_for_owed(t, call, handle):
            ahead.told(t, handle, by_fsync=False)
            t.answer(call, Done())
        return

    def answered(_result: None) -> None:
        if ahead.waits_for_rest(t, call, handle):
            return
        handle.unflushed = False
        t.handles.locks.flushed(handle.place, request.owner)
        ahead.told(t, handle, by_fsync=False)
        t.answer(call, Done())

    t.ask(call, messages.Flush(handle.remote, request.owner), answered)


def release(t: Desk, call: Call, request: operations.Release) -> None:
    """The last descriptor is closed; nobody waits for the answer, and nobody would hear of an error."""
    handle = t.handles.get(request.handle)
    if handle is None:
        if not call.before:
            raise Failure("EBADF")
        # A process before this one closed it, and the kernel has not heard of that.
        t.answer(call, Done())
        return
    # A process's locks went when it closed its descriptor (FLUSH). What is left belongs to the open file itself (F_OFD_SETLK),
    # whose end the kernel tells by nothing but this; or the kernel was told that it need not flush (files._is_quiet): whoever has
    # taken others through another descriptor then keeps all until that is closed. The client keeps locks while the file is open
    # by any of its names, so it is told of all that are left where this node has no other handle.
    last = handle.node is not None and len(handle.node.handles) == 1
    owners = tuple(t.handles.locks.through(handle.place, handle.id, last=last))
    t.handles.remove(request.handle)
    if t.readahead.files or handle.node is None:
        t.readahead.closed(t, handle)
    for owner in owners:
        t.handles.locks.flushed(handle.place, owner)
    if handle.node is None:
        t.by_path.released(handle.path, t.now)
    tell_closed(t, handle)
    leasing.closed(t, handle)
    if handle.unheard:
        leasing.lost_unheard(t, handle)
    t.give_back(handle, owners)
    t.answer(call, Done(), kept=False)


def tell_closed(t: Desk, handle: Handle) -> None:
    """Reads and writes are told once per open file."""
    if not (t.tells_opens or (handle.writes and t.tells_changes)):
        return
    t.note(
        Record(
            kind="file-closed",
            operation="release",
            path=t.handles.path(handle),
            decision="allowed",
            uid=handle.uid,
            pid=handle.pid,
            bytes=handle.bytes_read + handle.bytes_written,
            count=handle.reads + handle.writes,
            duration_usec=max(0, int((t.now - handle.opened_at) * 1e6)),
            detail=f"read {handle.bytes_read} bytes in {handle.reads}, wrote {handle.bytes_written} bytes in {handle.writes}"
            + (f"; a write failed with {handle.failed}" if handle.failed else ""),
        )
    )
