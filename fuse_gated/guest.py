"""A process that serves a connection, or stands by for one, as the daemon sees it: it may be anyone's."""

import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from fuse_gated import supervision
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.loop import Timer
from fuse_gated.edge.process import Child
from fuse_gated.errors import PeerError
from fuse_gated.gate.tenant import Tenant

if TYPE_CHECKING:
    from fuse_gated.seat import Seat

_NO_MEMORY = b"0 "
"""How /proc/PID/statm begins then: it counts pages."""


class Guest:
    """One process: a connection's, or a standby. `seat` is the session that it serves, or is about to."""

    def __init__(self, session: str, address: str, child: Child, channel: Channel[supervision.FromWorker]) -> None:
        self.session = session
        self.address = address
        self.child = child
        self.channel = channel
        self.tenant: Tenant | None = None
        self.digest = ""
        self.seat: Seat | None = None
        self.moved = False
        """A proxy has said where it comes from, and `address` is that."""
        self.turned_away = False
        self.starting = True
        """Counts among those that have not logged in."""
        self.opens = False
        """It has asked for a session."""
        self.stands_by = False
        """It was forked for a session whose client is away."""
        self.suspended_at = 0.0
        """When it said that its client is away."""
        self.yields = False
        """It was told to leave its session to another."""
        self.ends = False
        """It says that its session is over."""
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
        return self.seat.shown if self.seat is not None else self.session

    def settled(self) -> None:
        """It has got what it came for, and may stay."""
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def say(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """To the worker; one that does not read is killed: nothing that it serves is worth waiting for."""
        if self.dead:
            return
        try:
            self.channel.send(message, fds)
        except ValueError:
            # Larger than a message may be.
            descriptor = supervision.enclose(message)
            self.say(supervision.Enclosed(), [descriptor, *fds])
            os.close(descriptor)
        except (BlockingIOError, PeerError):
            self.kill()

    def lied(self) -> None:
        """It said what our code does not say: it is killed, and nobody goes on with its session."""
        self.ends = True
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


def open_state(pid: int) -> int | None:
    """A descriptor for `main_thread_has_ended`, or None where the process cannot be seen any more.

    To be had right after the fork: where /proc hides the processes of others (hidepid=, ProtectProc=), it hides a caged one
    too, which is not dumpable; but what is open stays open (proc(5)).
    """
    with contextlib.suppress(OSError):
        return os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
    return None


def main_thread_has_ended(state: int) -> bool:
    """Whether the main thread of the process has ended. `state` is what `open_state` returned.

    That can be long before the process has: a thread that waits in the kernel for a lock of the mount's (a notification does)
    cannot be killed, and who holds the lock waits for an answer of the dead process. Only unmounting ends both. No descriptor
    tells of it: a pidfd is readable when the last thread has ended, that of the main thread too (PIDFD_THREAD; tried on 6.18).
    What proc(5) says of a process is its main thread's, and one that has ended has no memory: asked so because it is asked once a
    second of every session, and its state costs five times as much.
    """
    with contextlib.suppress(OSError):
        return os.pread(state, 128, 0).startswith(_NO_MEMORY)
    return True


__all__ = ["Guest", "main_thread_has_ended", "open_state"]
