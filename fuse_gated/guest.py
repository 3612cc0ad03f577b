"""A connection as the daemon sees it: a worker that may be anyone's, and what it was given."""

import contextlib
import time
from collections.abc import Callable

from fuse_gated import supervision
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.loop import Timer
from fuse_gated.edge.process import Child
from fuse_gated.gate.tenant import Tenant


class Guest:
    """One connection. `path` and `driver` are set once it is mounted."""

    def __init__(self, session: str, address: str, child: Child, channel: Channel[supervision.FromWorker]) -> None:
        self.session = session
        self.address = address
        self.child = child
        self.channel = channel
        self.tenant: Tenant | None = None
        self.digest = ""
        self.export = ""
        self.program = ""
        self.path = ""
        self.driver = ""
        self.since = time.time()
        self.starting = True
        """Counts among those that have not logged in."""
        self.opening = False
        self.mounted = False
        self.unmounting = False
        self.dead = False
        """Its main thread has ended: it serves nothing more."""
        self.reaped = False
        self.deadline: Timer | None = None
        self.report: supervision.Report | None = None
        self.asked: list[Callable[[str], None]] = []

    @property
    def shown(self) -> str:
        return f"{self.tenant.name}/{self.export}" if self.tenant is not None else self.session

    @property
    def holds_mount(self) -> bool:
        """Whether there is a mount of it, or one on its way to be made or taken away."""
        return self.opening or self.mounted or self.unmounting


def main_thread_has_ended(pid: int) -> bool:
    """Whether the main thread of a child that was not reaped has ended.

    That can be long before the child has: a thread that waits in the kernel for a lock of the mount's (a notification does)
    cannot be killed, and who holds the lock waits for an answer of the dead process. Only unmounting ends both. No descriptor
    tells of it: a pidfd is readable when the last thread has ended. A process's state is its main thread's (proc(5)).
    """
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as status:
        return status.read().rpartition(b")")[2].split()[0] == b"Z"
    return True


__all__ = ["Guest", "main_thread_has_ended"]
