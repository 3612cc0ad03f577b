"""The mount keeper as a unit of systemd's: started by the daemon's connection, and started anew without anybody noticing.

systemd keeps copies of the connection and of every /dev/fuse descriptor (FileDescriptorStoreMax=). A keeper that is killed
or restarted leaves the mounts as they are; the next one is passed the copies, and goes on. When the daemon is gone everything
is unmounted, whoever's turn it is.
"""

import contextlib
import os
import select
import signal
import socket
import struct
from collections.abc import Sequence
from typing import Final

from fuse_gated.edge.process import Signals, tell
from fuse_gated.edge.systemd import Manager
from fuse_gated.errors import UsageError
from fuse_gated.mountd import PROGRAM, MountKeeper, allow_descriptors, serve

CONNECTION: Final = "daemon"
"""What the daemon's connection is kept under. A device's name has a '/' in it."""


def run(passed: Sequence[tuple[str, int]], runtime: str, manager: Manager) -> int:
    """Serve the daemon that connects to the listening socket among the descriptors that systemd `passed`, or that is connected
    already. One daemon, then the end: whoever connects next is served by the next keeper, which systemd starts for it. So a
    root process is there only while there is a daemon.

    The exit status: 0, or 1 when what came was no message. Raises UsageError where no such socket was passed, OperatorError
    when the runtime directory is not ours.
    """
    allow_descriptors()
    with contextlib.ExitStack() as stack:
        listener, connected, devices = _sort(passed, stack)
        signals = stack.enter_context(Signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        if connected is None:
            # Nobody is served through them, and the daemon that was is gone: the keeper clears its mounts away.
            for name, device in devices.items():
                manager.drop(name)
                os.close(device)
            devices = {}
        keeper = MountKeeper(runtime, manager, devices)
        resumed = connected is not None
        status: int | None = 0
        try:
            manager.ready()
            if connected is None:
                manager.status("waiting for the daemon")
                connected = _accept(listener, signals)
            if connected is not None:
                stack.enter_context(connected)
                if not resumed:
                    manager.keep(CONNECTION, connected.fileno(), watched=True)
                manager.status("serving the daemon")
                status = serve(connected, keeper, signals, resumed=resumed)
        finally:
            if status is None and manager.stores:
                keeper.leave()
            else:
                manager.drop(CONNECTION)
                keeper.close()
        return status or 0


def _sort(
    passed: Sequence[tuple[str, int]], stack: contextlib.ExitStack
) -> tuple[socket.socket, socket.socket | None, dict[str, int]]:
    """The socket that listens, the daemon's connection, and the devices by what they are kept under."""
    listener, connected = None, None
    devices: dict[str, int] = {}
    for name, fd in passed:
        if "/" in name:
            devices[name] = fd
        elif name == CONNECTION:
            connected = socket.socket(fileno=fd)
        else:
            listener = stack.enter_context(socket.socket(fileno=fd))
    if listener is None or listener.type != socket.SOCK_SEQPACKET:
        raise UsageError(
            "systemd did not pass the socket that the daemon connects to",
            "it is started by fuse-gated-mountd.socket: systemctl start fuse-gated",
        )
    return listener, connected, devices


def _accept(listener: socket.socket, signals: Signals) -> socket.socket | None:
    """The daemon's connection, or None when we are told to end."""
    listener.setblocking(False)
    poll = select.poll()
    poll.register(signals, select.POLLIN)
    poll.register(listener, select.POLLIN)
    while True:
        poll.poll()
        if not {signal.SIGTERM, signal.SIGINT}.isdisjoint(signals.received()):
            return None
        try:
            connected, _ = listener.accept()
        except OSError:
            continue  # Whoever connected is gone.
        _pid, uid, _gid = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid == 0:
            return connected
        # The socket's mode keeps everybody else away; if it ever does not, this does (unix(7), SO_PEERCRED).
        tell(PROGRAM, f"uid {uid} connected, but only systemd makes the daemon's connection: turned away")
        connected.close()


__all__ = ["CONNECTION", "run"]
