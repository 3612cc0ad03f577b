"""Reading ahead of a program that reads a file from one end to the other.

The kernel reads ahead by itself, but never further than one or two READs: over a long line the line is idle most of the time. So
who has read on where the last READ ended is followed, and the client is asked for what comes next in chunks, as far ahead as the
line asks for: the window doubles when a READ has to wait for a chunk although chunks take no longer than they must (when they do,
they only queue), and begins anew when chunks were asked for in vain. Over no distance, whoever reads in long pieces is asked for
as it comes.

A READ is answered from chunks only with what the client could have answered it with. Where the client watches the file, a chunk
holds until it tells of a change; elsewhere for a second, as what the kernel itself has read ahead. Every change through the mount
ends it, and so does a lock. Each READ has been judged, limited and counted like any other.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fuse_gated.gate import sandbox
from fuse_gated.operations import Attributes
from fuse_gated.tree.handles import Handle
from fuse_gated.tree.inodes import Identity, identity_of
from fuse_gated.turnstile import bounds, holding
from fuse_gated.turnstile.call import Call
from fuse_gated.turnstile.readers import CHUNK, FIRST_WINDOW, Chunk, File, Reader
from fuse_gated.wire import messages
from fuse_gated.wire.session import Pending

if TYPE_CHECKING:
    from fuse_gated.turnstile.desk import Desk


class Readahead:
    """Of one session."""

    def __init__(self, most: int) -> None:
        """At most so many bytes."""
        self.files: dict[Identity, File] = {}
        self.bytes_fetched = 0
        self.bytes_used = 0
        self.due = 0.0
        """When `rest` is to be called; 0.0: it need not be."""
        self._most = most
        self._sum = 0
        self._enough = bounds.ENOUGH
        self._shortest = 0.0
        """Seconds that a chunk takes when it does not queue."""
        self._came: dict[int, float] = {}
        """When the READs came that wait."""
        self._opened: dict[int, Identity] = {}
        """Which files the handles are that have no node."""

    # Reading.

    def read(
        self,
        t: "Desk",
        call: Call,
        handle: Handle,
        offset: int,
        size: int,
        answered: Callable[[bytes | memoryview], None],
        ask: Callable[[], None],
    ) -> None:
        """A READ is answered from what is there, waits for what is on its way, or has the client asked."""
        came = self._came.pop(call.id, None)
        key = self._key(handle)
        strict = t.gate.tenant.cache.mode == "strict"
        if key is None or handle.remote < 0 or handle.flags & bounds.DIRECT or call.waited or t.outage is not None or strict:
            ask()
            return
        file = self.files.get(key)
        if file is None:
            file = self.files[key] = File()
            known = t.cache.attributes(t.handles.path(handle), t.now)
            if isinstance(known, Attributes):
                self.saw(t, known)
        reader = None
        if came is None:
            came = t.now
            reader = self._reader(t, file, handle, offset, size)
            self._leave_behind(t, reader)
            if file.covering(offset)[1] is not None:
                self._ask_ahead(t, file, reader)
        found = self._find(t, file, offset, size, came)
        if isinstance(found, Chunk):
            self._wait(t, call, found, came)
        elif found is not None:
            answered(found)
        else:
            # Who waits comes before what nobody waits for.
            ask()
            if reader is not None:
                reader.ahead = max(reader.ahead, reader.next)
                self._ask_ahead(t, file, reader)

    def _reader(self, t: "Desk", file: File, handle: Handle, offset: int, size: int) -> Reader:
        for reader in file.readers:
            if reader.follows(offset, size):
                reader.run += size
                reader.next = max(reader.next, offset + size)
                break
        else:
            reader = Reader(handle, offset + size)
            reader.touched = t.now
            file.readers.append(reader)
            if len(file.readers) > bounds.READERS:
                oldest = min(file.readers, key=lambda one: one.touched)
                file.readers.remove(oldest)
                self._drop(t, oldest)
        reader.handle = handle
        reader.touched = t.now
        reader.whole = size >= CHUNK
        return reader

    def _find(self, t: "Desk", file: File, offset: int, size: int, came: float) -> bytes | memoryview | Chunk | None:
        """The bytes, the chunk that is to be waited for, or None where the client must be asked."""
        at, end = offset, offset + size
        parts: list[memoryview] = []
        used: list[tuple[Reader, Chunk, int]] = []
        while at < end:
            reader, chunk = file.covering(at)
            if chunk is None or reader is None or not self._holds(t, reader, chunk, came):
                return None
            if chunk.data is None:
                if chunk.offset >= reader.grown:
                    self._widen(t, file, reader, chunk)
                return chunk
            part = chunk.data[at - chunk.offset : end - chunk.offset]
            parts.append(part)
            used.append((reader, chunk, len(part)))
            at += len(part)
            if len(chunk.data) < CHUNK:
                break
        if at == offset:
            # Where the file ended then. It may have grown.
            return None
        for reader, chunk, length in used:
            self._use(reader, chunk, length)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _use(self, reader: Reader, chunk: Chunk, length: int) -> None:
        assert chunk.data is not None
        chunk.used += length
        self.bytes_used += length
        if chunk.used >= len(chunk.data) == CHUNK:
            reader.chunks.remove(chunk)
            self._sum -= CHUNK
            self._enough = max(bounds.ENOUGH, self._enough // 2)

    def _wait(self, t: "Desk", call: Call, chunk: Chunk, came: float) -> None:
        self._came[call.id] = came
        chunk.waiting.append(call)
        t.wait(call)

    def _holds(self, t: "Desk", reader: Reader, chunk: Chunk, came: float) -> bool:
        return came <= chunk.asked + bounds.BELIEVED or (chunk.followed and holding.is_followed(t, reader.handle))

    # Asking.

    def _leave_behind(self, t: "Desk", reader: Reader) -> None:
        """What was read past, or is too old."""
        while reader.chunks and (reader.chunks[0].end + CHUNK < reader.next or self._is_old(t, reader, reader.chunks[0])):
            chunk = reader.chunks.popleft()
            if not chunk.used:
                self._in_vain(reader)
            self._end(t, chunk)
        if not reader.chunks:
            reader.ahead = reader.next

    def _is_old(self, t: "Desk", reader: Reader, chunk: Chunk) -> bool:
        return not chunk.waiting and not self._holds(t, reader, chunk, t.now)

    def _ask_ahead(self, t: "Desk", file: File, reader: Reader) -> None:
        """Ask for what comes next, as far as the window goes."""
        near = reader.whole and 0.0 < self._shortest < bounds.NEAR
        if reader.run < self._enough or (near and reader.run // CHUNK % bounds.PROBES):
            return
        window = FIRST_WINDOW if near else reader.window
        while reader.ahead < reader.next + window and (file.end is None or reader.ahead < file.end):
            if self._sum + CHUNK > self._most or t.session.would_wait(CHUNK):
                return
            self._ask(t, file, reader)

    def _ask(self, t: "Desk", file: File, reader: Reader) -> None:
        followed = holding.is_followed(t, reader.handle)
        chunk = Chunk(t.session.own_id(), reader.ahead, t.now, followed=followed)
        reader.chunks.append(chunk)
        reader.ahead = chunk.end
        self._sum += CHUNK
        self.bytes_fetched += CHUNK
        self.due = self.due or t.now + bounds.IDLE

        def answered(data: memoryview) -> None:
            sandbox.check_data(data, CHUNK)
            took = t.now - chunk.asked
            self._shortest = min(took, self._shortest + (took - self._shortest) / 64) if self._shortest else took
            if len(data) < CHUNK:
                file.end = chunk.offset + len(data)
            # The message that it came in is kept with it, so that must not be much longer.
            chunk.data = data if 2 * len(data) > t.session.message_size else memoryview(bytes(data))
            self._wake(t, chunk, again=True)

        def failed(_errno: str) -> None:
            if chunk not in reader.chunks:
                # Dropped while others that were too late like it were being told so.
                return
            reader.chunks.remove(chunk)
            self._in_vain(reader)
            self._sum -= CHUNK
            self._wake(t, chunk)

        arguments = messages.Read(reader.handle.remote, chunk.offset, CHUNK)
        t.session.ask(Pending(chunk.number, arguments, t.now + t.limits.deadline, answered, failed, CHUNK))

    def _widen(self, t: "Desk", file: File, reader: Reader, chunk: Chunk) -> None:
        """A reader has caught up with what was asked for. It is asked for more, unless that would only queue."""
        if t.now - chunk.asked <= 2 * self._shortest + bounds.QUEUES or not self._shortest:
            reader.grown = chunk.end
            reader.window = min(2 * reader.window, bounds.LARGEST_WINDOW)
            self._ask_ahead(t, file, reader)

    def _wake(self, t: "Desk", chunk: Chunk, *, again: bool = False) -> None:
        """Who waited for it goes on: to look for it `again`, or to ask the client."""
        waiting, chunk.waiting = chunk.waiting, []
        for call in waiting:
            if t.goes_on(call):
                call.waited = not again
                t.again(call)
            else:
                self._came.pop(call.id, None)

    # Forgetting.

    def opened(self, handle: Handle, attributes: Attributes) -> None:
        """Which file it is that a driver without nodes has opened."""
        if handle.node is None:
            self._opened[handle.id] = identity_of(attributes)

    def closed(self, t: "Desk", handle: Handle) -> None:
        """Who read through it is not there any more."""
        key = self._key(handle)
        self._opened.pop(handle.id, None)
        file = self.files.get(key) if key is not None else None
        if key is None or file is None:
            return
        gone = [reader for reader in file.readers if reader.handle is handle]
        file.readers = [reader for reader in file.readers if reader.handle is not handle]
        if not file.readers:
            del self.files[key]
        for reader in gone:
            self._drop(t, reader)

    def saw(self, t: "Desk", attributes: Attributes) -> None:
        """What the client says a file is now. What it was when a chunk was asked for is no more than that."""
        file = self.files.get(identity_of(attributes))
        if file is None:
            return
        now = (attributes.size, attributes.mtime, attributes.ctime)
        before, file.seen = file.seen, now
        if before is not None and before != now:
            self.changed(t, identity_of(attributes))
        if before != now:
            file.end = attributes.size

    def wrote(self, t: "Desk", handle: Handle) -> None:
        """A file is changed through a handle, or a lock was taken on it."""
        key = self._key(handle)
        if self.files:
            self.changed(t, *(self.files if key is None else (key,)))

    def changed(self, t: "Desk", *keys: Identity | None) -> None:
        """What was read ahead of these files holds no more."""
        for key in keys:
            file = self.files.get(key) if key is not None else None
            if file is None:
                continue
            file.end = None
            for reader in list(file.readers):
                reader.run = 0
                self._drop(t, reader)

    def rest(self, t: "Desk") -> None:
        """To be called when it is `due`: who has not read on gives up what is held for it."""
        readers = [reader for file in self.files.values() for reader in file.readers if reader.chunks]
        self.due = t.now + bounds.IDLE if readers else 0.0
        for reader in readers:
            if reader.touched + bounds.IDLE <= t.now and not any(chunk.waiting for chunk in reader.chunks):
                reader.run = 0
                self._drop(t, reader)

    def clear(self) -> None:
        """The client is away, and what it was asked is asked by nobody any more."""
        self.files.clear()
        self._came.clear()
        self._shortest = 0.0
        self._sum = 0

    def _drop(self, t: "Desk", reader: Reader) -> None:
        chunks = reader.begin_anew()
        if any(not chunk.used for chunk in chunks):
            self._enough = min(2 * self._enough, bounds.MOST_ENOUGH)
        for chunk in chunks:
            self._end(t, chunk)

    def _end(self, t: "Desk", chunk: Chunk) -> None:
        self._sum -= CHUNK
        if chunk.data is None:
            t.session.give_up(chunk.number)
        self._wake(t, chunk)

    def _in_vain(self, reader: Reader) -> None:
        if reader.window == FIRST_WINDOW:
            reader.run = 0
            self._enough = min(2 * self._enough, bounds.MOST_ENOUGH)
        reader.window = max(reader.window // 2, FIRST_WINDOW)

    def _key(self, handle: Handle) -> Identity | None:
        return handle.node.identity if handle.node is not None else self._opened.get(handle.id)
