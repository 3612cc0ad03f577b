"""Who is at the other end of an AF_UNIX socket, by the kernel's word.

Sources: unix(7) (SO_PEERCRED), and net/core/sock.c of Linux for SO_PEERGROUPS (Linux 4.13), which no manual has.
"""

import ctypes
import socket
import struct
from typing import Final, NamedTuple

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_SO_PEERGROUPS: Final = 59  # asm-generic/socket.h
_NGROUPS_MAX: Final = 65536  # limits.h


class Peer(NamedTuple):
    """The process that connected, as it was then. `groups` are all of its groups."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]


def peer_of(sock: socket.socket) -> Peer:
    """Raises OSError. Where the kernel does not tell of supplementary groups there are none."""
    pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid, gid, (gid, *_groups(sock)))


def _groups(sock: socket.socket) -> tuple[int, ...]:
    # Not by Python's own getsockopt, which has room for 256 of them.
    groups = (ctypes.c_uint32 * _NGROUPS_MAX)()
    size = ctypes.c_uint32(ctypes.sizeof(groups))
    place = ctypes.c_int(sock.fileno())
    if _LIBC.getsockopt(place, socket.SOL_SOCKET, _SO_PEERGROUPS, groups, ctypes.byref(size)) != 0:
        return ()
    return tuple(groups[: size.value // ctypes.sizeof(ctypes.c_uint32)])
