"""Operations on open files: open, create, read, write, and what belongs to them."""

from typing import Final

import msgspec

from fuse_gated import operations
from fuse_gated.gate import sandbox
from fuse_gated.gate.audit import Record
from fuse_gated.operations import Count, Created, Data, Done, Opened, Position
from fuse_gated.tree.handles import Handle
from fuse_gated.tree.inodes import Node
from fuse_gated.turnstile.attributes import shown, still_same
from fuse_gated.turnstile.call import Call, Failure
from fuse_gated.turnstile.desk import Desk
from fuse_gated.turnstile.effects import InvalidateInode
from fuse_gated.turnstile.names import entry_of, owner_of, path_of
from fuse_gated.wire import messages

# open(2), the same on every architecture that Linux has FUSE on and Debian supports (asm-generic/fcntl.h).
_ACCMODE: Final = 0o3
_WRONLY: Final = 0o1
_RDWR: Final = 0o2
_EXCL: Final = 0o200
_TRUNC: Final = 0o1000
_DSYNC: Final = 0o10000
_SYNC: Final = 0o4000000
_EXEC: Final = 0x20

_PUNCH_HOLE: Final = 2  # fallocate(2)
_LARGEST_COPY: Final = 128 * 2**20
"""Bytes in one COPY_FILE_RANGE, so that a slow disk ends it within its deadline. What is left the caller asks for again."""
_TYPE: Final = 0o170000
_REGULAR: Final = 0o100000


def open_(t: Desk, call: Call, request: operations.Open) -> None:
    target, path, node = t.target(request.node)
    verdict = t.gate.open(path, request.flags)
    if verdict.errno is not None:
        raise t.refused(call, verdict, path)
    t.take_place(call, path)
    if t.tells_opens or (_writes(request.flags) and t.tells_changes):
        t.announce(call, path, rule=verdict.rule)
    generation = t.generation

    def answered(result: messages.OpenedFile) -> None:
        try:
            shown(t, path, result.attributes)
            still_same(t, node, result.attributes)
        except Failure:
            t.ask_aside(messages.Release(result.handle))
            raise
        opened = _opened(t, call, node, path, result.handle, request.flags, generation)
        if isinstance(request.node, bytes):
            t.by_path.opened_again(request.node, t.handle(opened.handle))
        if node is not None:
            # What is open is followed to the letter (names.LOOKUP_VALID): what the LOOKUP before told ends here.
            t.effects.append(InvalidateInode(node.id, pages=False))
        if request.flags & _TRUNC:
            t.answer_change(call, opened, t.siblings(node), contents=True)
        else:
            t.answer(call, opened)

    t.ask(call, messages.Open(target, _wire_flags(request.flags), request.kill_suidgid), answered)


def create(t: Desk, call: Call, request: operations.Create) -> None:
    path = path_of(t, request.parent, request.name)
    verdict = t.gate.create(path)
    if verdict.errno is None:
        # Somebody on the client may have made the file meanwhile: what is opened is judged like any open.
        verdict = t.gate.open(path, request.flags & ~_EXEC)
    if verdict.errno is not None:
        raise t.refused(call, verdict, path)
    t.take_place(call, path)
    if t.tells_changes:
        t.announce(call, path, rule=verdict.rule)
    generation = t.generation

    def answered(result: messages.OpenedFile) -> None:
        sandbox.check_attributes(result.attributes)
        if result.attributes.mode & _TYPE != _REGULAR:
            # Something else has the name by now. The kernel would drop the handle without a RELEASE; so it looks again.
            t.ask_aside(messages.Release(result.handle))
            raise Failure("ESTALE")
        entry = entry_of(t, request.parent, request.name, path, result.attributes)
        node = t.inodes.get(entry.node) if not isinstance(request.parent, bytes) else None
        opened = _opened(t, call, node, path, result.handle, request.flags, generation)
        t.answer(call, Created(msgspec.structs.replace(entry, attributes_valid=0.0), opened))

    flags = _wire_flags(request.flags)
    t.ask(call, messages.Create(path, flags, request.mode & 0o7777, owner_of(t, call)), answered)


def read(t: Desk, call: Call, request: operations.Read) -> None:
    handle = judged(t, call, request.handle)
    size = min(request.size, messages.MAX_DATA)

    def answered(data: memoryview) -> None:
        sandbox.check_data(data, size)
        handle.reads += 1
        handle.bytes_read += len(data)
        t.statistics.bytes_read += len(data)
        t.answer(call, Data(data))

    t.ask(call, messages.Read(handle.remote, request.offset, size), answered, size=size)


def write(t: Desk, call: Call, request: operations.Write) -> None:
    handle = judged(t, call, request.handle, write=True)
    size = len(request.data)
    append = request.append and not request.from_cache
    if not append:
        _check_size(t, call, handle, request.offset + size)
    # Where an append ends only the client knows: the kernel's offset is as old as the size that it has seen.
    most = t.gate.tenant.limits.file_size if append else None
    handle.unflushed = True
    # A view of the driver's buffer is encoded before the driver reads on, so it need not be copied unless it waits.
    data = memoryview(bytes(request.data) if t.session.would_wait(size) else request.data)

    def answered(count: int) -> None:
        sandbox.check_count(count, size)
        handle.writes += 1
        handle.bytes_written += count
        t.statistics.bytes_written += count
        t.answer_change(call, Count(count), t.siblings(handle.node), contents=True)

    def failed(errno: str) -> None:
        if errno == "EFBIG" and most is not None:
            raise t.limited(call, errno, t.handles.path(handle), f"an append beyond {most} bytes, which the policy allows")
        t.fail(call, errno)

    arguments = messages.Write(handle.remote, request.offset, data, append, request.kill_suidgid, most)
    t.ask(call, arguments, answered, failed, size=size)


def flush(t: Desk, call: Call, request: operations.Flush) -> None:
    """close(2) of one descriptor. Where nothing was written and no POSIX lock taken there is nothing that could fail, and
    the client is not asked."""
    handle = t.handle(request.handle)
    t.announce_other(call, t.handles.path(handle))
    if not handle.unflushed and not t.handles.locks.has(handle.place, request.owner):
        t.answer(call, Done())
        return

    def answered(_result: None) -> None:
        handle.unflushed = False
        t.handles.locks.flushed(handle.place, request.owner)
        t.answer(call, Done())

    t.ask(call, messages.Flush(handle.remote, request.owner), answered)


def release(t: Desk, call: Call, request: operations.Release) -> None:
    """The last descriptor is closed; nobody waits for the answer, and nobody would hear of an error."""
    handle = t.handles.remove(request.handle)
    if handle is None:
        raise Failure("EBADF")
    # A process's locks went when it closed its descriptor (FLUSH). What is left belongs to the open file itself (F_OFD_SETLK),
    # whose end the kernel tells by nothing but this.
    owners = tuple(t.handles.locks.through(handle.place, handle.id))
    for owner in owners:
        t.handles.locks.flushed(handle.place, owner)
    if handle.node is None:
        t.by_path.released(handle.path, t.now)
    tell_closed(t, handle)
    t.give_back(handle, owners)
    t.answer(call, Done())


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
            detail=f"read {handle.bytes_read} bytes in {handle.reads}, wrote {handle.bytes_written} bytes in {handle.writes}",
        )
    )


def fsync(t: Desk, call: Call, request: operations.Fsync) -> None:
    handle = t.handle(request.handle)
    t.announce_other(call, t.handles.path(handle))
    t.ask(call, messages.Fsync(handle.remote, request.data_only), lambda _result: t.answer(call, Done()))


def lseek(t: Desk, call: Call, request: operations.Lseek) -> None:
    handle = judged(t, call, request.handle)
    if request.whence not in (3, 4):
        raise Failure("EINVAL")
    if request.offset < 0:
        # Linux's file systems say so, not EINVAL (lseek(2) leaves it open), and programs that probe for holes rely on it.
        raise Failure("ENXIO")
    t.announce_other(call, t.handles.path(handle))

    def answered(offset: int) -> None:
        sandbox.check_offset(offset, max(0, request.offset))
        t.answer(call, Position(offset))

    t.ask(call, messages.Lseek(handle.remote, request.offset, request.whence == 4), answered)


def fallocate(t: Desk, call: Call, request: operations.Fallocate) -> None:
    handle = judged(t, call, request.handle, write=True)
    if not request.mode & _PUNCH_HOLE:
        _check_size(t, call, handle, request.offset + request.length)
    t.announce_other(call, t.handles.path(handle))

    def answered(_result: None) -> None:
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

    def answered(count: int) -> None:
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


def judged(t: Desk, call: Call, number: int, *, write: bool = False) -> Handle:
    """The handle, after it was judged again if the policy has changed since.

    Raises Failure(EBADF) for no handle, and for a write through one that was not opened for writing.
    """
    handle = t.handle(number)
    if handle.generation != t.generation:
        path = t.handles.path(handle)
        verdict = t.gate.open(path, handle.flags & ~_TRUNC)
        if verdict.errno is None:
            handle.generation = t.generation
        else:
            # Not all that it was opened for is still allowed; this request may be.
            verdict = t.gate.write(path) if write else t.gate.open(path, handle.flags & _EXEC)
        if verdict.errno is not None:
            raise t.refused(call, verdict, path)
    if write and not handle.flags & _ACCMODE:
        raise Failure("EBADF")
    return handle


def _clears(call: Call) -> bool:
    """These two carry no flag for it (linux/fuse.h): whoever is not root is taken to have no CAP_FSETID."""
    return call.caller.uid != 0


def _opened(t: Desk, call: Call, node: Node | None, path: bytes, remote: int, flags: int, generation: int) -> Opened:
    """`generation` is the one that judged it: the policy may have changed while the client opened it."""
    handle = t.handles.add(node, path, remote, flags)
    handle.generation = generation
    handle.opened_at = t.now
    handle.uid, handle.pid = call.caller.uid, call.caller.pid
    return Opened(handle.id)


def _check_size(t: Desk, call: Call, handle: Handle, size: int) -> None:
    limit = t.gate.tenant.limits.file_size
    if limit is not None and size > limit:
        raise t.limited(call, "EFBIG", t.handles.path(handle), f"a file of {size} bytes, the policy allows {limit}")


def _writes(flags: int) -> bool:
    return bool(flags & _ACCMODE) or bool(flags & _TRUNC)


def _wire_flags(flags: int) -> int:
    mode = flags & _ACCMODE
    wire = messages.OPEN_WRITE if mode == _WRONLY else messages.OPEN_READ | (messages.OPEN_WRITE if mode == _RDWR else 0)
    if flags & _TRUNC:
        wire |= messages.OPEN_TRUNCATE
    if flags & _EXCL:
        wire |= messages.OPEN_EXCLUSIVE
    if flags & _SYNC:
        wire |= messages.OPEN_SYNC
    elif flags & _DSYNC:
        wire |= messages.OPEN_DSYNC
    return wire
