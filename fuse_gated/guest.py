"""A connection as the daemon sees it: a worker that may be anyone's, and what it was given."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence

import msgspec

from fuse_gated import supervision
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.loop import Timer
from fuse_gated.edge.process import Child
from fuse_gated.errors import PeerError
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
        self.awaits_journal = False
        self.deadline: Timer | None = None
        self.report: supervision.Report | None = None
        self.asked: list[Callable[[str], None]] = []
        self._state = open_state(child.pid)

    @property
    def shown(self) -> str:
        return f"{self.tenant.name}/{self.export}" if self.tenant is not None else self.session

    def say(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """To the worker; one that does not read is killed: nothing that it serves is worth waiting for."""
        if self.dead:
            return
        try:
            self.channel.send(message, fds)
        except ValueError:
            # Larger than a message may be.
            descriptor = supervision.enclose(message)
            self.say(supervision.Enclosed(), [descriptor])
            os.close(descriptor)
        except (BlockingIOError, PeerError):
            self.kill()

    def kill(self) -> None:
        """SIGKILL to the worker."""
        self.child.send_signal(signal.SIGKILL)

    def has_ended(self) -> bool:
        """Whether its main thread is known to have ended (`main_thread_has_ended`)."""
        return self._state is not None and main_thread_has_ended(self._state)

    def forget_state(self) -> None:
        """It is known to be dead."""
        if self._state is not None:
            os.close(self._state)
            self._state = None

    @property
    def holds_mount(self) -> bool:
        """Whether there is a mount of it, or one on its way to be made or taken away."""
        return self.opening or self.mounted or self.unmounting


def open_state(pid: int) -> int | None:
    """A descriptor for `main_thread_has_ended`, or None where the process cannot be seen any more.

    To be had right after the fork: where /proc hides the processes of others (hidepid=, ProtectProc=), it hides a caged one
    too, which is not dumpable; but what is open stays open (proc(5)).
    """
    with contextlib.suppress(OSError):
        return os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    return None


def main_thread_has_ended(state: int) -> bool:
    """Whether the main thread of the process has ended. `state` is what `open_state` returned.

    That can be long before the process has: a thread that waits in the kernel for a lock of the mount's (a notification does)
    cannot be killed, and who holds the lock waits for an answer of the dead process. Only unmounting ends both. No descriptor
    tells of it: a pidfd is readable when the last thread has ended. A process's state is its main thread's (proc(5)).
    """
    with contextlib.suppress(OSError):
        return os.pread(state, 4096, 0).rpartition(b")")[2].split()[0] == b"Z"
    return True


__all__ = ["Guest", "main_thread_has_ended", "open_state"]
