"""A worker's process: made ready while it still may, caged, run, and ended with nothing left unsaid."""

import contextlib
import gc
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Collection
from typing import Final

import msgspec

from fuse_gated import supervision
from fuse_gated.config.settings import Settings
from fuse_gated.edge import process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.journal import Journal, open_journal
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.notifying import Notifier
from fuse_gated.errors import GateError
from fuse_gated.servant import LAST_WORDS, LOOK_AGAIN, Servant
from fuse_gated.worker import Visitor, Worker

_NOTICE_PATIENCE: Final = 5.0
"""Seconds in which the kernel takes a notification from a worker that answers every request at once."""
_NO_JOURNAL: Final = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\nthe server cannot write its audit records\n"
_TURN: Final = 0.0004
"""Seconds: some operations. Who works at leisure does not wait for the long turns of who is busy."""
_DESCRIPTORS: Final = 4
"""At most, with one message of the daemon's: a long message, a device, a state and the tenant's shares."""


class Place(msgspec.Struct, frozen=True):
    """Where a process works: the runtime directory, and the daemon's pid."""

    settings: Settings
    runtime: str
    daemon: int


def run(sock: socket.socket, channel_socket: socket.socket, visitor: Visitor, place: Place, tls: ssl.SSLContext | None) -> int:
    """Serve one connection in a process of its own, forked by the daemon; the exit status."""
    try:
        journal = _begin(visitor.session, place)
    except GateError:
        if tls is None:
            sock.send(_NO_JOURNAL)
        raise
    loop, notifier = Loop(), Notifier()
    _cage({sock.fileno(), channel_socket.fileno(), *notifier.descriptors()}, journal, loop, place)
    sock.setblocking(False)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls is not None:
        sock = secured(sock, tls)
    channel = Channel(channel_socket, supervision.FROM_DAEMON, max_fds=_DESCRIPTORS)
    return _serve(Worker(loop, sock, channel, journal, notifier, visitor, place.settings), place)


def stand_by(channel_socket: socket.socket, session: str, place: Place) -> int:
    """Serve a session whose client is away, in a process of its own; the exit status."""
    journal = _begin(session, place)
    loop, notifier = Loop(), Notifier()
    _cage({channel_socket.fileno(), *notifier.descriptors()}, journal, loop, place)
    channel = Channel(channel_socket, supervision.FROM_DAEMON, max_fds=_DESCRIPTORS)
    # What it tells before it has the session is no record of that session's.
    return _serve(Servant(loop, channel, journal, notifier, os.urandom(8).hex(), place.settings), place)


def secured(sock: socket.socket, tls: ssl.SSLContext) -> socket.socket:
    """The socket with TLS, whose handshake is still to come. One that is reset already is returned as it is, but empty."""
    spare = sock.dup()
    try:
        wrapped = tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
    except OSError:
        # It asks for the peer's address, which has gone with the peer, and closes. What the peer had said was to be TLS, and must
        # not be read as anything else.
        with contextlib.suppress(OSError):
            while spare.recv(4096):
                pass
        return spare
    spare.close()
    return wrapped


def _begin(session: str, place: Place) -> Journal:
    # What the daemon has of all other sessions is not this one's to collect, and is not to be copied by looking at it.
    gc.freeze()
    # A session of processes, too: the scheduler gives each its part, where it counts by those (autogroup, sched(7)). Or one that
    # is busy would use up what all of them together are given.
    os.setsid()
    process.take_short_turns(_TURN)
    process.set_name(f"fg-{session}")
    process.die_with_parent(place.daemon)
    # Its own, so that a session that fills its socket's buffer leaves the others' alone, and journald sees who writes.
    return open_journal(place.settings.audit, place.runtime)


def _cage(keep: Collection[int], journal: Journal, loop: Loop, place: Place) -> None:
    process.cage({*keep, journal.fileno(), *loop.descriptors()}, seccomp=place.settings.seccomp)


def _serve(servant: Servant, place: Place) -> int:
    def told_to_end() -> None:
        servant.leave_to_successor(daemon_lives=os.getppid() == place.daemon)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: servant.loop.from_thread(told_to_end))
    servant.loop.run()
    _last_words(servant)
    return 0


def _last_words(servant: Servant) -> None:
    """A record that still waits gets one more second: a session's end must not go untold while the journal is busy. And the
    mount, if it is still there, is served until no notification waits in the kernel: the thread that writes it cannot be ended
    there, and who holds what it waits for may be waiting for an answer of ours."""
    if not servant.ending:
        servant.leave(1001, "the server is stopping")
    _go_on(servant, lambda: servant.recorder.waiting is not None, LAST_WORDS)
    if servant.mounted is None or not servant.mounted.yielded:
        _go_on(servant, lambda: not servant.notifier.idle, _NOTICE_PATIENCE)
    servant.abort()
    servant.notifier.stop()


def _go_on(servant: Servant, condition: Callable[[], bool], seconds: float) -> None:
    """As long as the condition holds, and for so many seconds at most."""
    end = time.monotonic() + seconds
    while condition() and time.monotonic() < end:
        servant.loop.after(LOOK_AGAIN, _nothing)
        servant.loop.turn()


def _nothing() -> None:
    """Only to end a turn of the loop."""
