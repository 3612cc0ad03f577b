"""The mount keeper as a unit of systemd's: started by the daemon's connection, and started anew without anybody noticing.

systemd keeps copies of the connection and of every mount's descriptors (FileDescriptorStoreMax=). A keeper that is killed
or restarted leaves the mounts as they are; the next one is passed the copies, and goes on. A daemon that is killed or
restarted leaves them too, and the next one connects to the same keeper.
"""

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Sequence
from typing import Final

from fuse_gated.edge.process import Signals, tell
from fuse_gated.edge.systemd import Manager
from fuse_gated.errors import UsageError
from fuse_gated.mountd import PROGRAM, MountKeeper, allow_descriptors
from fuse_gated.mountd_serving import PATIENCE, Attendance
from fuse_gated.mountd_store import is_kept

CONNECTION: Final = "daemon"
"""What the daemon's connection is kept under."""


def run(passed: Sequence[tuple[str, int]], runtime: str, manager: Manager, patience: float = PATIENCE) -> int:
    """Serve the daemon that connects to the listening socket among the descriptors that systemd `passed`, or that is connected
    already, and the next one where it leaves mounts behind. Where it leaves none, or no other comes for `patience` seconds, that
    is the end: whoever connects later is served by another keeper, which systemd starts for it. So a root process is there only
    while there is something to keep.

    Told to end by SIGTERM, it leaves everything to the next keeper, or unmounts it where nothing is kept for one, or where
    SIGUSR2 has said that there will be none. The exit status. Raises UsageError where no such socket was passed, OperatorError
    when the runtime directory is not ours.
    """
    allow_descriptors()
    # Also when its handler is gone again: it may come while we end by ourselves.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    with contextlib.ExitStack() as stack:
        listener, connected, kept = _sort(passed, stack)
        signals = stack.enter_context(Signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2))
        keeper = MountKeeper(runtime, manager, kept)

        def changed(connection: socket.socket | None) -> None:
            if connection is None:
                manager.drop(CONNECTION)
                manager.status("waiting for the daemon")
            else:
                manager.keep(CONNECTION, connection.fileno(), watched=True)
                manager.status("serving the daemon")

        attendance = Attendance(keeper, _Listener(listener), signals, changed)
        # An end that nobody wanted is one of those that the next keeper makes good.
        leaves = manager.stores
        try:
            manager.ready()
            manager.status("waiting for the daemon" if connected is None else "serving the daemon")
            told = attendance.run(connected, patience, waits_for_first=True)
            leaves = leaves and told and not attendance.for_good
        finally:
            if leaves:
                keeper.leave()
            else:
                manager.drop(CONNECTION)
                keeper.close()
        return 0


class _Listener:
    """Where the daemon's connection is made."""

    def __init__(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._listener = listener

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> socket.socket | None:
        try:
            connected, _ = self._listener.accept()
        except OSError:
            return None  # Whoever connected is gone.
        _pid, uid, _gid = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid == 0:
            return connected
        # The socket's mode keeps everybody else away; if it ever does not, this does (unix(7), SO_PEERCRED).
        tell(PROGRAM, f"uid {uid} connected, but only systemd makes the daemon's connection: turned away")
        connected.close()
        return None


def _sort(
    passed: Sequence[tuple[str, int]], stack: contextlib.ExitStack
) -> tuple[socket.socket, socket.socket | None, dict[str, int]]:
    """The socket that listens, the daemon's connection, and what is kept of the mounts."""
    listener, connected = None, None
    kept: dict[str, int] = {}
    for name, fd in passed:
        if is_kept(name) and name not in kept:
            kept[name] = fd
        elif name == CONNECTION:
            connected = stack.enter_context(socket.socket(fileno=fd))
        elif is_kept(name):
            os.close(fd)
        else:
            listener = stack.enter_context(socket.socket(fileno=fd))
    if listener is None or listener.type != socket.SOCK_SEQPACKET:
        raise UsageError(
            "systemd did not pass the socket that the daemon connects to",
            "it is started by fuse-gated-mountd.socket: systemctl start fuse-gated",
        )
    return listener, connected, kept


__all__ = ["CONNECTION", "run"]
