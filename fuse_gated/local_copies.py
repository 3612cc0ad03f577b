"""The copies that stand in the place of mounts, as the daemon keeps them: a process for each (local_provider.py), which it starts
again when it ends by itself, and tells when the session is over."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import Final, Protocol

from fuse_gated import local_provider
from fuse_gated.drivers import LOCAL, NETWORK, Drivers
from fuse_gated.edge import hosting, keeping, process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.loop import Loop, Timer
from fuse_gated.edge.peers import Peer
from fuse_gated.errors import PeerError
from fuse_gated.gate.gate import Gate
from fuse_gated.local_ledger import mark_new
from fuse_gated.local_orders import ANOTHER, FROM_PROVIDER, Joined, Order, Over, Terms, Wanted
from fuse_gated.seat import Seat
from fuse_gated.tenants import Tenants

PROGRAM: Final = "fuse-gated"
_IGNORED: Final = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_END_PATIENCE: Final = 60.0
"""Seconds in which a copy that is sent is removed: 100,000 names, on a slow disk."""
_LOOK_AGAIN: Final = 0.2
_APPLIED: Final = 0.5
_MOST_FALLS: Final = 10
_FALLS_WITHIN: Final = 60.0


class Host(Protocol):
    """The daemon."""

    loop: Loop
    tenants: Tenants
    mounter: Drivers | None


class _Running:
    """A copy, its descriptors, and the process that keeps it, if one does at this moment."""

    def __init__(self, seat: Seat, descriptors: list[int]) -> None:
        self.seat = seat
        self.descriptors = descriptors
        self.child: process.Child | None = None
        self.channel: Channel[Wanted] | None = None
        self.falls: list[float] = []
        self.over = False
        self.kept = False
        """It is left to who comes after us."""
        self.killer: Timer | None = None
        self.then: list[Callable[[], None]] = []


class LocalCopies:
    """`attach(seat, fd, peer)` hands a socket to the worker of a session, and says whether there was one."""

    def __init__(self, host: Host, attach: Callable[[Seat, int, Peer], bool]) -> None:
        self._host = host
        self._attach = attach
        self._running: dict[Seat, _Running] = {}

    def begin(self, seat: Seat, then: Callable[[], None]) -> None:
        """Have a copy where the session's mount would be, if that can be: the seat's `path` and `driver` say so. Then call."""

        def placed(answer: keeping.FromKeeper, fds: list[int]) -> None:
            reason = _unusable(answer, fds)
            if reason:
                _close(fds)
                process.tell(PROGRAM, f"{seat.shown} has no copy, and is open without: {reason}")
            elif isinstance(answer, keeping.Placed):
                running = self._running[seat] = _Running(seat, fds)
                seat.path, seat.driver = answer.path, LOCAL
                self._start(running)
            then()

        self._place(seat, placed)

    def apply(self, seat: Seat) -> None:
        """The policy has changed."""
        running = self._running.get(seat)
        if running is None or running.over:
            return
        local = seat.tenant.local
        if local is None:
            process.tell(PROGRAM, f"{seat.shown} has no copy any more, as the policy says")
            self.end(seat, keep=False)
            _has_none(seat)
            return
        # Who may enter.
        self._place(seat, lambda _answer, fds: _close(fds))
        # The worker first: what is asked of it from now on is to be judged anew.
        self._host.loop.after(_APPLIED, lambda: self._say(running, Terms(local.size, local.files)))

    def end(self, seat: Seat, *, keep: bool) -> None:
        """The session is over: what is not on the client is put aside, and the rest goes. With `keep` all of it stays."""
        running = self._running.get(seat)
        if running is None or running.over:
            return
        running.over, running.kept = True, keep
        if running.child is None:
            self._displace(running)
            return
        if not keep:
            self._say(running, Over())
        # It may wait for the client, which this ends.
        running.child.send_signal(signal.SIGTERM)
        child = running.child
        running.killer = self._host.loop.after(_END_PATIENCE, lambda: child.send_signal(signal.SIGKILL))

    def when_ended(self, seat: Seat, then: Callable[[], None]) -> None:
        """Call when nothing is kept for the session any more."""
        running = self._running.get(seat)
        if running is None:
            then()
        else:
            running.then.append(then)

    # The process.

    def _start(self, running: _Running) -> None:
        """Have one keep the copy. Where there can be none now, later."""
        seat, local = running.seat, running.seat.tenant.local
        if running.over or local is None:
            return
        try:
            child, ours = self._spawn(running, Order(seat.session, seat.shown, local.size, local.files))
        except OSError as error:
            why = f"{error.strerror} (are processes or memory short?)"
            process.tell(PROGRAM, f"the copy of {seat.shown} has no process: {why}")
            self._host.loop.after(1.0, lambda: self._start(running))
            return
        running.child, running.channel = child, Channel(ours, FROM_PROVIDER, max_fds=0)
        self._host.loop.watch(running.channel.fileno(), lambda _events: self._heard(running))
        self._host.loop.watch(child.fileno(), lambda _events: self._ended(running))

    def _spawn(self, running: _Running, order: Order) -> tuple[process.Child, socket.socket]:
        """Raises OSError."""
        root, beside = running.descriptors
        daemon = os.getpid()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                child = process.spawn(
                    lambda: local_provider.run(theirs, order, root, beside, daemon),
                    program=local_provider.PROGRAM,
                    ignored=_IGNORED,
                )
            except OSError:
                ours.close()
                raise
        return child, ours

    def _heard(self, running: _Running) -> None:
        channel = running.channel
        if channel is None:
            return
        try:
            received = channel.receive()
        except BlockingIOError:
            return
        except PeerError:
            received = None
        if received is None:
            self._host.loop.forget(channel.fileno())
        elif running.child is not None:
            self._join(running, running.child)

    def _join(self, running: _Running, child: process.Child) -> None:
        """A socket to whoever serves the session. Between two workers there is nobody."""
        if running.over or running.child is not child:
            return
        joined = False
        with contextlib.suppress(OSError):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours, theirs:
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * hosting.MAX_PACKET)
                peer = Peer(child.pid, os.geteuid(), os.getegid(), ())
                if running.seat.mounted and self._attach(running.seat, theirs.fileno(), peer):
                    self._say(running, Joined(), [ours.fileno()])
                    joined = True
        if not joined:
            self._host.loop.after(_LOOK_AGAIN, lambda: self._join(running, child))

    def _ended(self, running: _Running) -> None:
        child, channel = running.child, running.channel
        if child is None or channel is None:
            return
        self._host.loop.forget(channel.fileno())
        channel.close()
        self._host.loop.forget(child.fileno())
        status = child.wait()
        running.child = running.channel = None
        if running.over:
            self._displace(running)
        elif status == ANOTHER:
            self._set_aside(running)
        else:
            self._start_again(running, status)

    def _start_again(self, running: _Running, status: int | None) -> None:
        now = self._host.loop.now
        running.falls = [when for when in running.falls if when > now - _FALLS_WITHIN] + [now]
        shown = running.seat.shown
        if len(running.falls) > _MOST_FALLS:
            process.tell(PROGRAM, f"nobody keeps the copy of {shown} for a minute: {len(running.falls)} processes ended in one")
            self._host.loop.after(_FALLS_WITHIN, lambda: self._start(running))
            return
        process.tell(PROGRAM, f"the process that keeps the copy of {shown} ended with {status}: starting again")
        self._host.loop.after(_LOOK_AGAIN, lambda: self._start(running))

    # Its place.

    def _place(self, seat: Seat, then: Callable[[keeping.FromKeeper, list[int]], None]) -> None:
        assert self._host.mounter is not None
        self._host.mounter.place(Gate(*self._host.tenants[seat.tenant.name]), seat.export, then)

    def _set_aside(self, running: _Running) -> None:
        """What is there is of another export, or nobody knows of what: nothing of it goes to this client."""
        process.tell(PROGRAM, f"the copy of {running.seat.shown} that was left there is of something else, and put aside")
        seat = running.seat

        def placed(answer: keeping.FromKeeper, fds: list[int]) -> None:
            reason = _unusable(answer, fds)
            if reason or running.over:
                # Where the session is over, its end takes away what was placed.
                _close(fds)
            else:
                running.descriptors = fds
                self._start(running)
            if reason:
                process.tell(PROGRAM, f"{seat.shown} has no copy: {reason}")
                _has_none(seat)

        def displaced(answer: keeping.FromKeeper, _fds: list[int]) -> None:
            _close(running.descriptors)
            running.descriptors = []
            if isinstance(answer, keeping.Refused):
                process.tell(PROGRAM, f"{seat.shown} has no copy: {answer.reason}")
                _has_none(seat)
            elif running.over:
                self._gone(running)
            else:
                self._place(seat, placed)

        assert self._host.mounter is not None
        self._host.mounter.displace(seat.tenant.name, seat.export, seat.session, displaced)

    def _displace(self, running: _Running) -> None:
        """The copy's process has ended, and the session with it."""
        mounter, seat = self._host.mounter, running.seat
        if running.kept or mounter is None:
            self._gone(running)
            return

        def displaced(answer: keeping.FromKeeper, _fds: list[int]) -> None:
            if isinstance(answer, keeping.Refused):
                process.tell(PROGRAM, f"the copy of {seat.shown} stays where it is: {answer.reason}")
            self._gone(running)

        mounter.displace(seat.tenant.name, seat.export, seat.session, displaced)

    def _gone(self, running: _Running) -> None:
        if self._running.pop(running.seat, None) is None:
            return
        if running.killer is not None:
            running.killer.cancel()
        _close(running.descriptors)
        for then in running.then:
            then()

    def _say(self, running: _Running, message: Terms | Joined | Over, fds: list[int] | None = None) -> None:
        with contextlib.suppress(PeerError, BlockingIOError):
            if running.channel is not None:
                running.channel.send(message, fds or [])


def _has_none(seat: Seat) -> None:
    """The session goes on without a copy: nobody is shown a path any more where nothing is."""
    seat.path, seat.driver = "", NETWORK


def _unusable(answer: keeping.FromKeeper, fds: list[int]) -> str:
    """Why there can be no copy in what was placed; '' if there can."""
    if isinstance(answer, keeping.Refused):
        return answer.reason
    if not isinstance(answer, keeping.Placed) or len(fds) != 2:
        return "no directory came with the answer"
    try:
        mark_new(*fds)
    except OSError as error:
        return f"its directory cannot be used: {error.strerror}"
    return ""


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
