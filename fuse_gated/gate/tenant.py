"""What the policy says of one tenant: frozen, and ready to be handed to the worker that serves it."""

import datetime

import msgspec

from fuse_gated.gate.verdict import Rule


class Token(msgspec.Struct, frozen=True):
    """A login: the SHA-256 of the token's bytes (hex), valid to the end of `expires` (UTC) if that is given."""

    sha256: str
    expires: datetime.date | None = None
    note: str = ""


class Limits(msgspec.Struct, frozen=True):
    """`operations` (per second) and `bytes` (per second) by class: 'read', 'write', '*'. None or a missing class: no limit. Those
    two are each session's, or with `scope` 'tenant' all sessions' together; the others are always each session's."""

    operations: dict[str, float] = {}
    bytes: dict[str, float] = {}
    on_excess: str = "delay"  # or 'refuse': EAGAIN
    open_files: int | None = None
    file_size: int | None = None
    scope: str = "session"  # or tenant


class Outage(msgspec.Struct, frozen=True):
    """What callers meet while the client is away. `grace` in seconds."""

    mode: str = "wait"  # wait | fail | cached
    grace: float = 60.0


class Cache(msgspec.Struct, frozen=True):
    """How long what the client said may be shown without asking again. `watched`: until the client tells of a change, where it
    can watch; `ttl`: for so many seconds, whatever happens; `strict`: not at all. `size`: bytes that are kept of one session."""

    mode: str = "watched"  # watched | ttl | strict
    ttl: float = 1.0
    size: int = 32 * 2**20


class Local(msgspec.Struct, frozen=True):
    """The copy that stands in the place of a mount that could not be made: so many bytes and names are brought there at most."""

    size: int
    files: int = 100_000


class Exports(msgspec.Struct, frozen=True):
    """Which export names the tenant may use (a glob), and how many at once."""

    name: str = "*"
    max_sessions: int = 4


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant, as written. `users` and `groups` are names of the server ('*' in users: anyone)."""

    name: str
    tokens: tuple[Token, ...] = ()
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    ownership: str = "mapped"  # or passthrough
    exports: Exports = Exports()
    rules: tuple[Rule, ...] = ()
    symlinks: str = "inside"  # inside | as-is | deny
    limits: Limits = Limits()
    outage: Outage = Outage()
    cache: Cache = Cache()
    writes: str = "ahead"  # ahead | leased | through
    local: Local | None = None
    audit: str = "writes"  # denials | writes | opens | everything
    place: str = ""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's users and groups as this server's numbers, looked up by the daemon. With ownership 'mapped' everything is
    shown as owned by `owner_uid` and `owner_gid`."""

    owner_uid: int
    owner_gid: int
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    anyone: bool = False
