"""What the daemon is given to run with: by systemd, or, started by hand, by a small supervisor that plays systemd's part as
root (supervisor.py), or by nobody, as an ordinary user.

The supervisor holds the listening sockets, starts the mount keeper and the daemon, and passes signals on. Mounts outlive either
of the two, and clients find the port still there. When the supervisor is killed, both get SIGTERM from the kernel (prctl(2),
PR_SET_PDEATHSIG), and nothing stays mounted.
"""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from fuse_gated import mountd
from fuse_gated.config.settings import Settings
from fuse_gated.edge import journal, listening, mounts, process
from fuse_gated.edge.listening import bind
from fuse_gated.edge.process import Account, Signals, tell
from fuse_gated.edge.systemd import Passed
from fuse_gated.errors import OperatorError
from fuse_gated.supervisor import PROGRAM, DaemonParts, Supervisor

__all__ = ["DaemonParts", "bind", "release", "supervise", "unit_parts", "unprivileged_parts"]


def supervise(
    settings: Settings, runtime: Path, listeners: Sequence[socket.socket], run_daemon: Callable[[DaemonParts], int]
) -> int:
    """Run the mount keeper and the daemon until SIGTERM or SIGINT comes. As root, in a process of one thread.

    `run_daemon` runs in a process of its own, as the user of the settings and in the group `fuse` where there is one. It is
    told to end by SIGTERM, before which SIGUSR2 says that nobody will be started in its place, and to reload by SIGHUP (the last
    two are ignored until they have a handler). It may run several times, and then finds at the keeper the mounts that the last
    one left. The exit status: 0 after an orderly end, the daemon's own where starting it again would mend nothing, else 1.

    Raises OperatorError before anything runs: the runtime directory is not ours, or another fuse-gated has it.
    """
    account = _account(settings)
    directory = mounts.open_runtime(str(runtime))
    try:
        control = listening.bind_control(directory, str(runtime), user=account.uid, group=account.gid, mode=0o666)
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
            return Supervisor(parts, account, run_daemon, signals, lambda: _replace_audit_file(settings, parts, account)).run()
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


def _replace_audit_file(settings: Settings, parts: DaemonParts, account: Account) -> None:
    """Where somebody has rotated it away, the daemon cannot make another: it is in a directory of root's."""
    try:
        _prepare_audit_file(settings, parts.runtime, account)
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
