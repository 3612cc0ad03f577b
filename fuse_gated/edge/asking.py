"""The end of libfuse's process: a thread of libfuse asks the worker, and waits for its own answer and no other's."""

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
from fuse_gated.operations import Caller, Interrupt, Request

INTERRUPTS_EVERY: Final = 0.2
"""Seconds between two looks at whether the caller got a signal."""

_NOBODY: Final = Caller(0, 0, 0)


class _Waiting:
    """One thread that waits."""

    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.answer: hosting.Answered | None = None
        self.done = threading.Lock()
        self.done.acquire()


class Asking:
    """`sock` is a blocking SOCK_SEQPACKET socket to the worker. `is_interrupted` is asked on the thread that waits."""

    def __init__(self, sock: socket.socket, is_interrupted: Callable[[], bool]) -> None:
        self._socket = sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * hosting.MAX_PACKET)
        self._is_interrupted = is_interrupted
        self._uniques = itertools.count(2, 2)  # libfuse has several threads; next() is one step.
        self._waiting: dict[int, _Waiting] = {}
        self._closed = False

    def begin(self, minor: int, max_write: int) -> None:
        """Say that the mount is there. Raises OSError when the worker's end is gone."""
        self._socket.send(hosting.encode_began(minor, max_write), socket.MSG_NOSIGNAL)

    def ask(self, caller: Caller, request: Request) -> Any:
        """The answer to a request (`hosting.RESULTS`). Raises OSError with the errno of the answer, and with ENOTCONN when
        the worker is gone."""
        unique, waiting = next(self._uniques), _Waiting()
        self._waiting[unique] = waiting
        try:
            self._send(unique, caller, request)
            told = False
            while not waiting.done.acquire(timeout=INTERRUPTS_EVERY):
                if not told and self._is_interrupted():
                    told = True
                    self._send(next(self._uniques), _NOBODY, Interrupt(unique))
        finally:
            self._waiting.pop(unique, None)
        answer = waiting.answer
        if answer is None:
            raise _error(errno.ENOTCONN)
        if answer.errno:
            raise _error(answer.errno)
        try:
            return hosting.decode_result(type(request), answer.result)
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

    def _send(self, unique: int, caller: Caller, request: Request) -> None:
        if self._closed:
            raise _error(errno.ENOTCONN)
        try:
            self._socket.send(hosting.encode_request(unique, caller, request), socket.MSG_NOSIGNAL)
        except OSError:
            raise _error(errno.ENOTCONN) from None


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
