"""What a test may not leave behind: mounts and processes."""

import contextlib
import ctypes
import gc
import os
import re
import select
import signal
import time
from pathlib import Path
from typing import Final

from harness.needs import MEASURING

MARK: Final = "FUSE_GATED_TEST"
"""The environment variable by which a process and all its descendants are known as ours."""

_PATIENCE: Final = 30.0 if MEASURING else 15.0

_LIBC = ctypes.CDLL(None, use_errno=True)
_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8


def descriptors() -> set[str]:
    """The numbers of what this process has open. What earlier tests left to the garbage collector is closed before, and not
    between two looks."""
    gc.collect()
    return set(os.listdir("/proc/self/fd"))


def mounts_beneath(directory: Path) -> list[Path]:
    """Mount points at or beneath `directory` in this mount namespace, deepest first. Asks no mounted filesystem."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        point = Path(os.fsdecode(re.sub(rb"\\(\d{3})", lambda code: bytes([int(code[1], 8)]), line.split(b" ")[4])))
        if point.is_relative_to(directory):
            found.append(point)
    return sorted(found, key=lambda point: len(point.parts), reverse=True)


def unmount(point: Path) -> None:
    """Take a mount away whatever is going on in it."""
    if _LIBC.umount2(os.fsencode(point), _MNT_FORCE | _MNT_DETACH | _UMOUNT_NOFOLLOW) < 0:
        raise OSError(ctypes.get_errno(), "umount2", str(point))


def processes_marked(mark: str) -> dict[int, str]:
    """The processes (pid: command) whose environment carries our mark, zombies left out."""
    sought = f"{MARK}={mark}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if sought in (entry / "environ").read_bytes().split(b"\0"):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                    found[int(entry.name)] = command.strip()
    return found


def clear_away(mark: str, directory: Path | None = None) -> list[str]:
    """End every process that carries `mark`, unmount everything beneath `directory` if one is given, and tell what there was.

    A process that ends by itself within 15 s (30 s under `make coverage`) was not left: a child may outlive the parent that
    told it to end.
    """
    told = []
    end = time.monotonic() + _PATIENCE
    for pid, command in processes_marked(mark).items():
        with contextlib.suppress(ProcessLookupError):
            if not _ends(pid, end):
                told.append(f"process {pid} was left: {command}")
                os.kill(pid, signal.SIGKILL)
                _ends(pid, time.monotonic() + _PATIENCE)
    for point in mounts_beneath(directory) if directory else []:
        told.append(f"mount was left: {point}")
        unmount(point)
    return told


def _ends(pid: int, end: float) -> bool:
    """Whether the process, which need not be our child, ends before the monotonic clock shows `end`."""
    descriptor = os.pidfd_open(pid)
    try:
        return bool(select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0])
    finally:
        os.close(descriptor)
