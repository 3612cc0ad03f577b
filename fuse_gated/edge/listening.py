"""The sockets that fuse-gated listens on where systemd has not made them: TCP for clients, <runtime>/control.sock for
fuse-gatectl.

Sources: tcp(7), unix(7), getaddrinfo(3).
"""

import errno
import os
import re
import socket
import stat
from collections.abc import Callable
from typing import Final

from fuse_gated.edge.loop import Loop
from fuse_gated.errors import OperatorError, UsageError

CONTROL: Final = "control.sock"
_LISTEN: Final = re.compile(r"(?:\[(?P<bracketed>[^\[\]]*)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})", re.ASCII)
_ACCEPT_AGAIN: Final = 0.1
_SCARCE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def bind(listen: str) -> list[socket.socket]:
    """Listening TCP sockets for 'HOST:PORT': one for each address that HOST has. An IPv6 address stands in brackets, and no
    host (or *) means every address of this machine. Port 0 lets the kernel choose.

    Raises UsageError for what is no HOST:PORT, and OperatorError when it cannot be had.
    """
    host, port = _parse(listen)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise OperatorError(f"cannot listen on {listen}: {host}: {error.strerror}", "give an address of this machine") from None
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        # What has two addresses has one port, also where the kernel chose it.
        port = port or (listeners[0].getsockname()[1] if listeners else 0)
        try:
            listeners.append(_listener(family, (address[0], port, *address[2:])))
        except OSError as error:
            if error.errno in _NOT_HERE:
                missing = error
                continue
            for listener in listeners:
                listener.close()
            raise _error(listen, port, error) from None
    # localhost may mean ::1 on a machine that has no IPv6: what is there is enough.
    if missing is not None and not listeners:
        raise _error(listen, port, missing)
    return listeners


def bind_control(directory: int, shown: str, *, user: int, group: int, mode: int) -> socket.socket:
    """A listening SOCK_SEQPACKET socket control.sock in the directory whose descriptor is given, of that owner and mode.

    Takes the place of one on which nobody listens. Raises OperatorError when somebody does, or when the name is taken by
    something else. `shown` is the directory's path for people.
    """
    # By descriptor: the directory stays the one that was checked, and a long path fits an address (108 bytes).
    path = f"/proc/self/fd/{directory}/{CONTROL}"
    _remove_stale(directory, path, shown)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Nobody may connect before it has its owner.
    mask = os.umask(0o777)
    try:
        control.bind(path)
        os.chown(CONTROL, user, group, dir_fd=directory, follow_symlinks=False)
        os.chmod(path, mode)
        control.listen(socket.SOMAXCONN)
        control.setblocking(False)
    except OSError as error:
        control.close()
        raise OperatorError(f"cannot listen on {shown}/{CONTROL}: {error.strerror}", "is another fuse-gated starting?") from None
    finally:
        os.umask(mask)
    return control


def rest_if_scarce(loop: Loop, listener: socket.socket, error: OSError, listen: Callable[[], None]) -> None:
    """accept(2) failed. If descriptors or memory are short, the listener stays ready, and would be asked again and again: it is
    left alone for a moment, then `listen` watches it again."""
    if error.errno in _SCARCE:
        loop.forget(listener.fileno())
        loop.after(_ACCEPT_AGAIN, listen)


def _parse(listen: str) -> tuple[str | None, int]:
    match = _LISTEN.fullmatch(listen)
    if match is None or int(match["port"]) > 65535:
        raise UsageError(
            f"cannot listen on {listen!r}: not HOST:PORT", "such as 127.0.0.1:7433 or [::1]:7433; ports go up to 65535"
        )
    host = match["bracketed"] or match["host"]
    return (None if host in ("", "*", None) else host), int(match["port"])


def _listener(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # IPv4 has a socket of its own where it is meant.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(socket.SOMAXCONN)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _error(listen: str, port: int, error: OSError) -> OperatorError:
    hint = {
        errno.EADDRINUSE: f"see who has it with: ss -ltnp 'sport = :{port}'; or choose another with --listen HOST:PORT",
        errno.EADDRNOTAVAIL: "this machine does not have that address; see: ip address",
        errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE",
    }.get(error.errno or 0, "choose another with --listen HOST:PORT")
    reason = "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror
    return OperatorError(f"cannot listen on {listen}: {reason}", hint)


def _remove_stale(directory: int, path: str, shown: str) -> None:
    try:
        kind = os.stat(CONTROL, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise OperatorError(
            f"runtime directory not ours: {shown}/{CONTROL} is no socket", "remove it, or choose another --runtime"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        # Whatever else connect(2) says, somebody is there.
        if probe.connect_ex(path) != errno.ECONNREFUSED:
            raise OperatorError(f"another fuse-gated runs on {shown}", "stop it, or choose another directory with --runtime")
    os.unlink(CONTROL, dir_fd=directory)
