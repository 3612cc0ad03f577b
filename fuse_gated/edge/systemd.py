"""What systemd hands to a service, and what the service tells it.

Sockets come as descriptors from 3 on (sd_listen_fds(3)): the listening ones of socket units, and those that OpenFile=
connected. What each is for is told by what it is, so that a drop-in, or a socket unit of the operator's own, may add
listeners under any name; only the mount keeper's is known by its name.
"""

import os
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
import sdnotify

from fuse_gated.errors import OperatorError

KEEPER: Final = "mountd"
"""The name (OpenFile=, FileDescriptorName=) of the socket that joins the daemon and the mount keeper."""
_BEATS: Final = 3
"""Signs of life in the time after which systemd would give a service up."""


class Passed(msgspec.Struct, frozen=True):
    """Sockets from systemd, by what they are for: listening ones for clients (SOCK_STREAM) and for fuse-gatectl
    (SOCK_SEQPACKET), and the connection to the mount keeper. All but `keeper` are non-blocking."""

    listeners: tuple[socket.socket, ...]
    control: socket.socket | None
    keeper: socket.socket | None


def take_descriptors() -> list[tuple[str, int]]:
    """The descriptors that systemd passed to this process, with their names; none where it passed nothing.

    Each is given out once: the environment that told of them is emptied. Raises OperatorError where python3-systemd is
    missing.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    try:
        # Here, because an ordinary user's server, started by hand, needs no such library.
        from systemd.daemon import listen_fds_with_names
    except ImportError:
        raise OperatorError("systemd passed sockets, but there is no binding to take them", "install python3-systemd") from None
    passed: Mapping[int, str] = listen_fds_with_names(unset_environment=True)
    # That unset them for C only (os.environ is a copy).
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(variable, None)
    return [(name, fd) for fd, name in sorted(passed.items())]


def take_sockets() -> list[tuple[str, socket.socket]]:
    """As `take_descriptors`, where all must be sockets. Raises OperatorError too for a descriptor that is none."""
    taken: list[tuple[str, socket.socket]] = []
    for name, fd in take_descriptors():
        try:
            taken.append((name, socket.socket(fileno=fd)))
        except OSError as error:
            raise OperatorError(
                f"systemd passed a descriptor '{name}' that is no socket: {error.strerror}", "look at the unit's drop-ins"
            ) from None
    return taken


def sort_sockets(passed: Iterable[tuple[str, socket.socket]]) -> Passed:
    """What the daemon was passed. Raises OperatorError for what it has no use for."""
    listeners: list[socket.socket] = []
    others: dict[str, socket.socket] = {}
    for name, sock in passed:
        listening = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        if listening and sock.type == socket.SOCK_STREAM:
            sock.setblocking(False)
            listeners.append(sock)
            continue
        control = listening and sock.type == socket.SOCK_SEQPACKET
        purpose = "control" if control else KEEPER
        if purpose in others or not (control or (name == KEEPER and sock.type == socket.SOCK_SEQPACKET)):
            raise OperatorError(
                f"systemd passed a socket '{name}' that fuse-gated has no use for",
                "it takes ListenStream= sockets, one ListenSequentialPacket=, and the mount keeper's; look at the drop-ins",
            )
        sock.setblocking(not control)
        others[purpose] = sock
    return Passed(tuple(listeners), others.get("control"), others.get(KEEPER))


class Manager:
    """The service manager, as sd_notify(3) reaches it. Falls silent where there is none."""

    def __init__(self) -> None:
        told = sdnotify.SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None
        self._notify = told.notify if told is not None else _to_nobody
        self._status = ""

    @property
    def beat_every(self) -> float | None:
        """Seconds between two `beat`s, or None where nobody waits for them (sd_watchdog_enabled(3))."""
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not microseconds.isdecimal():
            return None
        return int(microseconds) / 1e6 / _BEATS or None

    def ready(self) -> None:
        """After the start, and after each `reloading`."""
        self._notify("READY=1")

    def reloading(self) -> None:
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._notify("STOPPING=1")

    def beat(self) -> None:
        """A sign of life (WatchdogSec=)."""
        self._notify("WATCHDOG=1")

    @property
    def stores(self) -> bool:
        """Whether it keeps descriptors for us (FileDescriptorStoreMax=, told as $FDSTORE)."""
        return os.environ.get("FDSTORE", "0") != "0"

    def keep(self, name: str, descriptor: int, *, watched: bool = False) -> None:
        """Have a copy of the descriptor kept, and passed under this name to whoever is started in our place. With `watched`
        it is let go as soon as it reports an error or the peer's end; without, never by itself. Does nothing unless `stores`."""
        if self.stores:
            from systemd.daemon import notify

            notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL={int(watched)}", fds=[descriptor])

    def drop(self, name: str) -> None:
        """Have what is kept under this name let go."""
        if self.stores:
            self._notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def status(self, text: str) -> None:
        """The line that `systemctl status` shows. Telling the same again costs nothing."""
        if text != self._status:
            self._status = text
            self._notify(f"STATUS={text}")


def _to_nobody(_state: str) -> None:
    return
