"""A worker's process: made ready while it still may, caged, run, and ended with nothing left unsaid."""

import signal
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

from fuse_gated import supervision
from fuse_gated.config.settings import Settings
from fuse_gated.edge import process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.fuse_kernel import Notifier
from fuse_gated.edge.journal import open_journal
from fuse_gated.edge.loop import Loop
from fuse_gated.errors import GateError
from fuse_gated.worker import LAST_WORDS, LOOK_AGAIN, Visitor, Worker

_NOTICE_PATIENCE: Final = 5.0
"""Seconds in which the kernel takes a notification from a worker that answers every request at once."""
_NO_JOURNAL: Final = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\nthe server cannot write its audit records\n"


def run(
    sock: socket.socket,
    channel_socket: socket.socket,
    visitor: Visitor,
    settings: Settings,
    runtime: str,
    tls: ssl.SSLContext | None,
    daemon: int,
) -> int:
    """Serve one connection in a process of its own, forked by the daemon with that pid; the exit status."""
    process.set_name(f"fg-{visitor.session}")
    process.die_with_parent(daemon)
    # Its own, so that a session that fills its socket's buffer leaves the others' alone, and journald sees who writes.
    try:
        journal = open_journal(settings.audit, runtime)
    except GateError:
        if tls is None:
            sock.send(_NO_JOURNAL)
        raise
    loop = Loop()
    notifier = Notifier()
    keep = {sock.fileno(), channel_socket.fileno(), journal.fileno(), *loop.descriptors()}
    process.cage(keep, seccomp=settings.seccomp)
    sock.setblocking(False)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls is not None:
        sock = tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
    channel = Channel(channel_socket, supervision.FROM_DAEMON, max_fds=1)
    worker = Worker(loop, sock, channel, journal, notifier, visitor, settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.from_thread(lambda: worker.leave(1001, "the server is stopping")))
    loop.run()
    _last_words(worker)
    return 0


def _last_words(worker: Worker) -> None:
    """A record that still waits gets one more second: a session's end must not go untold while the journal is busy. And the
    mount, if it is still there, is served until no notification waits in the kernel: the thread that writes it cannot be ended
    there, and who holds what it waits for may be waiting for an answer of ours."""
    if not worker.ending:
        worker.leave(1001, "the server is stopping")
    _go_on(worker, lambda: worker.recorder.waiting is not None, LAST_WORDS)
    _go_on(worker, lambda: not worker.notifier.idle, _NOTICE_PATIENCE)
    worker.socket.abort()
    worker.notifier.stop()


def _go_on(worker: Worker, condition: Callable[[], bool], seconds: float) -> None:
    """As long as the condition holds, and for so many seconds at most."""
    end = time.monotonic() + seconds
    while condition() and time.monotonic() < end:
        worker.loop.after(LOOK_AGAIN, _nothing)
        worker.loop.turn()


def _nothing() -> None:
    """Only to end a turn of the loop."""
