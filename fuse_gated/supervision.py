"""What a worker and the daemon say to each other, over a socket pair that was made before the fork.

A worker serves a stranger and may be taken over by one: the daemon believes it nothing. It compares the token of a login
itself, hands out the policy of that tenant and no other, and the descriptor of the session that it mounted for it and no
other.
"""

import os
from typing import Final

import msgspec

from fuse_gated.gate.tenant import Identity, Tenant
from fuse_gated.turnstile.turnstile import Statistics


class Arrived(msgspec.Struct, frozen=True, tag="arrived"):
    """Worker: a proxy says that the connection comes from this address. Before `Login`."""

    address: str


class TurnedAway(msgspec.Struct, frozen=True, tag="turned-away"):
    """Daemon: too many come from there; answered with this HTTP status. What else the worker says is not heard."""

    status: int
    reason: str


class Login(msgspec.Struct, frozen=True, tag="login"):
    """Worker: somebody showed this token. Not its digest: digests of all tokens lie in what every fork inherits."""

    token: bytes


class LoggedIn(msgspec.Struct, frozen=True, tag="logged-in"):
    """Daemon: the token is this tenant's."""

    tenant: Tenant
    identity: Identity


class LoginRefused(msgspec.Struct, frozen=True, tag="login-refused"):
    """Daemon: not this one, or not now. `status` is the answer's (RFC 9110): 401 or 503."""

    reason: str
    status: int = 401


class Open(msgspec.Struct, frozen=True, tag="open"):
    """Worker: the client said hello and wants this export mounted."""

    export: str
    program: str
    resume: bytes = b""
    """The secret of a session to be gone on with, if the client has one. Not its digest, as with `Login`."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Worker: the mount is in use. `resume` is the digest of the secret that its client gets, by which it can come back."""

    resume: str


class Suspended(msgspec.Struct, frozen=True, tag="suspended"):
    """Worker: the client is away, for this reason."""

    reason: str


class Yield(msgspec.Struct, frozen=True, tag="yield"):
    """Daemon: serve no more, another process goes on with the session. It is not over."""


class TakeOver(msgspec.Struct, frozen=True, tag="take-over"):
    """Daemon: go on with this session; the device, the state and the tenant's shares come with the message. `detail` says why,
    for the record; `share` is the session's number among the shares (allotments.py)."""

    session: str
    tenant: Tenant
    identity: Identity
    detail: str
    share: int = 0


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """Daemon: mounted at `path`; the driver's descriptor comes with the message, /dev/fuse for 'kernel', a socket to the
    driver's process for 'libfuse', then the session's state and the tenant's shares, in which `share` is the session's number.
    With 'network' there is no path, with 'local' it is a copy's, and the descriptor stands for none."""

    path: str
    driver: str
    share: int = 0


class Attach(msgspec.Struct, frozen=True, tag="attach"):
    """Daemon: serve a program over the socket that comes with the message. Who it is the kernel has said (SO_PEERCRED,
    SO_PEERGROUPS)."""

    uid: int
    gid: int
    pid: int
    gids: tuple[int, ...]


class AttachRefused(msgspec.Struct, frozen=True, tag="attach-refused"):
    """Daemon: a program wanted to be attached whose user may not use the tenant's mounts. For the audit."""

    uid: int
    pid: int


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


FromWorker = Arrived | Login | Open | Ready | Suspended | Ending | JournalBroken | Report
FromDaemon = (
    TurnedAway | LoggedIn | LoginRefused | Opened | OpenRefused | TakeOver | Yield | Attach | AttachRefused | Apply | End
    | Unmounted | JournalOpened | Enclosed | Ask
)

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


CLOSE_RESTART: Final = 1012
"""Close code: the server is being started anew (IANA's registry of RFC 6455's codes)."""
CLOSE_LOGIN: Final = 4001
"""Close code: the login is refused, or no longer valid."""
CLOSE_POLICY: Final = 4003
"""Close code: the policy or the hello's own words forbid the session."""
CLOSE_LIMIT: Final = 4008
"""Close code: a limit of the server was met."""
DRAINING: Final = "the server is draining and takes no new sessions: try again later, or another server"
CLOSE_LATER: Final = 1013
"""Close code: not now; try again later, or elsewhere (IANA's registry of RFC 6455, 11.7)."""
