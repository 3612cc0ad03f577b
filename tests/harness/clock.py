"""Time stamps: they come from a clock that ticks every few milliseconds, so a test has to know when it has moved on."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from harness.log import DEADLINE

STAMPS: Final = ("atime", "mtime", "ctime")


def stamps(path: Path) -> dict[str, int]:
    """atime, mtime and ctime in nanoseconds, of a link itself."""
    info = path.lstat()
    return {"atime": info.st_atime_ns, "mtime": info.st_mtime_ns, "ctime": info.st_ctime_ns}


def tick(probe: Path) -> None:
    """Return when a change made from now on has a later ctime than any made before, on `probe`'s filesystem.

    `probe` is a file that is nobody else's; it is made if need be.
    """
    os.close(os.open(probe, os.O_CREAT | os.O_WRONLY, 0o600))
    os.utime(probe)
    first = probe.stat().st_ctime_ns
    end = time.monotonic() + DEADLINE
    while probe.stat().st_ctime_ns <= first:
        if time.monotonic() > end:
            raise AssertionError(f"the clock of {probe} stands still")
        os.utime(probe)


def changed(path: Path, probe: Path, operation: Callable[[], object]) -> set[str]:
    """Which of `path`'s time stamps the operation moved forward."""
    before = stamps(path)
    tick(probe)
    operation()
    after = stamps(path)
    return {name for name in STAMPS if after[name] > before[name]}
