"""The messages between the daemon and the mount keeper.

A request carries an id, which its answer repeats; answers come in the order of the requests. They travel over an
`edge.channel.Channel`. Types are checked here, and what a field may hold by the mount keeper.

With a mount the keeper holds two descriptors for whoever serves it next: the device, and the state, a piece of memory into
which the mount's worker writes what its successor has to know. The keeper never reads it. And it holds a note for the daemon.
"""

from typing import Final

import msgspec

STATE_SIZE: Final = 512 * 2**20
"""Bytes of a mount's state. Memory is taken only where it was written."""
MAX_NOTE: Final = 16 * 2**10
"""Bytes of a note."""


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of all requests. The answer repeats `id`."""

    id: int
    tenant: str


class Mount(Request, frozen=True, kw_only=True, tag="mount"):
    """Answered with Mounted. Sets who may enter, as Access does."""

    export: str
    default_permissions: bool = False
    noexec: bool = True
    nosymfollow: bool = False
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    anyone: bool = False


class Unmount(Request, frozen=True, kw_only=True, tag="unmount"):
    """Done when it is gone; what waited for it ended with an error."""

    export: str


class Access(Request, frozen=True, kw_only=True, tag="access"):
    """Who may enter all mounts of the tenant from now on; at least one must be mounted."""

    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    anyone: bool = False


class Remount(Request, frozen=True, kw_only=True, tag="remount"):
    """Whether files of a live mount may be executed."""

    export: str
    noexec: bool


class Place(Request, frozen=True, kw_only=True, tag="place"):
    """A directory where the mount would be, for a copy of the export: answered with Placed. Sets who may enter, as Access does.
    The user `owner` keeps it: a uid."""

    export: str
    owner: int
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    anyone: bool = False


class Displace(Request, frozen=True, kw_only=True, tag="displace"):
    """Done when it is gone from there: removed if it is empty, else put aside under a name with `aside` in it."""

    export: str
    aside: str


class Note(Request, frozen=True, kw_only=True, tag="note"):
    """What the daemon that comes after this one is to find with the mount: at most MAX_NOTE bytes, instead of the last note."""

    export: str
    data: bytes


class Fetch(Request, frozen=True, kw_only=True, tag="fetch"):
    """What is held: answered with Held, or with Done where there are not so many. `index` counts from 0, in the order in which
    they were mounted. Of no tenant."""

    tenant: str = ""
    index: int


class Sync(Request, frozen=True, kw_only=True, tag="sync"):
    """Done, once everything that was asked before is answered. Of no tenant."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all answers."""

    id: int


class Mounted(Answer, frozen=True, kw_only=True, tag="mounted"):
    """Two descriptors come with it: /dev/fuse's, and the state's."""

    path: str


class Placed(Answer, frozen=True, kw_only=True, tag="placed"):
    """Two descriptors come with it: the directory's, and that of one beside it for what belongs to it."""

    path: str


class Held(Answer, frozen=True, kw_only=True, tag="held"):
    """The same two descriptors come with it. An empty note is one that was never written."""

    tenant: str
    export: str
    path: str
    note: bytes
    nosymfollow: bool


class Done(Answer, frozen=True, kw_only=True, tag="done"):
    pass


class Refused(Answer, frozen=True, kw_only=True, tag="refused"):
    """`reason` is for people."""

    reason: str


class Resumed(Answer, frozen=True, kw_only=True, tag="resumed"):
    """No answer: the keeper was started anew. What it had read and not answered, one request at most, is lost."""


FromDaemon = Mount | Unmount | Access | Remount | Place | Displace | Note | Fetch | Sync
FromKeeper = Mounted | Placed | Held | Done | Refused | Resumed
REQUESTS: "Final[msgspec.msgpack.Decoder[FromDaemon]]" = msgspec.msgpack.Decoder(FromDaemon)
"""What the mount keeper's end of the channel receives."""
ANSWERS: "Final[msgspec.msgpack.Decoder[FromKeeper]]" = msgspec.msgpack.Decoder(FromKeeper)
"""What the daemon's end of the channel receives."""
