"""Locks whose callers were interrupted while the client did not answer, and files that live on under another name: what a program
on the client finds afterwards."""

import errno
import fcntl
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Mounted, Stage, need
from harness.waiting import until

TRIES_AGAIN = """
import fcntl, os, signal, sys
how = getattr(fcntl, sys.argv[2])
fd = os.open(sys.argv[1], os.O_RDWR)
os.read(fd, 1)
if sys.argv[3] == "upgrade":
    how(fd, fcntl.LOCK_SH)
print("ready", flush=True)
sys.stdin.readline()
class Enough(Exception):
    pass
def caught(*_):
    if sys.argv[3] == "upgrade":
        raise Enough
signal.signal(signal.SIGALRM, caught)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    how(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
except Enough:
    pass
print("has it", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def mounted() -> Iterator[Mounted]:
    need("root", "fuse")
    with Stage("kernel") as stage:
        yield stage.mount(server=stage.server(stage.tenant(cache={"mode": "watched"})))


def seen(path: Path, content: bytes) -> None:
    """What the client's programs have just made is on the mount, too."""
    until(lambda: path.exists() and path.read_bytes() == content, "it is seen")


def is_free(path: Path, how: str = "lockf") -> bool:
    """Whether a program of the client gets the lock."""
    fd = os.open(path, os.O_RDWR)
    try:
        getattr(fcntl, how)(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


@pytest.mark.parametrize("case", ["again", "upgrade"])
@pytest.mark.parametrize("how", ["lockf", "flock"])
def test_what_a_program_has_nobody_else_gets(mounted: Mounted, how: str, case: str) -> None:
    """A signal ends its call while the client is silent; it tries again, or goes on with the read lock that it had."""
    (mounted.export / "file").write_text("content")
    seen(mounted.path / "file", b"content")
    client = mounted.client.program.process.pid
    command = [sys.executable, "-c", TRIES_AGAIN, str(mounted.path / "file"), how, case]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        os.kill(client, signal.SIGSTOP)
        try:
            print("go", file=program.stdin, flush=True)
            # Nobody tells when the call has ended: half a second after the signal (INTERRUPT_GRACE).
            time.sleep(1.0)
        finally:
            os.kill(client, signal.SIGCONT)
        assert program.stdout.readline() == "has it\n"
        # What came late has been put right before this is answered.
        with open(mounted.path / "file", "rb") as file:
            assert file.read() == b"content"
        assert not is_free(mounted.export / "file", how)
        print("end", file=program.stdin, flush=True)
    until(lambda: is_free(mounted.export / "file", how), "it is free")


def test_locks_that_were_taken_through_another_descriptor_stay(mounted: Mounted) -> None:
    """The last reference of the first one, which is mapped, goes when both are held."""
    (mounted.export / "mapped").write_bytes(bytes(8192))
    seen(mounted.path / "mapped", bytes(8192))
    first = os.open(mounted.path / "mapped", os.O_RDONLY)
    fcntl.lockf(first, fcntl.LOCK_SH, 10, 0)
    mapping = mmap.mmap(first, 4096, prot=mmap.PROT_READ)
    os.close(first)
    second = os.open(mounted.path / "mapped", os.O_RDWR)
    fcntl.lockf(second, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 20)
    mapping.close()
    # Nobody tells when the server has heard of it.
    time.sleep(0.5)
    other = os.open(mounted.export / "mapped", os.O_RDWR)
    with pytest.raises(OSError) as refused:
        fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 20)
    assert refused.value.errno in (errno.EAGAIN, errno.EACCES)
    os.close(second)
    until(lambda: _taken(other), "it is free")
    os.close(other)


def _taken(fd: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def test_a_lock_goes_with_its_file_although_another_name_of_it_is_open(mounted: Mounted) -> None:
    (mounted.export / "one").write_text("content")
    os.link(mounted.export / "one", mounted.export / "two")
    seen(mounted.path / "one", b"content")
    seen(mounted.path / "two", b"content")
    with open(mounted.path / "two", "r+b") as stays:
        with open(mounted.path / "one", "rb") as goes:
            fcntl.lockf(goes, fcntl.LOCK_SH)
            assert not is_free(mounted.export / "one")
        until(lambda: is_free(mounted.export / "one"), "it is free")
        assert stays.read() == b"content"


def test_what_is_written_after_its_name_has_gone_is_seen_by_its_other_name(mounted: Mounted) -> None:
    fd = os.open(mounted.path / "x", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.write(fd, b"one")
    os.link(mounted.path / "x", mounted.path / "y")
    os.unlink(mounted.path / "x")
    os.fsync(fd)
    until(lambda: (mounted.path / "y").read_bytes() == b"one" and (mounted.path / "y").stat().st_nlink == 1, "it is known")
    # So that all that the client has to tell has been told.
    time.sleep(0.5)
    assert (mounted.path / "y").read_bytes() == b"one"
    os.write(fd, b"-two")
    assert (mounted.path / "y").read_bytes() == b"one-two"
    assert (mounted.path / "y").stat().st_size == 7
    os.close(fd)
    assert (mounted.path / "y").read_bytes() == b"one-two"
