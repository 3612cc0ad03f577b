"""What a worker and the daemon say to each other, over a socket pair that was made before the fork.

A worker serves a stranger and may be taken over by one: the daemon believes it nothing. It compares the digest of a login
itself, hands out the policy of that tenant and no other, and the descriptor of the session that it mounted for it and no
other.
"""

import os
from typing import Final

import msgspec

from fuse_gated.gate.tenant import Identity, Tenant
from fuse_gated.turnstile.turnstile import Statistics


class Login(msgspec.Struct, frozen=True, tag="login"):
    """Worker: somebody showed a token; `digest` is the SHA-256 of its bytes, in hex."""

    digest: str


class LoggedIn(msgspec.Struct, frozen=True, tag="logged-in"):
    """Daemon: the token is this tenant's."""

    tenant: Tenant
    identity: Identity


class LoginRefused(msgspec.Struct, frozen=True, tag="login-refused"):
    reason: str


class Open(msgspec.Struct, frozen=True, tag="open"):
    """Worker: the client said hello and wants this export mounted."""

    export: str
    program: str


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """Daemon: mounted at `path`; the driver's descriptor comes with the message: /dev/fuse for 'kernel', a socket to the
    driver's process for 'libfuse'."""

    path: str
    driver: str


class OpenRefused(msgspec.Struct, frozen=True, tag="open-refused"):
    reason: str
    code: int


class Apply(msgspec.Struct, frozen=True, tag="apply"):
    """Daemon: the tenant's policy has changed."""

    tenant: Tenant
    identity: Identity


class End(msgspec.Struct, frozen=True, tag="end"):
    """Daemon: close the session with this code and reason."""

    code: int
    reason: str


class Ending(msgspec.Struct, frozen=True, tag="ending"):
    """Worker: the session is over; take its mount away."""

    reason: str


class Unmounted(msgspec.Struct, frozen=True, tag="unmounted"):
    """Daemon: the mount is gone, the worker may go too."""


class JournalBroken(msgspec.Struct, frozen=True, tag="journal-broken"):
    """Worker: the journal takes no records any more, for this reason; and a caged process cannot open another."""

    reason: str = ""


class JournalOpened(msgspec.Struct, frozen=True, tag="journal-opened"):
    """Daemon: the journal anew; its descriptor comes with the message."""


class Enclosed(msgspec.Struct, frozen=True, tag="enclosed"):
    """Daemon: a message that is too long for a packet (a large policy) lies in the memfd that comes with this one."""


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """Daemon: how is it going?"""

    id: int


class Report(msgspec.Struct, frozen=True, tag="report"):
    """Worker: like this. `inodes`, `open_files` and `in_flight` are of this moment."""

    id: int
    statistics: Statistics
    inodes: int
    open_files: int
    in_flight: int
    waiting: int
    records: int
    protocol: str
    silenced: bool


FromWorker = Login | Open | Ending | JournalBroken | Report
FromDaemon = LoggedIn | LoginRefused | Opened | OpenRefused | Apply | End | Unmounted | JournalOpened | Enclosed | Ask

FROM_WORKER: Final[msgspec.msgpack.Decoder[FromWorker]] = msgspec.msgpack.Decoder(FromWorker)
FROM_DAEMON: Final[msgspec.msgpack.Decoder[FromDaemon]] = msgspec.msgpack.Decoder(FromDaemon)


def enclose(message: msgspec.Struct) -> int:
    """The descriptor of a memfd with the message, to be sent with `Enclosed`."""
    descriptor = os.memfd_create("fuse-gated-message", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(msgspec.msgpack.encode(message))
    return descriptor


def disclose(descriptor: int) -> FromDaemon:
    """The message that came with `Enclosed`; the descriptor is closed. Raises msgspec.DecodeError."""
    try:
        # Not by a file object, which would ask fstat(2): a caged process may not.
        return FROM_DAEMON.decode(os.pread(descriptor, os.lseek(descriptor, 0, os.SEEK_END), 0))
    finally:
        os.close(descriptor)


CLOSE_LOGIN: Final = 4001
"""Close code: the login is refused, or no longer valid."""
CLOSE_POLICY: Final = 4003
"""Close code: the policy or the hello's own words forbid the session."""
CLOSE_LIMIT: Final = 4008
"""Close code: a limit of the server was met."""
