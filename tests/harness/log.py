"""A process's output in a file, and waiting until it says something, or dies."""

import contextlib
import ctypes
import os
import re
import select
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Final

from harness.needs import MEASURING

DEADLINE: Final = 100.0 if MEASURING else 30.0
"""Seconds after which a program that should have spoken has failed. Nothing waits this long when all is well."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_IN_MODIFY = 0x2
_PAUSE = 0.02


def whole_lines(data: bytes) -> list[str]:
    """The lines of what somebody is still writing, without the last one if it has no end yet."""
    return [line.decode("utf-8", "replace") for line in data.split(b"\n")[:-1]]


class Log:
    """One output file of one process. A file, not a pipe with a thread: tests fork, and threads and fork do not mix."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = 0
        self._kept: bytes | None = None

    def data(self) -> bytes:
        return self.path.read_bytes() if self._kept is None else self._kept

    def keep(self) -> None:
        """Hold what there is, because the file is about to go."""
        self._kept = self.data()

    def text(self) -> str:
        return self.data().decode("utf-8", "replace")

    def fresh_lines(self) -> list[str]:
        """The whole lines that came since the last call."""
        data = self.data()
        end = data.rfind(b"\n") + 1
        fresh, self._seen = data[self._seen : end], max(self._seen, end)
        return fresh.decode("utf-8", "replace").splitlines()

    def size(self) -> int:
        """Bytes so far: a position from which `wait_for` may look."""
        return len(self.data())

    def wait_for(self, pattern: str, process: "Popen[bytes]", since: int = 0, deadline: float = DEADLINE) -> str:
        """The first whole line in which the regular expression `pattern` is found, at or after byte `since`.

        Raises AssertionError, with all that was said, when the process ends first or the deadline passes.
        """
        sought = re.compile(pattern)
        end = time.monotonic() + deadline
        with _changes(self.path) as changed, _ending(process) as ended:
            poll = select.poll()
            if changed is not None:
                poll.register(changed, select.POLLIN)
            poll.register(ended, select.POLLIN)
            while True:
                dead = process.poll() is not None
                data = self.data()[since:]
                for line in whole_lines(data):
                    if sought.search(line):
                        return line
                if dead:
                    raise AssertionError(f"ended with {process.returncode} and never said {pattern!r}:\n{self.text()}")
                remaining = end - time.monotonic()
                if remaining <= 0:
                    raise AssertionError(f"did not say {pattern!r} within {deadline:g} s:\n{self.text()}")
                for descriptor, _ in poll.poll(1000 * (min(remaining, _PAUSE) if changed is None else remaining)):
                    if descriptor == changed:
                        os.read(changed, 4096)


@contextlib.contextmanager
def _changes(path: Path) -> Iterator[int | None]:
    """What is ready when the file has changed; None where other programs of ours have all instances that one user may have
    (fs.inotify.max_user_instances), or all watches."""
    descriptor = _LIBC.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor < 0:
        yield None
        return
    try:
        yield descriptor if _LIBC.inotify_add_watch(descriptor, os.fsencode(path), _IN_MODIFY) >= 0 else None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _ending(process: "Popen[bytes]") -> Iterator[int]:
    if process.poll() is not None:
        # Its pid may be another's by now; an end of a pipe without a writer is as ready as a dead process.
        descriptor, writer = os.pipe()
        os.close(writer)
    else:
        descriptor = os.pidfd_open(process.pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
