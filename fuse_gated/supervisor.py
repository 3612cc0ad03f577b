"""The supervisor of a server started by hand as root: it keeps the daemon and the mount keeper alive, each for the other.

It plays systemd's part for both. When one of the two dies it starts that one again, and the other goes on. For the keeper it
keeps copies of what that holds, and of its end of the channel between the two, so that its death is no end of file to the
daemon; a new daemon is joined to the keeper by a new channel.
"""

import contextlib
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

import msgspec

from fuse_gated import mountd, mountd_child
from fuse_gated.edge import process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.process import Account, Child, Signals, tell
from fuse_gated.errors import OperatorError, PeerError

PROGRAM: Final = "fuse-gated"
MAX_DEATHS: Final = 5
"""Of each of the two, within DEATHS_WITHIN seconds. With one more everything ends."""
DEATHS_WITHIN: Final = 30.0
_GRACE: Final = 10.0
"""Seconds that the daemon has to say goodbye to its clients when it is told to end."""
_SHORT_GRACE: Final = 3.0
"""The same for the keeper, which has nobody to talk to, and for a daemon without one."""
_ORPHANS_GRACE: Final = 1.0
_KILLED_GRACE: Final = 0.5
"""A thread may wait in the kernel, where SIGKILL does not reach it, until the next worker of its mount has answered."""
_ORDERLY: Final = (0, -signal.SIGTERM)
"""What was ended before it was ready to be told has done nothing that it could have left in disorder."""
_HOPELESS: Final = (2, 3, 4)
"""Exit statuses of the daemon that starting it again does not mend (usage, refused, configuration)."""


class DaemonParts(msgspec.Struct, frozen=True):
    """What the daemon is given: TCP sockets that listen, the control socket that listens, the socket to the mount keeper
    (None: there is none, and only libfuse can mount), and the runtime directory. All sockets but `mountd` are non-blocking."""

    listeners: tuple[socket.socket, ...]
    control: socket.socket
    mountd: socket.socket | None
    runtime: Path


class Supervisor:
    """`run_daemon` runs as `account` in a process of its own; `on_reload` is called before the daemon gets SIGHUP."""

    def __init__(
        self,
        parts: DaemonParts,
        account: Account,
        run_daemon: Callable[[DaemonParts], int],
        signals: Signals,
        on_reload: Callable[[], None],
    ) -> None:
        self._parts = parts
        self._account = account
        self._run_daemon = run_daemon
        self._signals = signals
        self._on_reload = on_reload
        self._own_pid = os.getpid()
        self._strangers = frozenset(process.children())
        self._daemon_deaths: deque[float] = deque()
        self._keeper_deaths: deque[float] = deque()
        self._kept: dict[str, int] = {}
        """What the keeper gave to keep."""
        self._keepers_end: socket.socket | None = None
        """A copy of the keeper's end of the channel between the two."""
        self._link: Channel[mountd_child.Keep | mountd_child.Drop] | None = None
        """To the keeper."""
        self._running: list[Child] = []

    def run(self) -> int:
        """Until SIGTERM or SIGINT comes, or there is no use in going on; the exit status. In a process of one thread."""
        # A daemon that is killed leaves workers, and whoever adopts them can see them off.
        process.adopt_orphans()
        # For each session as many as the keeper has.
        mountd.allow_descriptors()
        try:
            keeper, daemon = self._start_keeper(), self._start_daemon()
            while (died := self._watch(keeper, daemon)) is not None:
                self._running.remove(died)
                if died is daemon:
                    status = died.wait()
                    if status == 0 or status in _HOPELESS or self._too_often("the daemon", status, self._daemon_deaths):
                        kept = self._end_keeper(keeper)
                        return status if status in (0, *_HOPELESS) and kept in _ORDERLY else 1
                    _end_orphans(self._strangers | {keeper.pid})
                    daemon = self._start_daemon()
                else:
                    self._hear_keeper()
                    if self._too_often("the mount keeper", died.wait(), self._keeper_deaths):
                        self._end_daemon(daemon, _SHORT_GRACE)
                        return 1
                    keeper = self._start_keeper()
            return self._stop(keeper, daemon)
        finally:
            self._let_go()
            self._clean_up()

    def _start_keeper(self) -> Child:
        ours, theirs = _pair()
        with theirs:
            keeper = process.spawn(lambda: self._be_keeper(ours, theirs), program=mountd.PROGRAM, ignored=(signal.SIGHUP,))
        # Those are the new keeper's to give anew, or to let go.
        if self._link is not None:
            self._link.close()
        self._link = Channel(ours, mountd_child.FROM_KEEPER, max_fds=1)
        self._running.append(keeper)
        return keeper

    def _start_daemon(self) -> Child:
        if self._keepers_end is not None:
            self._keepers_end.close()
        self._keepers_end, theirs = _pair()
        with theirs:
            # A keeper that is dead is followed by one that finds the connection there.
            with contextlib.suppress(PeerError, BlockingIOError):
                if self._link is not None:
                    self._link.send(mountd_child.Arrived(), [self._keepers_end.fileno()])
            ignored = (signal.SIGHUP, signal.SIGUSR2)
            daemon = process.spawn(lambda: self._be_daemon(theirs), program=PROGRAM, ignored=ignored)
        self._running.append(daemon)
        return daemon

    def _be_keeper(self, ours: socket.socket, theirs: socket.socket) -> int:
        self._leave()
        ours.close()
        if self._link is not None:
            self._link.close()
        for sock in (*self._parts.listeners, self._parts.control):
            sock.close()
        process.set_name("fuse-gated-mnt")
        process.die_with_parent(self._own_pid)
        return mountd_child.run(str(self._parts.runtime), theirs, self._keepers_end, self._kept)

    def _be_daemon(self, channel: socket.socket) -> int:
        self._leave()
        # Its user is nobody to be trusted with what the keeper holds.
        self._let_go()
        process.drop_to(self._account.uid, self._account.gid, process.groups_of(self._account))
        process.set_name(PROGRAM)
        process.die_with_parent(self._own_pid)
        return self._run_daemon(msgspec.structs.replace(self._parts, mountd=channel))

    def _leave(self) -> None:
        # A session of its own: Ctrl-C in the terminal is for the supervisor, which tells the others in order.
        os.setsid()
        self._signals.close_descriptors()
        for child in self._running:
            os.close(child.fileno())

    def _let_go(self) -> None:
        """Of all that is the keeper's."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._keepers_end is not None:
            self._keepers_end.close()
            self._keepers_end = None
        for descriptor in self._kept.values():
            os.close(descriptor)
        self._kept.clear()

    def _watch(self, keeper: Child, daemon: Child) -> Child | None:
        """Wait until one of them ends, which is returned, or until we are told to end (None)."""
        while True:
            poll = select.poll()
            for watched in (self._signals, keeper, daemon):
                poll.register(watched, select.POLLIN)
            if self._link is not None:
                poll.register(self._link, select.POLLIN)
            ready = {fd for fd, _ in poll.poll()}
            received = self._signals.received()
            if not {signal.SIGTERM, signal.SIGINT}.isdisjoint(received):
                return None
            if signal.SIGHUP in received:
                self._on_reload()
                daemon.send_signal(signal.SIGHUP)
            for child in (daemon, keeper):
                if child.fileno() in ready:
                    return child
            self._hear_keeper()

    def _hear_keeper(self) -> None:
        """Keep, and let go, what it says."""
        for message, fds in self._received():
            old = self._kept.pop(message.name, None)
            if old is not None:
                os.close(old)
            if isinstance(message, mountd_child.Keep) and fds:
                self._kept[message.name] = fds[0]

    def _received(self) -> Iterator[tuple[mountd_child.Keep | mountd_child.Drop, list[int]]]:
        while self._link is not None:
            try:
                received = self._link.receive()
            except BlockingIOError:
                return
            except PeerError as error:
                tell(PROGRAM, f"what the mount keeper holds would not outlive it from now on: {error}")
                received = None
            if received is None:
                self._link.close()
                self._link = None
                return
            yield received

    def _stop(self, keeper: Child, daemon: Child) -> int:
        """The daemon first, which ends its workers and unmounts; then the keeper, which unmounts what is left."""
        # There will be no other keeper, and nobody here hears what this one gives to keep while we wait.
        self._let_go()
        status = self._end_daemon(daemon, _GRACE)
        _end_orphans(self._strangers | {keeper.pid})
        kept = keeper.end(_SHORT_GRACE)
        if status in _ORDERLY and kept in _ORDERLY:
            return 0
        tell(PROGRAM, f"not everything ended in order: the daemon {_shown(status)}, the mount keeper {_shown(kept)}")
        return 1

    def _end_daemon(self, daemon: Child, grace: float) -> int | None:
        self._let_go()
        # Nobody will be started in its place, so its sessions end too.
        daemon.send_signal(signal.SIGUSR2)
        return daemon.end(grace)

    def _end_keeper(self, keeper: Child) -> int | None:
        """Which unmounts what the daemon has left."""
        self._let_go()
        return keeper.end(_SHORT_GRACE)

    def _too_often(self, who: str, status: int | None, deaths: deque[float]) -> bool:
        now = time.monotonic()
        deaths.append(now)
        while deaths[0] < now - DEATHS_WITHIN:
            deaths.popleft()
        if len(deaths) > MAX_DEATHS:
            tell(PROGRAM, f"{who} {_shown(status)}, and {len(deaths)} ends within {DEATHS_WITHIN:.0f} s are too many: giving up")
            return True
        tell(PROGRAM, f"{who} {_shown(status)} unexpectedly: starting again")
        return False

    def _clean_up(self) -> None:
        """Take away what a keeper that was killed has left mounted, and see off who waits for that."""
        try:
            mountd.MountKeeper(str(self._parts.runtime)).close()
        except OperatorError as error:
            tell(PROGRAM, str(error))
        _end_orphans(self._strangers)


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _end_orphans(but: Collection[int]) -> None:
    """See off the workers of a daemon that was killed: they were told by the kernel, and are killed if they do not heed it."""
    orphans = [Child(pid) for pid in process.children() if pid not in but]
    end = time.monotonic() + _ORPHANS_GRACE
    deaf = [orphan for orphan in orphans if orphan.wait(max(0.0, end - time.monotonic())) is None]
    for orphan in deaf:
        orphan.send_signal(signal.SIGKILL)
    end = time.monotonic() + _KILLED_GRACE
    for orphan in deaf:
        if orphan.wait(max(0.0, end - time.monotonic())) is None:
            # Reaped the next time.
            os.close(orphan.fileno())


def _shown(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


__all__ = ["DaemonParts", "Supervisor"]
