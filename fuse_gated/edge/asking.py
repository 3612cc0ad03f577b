"""The asking end of a worker's socket: each thread of libfuse, or of a program that is attached to the session, asks the worker
and waits for its own answer and no other's."""

import contextlib
import errno
import itertools
import os
import socket
import threading
from collections.abc import Callable
from typing import Any, Final

from fuse_gated.edge import hosting
from fuse_gated.errors import ProtocolError
from fuse_gated.operations import Caller, Interrupt, Readdir, Request

INTERRUPTS_EVERY: Final = 0.2
"""Seconds between two looks at whether the caller got a signal."""

_NOBODY: Final = Caller(0, 0, 0)


class Waiting:
    """A request on its way, and the one thread that waits for its answer."""

    __slots__ = ("answer", "done", "request", "unique")

    def __init__(self, unique: int, request: Request) -> None:
        self.unique = unique
        self.request = request
        self.answer: hosting.Answered | None = None
        self.done = threading.Lock()
        self.done.acquire()


class Asking:
    """`sock` is a blocking SOCK_SEQPACKET socket to the worker. `is_interrupted` is asked on the thread that waits."""

    def __init__(self, sock: socket.socket, is_interrupted: Callable[[], bool] = lambda: False) -> None:
        self._socket = sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * hosting.MAX_PACKET)
        self._is_interrupted = is_interrupted
        self._uniques = itertools.count(2, 2)  # libfuse has several threads; next() is one step.
        self._waiting: dict[int, Waiting] = {}
        self._closed = False

    def begin(self, minor: int, max_write: int) -> None:
        """Say that the mount is there. Raises OSError when the worker's end is gone."""
        self._socket.send(hosting.encode_began(minor, max_write), socket.MSG_NOSIGNAL)

    def ask(self, caller: Caller, request: Request) -> Any:
        """The answer to a request (`hosting.RESULTS`). Raises OSError with the errno of the answer, and with ENOTCONN when
        the worker is gone."""
        return self.finish(self.start(caller, request))

    def start(self, caller: Caller, request: Request) -> Waiting:
        """Send a request whose answer `finish` waits for. Raises OSError ENOTCONN when the worker is gone."""
        waiting = Waiting(next(self._uniques), request)
        self._waiting[waiting.unique] = waiting
        try:
            self._send(waiting.unique, caller, request)
        except OSError:
            self._waiting.pop(waiting.unique, None)
            raise
        return waiting

    def finish(self, waiting: Waiting) -> Any:
        """What `ask` returns and raises. Who is thrown out of it (KeyboardInterrupt) waits no more, and nor does the worker."""
        try:
            told = False
            while not waiting.done.acquire(timeout=INTERRUPTS_EVERY):
                if not told and self._is_interrupted():
                    told = True
                    self._interrupt(waiting)
        except BaseException:
            with contextlib.suppress(OSError):
                self._interrupt(waiting)
            raise
        finally:
            self._waiting.pop(waiting.unique, None)
        answer, request = waiting.answer, waiting.request
        if answer is None:
            raise _error(errno.ENOTCONN)
        if answer.errno:
            raise _error(answer.errno)
        try:
            return hosting.decode_result(type(request), answer.result, plus=isinstance(request, Readdir) and request.plus)
        except ProtocolError:
            raise _error(errno.EIO) from None

    def tell(self, caller: Caller, request: Request) -> None:
        """Send a request whose answer nobody waits for. Raises OSError ENOTCONN when the worker is gone."""
        self._send(next(self._uniques), caller, request)

    def receive(self) -> None:
        """Hand answers to who waits for them, until the worker is gone or sends nonsense; then nobody waits any more."""
        with contextlib.suppress(OSError, ProtocolError):
            while packet := self._socket.recv(hosting.MAX_PACKET):
                answer = hosting.decode_answer(packet)
                waiting = self._waiting.pop(answer.unique, None)
                if waiting is not None:
                    waiting.answer = answer
                    waiting.done.release()
        self.close()

    def close(self) -> None:
        """Everybody who waits, or asks from now on, gets ENOTCONN."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        # Each is taken out before it is released: `receive` does the same on another thread.
        with contextlib.suppress(KeyError):
            while True:
                self._waiting.popitem()[1].done.release()

    @property
    def closed(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._closed

    def abandon(self) -> None:
        """In a process that was forked: only the parent's threads are told, by their own answers; here nobody asks any more."""
        self._closed = True

    def _interrupt(self, waiting: Waiting) -> None:
        self._send(next(self._uniques), _NOBODY, Interrupt(waiting.unique))

    def _send(self, unique: int, caller: Caller, request: Request) -> None:
        if self._closed:
            raise _error(errno.ENOTCONN)
        try:
            self._socket.send(hosting.encode_request(unique, caller, request), socket.MSG_NOSIGNAL)
        except OSError:
            raise _error(errno.ENOTCONN) from None


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
