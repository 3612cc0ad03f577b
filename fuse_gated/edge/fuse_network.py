"""The network driver: file operations of programs that are attached to the session by a socket, with no mount between.

The daemon makes a socket pair for each program that may use the tenant's mounts, and hands one end to the worker, with who that
program is by the kernel's word (SO_PEERCRED). What comes over it are the requests that libfuse's process sends (hosting.py), but
nothing of it is believed: each is checked as the kernel would have checked it (network_requests.py), and then is like any other
request. The turnstile tells it from a mount's by nothing but its node, a path.

A socket has what it opened to itself. When it closes, what it asked for is interrupted, and what it had open is closed, locks
included. What a program sends that is no request ends its own socket, and touches no other.
"""

import os
import secrets
import select
from collections import deque
from collections.abc import Callable, Iterable
from errno import EMFILE, ENOTCONN, EPERM, EPROTO
from typing import Final

from fuse_gated import operations as op
from fuse_gated.edge import hosting, network_requests
from fuse_gated.edge.fuse_kernel import Negotiated
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.network_requests import Asker, Held
from fuse_gated.errors import ProtocolError
from fuse_gated.operations import Answer, Caller, Request

MOST_SOCKETS: Final = 128
"""Programs that are attached to one session at once,"""
MOST_OF_ONE_USER: Final = 32
"""and those of one user but root: nobody can keep the others out."""
MOST_IN_FLIGHT: Final = 16
"""Requests of one socket whose answers it has not read: of these, and of one packet more, memory is needed for."""

FIRST: Final = 2**62
"""Numbers of requests are even, from here on: the kernel's, which count from 2, never come so far (linux/fuse.h)."""

_ENDED: Final = select.EPOLLHUP | select.EPOLLERR


class _Peer:
    """One program that is attached."""

    def __init__(self, fd: int, caller: Caller, gids: tuple[int, ...]) -> None:
        self.fd = fd
        self.caller = caller
        self.gids = gids
        self.handles: dict[int, Held] = {}
        self.asker = Asker(caller.uid, caller.pid, secrets.randbits(63), self.handles)
        self.asked: dict[int, int] = {}
        """Its own numbers of what it waits for, and the driver's."""
        self.outgoing: deque[bytes] = deque()
        self.ended = False

    @property
    def in_flight(self) -> int:
        return len(self.asked) + len(self.outgoing)


class NetworkDriver:
    """Serves the programs that are attached to one session. `on_request(number, caller, request)` is called for each request;
    a request's data lies in the driver's buffer and is good until the callback returns. `on_change(request)` is called when a
    request has changed something, and `on_violation(caller, reason)` when a program's socket ended by its own fault."""

    def __init__(
        self,
        loop: Loop,
        on_request: Callable[[int, Caller, Request], None],
        on_change: Callable[[Request], None],
        on_violation: Callable[[Caller, str], None],
    ) -> None:
        self._loop = loop
        self._on_request = on_request
        self._on_change = on_change
        self._on_violation = on_violation
        # Of its own, so that whoever serves the session can let all of them wait at once.
        self._epoll = select.epoll()
        self.fd = self._epoll.fileno()
        self._peers: dict[int, _Peer] = {}
        self._waiting: dict[int, tuple[_Peer, int, Request]] = {}
        # No number is another worker's of the same session: the client knows requests by them.
        self._next = FIRST + 2 * secrets.randbits(56)
        self._buffer = bytearray(hosting.MAX_PACKET)
        self._view = memoryview(self._buffer)

    def __len__(self) -> int:
        return len(self._peers)

    def attach(self, fd: int, caller: Caller, gids: Iterable[int] = ()) -> None:
        """Serve this connected SOCK_SEQPACKET socket, which becomes the driver's, for a program of that caller and groups."""
        os.set_blocking(fd, False)
        peer = _Peer(fd, caller, tuple(gids))
        of_user = sum(other.caller.uid == caller.uid for other in self._peers.values())
        if len(self._peers) >= MOST_SOCKETS or (caller.uid and of_user >= MOST_OF_ONE_USER):
            self._say(peer, hosting.encode_greeting(EMFILE, "too many programs are attached to this session"))
            os.close(fd)
            return
        self._peers[fd] = peer
        self._epoll.register(fd, select.EPOLLIN)
        self._say(peer, hosting.encode_greeting())

    def ready(self, _events: int = 0, most: int = 16) -> None:
        """Read what programs ask, `most` requests at most, and one of each program."""
        for fd, events in self._epoll.poll(0, most):
            peer = self._peers.get(fd)
            if peer is None:
                continue
            if events & _ENDED:
                self._end(peer)
                continue
            if events & select.EPOLLOUT:
                self._has_room(peer)
            if events & select.EPOLLIN and not peer.ended:
                self._read(peer)

    def answer(self, unique: int, answer: Answer) -> None:
        """Answer a request."""
        peer, number, request = self._waiting.pop(unique, (None, 0, None))
        if peer is None or request is None:
            return
        del peer.asked[number]
        if isinstance(answer, op.Opened):
            flags = request.flags if isinstance(request, op.Open) else os.O_RDONLY
            peer.handles[answer.handle] = Held(isinstance(request, op.Opendir), flags)
        elif isinstance(answer, op.Created) and isinstance(request, op.Create):
            peer.handles[answer.opened.handle] = Held(False, request.flags)
        if not isinstance(answer, op.Failed) and _changes(request):
            self._on_change(request)
        if not peer.ended:
            self._send(peer, hosting.encode_answer(number, answer))
        elif not peer.asked:
            # Not now: this is called in the middle of what is to be done in order.
            self._loop.soon(lambda: self._release(peer))

    def invalidate_inode(self, node: int, *, pages: bool, awaited: bool = False) -> None:
        """Nothing is remembered at the other end of the sockets."""

    def invalidate_entry(self, parent: int, name: bytes, *, expire: bool = False) -> None:
        """As `invalidate_inode`."""

    def keep(self, may_stay: Callable[[Caller, tuple[int, ...]], bool]) -> None:
        """A new policy: who may no longer use the tenant's mounts is sent away."""
        for peer in list(self._peers.values()):
            if not may_stay(peer.caller, peer.gids):
                self._dismiss(peer, EPERM, "the policy no longer lets you use the tenant's mounts")

    def close(self, reason: str = "the session is over") -> None:
        """The session is over: nobody is served any more."""
        for peer in list(self._peers.values()):
            self._dismiss(peer, ENOTCONN, reason)

    def _read(self, peer: _Peer) -> None:
        try:
            size = os.readv(peer.fd, (self._buffer,))
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self._end(peer)
            return
        try:
            self._heard(peer, self._view[:size])
        except ProtocolError as error:
            self._on_violation(peer.caller, error.message)
            self._dismiss(peer, EPROTO, error.message)

    def _heard(self, peer: _Peer, packet: memoryview) -> None:
        """Raises ProtocolError."""
        message = hosting.decode_request(packet)
        if isinstance(message, hosting.Began):
            raise ProtocolError("a beginning, which is libfuse's to say")
        number, _, request = message
        if isinstance(request, op.Interrupt):
            asked = peer.asked.get(request.unique)
            if asked is not None:
                self._on_request(0, peer.caller, op.Interrupt(asked))
            return
        if number in peer.asked:
            raise ProtocolError(f"two requests of the number {number}")
        wanted = network_requests.vetted(request, peer.asker)
        if isinstance(wanted, op.Failed):
            self._send(peer, hosting.encode_answer(number, wanted))
            return
        if isinstance(wanted, op.Release | op.Releasedir):
            del peer.handles[wanted.handle]
        unique = self._new_number()
        peer.asked[number] = unique
        self._waiting[unique] = (peer, number, _without_data(wanted))
        self._on_request(unique, peer.caller, wanted)
        self._set_mask(peer)

    def _ask(self, caller: Caller, request: Request) -> None:
        """Something whose answer is for nobody."""
        self._on_request(self._new_number(), caller, request)

    def _new_number(self) -> int:
        number, self._next = self._next, self._next + 2
        return number

    def _send(self, peer: _Peer, packet: bytes) -> None:
        if peer.outgoing or not self._say(peer, packet):
            peer.outgoing.append(packet)
        self._set_mask(peer)

    def _say(self, peer: _Peer, packet: bytes) -> bool:
        """Whether there was room. What is gone has room for everything."""
        try:
            os.write(peer.fd, packet)
        except BlockingIOError:
            return False
        except OSError:
            # `ready` learns of it too.
            return True
        return True

    def _has_room(self, peer: _Peer) -> None:
        while peer.outgoing and self._say(peer, peer.outgoing[0]):
            peer.outgoing.popleft()
        self._set_mask(peer)

    def _set_mask(self, peer: _Peer) -> None:
        """A program that asks without end waits for its own answers, in the kernel."""
        if not peer.ended:
            reads = select.EPOLLIN if peer.in_flight < MOST_IN_FLIGHT else 0
            self._epoll.modify(peer.fd, reads | (select.EPOLLOUT if peer.outgoing else 0))

    def _dismiss(self, peer: _Peer, errno: int, reason: str) -> None:
        if peer.ended:
            return
        self._say(peer, hosting.encode_greeting(errno, reason))
        self._end(peer)

    def _end(self, peer: _Peer) -> None:
        peer.ended = True
        peer.outgoing.clear()
        self._epoll.unregister(peer.fd)
        del self._peers[peer.fd]
        os.close(peer.fd)
        # What it had open may still be needed by what is on its way: that ends first.
        for unique in list(peer.asked.values()):
            self._on_request(0, peer.caller, op.Interrupt(unique))
        if not peer.asked:
            self._loop.soon(lambda: self._release(peer))

    def _release(self, peer: _Peer) -> None:
        handles = dict(peer.handles)
        peer.handles.clear()
        for number, held in handles.items():
            self._ask(peer.caller, op.Releasedir(b"", number) if held.directory else op.Release(b"", number))


class NoMount:
    """Stands for the mount of a session that has none. `fd` is never ready, and becomes the driver's. `on_ready` is called once,
    if the session is new."""

    keeps_requests = False
    idle = True
    resent: frozenset[int] = frozenset()

    def __init__(self, fd: int, loop: Loop, on_ready: Callable[[], None] | None) -> None:
        self.fd = fd
        self.on_raw: Callable[[int, bytes], None] | None = None
        self.on_answered: Callable[[int], None] | None = None
        self.negotiated: Negotiated | None = Negotiated(0, 0, 0)
        if on_ready is not None:
            loop.soon(on_ready)

    def ready(self, _events: int = 0, _most: int = 16) -> bool:
        """Nobody asks."""
        return False

    def answer(self, unique: int, answer: Answer) -> None:
        """Nobody has asked."""

    def answer_in_order(self, unique: int, answer: Answer) -> Callable[[], None] | None:
        """Nobody has asked."""

    def replay(self, _raw: bytes) -> None:
        """Nobody has asked."""

    def resend(self) -> None:
        """Nobody has asked."""

    def invalidate_inode(self, node: int, *, pages: bool, awaited: bool = False) -> None:
        """Nothing was shown."""

    def invalidate_entry(self, parent: int, name: bytes, *, expire: bool = False) -> None:
        """Nothing was shown."""


def _without_data(request: Request) -> Request:
    """To be remembered, when the buffer holds another."""
    if isinstance(request, op.Write):
        return op.Write(request.node, request.handle, request.offset, b"")
    return op.Setxattr(request.node, request.name, b"", 0) if isinstance(request, op.Setxattr) else request


def _changes(request: Request) -> bool:
    if isinstance(request, op.Open):
        return bool(request.flags & os.O_TRUNC)
    return isinstance(request, _CHANGES)


_CHANGES: Final = (
    op.Setattr, op.Symlink, op.Mknod, op.Mkdir, op.Unlink, op.Rmdir, op.Rename, op.Link, op.Create, op.Write, op.Fallocate,
    op.CopyFileRange,
)  # fmt: skip
