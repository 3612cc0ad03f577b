"""The kernel driver: reads requests from /dev/fuse, writes answers to it (linux/fuse.h).

One thread reads and answers. Notifications that make the kernel wait for locks which a request of ours may hold (names,
pages) are written by a thread of their own: written by the reader they deadlock in the kernel.
"""

import contextlib
import errno
import os
import queue
import struct
import threading
from collections.abc import Callable, Collection
from typing import Final

import msgspec

from fuse_gated.edge import fuse_answers
from fuse_gated.edge.fuse_requests import IN_HEADER, INIT, NOTIFY_REPLY, decode
from fuse_gated.edge.memory import make_buffer
from fuse_gated.errors import KernelError
from fuse_gated.operations import Answer, Caller, Destroy, Forget, Interrupt, Request

MAJOR: Final = 7
MINOR: Final = 45
OLDEST_MINOR: Final = 31
MAX_WRITE: Final = 2**20

_MOMENT: Final = 0.002
"""Seconds that an answer waits for a notification at most: who holds the page may itself wait for an answer."""
_BUFFER: Final = MAX_WRITE + 4096
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
"""Bytes: INIT counts a request's room in pages of this machine, which has 4, 16 or 64 KiB."""
_INIT_IN = struct.Struct("=IIII")
_INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")

FLAGS: Final[dict[str, int]] = {
    "ASYNC_READ": 1 << 0,
    "POSIX_LOCKS": 1 << 1,
    "ATOMIC_O_TRUNC": 1 << 3,
    "BIG_WRITES": 1 << 5,
    "FLOCK_LOCKS": 1 << 10,
    "AUTO_INVAL_DATA": 1 << 12,
    "DO_READDIRPLUS": 1 << 13,
    "READDIRPLUS_AUTO": 1 << 14,
    "ASYNC_DIO": 1 << 15,
    "PARALLEL_DIROPS": 1 << 18,
    "MAX_PAGES": 1 << 22,
    "HANDLE_KILLPRIV_V2": 1 << 28,
    "INIT_EXT": 1 << 30,
    "NO_EXPORT_SUPPORT": 1 << 38,
    "HAS_RESEND": 1 << 39,
}
"""What we use where the kernel has it. Left out on purpose: WRITEBACK_CACHE (size and mtime would be the kernel's, wrong when
the client's own programs edit the files), CACHE_SYMLINKS (a link's target is judged each time), POSIX_ACL, EXPORT_SUPPORT."""


_FEATURES: Final[dict[str, tuple[str, ...]]] = {
    "resend": ("HAS_RESEND",),
    "readdirplus": ("DO_READDIRPLUS", "READDIRPLUS_AUTO"),
}
"""What the settings may do without (config/settings.py)."""
_EXPIRE_MINOR: Final = 38
"""Of the protocol that has FUSE_EXPIRE_ONLY (Linux 6.2). Before it the kernel forgets the name at once."""
_UNANSWERED: Final = (Forget, Interrupt, Destroy)

RESENT: Final = 1 << 63
"""FUSE_UNIQUE_RESEND: in a request's unique, and in its answer's, once the kernel has sent it again."""


class Negotiated(msgspec.Struct, frozen=True):
    """What INIT settled, for the mount's life."""

    minor: int
    flags: int
    max_write: int

    @property
    def can_resend(self) -> bool:
        """Whether the kernel sends what was read and not answered again (Linux 6.9)."""
        return bool(self.flags & FLAGS["HAS_RESEND"])


class Notifier:
    """The thread that writes notifications. To be started before the process is caged, which forbids new threads."""

    def __init__(self) -> None:
        self._notices: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()
        self._waiting: set[tuple[int, bytes]] = set()
        self._writing = False
        self._settled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether everything is written. A process that ends before that may stay in the kernel: what the thread waits for
        there may be held by a caller who waits for this very process to answer."""
        return not self._waiting and not self._writing

    def put(self, fd: int, notice: bytes) -> None:
        """Write `notice` to `fd` in a while. One that waits already is enough, so a client that tells of the same change
        again and again fills no memory: there are at most two for each node."""
        entry = (fd, notice)
        if entry not in self._waiting:
            self._waiting.add(entry)
            self._settled.clear()
            self._notices.put(entry)

    def settle(self, seconds: float) -> None:
        """Wait until everything is written, but no longer than this."""
        self._settled.wait(seconds)

    def stop(self) -> None:
        """End the thread, unless it waits in the kernel: then it ends with the mount."""
        self._notices.put(None)
        self._thread.join(0.2)

    def _run(self) -> None:
        while (entry := self._notices.get()) is not None:
            self._writing = True
            # Before it is written: what changes from here on needs another one.
            self._waiting.discard(entry)
            write_notice(*entry)
            self._writing = False
            if not self._waiting:
                self._settled.set()


def write_notice(fd: int, notice: bytes) -> None:
    """ENOENT: the kernel does not hold what it should forget. Anything else means that the mount is going."""
    with contextlib.suppress(OSError):
        os.write(fd, notice)


class KernelDriver:
    """Serves one mount. `on_request(unique, caller, request)` is called for each request; a request's data lies in the
    driver's buffer and is good until the callback returns. `on_ready` is called once, when INIT is answered, and `on_end`
    once, when the mount is gone. `negotiated` is what was settled with another process that served the mount before.

    A request's number is the kernel's unique without its bit 63: sent again it has the same one."""

    def __init__(
        self,
        fd: int,
        notifier: Notifier,
        on_request: Callable[[int, Caller, Request], None],
        on_ready: Callable[[], None],
        on_end: Callable[[], None],
        negotiated: Negotiated | None = None,
        without: Collection[str] = (),
    ) -> None:
        self.fd = fd
        self.on_raw: Callable[[int, bytes], None] | None = None
        """Called with each request's number and bytes before `on_request`, where somebody must keep them: `keeps_requests`."""
        self.on_answered: Callable[[int], None] | None = None
        """Called when the kernel has an answer."""
        self._without = without
        self.negotiated = negotiated
        self._on_request = on_request
        self._on_ready = on_ready
        self._on_end = on_end
        self._notifier = notifier
        self._buffer = make_buffer(_BUFFER)
        self._view = memoryview(self._buffer)
        self._ended = False
        self._resent: set[int] = set()
        os.set_blocking(fd, False)

    def ready(self, _events: int = 0, most: int = 16) -> None:
        """Read what the kernel has, `most` requests at most."""
        for _ in range(most):
            try:
                size = os.readv(self.fd, (self._buffer,))
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue  # the request was interrupted while we read it
                self._end()
                return
            self._one(size)
            if self._ended:
                return

    def answer(self, unique: int, answer: Answer) -> None:
        """Answer a request. One that the kernel has given up meanwhile (interrupted, aborted) is no fault."""
        if self._resent and unique in self._resent:
            self._resent.discard(unique)
            unique |= RESENT
        parts = fuse_answers.encode(unique, answer)
        try:
            os.writev(self.fd, parts)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED, errno.EBADF):
                # The kernel refuses the answer's form: without another one the caller would wait for ever.
                with contextlib.suppress(OSError):
                    os.write(self.fd, fuse_answers.OUT_HEADER.pack(fuse_answers.OUT_HEADER.size, -errno.EIO, unique))
        if self.on_answered is not None:
            self.on_answered(unique & ~RESENT)

    @property
    def keeps_requests(self) -> bool:
        """Whether a successor must be told of every request: the kernel does not send them again."""
        return self.negotiated is not None and not self.negotiated.can_resend

    @property
    def idle(self) -> bool:
        """Whether every answer has left: the kernel takes them at once."""
        return True

    def resend(self) -> None:
        """Have everything sent again that was read and not answered, where the kernel can."""
        if not self.keeps_requests:
            with contextlib.suppress(OSError):
                os.write(self.fd, fuse_answers.resend())

    def replay(self, raw: bytes) -> None:
        """A request that a process before this one has read."""
        self._buffer[: len(raw)] = raw
        self._one(len(raw))

    def invalidate_inode(self, node: int, *, pages: bool, awaited: bool = False) -> None:
        notice = fuse_answers.invalidate_inode(node, pages=pages)
        if pages:
            # Where one is stuck already the next would be too.
            awaited = awaited and self._notifier.idle
            self._notifier.put(self.fd, notice)
            if awaited:
                self._notifier.settle(_MOMENT)
        else:
            # Attributes alone take no lock that a request holds, and must be gone before the answer that follows.
            write_notice(self.fd, notice)

    def invalidate_entry(self, parent: int, name: bytes, *, expire: bool = False) -> None:
        expire = expire and self.negotiated is not None and self.negotiated.minor >= _EXPIRE_MINOR
        self._notifier.put(self.fd, fuse_answers.invalidate_entry(parent, name, expire=expire))

    def _one(self, size: int) -> None:
        length, opcode, unique, node, uid, gid, pid, _extensions, _ = IN_HEADER.unpack_from(self._buffer)
        body = self._view[IN_HEADER.size : length]
        if length != size or size < IN_HEADER.size:
            raise KernelError(f"the kernel sent {size} bytes for a request of {length}")
        if opcode == INIT:
            self._init(unique, body)
        elif opcode != NOTIFY_REPLY:
            request = decode(opcode, node, body)
            if self.on_raw is not None and type(request) not in _UNANSWERED:
                self.on_raw(unique, bytes(self._view[:size]))
            if unique & RESENT:
                unique &= ~RESENT
                self._resent.add(unique)
            if type(request) is Interrupt and request.unique & RESENT:
                request = Interrupt(request.unique & ~RESENT)
            self._on_request(unique, Caller(uid, gid, pid), request)
            if type(request) is Destroy:
                self._end()

    def _init(self, unique: int, body: memoryview) -> None:
        major, minor, readahead, flags = _INIT_IN.unpack_from(body)
        if major != MAJOR or minor < OLDEST_MINOR:
            os.write(self.fd, fuse_answers.OUT_HEADER.pack(fuse_answers.OUT_HEADER.size, -errno.EPROTO, unique))
            raise KernelError(
                f"the kernel speaks FUSE {major}.{minor}, {MAJOR}.{OLDEST_MINOR} is the oldest that is served",
                "a kernel of 5.4 or later has it",
            )
        if flags & FLAGS["INIT_EXT"] and len(body) >= 20:
            flags |= struct.unpack_from("=I", body, 16)[0] << 32
        chosen = flags & sum(bit for name, bit in FLAGS.items() if name not in self._refused())
        max_write = MAX_WRITE if chosen & FLAGS["MAX_PAGES"] else min(MAX_WRITE, 32 * _PAGE)
        self.negotiated = Negotiated(min(minor, MINOR), chosen, max_write)
        # Whoever mounts may have let the kernel read ahead further than it offers here; it takes the smaller of the two.
        readahead = max(readahead, max_write)
        answer = _INIT_OUT.pack(
            MAJOR, self.negotiated.minor, readahead, chosen & 0xFFFFFFFF,
            64, 48, max_write, 1, max_write // _PAGE, 0, chosen >> 32, 0,
        )  # fmt: skip
        header = fuse_answers.OUT_HEADER.pack(fuse_answers.OUT_HEADER.size + len(answer), 0, unique)
        os.write(self.fd, header + answer)
        self._on_ready()

    def _refused(self) -> set[str]:
        return {flag for name in self._without for flag in _FEATURES[name]}

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._on_end()
