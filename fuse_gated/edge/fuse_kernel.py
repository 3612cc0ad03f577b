"""The kernel driver: reads requests from /dev/fuse, writes answers to it (linux/fuse.h).

One thread reads and answers. Notifications that make the kernel wait for locks which a request of ours may hold (names,
pages) are written by a thread of their own: written by the reader they deadlock in the kernel.
"""

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Collection, Container
from typing import Final

import msgspec

from fuse_gated.edge import fuse_answers
from fuse_gated.edge.fuse_requests import IN_HEADER, INIT, NOTIFY_REPLY, OPCODES, decode
from fuse_gated.edge.inbox import Inbox
from fuse_gated.edge.memory import make_buffer
from fuse_gated.edge.notifying import Notifier, write_notice
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
_NEVER_AWAITED: Final = {number for number, (name, _) in OPCODES.items() if name in ("FORGET", "BATCH_FORGET", "INTERRUPT")}
_CLOSES: Final = {number for number, (name, _) in OPCODES.items() if name in ("RELEASE", "RELEASEDIR")}
_MOST_CLOSES: Final = 16
"""Requests in a row, so that whoever closes many files does not keep everybody else waiting."""
_INTERRUPT_BIT: Final = 1
"""FUSE_INT_REQ_BIT: in the unique of an INTERRUPT, which else is that of the request (fs/fuse/dev.c)."""

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
        self._view = self._reading = memoryview(self._buffer)
        self._inbox: Inbox | None = None
        self._ended = False
        self._closed = False
        """Whether what was read last was a RELEASE or a RELEASEDIR."""
        self.resent: set[int] = set()
        """Requests that the kernel has sent again, until they are answered."""
        os.set_blocking(fd, False)

    def ready(self, _events: int = 0, most: int = 16) -> bool:
        """Read what the kernel has, `most` requests at most; and what comes after a close, which its caller does not wait for:
        the next request is there, or nearly. Whether there may be more."""
        for number in range(max(most, _MOST_CLOSES)):
            if number >= most and not self._closed:
                return True
            try:
                size = os.readv(self.fd, (self._reading,))
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue  # the request was interrupted while we read it
                self._end()
                return False
            self._one(self._reading, size)
            if self._ended:
                return False
        return True

    def answer(self, unique: int, answer: Answer) -> None:
        """Answer a request. One that the kernel has given up meanwhile (interrupted, aborted) is no fault."""
        unique = self._as_sent(unique)
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

    def answer_in_order(self, unique: int, answer: Answer) -> Callable[[], None] | None:
        """Answer it once the kernel has forgotten what it was told to forget: behind that, by the thread that tells it. None if
        it is answered already; else what is returned does it at once, if that takes too long after all."""
        if self._notifier.idle:
            self.answer(unique, answer)
            return None
        if self.keeps_requests:
            # A successor would not know whether the kernel has it.
            self._notifier.settle(_MOMENT)
            self.answer(unique, answer)
            return None
        return self._notifier.put_last(self.fd, b"".join(fuse_answers.encode(self._as_sent(unique), answer)))

    def _as_sent(self, unique: int) -> int:
        """The number as the kernel has it."""
        if self.resent and unique in self.resent:
            self.resent.discard(unique)
            unique |= RESENT
        return unique

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
        self._one(self._view, len(raw))

    def read_into(self, inbox: Inbox) -> None:
        """Read requests to where a successor finds the last one, from now on."""
        self._inbox, self._reading = inbox, inbox.room

    def replay_left(self, kept: Container[int]) -> None:
        """The request that a process before this one has read into the inbox and not taken over. `kept` are those that are
        kept in another way. Raises ValueError, struct.error or KernelError for what is no request."""
        size = self._inbox.left() if self._inbox is not None else 0
        if size:
            _, opcode, unique, *_ = IN_HEADER.unpack_from(self._reading)
            # Who is killed while the kernel copies gets some pages of a request and not the others. The kernel ends such a
            # request: nobody waits for it. Of those that nobody ever waits for, one that has a single page is whole.
            if unique not in kept and (size <= _PAGE if opcode in _NEVER_AWAITED else self._is_awaited(unique)):
                self._one(self._reading, size)

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

    def _is_awaited(self, unique: int) -> bool:
        """Whether the kernel waits for the answer to this request. It takes the answer to an INTERRUPT of such a one, which has
        no effect, and knows of no other (fs/fuse/dev.c, fuse_dev_do_write)."""
        try:
            os.write(self.fd, fuse_answers.OUT_HEADER.pack(fuse_answers.OUT_HEADER.size, 0, unique | _INTERRUPT_BIT))
        except OSError:
            return False
        return True

    def _one(self, view: memoryview, size: int) -> None:
        length, opcode, unique, node, uid, gid, pid, _extensions, _ = IN_HEADER.unpack_from(view)
        body = view[IN_HEADER.size : length]
        if length != size or size < IN_HEADER.size:
            raise KernelError(f"the kernel sent {size} bytes for a request of {length}")
        if opcode == INIT:
            if self.negotiated is not None:
                raise KernelError("the kernel asks for what is settled already")
            self._init(unique, body)
        elif opcode != NOTIFY_REPLY:
            request = decode(opcode, node, body)
            self._closed = opcode in _CLOSES
            if self.on_raw is not None and type(request) not in _UNANSWERED:
                self.on_raw(unique, bytes(view[:size]))
            inbox = self._inbox if view is self._reading else None
            if inbox is not None and type(request) is not Interrupt:
                # Before anything is done about it: what is not kept must not be done twice (FORGET).
                inbox.take(unique)
            if unique & RESENT:
                unique &= ~RESENT
                self.resent.add(unique)
            if type(request) is Interrupt and request.unique & RESENT:
                request = Interrupt(request.unique & ~RESENT)
            self._on_request(unique, Caller(uid, gid, pid), request)
            if inbox is not None and type(request) is Interrupt:
                # This may be done twice, and must not be missed.
                inbox.take(unique)
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
