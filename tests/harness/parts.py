"""The processes of a running server that was started as root: which is which, and when one has gone or come."""

import contextlib
import os
import select
import signal
import time
from pathlib import Path
from typing import Final

from harness.log import DEADLINE
from harness.server import Server
from harness.waiting import until

DAEMON: Final = "fuse-gated"
KEEPER: Final = "fuse-gated-mnt"
WORKER: Final = "fg-"


class Parts:
    """Of one server. What is asked for by `daemon`, `keeper` and `worker` is waited for if it is not there just now."""

    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def supervisor(self) -> int:
        return self._server.program.process.pid

    @property
    def daemon(self) -> int:
        return until(lambda: self._child(DAEMON), "the daemon runs")

    @property
    def keeper(self) -> int:
        return until(lambda: self._child(KEEPER), "the mount keeper runs")

    @property
    def worker(self) -> int:
        """The youngest of the daemon's workers: where there are two, one is being replaced by the other."""
        return until(lambda: max(self.workers, key=born, default=0), "a worker runs")

    @property
    def workers(self) -> list[int]:
        """All that are there just now, of whatever session, or of none yet."""
        daemon = self._child(DAEMON)
        return [pid for pid in children(daemon) if command(pid).startswith(WORKER)] if daemon else []

    @property
    def all(self) -> dict[str, int]:
        """The pids by what they are; workers are named with their number in the order in which they were started."""
        workers = {f"worker {index}": pid for index, pid in enumerate(sorted(self.workers, key=born))}
        return {"supervisor": self.supervisor, "keeper": self.keeper, "daemon": self.daemon, **workers}

    def _child(self, name: str) -> int:
        return next((pid for pid in children(self.supervisor) if command(pid) == name), 0)


def children(pid: int) -> list[int]:
    """Its living children (proc(5), task/TID/children)."""
    found = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += [int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    return [child for child in found if state(child) not in ("", "Z", "X")]


def command(pid: int) -> str:
    """What it calls itself; '' if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def state(pid: int) -> str:
    """Its letter of proc(5); '' if it is gone."""
    return (_stat(pid) or [""])[0]


def thread_states(pid: int) -> list[str]:
    """The letters of its threads; [] if it is gone."""
    found = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found.append(_stat(pid, int(task)))
    return [fields[0] for fields in found if fields]


def born(pid: int) -> tuple[int, int]:
    """For sorting: when it was started, in clock ticks, and its pid for those that were started in the same."""
    fields = _stat(pid)
    return (int(fields[19]) if fields else 0, pid)


def end(pid: int, number: signal.Signals, patience: float = DEADLINE) -> bool:
    """Send a signal that ends a process, and wait until it has ended (its last thread). False if it had gone before."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        signal.pidfd_send_signal(descriptor, number)
        latest = time.monotonic() + patience
        while not select.select([descriptor], [], [], 0.02)[0] and time.monotonic() < latest:
            if number == signal.SIGKILL and state(pid) == "Z":
                # A thread that waits in the kernel for a lock of the mount's ends with its holder, whom a successor answers.
                return True
        if not select.select([descriptor], [], [], 0)[0]:
            raise AssertionError(f"{number.name} did not end process {pid} ({command(pid)}) within {patience:g} s")
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def _stat(pid: int, task: int | None = None) -> list[str]:
    """What follows the name in proc(5)'s stat, of the process or of one of its threads; [] if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/task/{task}/stat" if task else f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []
