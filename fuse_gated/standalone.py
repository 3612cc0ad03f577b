"""What the daemon is given to run with: by systemd, or, started by hand, by a small supervisor that plays systemd's part as
root, or by nobody, as an ordinary user.

The supervisor holds the listening sockets, starts the mount keeper and the daemon joined by a socket pair, and passes signals
on. When one of the two dies it ends the other, and starts both again: clients find the port still there, and reconnect. When
the supervisor is killed, both get SIGTERM from the kernel (prctl(2), PR_SET_PDEATHSIG) and end in order.
"""

import contextlib
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

import msgspec

from fuse_gated import mountd
from fuse_gated.config.settings import Settings
from fuse_gated.edge import journal, listening, mounts, process
from fuse_gated.edge.listening import bind
from fuse_gated.edge.process import Account, Child, Signals, tell
from fuse_gated.edge.systemd import Passed
from fuse_gated.errors import OperatorError

__all__ = ["DaemonParts", "bind", "release", "supervise", "unit_parts", "unprivileged_parts"]

PROGRAM: Final = "fuse-gated"
MAX_DEATHS: Final = 5
DEATHS_WITHIN: Final = 60.0
_GRACE: Final = 10.0
"""Seconds that the daemon has to say goodbye to its clients when it is told to end."""
_SHORT_GRACE: Final = 3.0
"""The same when the other one has died: its mounts are of no use, and must be gone soon."""
_ORPHANS_GRACE: Final = 1.0
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


def supervise(
    settings: Settings, runtime: Path, listeners: Sequence[socket.socket], run_daemon: Callable[[DaemonParts], int]
) -> int:
    """Run the mount keeper and the daemon until SIGTERM or SIGINT comes. As root, in a process of one thread.

    `run_daemon` runs in a process of its own, as the user of the settings and in the group `fuse` where there is one. It is
    told to end by SIGTERM and to reload by SIGHUP (which is ignored until it has a handler). The exit status: 0 after an
    orderly end, the daemon's own where starting it again would mend nothing, else 1.

    Raises OperatorError before anything runs: the runtime directory is not ours, or another fuse-gated has it.
    """
    account = _account(settings)
    directory = mounts.open_runtime(str(runtime))
    try:
        control = listening.bind_control(directory, str(runtime), user=account.uid, group=account.gid, mode=0o660)
        parts = DaemonParts(tuple(listeners), control, None, Path(os.path.abspath(runtime)))
        try:
            # What an earlier keeper left goes before anybody may come, and what stands in the way is told once.
            mountd.MountKeeper(str(runtime)).close()
            _prepare_audit_file(settings, parts.runtime, account)
        except BaseException:
            release(parts)
            raise
    finally:
        os.close(directory)
    try:
        with Signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            return _Supervisor(settings, account, parts, run_daemon, signals).run()
    finally:
        release(parts)


def unprivileged_parts(runtime: Path, listeners: Sequence[socket.socket]) -> DaemonParts:
    """What the daemon is given where there is no root: no mount keeper, and a runtime directory that is the user's own.

    `release` them at the end. Raises OperatorError as `supervise` does.
    """
    user = os.geteuid()
    directory = mounts.open_runtime(str(runtime), owner=user, mode=mounts.MODE_CLOSED, keep_mode=True)
    try:
        control = listening.bind_control(directory, str(runtime), user=user, group=os.getegid(), mode=0o600)
    finally:
        os.close(directory)
    return DaemonParts(tuple(listeners), control, None, Path(os.path.abspath(runtime)))


def unit_parts(runtime: Path, passed: Passed) -> DaemonParts:
    """What the daemon is given where systemd plays the supervisor's part: everything comes from its units.

    Raises OperatorError when a part is missing, or when we are root, as whom the daemon never runs.
    """
    if os.geteuid() == 0:
        raise OperatorError("the daemon must not run as root", "the unit needs a User=, as fuse-gated.service has")
    if passed.control is None or not passed.listeners:
        what = "nothing to listen on" if not passed.listeners else "no socket for fuse-gatectl"
        raise OperatorError(f"systemd passed {what}", "start fuse-gated.socket; look at its drop-ins with: systemctl cat")
    return DaemonParts(passed.listeners, passed.control, passed.keeper, Path(os.path.abspath(runtime)))


def release(parts: DaemonParts) -> None:
    """Close the control socket and take its name away. The listeners stay their owner's."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(parts.runtime / listening.CONTROL)
    parts.control.close()


class _Supervisor:
    def __init__(
        self,
        settings: Settings,
        account: Account,
        parts: DaemonParts,
        run_daemon: Callable[[DaemonParts], int],
        signals: Signals,
    ) -> None:
        self._settings = settings
        self._account = account
        self._parts = parts
        self._run_daemon = run_daemon
        self._signals = signals
        self._own_pid = os.getpid()
        self._strangers = frozenset(process.children())
        self._deaths: deque[float] = deque()

    def run(self) -> int:
        # A daemon that is killed leaves workers, and whoever adopts them can see them off.
        process.adopt_orphans()
        while True:
            keeper, daemon = self._start()
            died = self._watch(keeper, daemon)
            if died is None:
                return self._stop(keeper, daemon)
            status = self._bury(keeper, daemon, died)
            if status is not None:
                return status

    def _start(self) -> tuple[Child, Child]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            keeper = process.spawn(lambda: self._be_keeper(ours, theirs), program=mountd.PROGRAM, ignored=(signal.SIGHUP,))
            daemon = process.spawn(lambda: self._be_daemon(theirs, ours, keeper), program=PROGRAM, ignored=(signal.SIGHUP,))
        return keeper, daemon

    def _be_keeper(self, channel: socket.socket, other: socket.socket) -> int:
        self._leave(other)
        for sock in (*self._parts.listeners, self._parts.control):
            sock.close()
        process.set_name("fuse-gated-mnt")
        process.die_with_parent(self._own_pid)
        return mountd.run(channel, str(self._parts.runtime))

    def _be_daemon(self, channel: socket.socket, other: socket.socket, keeper: Child) -> int:
        self._leave(other)
        os.close(keeper.fileno())
        fuse = process.find_group("fuse")
        process.drop_to(self._account.uid, self._account.gid, () if fuse is None else (fuse,))
        process.set_name(PROGRAM)
        process.die_with_parent(self._own_pid)
        return self._run_daemon(msgspec.structs.replace(self._parts, mountd=channel))

    def _leave(self, other: socket.socket) -> None:
        # A session of its own: Ctrl-C in the terminal is for the supervisor, which tells the others in order.
        os.setsid()
        self._signals.close_descriptors()
        other.close()

    def _watch(self, keeper: Child, daemon: Child) -> Child | None:
        """Wait until one of them ends, which is returned, or until we are told to end (None)."""
        poll = select.poll()
        for watched in (self._signals, keeper, daemon):
            poll.register(watched, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            received = self._signals.received()
            if not {signal.SIGTERM, signal.SIGINT}.isdisjoint(received):
                return None
            if daemon.fileno() in ready:
                return daemon
            if keeper.fileno() in ready:
                # The end of the daemon ends the keeper, in order, and that may be seen first.
                return daemon if keeper.wait() == 0 and daemon.wait(_SHORT_GRACE) is not None else keeper
            if signal.SIGHUP in received:
                self._replace_audit_file()
                daemon.send_signal(signal.SIGHUP)

    def _stop(self, keeper: Child, daemon: Child) -> int:
        """The daemon first, which ends its workers and unmounts; then the keeper, which unmounts what is left."""
        status = daemon.end(_GRACE)
        _end_orphans(self._strangers | {keeper.pid})
        kept = keeper.end(_SHORT_GRACE)
        self._clean_up()
        if status in _ORDERLY and kept in _ORDERLY:
            return 0
        tell(PROGRAM, f"not everything ended in order: the daemon {_shown(status)}, the mount keeper {_shown(kept)}")
        return 1

    def _bury(self, keeper: Child, daemon: Child, died: Child) -> int | None:
        """After one of them has died: end the other. The exit status, or None to start both again."""
        who, other = ("the daemon", keeper) if died is daemon else ("the mount keeper", daemon)
        status = died.wait()
        kept = other.end(_SHORT_GRACE)
        _end_orphans(self._strangers)
        self._clean_up()
        # A daemon that ended because its keeper was killed did not want to end.
        if died is daemon and kept in _ORDERLY and (status == 0 or status in _HOPELESS):
            return status
        now = time.monotonic()
        self._deaths.append(now)
        while self._deaths[0] < now - DEATHS_WITHIN:
            self._deaths.popleft()
        if len(self._deaths) >= MAX_DEATHS:
            tell(PROGRAM, f"{who} {_shown(status)}, and {MAX_DEATHS} ends within {DEATHS_WITHIN:.0f} s are too many: giving up")
            return 1
        tell(PROGRAM, f"{who} {_shown(status)} unexpectedly: starting again")
        return None

    def _replace_audit_file(self) -> None:
        """Where somebody has rotated it away, the daemon cannot make another: it is in a directory of root's."""
        try:
            _prepare_audit_file(self._settings, self._parts.runtime, self._account)
        except OperatorError as error:
            tell(PROGRAM, str(error))

    def _clean_up(self) -> None:
        """Take away what a keeper that was killed has left mounted."""
        try:
            mountd.MountKeeper(str(self._parts.runtime)).close()
        except OperatorError as error:
            tell(PROGRAM, str(error))


def _account(settings: Settings) -> Account:
    """Who the daemon becomes."""
    account = process.find_account(settings.user)
    if account is None:
        account = process.find_account("nobody")
        if account is None:
            raise OperatorError(f"there is no user {settings.user}", f"useradd --system {settings.user}")
        tell(PROGRAM, f"warning: there is no user {settings.user}; running as nobody, which others may run as too")
    if account.uid == 0:
        raise OperatorError("the daemon must not run as root", "name another user in fuse-gated.yaml, or leave it out")
    return account


def _prepare_audit_file(settings: Settings, runtime: Path, account: Account) -> None:
    """Where records go to a file in a directory in which root alone makes files, make it and give it away.

    One that the settings name, and that is there, is left as it is: it may be anything. Raises OperatorError.
    """
    audit = settings.audit
    if audit.to == "journal" or (audit.to == "auto" and os.path.exists(journal.SOCKET)):
        return
    path = journal.audit_file(audit, str(runtime))
    parent, name = os.path.split(path)
    hint = "move what has its name away" if audit.file is None else "make its directory, or name another with audit: {file: …}"
    try:
        if parent == journal.LOG_DIRECTORY:
            with contextlib.suppress(FileExistsError):
                os.mkdir(parent, mounts.MODE_OPEN)
        directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.fstat(directory)
            # Elsewhere others could have put anything in its place: then its owner is to make it.
            if status.st_uid == 0 and not status.st_mode & 0o022:
                _make_audit_file(directory, name, account, is_ours=audit.file is None)
        finally:
            os.close(directory)
    except OSError as error:
        raise OperatorError(f"cannot make the audit file {path}: {error.strerror}", hint) from None


def _make_audit_file(directory: int, name: str, account: Account, *, is_ours: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK
    try:
        file = mounts.open_beneath(directory, name, flags | (0 if is_ours else os.O_EXCL), mode=0o600)
    except FileExistsError:
        return
    try:
        os.fchmod(file, 0o600)
        os.fchown(file, account.uid, account.gid)
    finally:
        os.close(file)


def _end_orphans(but: Collection[int]) -> None:
    """See off the workers of a daemon that was killed: they were told by the kernel, and are killed if they do not heed it."""
    orphans = [Child(pid) for pid in process.children() if pid not in but]
    end = time.monotonic() + _ORPHANS_GRACE
    for orphan in orphans:
        if orphan.wait(max(0.0, end - time.monotonic())) is None:
            orphan.send_signal(signal.SIGKILL)
            orphan.wait()


def _shown(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
