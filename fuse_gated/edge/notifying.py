"""Telling the kernel what to forget, where that makes it wait for locks (linux/fuse.h, FUSE_NOTIFY_INVAL_*).

A request of ours may hold them, so what the reader of the mount writes itself deadlocks in the kernel: a thread writes. Waiting
there it cannot be ended, not even by SIGKILL; it goes once the lock's holder is answered, by a successor then. For as long the
descriptors of a process that was killed would stay open, its client's connection among them, and the client would not hear that
it is to come back. So the thread has a table of descriptors of its own (unshare(2), CLONE_FILES), with the mount's and no other.
"""

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable
from typing import Final

from fuse_gated.edge import syscalls

_FIRST: Final = 3
"""Descriptors below are the process's own standard ones."""


class Notifier:
    """The thread that writes notifications. To be started before the process is caged, which forbids new threads."""

    def __init__(self) -> None:
        self._notices: queue.SimpleQueue[tuple[int, bytes, bool] | None] = queue.SimpleQueue()
        self._once: set[tuple[int, bytes]] = set()
        """What is written by whoever takes it out of here."""
        self._waiting: set[tuple[int, bytes]] = set()
        self._writing = False
        self._settled = threading.Event()
        self._apart = False
        """Whether the thread has descriptors of its own. `_handed` are those that it was given."""
        self._handed: set[int] = set()
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        end, began = theirs.detach(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(end, began), name="notify", daemon=True)
        self._thread.start()
        began.wait()
        os.close(end)

    @property
    def idle(self) -> bool:
        """Whether everything is written. A process that ends before that may stay in the kernel: what the thread waits for
        there may be held by a caller who waits for this very process to answer."""
        return not self._waiting and not self._writing

    def descriptors(self) -> set[int]:
        """Its own, which a process that closes all others must keep."""
        return {self._ours.fileno()}

    def put(self, fd: int, notice: bytes) -> None:
        """Write `notice` to `fd` in a while. One that waits already is enough, so a client that tells of the same change
        again and again fills no memory: there are at most two for each node."""
        self._put(fd, notice, once=False)

    def _put(self, fd: int, notice: bytes, *, once: bool) -> None:
        entry = (fd, notice)
        if entry not in self._waiting:
            if self._apart and fd not in self._handed:
                socket.send_fds(self._ours, [b"."], [fd])
                self._handed.add(fd)
            self._waiting.add(entry)
            self._settled.clear()
            self._notices.put((*entry, once))

    def put_last(self, fd: int, answer: bytes) -> Callable[[], None]:
        """Write `answer` after all notices that wait now. What is returned writes it at once, if nobody has by then."""
        self._once.add((fd, answer))
        self._put(fd, answer, once=True)

        def hurry() -> None:
            if self._is_first((fd, answer)):
                write_notice(fd, answer)

        return hurry

    def settle(self, seconds: float) -> None:
        """Wait until everything is written, but no longer than this."""
        self._settled.wait(seconds)

    def stop(self) -> None:
        """End the thread, unless it waits in the kernel: then it ends with the mount."""
        self._notices.put(None)
        self._thread.join(0.2)
        self._ours.close()

    def _is_first(self, entry: tuple[int, bytes]) -> bool:
        """Of the two threads that would write it. remove() is one step of the interpreter's."""
        try:
            self._once.remove(entry)
        except KeyError:
            return False
        return True

    def _run(self, end: int, began: threading.Event) -> None:
        self._apart = syscalls.unshare_files()
        if self._apart:
            os.closerange(_FIRST, end)
            os.closerange(end + 1, os.sysconf("SC_OPEN_MAX"))
        began.set()
        own: dict[int, int] = {}
        while (entry := self._notices.get()) is not None:
            self._writing = True
            fd, notice, once = entry
            # Before it is written: what changes from here on needs another one.
            self._waiting.discard((fd, notice))
            if self._apart and fd not in own:
                own[fd] = _received(end)
            if not once or self._is_first((fd, notice)):
                write_notice(own.get(fd, fd), notice)
            self._writing = False
            if not self._waiting:
                self._settled.set()


def write_notice(fd: int, notice: bytes) -> None:
    """ENOENT: the kernel does not hold what it should forget. Anything else means that the mount is going."""
    with contextlib.suppress(OSError):
        os.write(fd, notice)


def _received(end: int) -> int:
    """The descriptor that was handed over."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, end)
    try:
        return socket.recv_fds(sock, 1, 1)[1][0]
    finally:
        sock.detach()
