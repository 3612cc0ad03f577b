"""Operations that change an open file's content: write, fallocate and copy_file_range."""

from typing import Final

from fuse_gated import operations
from fuse_gated.gate import sandbox
from fuse_gated.operations import Count, Done
from fuse_gated.tree.handles import Handle
from fuse_gated.turnstile import ahead, holding, settling
from fuse_gated.turnstile.call import Call
from fuse_gated.turnstile.desk import Desk
from fuse_gated.turnstile.files import judged
from fuse_gated.wire import messages

_PUNCH_HOLE: Final = 2  # fallocate(2)
_LARGEST_COPY: Final = 128 * 2**20
"""Bytes in one COPY_FILE_RANGE, so that a slow disk ends it within its deadline. What is left the caller asks for again."""


def write(t: Desk, call: Call, request: operations.Write) -> None:
    handle = judged(t, call, request.handle, write=True)
    ahead.warned(handle)
    size = len(request.data)
    append = request.append and not request.from_cache
    if not append:
        _check_size(t, call, handle, request.offset + size)
    # Where an append ends only the client knows: the kernel's offset is as old as the size that it has seen.
    most = t.gate.tenant.limits.file_size if append else None
    handle.unflushed = True
    if ahead.write(t, call, handle, request):
        return
    settling.unmake(t, handle.node)
    # A view of the driver's buffer is encoded before the driver reads on, so it need not be copied unless it waits.
    data = memoryview(bytes(request.data) if t.session.would_wait(size) else request.data)

    def answered(count: int) -> None:
        holding.written(t, handle)
        sandbox.check_count(count, size)
        handle.writes += 1
        handle.bytes_written += count
        t.statistics.bytes_written += count
        t.answer_change(call, Count(count), t.siblings(handle.node), contents=True)

    def failed(errno: str) -> None:
        if errno == "EFBIG" and most is not None:
            raise t.limited(call, errno, t.handles.path(handle), f"an append beyond {most} bytes, which the policy allows")
        if errno == settling.CANCELLED:
            # It came after one that failed, which is what its caller is to hear of.
            errno, handle.warns = handle.warns or handle.failed or "EIO", ""
        t.fail(call, errno)

    t.cache.changes(t.handles.path(handle))
    t.readahead.wrote(t, handle)
    arguments = messages.Write(handle.remote, request.offset, data, append, request.kill_suidgid, most)
    t.ask(call, arguments, answered, failed, size=size)


def fallocate(t: Desk, call: Call, request: operations.Fallocate) -> None:
    handle = judged(t, call, request.handle, write=True)
    if not request.mode & _PUNCH_HOLE:
        _check_size(t, call, handle, request.offset + request.length)
    t.announce_other(call, t.handles.path(handle))

    t.cache.changes(t.handles.path(handle))
    settling.unmake(t, handle.node)

    def answered(_result: None) -> None:
        holding.written(t, handle)
        handle.writes += 1
        t.answer_change(call, Done(), t.siblings(handle.node), contents=True)

    arguments = messages.Fallocate(handle.remote, request.offset, request.length, request.mode, clear_setid=_clears(call))
    t.ask(call, arguments, answered)


def copy_file_range(t: Desk, call: Call, request: operations.CopyFileRange) -> None:
    source = judged(t, call, request.handle)
    target = judged(t, call, request.to_handle, write=True)
    length = copied(request)
    _check_size(t, call, target, request.to_offset + length)
    t.announce_other(call, t.handles.path(source), t.handles.path(target))

    t.cache.changes(t.handles.path(target))
    settling.unmake(t, target.node)

    def answered(count: int) -> None:
        holding.written(t, target)
        sandbox.check_count(count, length)
        source.reads += 1
        source.bytes_read += count
        target.writes += 1
        target.bytes_written += count
        target.unflushed = True
        t.answer_change(call, Count(count), t.siblings(target.node), contents=True)

    places = (source.remote, request.offset, target.remote, request.to_offset)
    t.ask(call, messages.CopyFileRange(*places, length, clear_setid=_clears(call)), answered)


def copied(request: operations.CopyFileRange) -> int:
    """How many bytes a request may copy at once."""
    return min(request.length, _LARGEST_COPY)


def _clears(call: Call) -> bool:
    """These two carry no flag for it (linux/fuse.h): whoever is not root is taken to have no CAP_FSETID."""
    return call.caller.uid != 0


def _check_size(t: Desk, call: Call, handle: Handle, size: int) -> None:
    limit = t.gate.tenant.limits.file_size
    if limit is not None and size > limit:
        raise t.limited(call, "EFBIG", t.handles.path(handle), f"a file of {size} bytes, the policy allows {limit}")
