"""The libfuse driver, as the worker has it: requests come from the process that runs libfuse, over a socket pair.

A worker is caged before it reads a peer's first byte, and can then neither mount nor start threads; libfuse does both. So it
runs in a process of its own (libfuse_host.py), which hands each request on. Nodes are paths here.

What libfuse does to open files that lose their name is undone here: see tree/by_path.py.
"""

import os
import socket
from collections import deque
from collections.abc import Callable, Container
from errno import EACCES, ENOENT
from typing import Final

import msgspec

from fuse_gated import operations as op
from fuse_gated.edge import hosting
from fuse_gated.edge.fuse_kernel import Negotiated
from fuse_gated.edge.loop import Loop
from fuse_gated.errors import ProtocolError
from fuse_gated.operations import Answer, Caller, Request
from fuse_gated.paths import join
from fuse_gated.tree.by_path import is_hidden_name

_OUR_OWN: Final = 0
"""The number of the one request that is ours, and whose answer is for nobody."""


class LibfuseDriver:
    """Serves one mount. `on_request(unique, caller, request)` is called for each request; a request's data lies in the
    driver's buffer and is good until the callback returns. `on_ready` is called once, when libfuse serves the mount, and
    `on_end` once, when its process is gone or sends nonsense."""

    resent: frozenset[int] = frozenset()
    """As the kernel driver has it: libfuse asks once."""

    def __init__(
        self,
        fd: int,
        loop: Loop,
        on_request: Callable[[int, Caller, Request], None],
        on_ready: Callable[[], None],
        on_end: Callable[[], None],
        negotiated: Negotiated | None = None,
    ) -> None:
        self.fd = fd
        self.negotiated = negotiated
        self.on_raw: Callable[[int, bytes], None] | None = None
        """As the kernel driver has it (edge/fuse_kernel.py)."""
        self.on_answered: Callable[[int], None] | None = None
        self._loop = loop
        self._on_request = on_request
        self._on_ready = on_ready
        self._on_end = on_end
        os.set_blocking(fd, False)
        # Waiting for room is a matter of its own: whoever serves the mount watches `fd` for requests.
        self._writable = os.dup(fd)
        self._outgoing: deque[tuple[int, bytes]] = deque()
        self._buffer = bytearray(hosting.MAX_PACKET)
        self._view = memoryview(self._buffer)
        self._hidden: set[int] = set()
        self._ended = False

    def ready(self, _events: int = 0, most: int = 16) -> bool:
        """Read what libfuse has, `most` requests at most. Whether there may be more."""
        for _ in range(most):
            try:
                size = self._look()
            except BlockingIOError:
                return False
            except OSError:
                size = 0
            if size:
                self._one(self._view[:size], self._take)
            else:
                self._end()
            if self._ended:
                return False
        return True

    def answer(self, unique: int, answer: Answer) -> None:
        """Answer a request."""
        if unique in self._hidden:
            self._hidden.remove(unique)
            answer = _with_hidden_link(answer)
        if unique != _OUR_OWN:
            self._send(unique, hosting.encode_answer(unique, answer))

    def answer_in_order(self, unique: int, answer: Answer) -> Callable[[], None] | None:
        """As `answer`: there is nothing that the kernel could be told to forget."""
        self.answer(unique, answer)
        return None

    @property
    def keeps_requests(self) -> bool:
        """libfuse asks once."""
        return True

    @property
    def idle(self) -> bool:
        """Whether every answer has left."""
        return not self._outgoing

    def resend(self) -> None:
        """libfuse asks once."""

    def replay(self, raw: bytes) -> None:
        """A request that a process before this one has read."""
        self._buffer[: len(raw)] = raw
        self._one(self._view[: len(raw)], _nothing)

    def replay_left(self, kept: Container[int]) -> None:
        """To be called before anything is answered. A process before this one may have kept a request (in `kept`),
        and been killed before it took it from the socket: it is not to be done twice."""
        try:
            message = hosting.decode_request(self._view[: self._look()])
        except (OSError, ProtocolError):
            # There is nothing, or nonsense, which `ready` finds as well.
            return
        if isinstance(message, tuple) and message[0] in kept:
            self._take()

    def invalidate_inode(self, node: int, *, pages: bool, awaited: bool = False) -> None:
        """libfuse 2 cannot tell the kernel: what it holds is short-lived instead (`edge.libfuse.LACKS`)."""

    def invalidate_entry(self, parent: int, name: bytes, *, expire: bool = False) -> None:
        """As `invalidate_inode`."""

    def _look(self) -> int:
        """How many bytes the next message has that now lies in the buffer, and in the socket as well: until it is taken a
        successor finds it there."""
        sock = self._socket()
        try:
            return sock.recv_into(self._buffer, 0, socket.MSG_PEEK)
        finally:
            sock.detach()

    def _take(self) -> None:
        """It is kept, or need not be."""
        sock = self._socket()
        try:
            sock.recv(1)
        finally:
            sock.detach()

    def _socket(self) -> socket.socket:
        """For what os has no function for. The descriptor is not its own: it is to be detached."""
        return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, self.fd)

    def _one(self, packet: memoryview, take: Callable[[], object]) -> None:
        try:
            message = hosting.decode_request(packet)
            if isinstance(message, hosting.Began):
                take()
                self._begin(message)
                return
            if self.negotiated is None:
                raise ProtocolError("a request before the mount is there")
        except ProtocolError:
            # It runs under our own uid, so it is not the one it was: nothing more is believed.
            self._end()
            return
        unique, caller, request = message
        if isinstance(request, op.Interrupt):
            # This is not kept; it may be done twice, and must not be missed.
            self._on_request(unique, caller, request)
            take()
            return
        if self.on_raw is not None:
            self.on_raw(unique, bytes(packet))
        take()
        wanted = self._translated(unique, caller, request)
        if isinstance(wanted, Request):
            self._on_request(unique, caller, wanted)
        else:
            self.answer(unique, wanted)

    def _begin(self, message: hosting.Began) -> None:
        if self.negotiated is not None:
            raise ProtocolError("the mount has begun before")
        self.negotiated = Negotiated(message.minor, 0, message.max_write)
        self._on_ready()
        # The root's device is what other files' are compared with, and programs may never look at the root itself.
        self._on_request(_OUR_OWN, Caller(0, 0, 0), op.Getattr(b""))

    def _translated(self, unique: int, caller: Caller, request: Request) -> Request | op.Failed:
        """Turns the hiding of open files back into what it stands for. Hidden names are libfuse's alone: for others they do
        not exist and cannot be made."""
        if isinstance(request, op.Open) and request.flags & os.O_TRUNC and caller.uid:
            # libfuse 2 has no word for it, and with atomic_o_trunc the kernel leaves it to us (fuse_do_setattr).
            return msgspec.structs.replace(request, kill_suidgid=True)
        if isinstance(request, op.Rename | op.Link) and is_hidden_name(request.new_name):
            return _hiding(request)
        if not is_hidden_name(getattr(request, "name", b"")):
            return request
        match request:
            case op.Lookup(parent=parent, name=name):
                self._hidden.add(unique)
                return op.Getattr(join(bytes(parent), name))
            case op.Unlink() | op.Getxattr() | op.Setxattr() | op.Removexattr():
                return request
            case op.Rename() | op.Rmdir():
                return op.Failed(ENOENT)
        return op.Failed(EACCES)

    def _send(self, unique: int, packet: bytes) -> None:
        if self._outgoing:
            self._outgoing.append((unique, packet))
            return
        try:
            os.write(self.fd, packet)
        except BlockingIOError:
            self._outgoing.append((unique, packet))
            self._loop.watch(self._writable, self._has_room, read=False, write=True)
        except OSError:
            # It is gone, which `ready` learns too: there is nobody left to answer.
            return
        else:
            self._sent(unique)

    def _has_room(self, _events: int) -> None:
        while self._outgoing:
            unique, packet = self._outgoing[0]
            try:
                os.write(self.fd, packet)
            except BlockingIOError:
                return
            except OSError:
                self._outgoing.clear()
                break
            self._outgoing.popleft()
            self._sent(unique)
        self._loop.forget(self._writable)

    def _sent(self, unique: int) -> None:
        if self.on_answered is not None:
            self.on_answered(unique)

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._loop.forget(self._writable)
            self._on_end()


def _nothing() -> None:
    """It was taken long ago."""


def _hiding(request: op.Rename | op.Link) -> Request | op.Failed:
    """A name becomes a hidden one: so libfuse removes an open file."""
    if not isinstance(request, op.Rename) or request.parent != request.new_parent or is_hidden_name(request.name):
        return op.Failed(EACCES)
    return op.Unlink(request.parent, request.name, join(bytes(request.parent), request.new_name))


def _with_hidden_link(answer: Answer) -> Answer:
    """libfuse takes one link off what it has hidden (fuse.c, fuse_lib_getattr), because it believes that its hidden name is
    there."""
    if isinstance(answer, op.Attr):
        attributes = msgspec.structs.replace(answer.attributes, nlink=answer.attributes.nlink + 1)
        return msgspec.structs.replace(answer, attributes=attributes)
    return answer
