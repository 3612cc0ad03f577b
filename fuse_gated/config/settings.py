"""The daemon's settings (fuse-gated.yaml). Every key has a default, and the file may be missing."""

import msgspec


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """Paths of PEM files. With `client_ca`, clients must show a certificate that it signed."""

    certificate: str
    key: str
    client_ca: str | None = None


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """What strangers may cost: `startups` connections that have not logged in, `per_address` of them from one address,
    each for at most `login_deadline` seconds."""

    startups: int = 100
    per_address: int = 20
    login_deadline: float = 10.0


class Proxies(msgspec.Struct, frozen=True, kw_only=True):
    """Who may say whose connection it passes on: `addresses` are addresses, networks and 'unix'; `header` is how,
    'proxy-protocol' or 'x-forwarded-for'."""

    addresses: tuple[str, ...]
    header: str


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """`to`: 'journal', 'file', or 'auto' (the journal where there is one, else `file`; its default: edge/journal.py).
    `refusals`: the most that one session tells in a second."""

    to: str = "auto"
    file: str | None = None
    refusals: float = 200.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All of fuse-gated.yaml. Times are seconds, sizes bytes."""

    user: str = "fuse-gated"
    listen: str = "127.0.0.1:7433"
    tls: Tls | None = None
    admission: Admission = Admission()
    proxies: Proxies | None = None
    audit: Audit = Audit()
    drivers: tuple[str, ...] = ("kernel", "libfuse", "network")
    without: tuple[str, ...] = ()
    """What is not used of FUSE though the kernel has it."""
    request_deadline: float = 30.0
    slow_operation: float = 5.0
    """Seconds from which on an operation has a record of its own; 0: none has."""
    max_in_flight: int = 256
    max_bytes_in_flight: int = 64 * 2**20
    max_sessions: int = 2000
    inodes: int = 1_000_000
    origins: tuple[str, ...] = ()
    seccomp: bool = True
