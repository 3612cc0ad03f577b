"""An open file of an export without a mount, as Python's io knows files; and copying between such files."""

import io
import os
import stat
from collections import deque
from errno import EBADF, EINVAL, EIO, EOPNOTSUPP, EXDEV
from typing import TYPE_CHECKING, Final

from fuse_gated import operations as op
from fuse_gated.attached import Attached
from fuse_gated.edge.asking import Waiting
from fuse_gated.edge.network_requests import MOST_DATA

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

AT_ONCE: Final = 8
"""Requests that are on their way together where much is read or written."""
BLOCK: Final = AT_ONCE * MOST_DATA

_CANNOT_COPY: Final = frozenset({EOPNOTSUPP, EXDEV, EINVAL})
_MODES: Final = {
    "r": os.O_RDONLY,
    "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
}


def flags_of(mode: str) -> int:
    """open(2)'s flags for a mode of open() in bytes, such as 'rb' or 'r+b'. Raises ValueError."""
    letters = mode.replace("b", "", 1)
    plus = letters.endswith("+")
    flags = _MODES.get(letters.removesuffix("+"))
    if flags is None or "b" not in mode:
        raise ValueError(f"invalid mode: {mode!r}")
    return flags & ~os.O_ACCMODE | os.O_RDWR if plus else flags


class AttachedFile(io.RawIOBase):
    """A regular file, opened by `flags` (open(2)). Raises OSError. Not for several threads at once, but for `read_at`."""

    def __init__(self, attached: Attached, path: bytes, flags: int, mode: int = 0o666) -> None:
        self._attached = attached
        self._path = path
        self._flags = flags
        self._offset = 0
        self._pid = os.getpid()
        self._handle, self.found = attached.open(path, flags, mode)
        """`found`: its attributes, or None where it was made."""
        if flags & os.O_APPEND and self.found is not None:
            self._offset = self.found.size

    @property
    def name(self) -> str:
        """For people."""
        return self._attached.named(self._path)

    @property
    def handle(self) -> int:
        """Raises OSError in a process that was forked since, ValueError once it is closed."""
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        if self._pid != os.getpid():
            raise self._attached.error(EBADF, self._path)
        return self._handle

    def readable(self) -> bool:
        return self._flags & os.O_ACCMODE != os.O_WRONLY

    def writable(self) -> bool:
        return self._flags & os.O_ACCMODE != os.O_RDONLY

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset}.get(whence)
        place = (self.size() if start is None else start) + offset
        if place < 0:
            raise self._attached.error(EINVAL, self._path)
        self._offset = place
        return place

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        data = self.read_at(self._offset, len(view))
        view[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def write(self, data: "ReadableBuffer") -> int:
        count = self.write_at(self._offset, memoryview(data).cast("B"))
        self._offset = self.size() if self._flags & os.O_APPEND else self._offset + count
        return count

    def truncate(self, size: int | None = None) -> int:
        length = self._offset if size is None else size
        self._attached.ask(op.Setattr(b"", self.handle, size=length), self._path)
        return length

    def size(self) -> int:
        """Bytes in it now."""
        found: op.Attributes = self._attached.ask(op.Getattr(b"", self.handle), self._path)
        return found.size

    def fsync(self) -> None:
        """As fsync(2)."""
        self._attached.ask(op.Fsync(b"", self.handle, False), self._path)

    def read_at(self, offset: int, size: int) -> bytes:
        """As pread(2), but less than `size` means the end of the file."""
        pieces: list[bytes] = []
        started: deque[tuple[int, Waiting]] = deque()
        handle, end = self.handle, offset + size
        while started or offset < end:
            while offset < end and len(started) < AT_ONCE:
                length = min(MOST_DATA, end - offset)
                started.append((length, self._attached.start(op.Read(b"", handle, offset, length), self._path)))
                offset += length
            length, waiting = started.popleft()
            data: bytes = self._attached.finish(waiting, self._path)
            pieces.append(data)
            if len(data) < length:
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write_at(self, offset: int, data: memoryview) -> int:
        """As pwrite(2), but all of it; at the file's end, if it was opened with O_APPEND."""
        started: deque[tuple[int, memoryview, Waiting]] = deque()
        most = 1 if self._flags & os.O_APPEND else AT_ONCE
        done = 0
        while started or done < len(data):
            while done < len(data) and len(started) < most:
                piece = data[done : done + MOST_DATA]
                started.append((offset + done, piece, self._start_writing(offset + done, piece)))
                done += len(piece)
            place, piece, waiting = started.popleft()
            count: int = self._attached.finish(waiting, self._path)
            while count < len(piece):
                # A disk that is getting full takes a part, and tells why with the rest.
                more: int = self._attached.finish(self._start_writing(place + count, piece[count:]), self._path)
                if not more:
                    raise self._attached.error(EIO, self._path)
                count += more
        return len(data)

    def copy_from(self, source: "AttachedFile") -> None:
        """Everything in `source`, from here on. On the client, where both are of one export and it can."""
        offset = 0
        if source._attached is self._attached:
            try:
                while count := self._copy_range(source, offset):
                    offset += count
                return
            except OSError as error:
                if error.errno not in _CANNOT_COPY:
                    raise
        while data := source.read_at(offset, BLOCK):
            self.write_at(offset, memoryview(data))
            offset += len(data)

    def close(self) -> None:
        """What could not be written is told (close(2))."""
        if self.closed:
            return
        # In a process that was forked it is its parent's to close; and where opening failed, there is nothing.
        open_here = hasattr(self, "_handle") and self._pid == os.getpid()
        super().close()
        if not open_here:
            return
        try:
            if self.writable():
                self._attached.ask(op.Flush(b"", self._handle, 0), self._path)
        finally:
            self._attached.tell(op.Release(b"", self._handle))

    def _start_writing(self, offset: int, data: memoryview) -> Waiting:
        request = op.Write(b"", self.handle, offset, data, append=bool(self._flags & os.O_APPEND))
        return self._attached.start(request, self._path)

    def _copy_range(self, source: "AttachedFile", offset: int) -> int:
        request = op.CopyFileRange(b"", source.handle, offset, b"", self.handle, offset, 2**30)
        count: int = self._attached.ask(request, self._path)
        return count


def copy(attached: Attached, source: bytes, to: Attached, target: bytes) -> None:
    """A file's contents and mode, to a name that is made or replaced. Raises OSError."""
    with AttachedFile(attached, source, os.O_RDONLY) as reading:
        mode = stat.S_IMODE(reading.found.mode) if reading.found is not None else 0o666
        with AttachedFile(to, target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode) as writing:
            writing.copy_from(reading)
