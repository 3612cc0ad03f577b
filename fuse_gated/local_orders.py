"""What the daemon and the process that keeps a copy say to each other, and how that one ends."""

from typing import Final

import msgspec


class Order(msgspec.Struct, frozen=True):
    """What to keep a copy of: `shown` is TENANT/EXPORT, `size` in bytes, `files` in names."""

    session: str
    shown: str
    size: int
    files: int


class Terms(msgspec.Struct, frozen=True, tag="terms"):
    """Daemon: the policy has changed."""

    size: int
    files: int


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """Daemon: a socket to the worker comes with it."""


class Over(msgspec.Struct, frozen=True, tag="over"):
    """Daemon: the session is over."""


class Wanted(msgspec.Struct, frozen=True, tag="wanted"):
    """The process: a socket to the worker, as soon as there is one."""


ToProvider = Terms | Joined | Over
TO_PROVIDER: "Final[msgspec.msgpack.Decoder[ToProvider]]" = msgspec.msgpack.Decoder(ToProvider)
FROM_PROVIDER: "Final[msgspec.msgpack.Decoder[Wanted]]" = msgspec.msgpack.Decoder(Wanted)

LEFT: Final = 0
"""Exit status: the process was told to end, and leaves the copy to another; or the session is over, and nothing is left."""
UNSENT: Final = 5
"""Exit status: the session is over, and the copy has what the client has not."""
ANOTHER: Final = 6
"""Exit status: what is there is a copy of something else, or nobody knows of what."""
