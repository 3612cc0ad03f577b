"""Writes that are answered before the client has them: nothing of it is lost, done twice, or seen too late.

The client is behind a proxy. `to client` is stalled where it is not to hear of a write, `to server` where it is to carry it out
and nobody is to hear of that.
"""

import errno
import fcntl
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import Stage, need
from harness.log import DEADLINE
from harness.parts import Parts, end
from harness.proxied import Proxied, flowing
from harness.proxy import Direction
from harness.waiting import records, until, wait_for_record

from fuse_gated import control

FOREVER = 3600.0
BLOCK = 64 * 1024


class Session(Proxied):
    def __init__(self, stage: Stage, **policy: Any) -> None:
        super().__init__(stage, **policy)
        self.id = self.client.wait_for_event("mounted")["session"]

    def opened(self, name: str, flags: int = os.O_WRONLY) -> int:
        """A file that is open at the client, too."""
        (self.export / name).touch()
        until(lambda: (self.mount / name).exists(), "it is seen")
        return os.open(self.mount / name, flags)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage("kernel") as stage:
        yield stage


def session(stage: Stage, **policy: Any) -> AbstractContextManager[Session]:
    return flowing(Session(stage, **policy))


def closing(fd: int) -> "threading.Thread":
    """Somebody closes it; `.errno` is what they hear, once they have ended."""

    class Closing(threading.Thread):
        errno = 0

        def run(self) -> None:
            try:
                os.close(fd)
            except OSError as error:
                self.errno = error.errno or 0

    thread = Closing()
    thread.start()
    return thread


def ended(thread: threading.Thread) -> int:
    thread.join(DEADLINE)
    assert not thread.is_alive()
    return thread.errno  # type: ignore[attr-defined,no-any-return]


def test_a_write_is_answered_at_once_and_close_waits(stage: Stage) -> None:
    with session(stage) as here:
        fd = here.opened("file")
        here.proxy.stall("to client", FOREVER)
        assert os.write(fd, b"a" * BLOCK) == BLOCK
        assert os.write(fd, b"b" * BLOCK) == BLOCK
        assert (here.export / "file").read_bytes() == b""
        thread = closing(fd)
        # It waits for the client, which nobody has told yet: only time could show more.
        thread.join(0.2)
        assert thread.is_alive()
        here.proxy.flow()
        assert ended(thread) == 0
        assert (here.export / "file").read_bytes() == b"a" * BLOCK + b"b" * BLOCK


def test_fsync_waits_too(stage: Stage) -> None:
    with session(stage) as here:
        fd = here.opened("file")
        for number in range(20):
            assert os.write(fd, b"%03d" % number) == 3
            os.fsync(fd)
            assert (here.export / "file").stat().st_size == 3 * (number + 1)
        os.close(fd)


@pytest.mark.parametrize("policy", [{"writes": "through"}, {"cache": {"mode": "strict"}}], ids=["through", "strict"])
def test_where_it_is_not_wanted_a_write_waits(stage: Stage, policy: dict[str, Any]) -> None:
    with session(stage, **policy) as here:
        fd = here.opened("file")
        for number in range(20):
            assert os.write(fd, b"%03d" % number) == 3
            assert (here.export / "file").stat().st_size == 3 * (number + 1)
        os.close(fd)


@pytest.mark.parametrize("direction", ["to client", "to server"])
@pytest.mark.parametrize("fault", ["worker", "daemon", "connection"])
def test_what_was_answered_survives(stage: Stage, fault: str, direction: Direction) -> None:
    """Whether or not the client has heard of it: appends, which would show what is done twice, and one after the other."""
    with session(stage) as here:
        parts = Parts(here.server)
        files = {f"file{number}": here.opened(f"file{number}", os.O_WRONLY | os.O_APPEND) for number in range(3)}
        pieces = [bytes([65 + number]) * (number * 2000 + 1) for number in range(12)]
        here.proxy.stall(direction, FOREVER)
        for piece in pieces:
            for fd in files.values():
                assert os.write(fd, piece) == len(piece)
        whole = b"".join(pieces)
        if direction == "to server":
            until(lambda: all((here.export / name).stat().st_size == len(whole) for name in files), "the client has it")
        if fault == "worker":
            end(parts.worker, signal.SIGKILL)
        elif fault == "daemon":
            end(parts.daemon, signal.SIGKILL)
        # What is stalled would keep its end from the client.
        here.proxy.cut()
        threads = [closing(fd) for fd in files.values()]
        assert [ended(thread) for thread in threads] == [0, 0, 0]
        assert {name: (here.export / name).read_bytes() == whole for name in files} == dict.fromkeys(files, True)


def locks(fd: int) -> bool:
    """Whether nobody else has it locked."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize("direction", ["to client", "to server"])
@pytest.mark.parametrize("fault", ["worker", "daemon", "connection"])
def test_a_lock_that_was_given_up_is_free(stage: Stage, fault: str, direction: Direction) -> None:
    """And who gets it on the client sees what was written under it; who gets it again on the server keeps it."""
    with session(stage) as here:
        parts = Parts(here.server)
        fd = here.opened("file", os.O_RDWR)
        there = os.open(here.export / "file", os.O_RDWR)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        assert not locks(there)
        here.proxy.stall(direction, FOREVER)
        assert os.write(fd, b"data") == 4
        fcntl.lockf(fd, fcntl.LOCK_UN)
        if direction == "to client":
            assert not locks(there), "nobody has told the client"
        else:
            until(lambda: locks(there), "the client gives it up")
            fcntl.lockf(there, fcntl.LOCK_UN)
        if fault == "worker":
            end(parts.worker, signal.SIGKILL)
        elif fault == "daemon":
            end(parts.daemon, signal.SIGKILL)
        here.proxy.cut()
        until(lambda: locks(there), "it is free")
        assert os.pread(there, 10, 0) == b"data"
        fcntl.lockf(there, fcntl.LOCK_UN)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        assert os.pwrite(fd, b"more", 4) == 4
        os.fsync(fd)
        assert not locks(there)
        fcntl.lockf(fd, fcntl.LOCK_UN)
        until(lambda: locks(there), "it is free once more")
        os.close(fd)
        os.close(there)


def test_a_file_that_was_just_made(stage: Stage) -> None:
    """Its mode and times need not be waited for either, and outlive a worker."""
    with session(stage) as here:
        fd = os.open(here.mount / "file", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        here.proxy.stall("to client", FOREVER)
        os.write(fd, b"content")
        os.fchmod(fd, 0o640)
        os.utime(fd, ns=(10**18, 10**18 + 7))
        os.fchmod(fd, 0o644)
        end(Parts(here.server).worker, signal.SIGKILL)
        here.proxy.cut()
        thread = closing(fd)
        assert ended(thread) == 0
        for path in (here.export / "file", here.mount / "file"):
            status = path.stat()
            assert (status.st_mode & 0o7777, status.st_size, status.st_mtime_ns) == (0o644, 7, 10**18 + 7)
            assert path.read_bytes() == b"content"


@contextmanager
def full(stage: Stage, size: str) -> Iterator[Session]:
    """A session whose export is a filesystem of its own, with so much room."""
    need("root", "fuse")
    export = stage.directory / "export"
    export.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "none", export], check=True)
    try:
        with session(stage) as here:
            yield here
            here.client.stop()
    finally:
        subprocess.run(["umount", "--lazy", export], check=True)


@pytest.mark.parametrize("direction", ["to client", "to server"])
def test_what_was_just_written_is_read_without_the_client(stage: Stage, direction: Direction) -> None:
    """As an assembler does, which goes back and forth in what it makes. Once the client tells of it, it is asked again."""
    with session(stage) as here:
        os.listdir(here.mount)
        fd = os.open(here.mount / "new", os.O_RDWR | os.O_CREAT, 0o640)
        here.proxy.stall(direction, FOREVER)
        assert os.fstat(fd).st_size == 0
        assert os.pwrite(fd, b"world", 6) == 5
        assert os.fstat(fd).st_size == 11
        assert os.pread(fd, 4096, 0) == b"\0" * 6 + b"world"
        assert os.pwrite(fd, b"hello ", 0) == 6
        assert os.pread(fd, 4096, 0) == b"hello world"
        here.proxy.flow()
        until(lambda: (here.export / "new").read_bytes() == b"hello world", "the client has it")
        (here.export / "new").write_bytes(b"what somebody else has made of it")
        until(lambda: os.pread(fd, 4096, 0) == b"what somebody else has made of it", "it is seen")
        assert os.fstat(fd).st_size == 33
        (here.export / "new").unlink()
        until(lambda: os.fstat(fd).st_nlink == 0, "that it has gone is seen")
        os.close(fd)


def test_what_is_put_into_a_directory_that_was_just_made_is_not_looked_for(stage: Stage) -> None:
    """And what the client's own programs put there is seen."""
    with session(stage) as here:
        os.listdir(here.mount)
        os.mkdir(here.mount / "made")
        until(lambda: _is_missing_at_once(here, b"made/a"), "that it is empty is known")
        (here.export / "made" / "a").write_text("theirs")
        until(lambda: (here.mount / "made" / "a").exists(), "it is seen")
        assert (here.mount / "made" / "a").read_text() == "theirs"


def _is_missing_at_once(here: Session, name: bytes) -> bool:
    """Whether it is known without the client that there is no such name."""
    here.proxy.stall("to client", FOREVER)
    thread = threading.Thread(target=lambda: os.path.exists(os.fsencode(here.mount) + b"/" + name))
    thread.start()
    thread.join(0.5)
    known = not thread.is_alive()
    here.proxy.flow()
    thread.join()
    return known


def test_a_full_disk_is_told(stage: Stage) -> None:
    with full(stage, "1m") as here:
        for size in (4096, BLOCK, 2**20):
            fd = os.open(here.mount / "file", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
            heard = []
            for _ in range(4 * 2**20 // size):
                try:
                    os.write(fd, bytes(size))
                except OSError as error:
                    heard.append(error.errno)
                    break
            if not heard:
                heard.append(ended(closing(fd)))
            else:
                closing(fd).join(DEADLINE)
            assert heard == [errno.ENOSPC]
        # Nothing stays behind: what fits is written, and nobody is told of what others met.
        os.truncate(here.mount / "file", 0)
        (here.mount / "file").write_bytes(b"small")
        assert (here.export / "file").read_bytes() == b"small"
        assert records(here.server, kind="failed", operation="write", errno="ENOSPC")


def test_an_error_in_the_middle_of_one_write_is_not_lost(stage: Stage) -> None:
    """Its first part fails, which the kernel hears with the second, when it has something to tell of the first already: so the
    program hears a short count, goes on, and the rest succeeds. Its fsync and close must know."""
    with full(stage, "8m") as here:
        part = 2**20
        with (here.export / "file").open("wb") as file:
            file.seek(part)
            file.write(b"o" * 3 * part)
        with (here.export / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space"):
            ballast.writelines(itertools.repeat(bytes(4096)))
        until(lambda: (here.mount / "file").stat().st_size == 4 * part, "it is seen")
        fd = os.open(here.mount / "file", os.O_WRONLY)
        heard: list[int | None] = []
        at = 0
        while at < 4 * part:
            try:
                at += os.pwrite(fd, b"N" * (4 * part - at), at)
            except OSError as error:
                heard.append(error.errno)
                break
        for end_of_it in (os.fsync, os.fsync, os.close):
            try:
                end_of_it(fd)
            except OSError as error:
                heard.append(error.errno)
        assert set((here.export / "file").read_bytes()[:part]) == {0}, "it was no hole, and there was room"
        assert set(heard) == {errno.ENOSPC}


def test_a_child_that_closes_what_it_inherits_hides_no_error(stage: Stage) -> None:
    with full(stage, "64k") as here:
        fd = os.open(here.mount / "file", os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(fd, b"x" * 100_000)
        subprocess.run([sys.executable, "-c", ""], check=True, close_fds=True)
        with pytest.raises(OSError, match="No space"):
            os.fsync(fd)
        os.close(fd)


def test_what_a_session_takes_with_it_is_told(stage: Stage) -> None:
    with session(stage) as here:
        fd = here.opened("file")
        here.proxy.stall("to client", FOREVER)
        os.write(fd, b"x" * 1000)
        os.write(fd, b"x" * 234)
        control.call(str(here.server.runtime), "kick", session=here.id, reason="enough")
        lost = wait_for_record(here.server, kind="writes-lost")
        assert (lost["FUSE_GATED_PATH"], lost["FUSE_GATED_BYTES"], lost["FUSE_GATED_COUNT"]) == ("/file", "1234", "2")
        assert ended(closing(fd)) in (errno.EIO, errno.ENOTCONN, errno.ECONNABORTED)
        here.proxy.flow()
        assert here.client.program.wait() == 3


def test_every_program_sees_what_was_written(stage: Stage) -> None:
    """Through several open files at once, in the middle and at the end, with truncation: as in a local file."""
    with session(stage) as here:
        chance = random.Random(5)
        here.proxy.delay(0.002, FOREVER)
        (here.export / "file").touch()
        until(lambda: (here.mount / "file").exists(), "it is seen")
        fds = [os.open(here.mount / "file", os.O_RDWR) for _ in range(3)]
        model = bytearray()
        for _ in range(300):
            fd, action, at = chance.choice(fds), chance.randrange(10), chance.randrange(3 * BLOCK)
            if action < 6:
                data = chance.randbytes(chance.choice((1, 100, 5000, BLOCK)))
                model[len(model) : at] = bytes(max(0, at - len(model)))
                model[at : at + len(data)] = data
                assert os.pwrite(fd, data, at) == len(data)
            elif action == 6:
                model[at:] = bytes(max(0, at - len(model)))
                os.ftruncate(fd, at)
            elif action == 7:
                assert os.pread(fd, BLOCK, at) == model[at : at + BLOCK]
            elif action == 8:
                assert (here.mount / "file").stat().st_size == os.fstat(fd).st_size == len(model)
            else:
                assert next(os.scandir(here.mount)).stat().st_size == len(model)
        for fd in fds:
            os.close(fd)
        assert (here.export / "file").read_bytes() == model == (here.mount / "file").read_bytes()


def test_under_a_lock_the_other_side_sees_it(stage: Stage) -> None:
    with session(stage) as here:
        here.proxy.delay(0.002, FOREVER)
        fd = here.opened("file", os.O_RDWR | os.O_APPEND)
        there = os.open(here.export / "file", os.O_RDWR)
        for number in range(1, 40):
            fcntl.lockf(fd, fcntl.LOCK_EX)
            os.write(fd, b"x")
            fcntl.lockf(fd, fcntl.LOCK_UN)
            fcntl.lockf(there, fcntl.LOCK_SH)
            assert os.fstat(there).st_size == number
            fcntl.lockf(there, fcntl.LOCK_UN)
        os.close(there)
        os.close(fd)


def test_a_name_that_goes_or_moves_goes_after_what_was_written(stage: Stage) -> None:
    with session(stage) as here:
        here.proxy.delay(0.002, FOREVER)
        for number in range(20):
            fd = os.open(here.mount / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            os.write(fd, b"%d" % number)
            os.rename(here.mount / "new", here.mount / "name")
            os.write(fd, b"!")
            os.link(here.mount / "name", here.mount / "second")
            assert (here.mount / "second").read_bytes() == b"%d!" % number
            os.unlink(here.mount / "second")
            os.close(fd)
            assert (here.export / "name").read_bytes() == b"%d!" % number
        assert sorted(os.listdir(here.export)) == ["name"]


def test_a_signal_breaks_nothing_off(stage: Stage) -> None:
    """Who waits for the window is answered; nobody hears EINTR of a file (signal(7))."""
    with session(stage) as here:
        here.proxy.trickle(20e6, FOREVER)
        program = """
import os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY, 0o600)
at = 0
data = os.urandom(1 << 20)
for _ in range(8):
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], at + done)
    at += done
signal.setitimer(signal.ITIMER_REAL, 0)
os.close(fd)
open(sys.argv[2], "wb").write(data * 8)
"""
        own = stage.directory / "own"
        subprocess.run([sys.executable, "-c", program, here.mount / "file", own], check=True, timeout=120)
        assert (here.export / "file").read_bytes() == own.read_bytes()


def test_memory_is_given_back(stage: Stage) -> None:
    """What lay there for a successor."""
    with session(stage) as here:
        (here.mount / "file").write_bytes(bytes(24 * 2**20))
        worker = Parts(here.server).worker

        def kept() -> int:
            found = [Path(f"/proc/{worker}/fd", fd) for fd in os.listdir(f"/proc/{worker}/map_files")] and Path(
                f"/proc/{worker}/smaps"
            ).read_text()
            state = str(found).split("memfd:fuse-gated-state")[1]
            return int(state.split("Rss:")[1].split()[0])

        until(lambda: kept() < 4096, "the pages of the state have gone")
