"""A second process that does as it is told, step by step: what locks, shared maps and appends are tried with."""

import contextlib
import fcntl
import mmap
import os
import pickle
import platform
import posix
import signal
import struct
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Final

from harness.log import DEADLINE
from harness.persona import outcome

_LOCKING: Final = {"x86_64": {"72", "73"}, "aarch64": {"25", "32"}}.get(platform.machine(), set())
"""The numbers of fcntl(2) and flock(2), as /proc/PID/syscall shows them."""
_FLOCK: Final = "hhqqi4x"
"""struct flock of a 64-bit Linux: type, whence, start, length, pid."""


class Hands:
    """What an actor can do. It knows its files by names of its own."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._maps: dict[str, mmap.mmap] = {}

    def open(self, name: str, path: Path, flags: int = os.O_RDWR) -> None:
        self._files[name] = os.open(path, flags, 0o666)

    def close(self, name: str) -> None:
        os.close(self._files.pop(name))

    def flock(self, name: str, operation: int) -> str:
        return outcome(fcntl.flock, self._files[name], operation)

    def lock(self, name: str, operation: int, start: int = 0, length: int = 0) -> str:
        """A POSIX lock: `operation` is lockf(3)'s of the module fcntl."""
        return outcome(fcntl.lockf, self._files[name], operation, length, start)

    def holder(self, name: str, kind: int, start: int = 0, length: int = 0) -> tuple[int, int, int, int]:
        """F_GETLK: (type, start, length, pid) of the lock in the way of one of `kind`."""
        asked = struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0)
        found = struct.unpack(_FLOCK, fcntl.fcntl(self._files[name], fcntl.F_GETLK, asked))
        return found[0], found[2], found[3], found[4]

    def read(self, name: str, length: int, offset: int) -> bytes:
        return os.pread(self._files[name], length, offset)

    def write(self, name: str, data: bytes) -> int:
        return os.write(self._files[name], data)

    def size(self, name: str) -> int:
        return os.fstat(self._files[name]).st_size

    def append(self, name: str, lines: list[bytes]) -> None:
        """One write(2) a line."""
        for line in lines:
            if os.write(self._files[name], line) != len(line):
                raise AssertionError("a short write")

    def replace(self, path: Path, data: bytes) -> None:
        """Save by rename."""
        new = path.with_name(f"{path.name}.new")
        new.write_bytes(data)
        os.rename(new, path)

    def map(self, name: str, length: int) -> None:
        """mmap(2), shared."""
        self._maps[name] = mmap.mmap(self._files[name], length)

    def load(self, name: str, start: int, end: int) -> bytes:
        return self._maps[name][start:end]

    def store(self, name: str, start: int, data: bytes) -> None:
        self._maps[name][start : start + len(data)] = data

    def msync(self, name: str) -> None:
        self._maps[name].flush()


class Actor:
    """A forked child with `Hands`. `tell` starts a step, `answer` waits for its end, `do` is both."""

    def __init__(self) -> None:
        self._ours, theirs = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._ours.close()
            signal.signal(signal.SIGUSR1, _interrupt)
            _act(theirs)
        theirs.close()

    def tell(self, step: str, *arguments: Any) -> None:
        self._ours.send_bytes(pickle.dumps((step, arguments)))

    def answer(self) -> Any:
        """What the step returned. Raises what it raised, and AssertionError when it does not end."""
        if not self._ours.poll(DEADLINE):
            raise AssertionError("the other process never ended its step")
        value, error = pickle.loads(self._ours.recv_bytes())
        if error is not None:
            raise error
        return value

    def do(self, step: str, *arguments: Any) -> Any:
        self.tell(step, *arguments)
        return self.answer()

    def wait_until_it_waits(self) -> None:
        """Return when the step has been seen asleep in fcntl(2) or flock(2)."""
        end = time.monotonic() + DEADLINE
        while not (_LOCKING and Path(f"/proc/{self.pid}/syscall").read_text().split()[0] in _LOCKING):
            if self._ours.poll(0.005):
                raise AssertionError(f"it did not wait: {self.answer()}")
            if time.monotonic() > end:
                raise AssertionError("it neither waited nor ended")

    def waits(self) -> bool:
        """Whether the step has not ended."""
        return not self._ours.poll(0)

    def fileno(self) -> int:
        """For select(2): readable when the step has ended."""
        return self._ours.fileno()

    def interrupt(self) -> None:
        """A signal whose handler does nothing but end the call with EINTR."""
        os.kill(self.pid, signal.SIGUSR1)

    def end(self) -> None:
        """It exits, and all that it holds goes with it."""
        self._ours.close()
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


@contextlib.contextmanager
def actors(number: int) -> Iterator[list[Actor]]:
    """Several actors, ended at the end."""
    cast = [Actor() for _ in range(number)]
    try:
        yield cast
    finally:
        for actor in cast:
            actor.end()


def _interrupt(*_: object) -> None:
    raise InterruptedError(4, "interrupted")


def _act(pipe: Connection) -> None:
    hands = Hands()
    while True:
        try:
            step, arguments = pickle.loads(pipe.recv_bytes())
        except (EOFError, InterruptedError):
            posix._exit(0)
        try:
            answer = pickle.dumps((getattr(hands, step)(*arguments), None))
        except BaseException as error:
            answer = pickle.dumps((None, error))
        try:
            pipe.send_bytes(answer)
        except BrokenPipeError:
            posix._exit(0)
