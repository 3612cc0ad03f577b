"""One mounted session, as the daemon keeps it, and what it notes of it for the daemon that comes after."""

import contextlib
import time
from collections.abc import Callable

import msgspec

from fuse_gated import supervision
from fuse_gated.edge.loop import Timer
from fuse_gated.gate.tenant import Tenant
from fuse_gated.guest import Guest


class Note(msgspec.Struct, frozen=True):
    """What a daemon that comes after this one must know of a session; the mount keeper keeps it (keeping.Note)."""

    session: str
    digest: str
    resume: str
    program: str
    address: str
    since: float
    driver: str
    settled: tuple[str, bool]


class Seat:
    """One session. `reader` is who reads what the kernel asks; `heir` the worker of a client that has come back, and waits."""

    def __init__(self, guest: Guest | None, tenant: Tenant, export: str) -> None:
        self.session = guest.session if guest is not None else ""
        self.tenant = tenant
        self.export = export
        self.digest = guest.digest if guest is not None else ""
        self.program = ""
        self.address = guest.address if guest is not None else ""
        self.since = time.time()
        self.path = ""
        self.driver = ""
        """kernel, libfuse, network; or local, which is network with a copy at `path`."""
        self.resume = ""
        """The digest of the secret by which its client comes back; '' until it is in use."""
        self.reader = guest
        self.heir: Guest | None = None
        self.descriptors: list[int] = []
        self.share: int | None = None
        """Its number among the tenant's shares (allotments.py)."""
        self.mounted = False
        self.unmounting = False
        self.away = ""
        """Why its client is away."""
        self.patience: Timer | None = None
        """Until a process that says nothing more has waited for its client long enough."""
        self.falls: list[float] = []
        self.then: list[Callable[[], None]] = []
        """What waits for its end."""

    @property
    def shown(self) -> str:
        return f"{self.tenant.name}/{self.export}"

    @property
    def report(self) -> supervision.Report | None:
        """What its process said last of itself."""
        return self.reader.report if self.reader is not None else None

    @property
    def state(self) -> str:
        """For people: mounted, suspended (its client is away), silenced (its records cannot be written)."""
        if self.away:
            return "suspended"
        return "silenced" if self.report is not None and self.report.silenced else "mounted"

    def waits_no_longer(self) -> None:
        """A timer holds on to a process, and a client that comes and goes would make one each time, for as long as its grace."""
        if self.patience is not None:
            self.patience.cancel()
            self.patience = None

    @property
    def note(self) -> Note:
        return Note(
            self.session, self.digest, self.resume, self.program, self.address, self.since, self.driver,
            (self.tenant.ownership, self.tenant.symlinks == "deny"),
        )  # fmt: skip


def read_note(data: bytes) -> Note | None:
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return msgspec.msgpack.decode(data, type=Note)
    return None
