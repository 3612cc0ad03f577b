"""Operations on open files: open, create, read, and what belongs to them; closing.py closes them."""

from typing import Final

import msgspec

from fuse_gated import operations
from fuse_gated.gate import sandbox
from fuse_gated.operations import Created, Data, Done, Opened, Position
from fuse_gated.tree.handles import Handle
from fuse_gated.tree.inodes import Node, identity_of
from fuse_gated.turnstile import ahead, gathering, holding, knowing, lazily, leasing, settling
from fuse_gated.turnstile.attributes import shown, still_same
from fuse_gated.turnstile.call import Call, Failure
from fuse_gated.turnstile.desk import Desk
from fuse_gated.turnstile.effects import InvalidateInode
from fuse_gated.turnstile.making import owner_of
from fuse_gated.turnstile.names import entry_of, path_of
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

_TYPE: Final = 0o170000
_BLOCK: Final = 512
"""Bytes that `st_blocks` counts (stat(2))."""
_REGULAR: Final = 0o100000


def open_(t: Desk, call: Call, request: operations.Open) -> None:
    target, path, node = t.target(request.node)
    verdict = t.gate.open(path, request.flags)
    if verdict.errno is not None:
        raise t.refused(call, verdict, path)
    t.take_place(call, path)
    if t.tells_opens or (writes(request.flags) and t.tells_changes):
        t.announce(call, path, rule=verdict.rule)
    generation = t.generation
    if t.cache.room and isinstance(target, bytes):
        if writes(request.flags):
            t.cache.changes(path)
        elif not call.before and not t.contested.covers(t.now, path, call.caller.pid) and _open_here(
            t, call, request, node, path
        ):
            # What came before the client may have opened: it answers that once more.
            return

    leasing.shared(t, node)

    def answered(result: messages.OpenedFile) -> None:
        sandbox.check_handle(result.handle)
        try:
            shown(t, path, result.attributes)
            still_same(t, node, result.attributes)
        except Failure:
            t.close(result.handle)
            raise
        handle = _opened(t, call, node, path, result.handle, request.flags, generation)
        opened = Opened(handle.id, no_flush=_is_quiet(t, handle))
        handle.kept, handle.silent = since, result.silent
        t.readahead.opened(handle, result.attributes)
        if isinstance(request.node, bytes):
            t.by_path.opened_again(request.node, handle)
        if writes(request.flags):
            t.cache.changes(path)
        if node is not None and knowing.saw_open(t, path, result.attributes, since) is result.attributes:
            # What is open is followed to the letter (names.LOOKUP_VALID): what the LOOKUP before told ends here.
            t.effects.append(InvalidateInode(node.id, pages=False))
        if request.flags & _TRUNC:
            t.readahead.changed(t, identity_of(result.attributes))
            holding.changed_here(t, node, path)
            settling.unmake(t, node)
            t.answer_change(call, opened, t.siblings(node), contents=True)
        else:
            t.answer(call, opened)

    since = t.cache.tick
    t.ask(call, messages.Open(target, _wire_flags(request.flags), request.kill_suidgid), answered)


def _open_here(t: Desk, call: Call, request: operations.Open, node: Node | None, path: bytes) -> bool:
    """Open it without asking, if its content is known or is coming (lazily.py), or the kernel has it."""
    found = gathering.file_of(t, path)
    attributes = found[0] if found is not None else gathering.kept_file(t, node, path)
    if attributes is None:
        return t.prefetch.brings(t, call, path)
    still_same(t, node, attributes)
    handle = _opened(t, call, node, path, None, request.flags, t.generation)
    handle.pinned, handle.was = found, found or (attributes, None)
    handle.kept = t.cache.tick
    if node is None:
        handle.identity = identity_of(attributes)
    handle.request = call.id
    lazily.opened_here(t, handle)
    t.cache.hits += 1
    t.prefetch.used(t, path)
    t.answer(call, Opened(handle.id, keep_cache=True, no_flush=_is_quiet(t, handle)), kept=False)
    return True


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

    since = t.cache.renames(path)

    def answered(result: messages.OpenedFile) -> None:
        sandbox.check_handle(result.handle)
        sandbox.check_attributes(result.attributes)
        t.cache.changed(path, result.attributes, since)
        if result.attributes.mode & _TYPE != _REGULAR:
            # Something else has the name by now. The kernel would drop the handle without a RELEASE; so it looks again.
            t.close(result.handle)
            raise Failure("ESTALE")
        if result.made:
            t.ahead.failed.pop(identity_of(result.attributes), None)
        entry = entry_of(t, request.parent, request.name, path, result.attributes)
        node = t.inodes.get(entry.node) if not isinstance(request.parent, bytes) else None
        handle = _opened(t, call, node, path, result.handle, request.flags, generation)
        t.readahead.opened(handle, result.attributes)
        handle.silent = result.silent
        leasing.granted(t, handle, min(result.leased, lease))
        ahead.made(t, handle, result.attributes, anew=result.made)
        t.answer(call, Created(msgspec.structs.replace(entry, attributes_valid=0.0), Opened(handle.id)))

    lease = leasing.wanted(t, request)
    flags, mode = _wire_flags(request.flags), request.mode & 0o7777
    t.ask(call, messages.Create(path, flags, mode, owner_of(t, call), lease), answered)


def read(t: Desk, call: Call, request: operations.Read) -> None:
    handle = judged(t, call, request.handle)
    size = min(request.size, messages.MAX_DATA)

    def answered(data: bytes | memoryview) -> None:
        sandbox.check_data(data, size)
        handle.reads += 1
        handle.bytes_read += len(data)
        if handle.node is not None and handle.kept > handle.node.kept:
            handle.node.kept = handle.kept
        t.statistics.bytes_read += len(data)
        t.answer(call, Data(data))
        if t.cache.tick != since and handle.node is not None and not t.cache.unchanged(t.handles.path(handle), since):
            # The client may have read it before it changed, and the kernel was told of that before it had this.
            t.effects.append(InvalidateInode(handle.node.id))

    since = t.cache.tick
    if handle.pinned is not None:
        answered(memoryview(handle.pinned[1])[request.offset : request.offset + size])
        return
    if handle.draft is not None:
        answered(handle.draft.read(request.offset, size))
        return
    if t.outage is not None and (known := gathering.content_of(t, handle)) is not None:
        answered(memoryview(known)[request.offset : request.offset + size])
        return

    def ask() -> None:
        t.ask(call, messages.Read(handle.remote, request.offset, size), answered, size=size)

    t.readahead.read(t, call, handle, request.offset, size, answered, ask)


def fsync(t: Desk, call: Call, request: operations.Fsync) -> None:
    handle = t.handle(request.handle)
    t.announce_other(call, t.handles.path(handle))
    if handle.remote < 0:
        # Nothing was written through it.
        if not ahead.waits_for_owed(t, call, handle):
            t.answer(call, Done())
        return

    def answered(_result: None) -> None:
        if ahead.waits_for_rest(t, call, handle):
            return
        ahead.told(t, handle, by_fsync=True)
        t.answer(call, Done())

    t.ask(call, messages.Fsync(handle.remote, request.data_only), answered)


def lseek(t: Desk, call: Call, request: operations.Lseek) -> None:
    handle = judged(t, call, request.handle)
    if request.whence not in (3, 4):
        raise Failure("EINVAL")
    if request.offset < 0:
        # Linux's file systems say so, not EINVAL (lseek(2) leaves it open), and programs that probe for holes rely on it.
        raise Failure("ENXIO")
    t.announce_other(call, t.handles.path(handle))
    known = None
    if handle.remote < 0:
        known = handle.pinned[0] if handle.pinned is not None else gathering.kept_file(t, handle.node, t.handles.path(handle))
    if known is not None and known.blocks * _BLOCK >= known.size:
        # As much is allocated as it is long: whoever looks for a hole (grep(1) does) may be told that there is none (lseek(2)).
        if request.offset >= known.size:
            raise Failure("ENXIO")
        t.answer(call, Position(request.offset if request.whence == 3 else known.size))
        return

    def answered(offset: int) -> None:
        sandbox.check_offset(offset, max(0, request.offset))
        t.answer(call, Position(offset))

    t.ask(call, messages.Lseek(handle.remote, request.offset, request.whence == 4), answered)


def writes(flags: int) -> bool:
    """Whether what is opened with these flags (open(2)) may change the file."""
    return bool(flags & _ACCMODE) or bool(flags & _TRUNC)


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


def _opened(t: Desk, call: Call, node: Node | None, path: bytes, remote: int | None, flags: int, generation: int) -> Handle:
    """`generation` is the one that judged it: the policy may have changed while the client opened it."""
    handle = t.handles.add(node, path, remote, flags)
    handle.generation = generation
    handle.opened_at = t.now
    caller = call.caller
    handle.uid, handle.pid = caller.uid, caller.pid
    leasing.opened(t, handle)
    return handle


def _is_quiet(t: Desk, handle: Handle) -> bool:
    """Whether the kernel need not tell of each close(2). Through what is only read nothing was written that could have failed;
    but a close gives up the process's POSIX locks on the file, where it has any (fcntl(2))."""
    if handle.flags & (_ACCMODE | _TRUNC) or handle.node is None or t.tells_everything:
        return False
    return not t.handles.locks.is_wanted(handle.node.id)


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
