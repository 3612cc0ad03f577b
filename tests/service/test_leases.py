"""Files that are made through the mount and closed before the client has them: nobody can tell.

The client is behind a proxy. `to client` is stalled where it is not to get what was written, `to server` where the server is not
to hear that it has.
"""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import Stage
from harness.log import DEADLINE
from harness.parts import Parts, end
from harness.proxied import Proxied, flowing
from harness.proxy import Direction
from harness.waiting import records, until, wait_for_record

FOREVER = 3600.0
_READER = "import sys; sys.stdout.write(open(sys.argv[1]).read())"


class Session(Proxied):
    def __init__(self, stage: Stage, **policy: Any) -> None:
        super().__init__(stage, **{"writes": "leased", **policy})
        os.listdir(self.mount)

    def make(self, name: str, content: bytes = b"whole") -> None:
        """Make a file, and close it while the client gets nothing of what is written to it."""
        fd = os.open(self.mount / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        self.proxy.stall("to client", FOREVER)
        assert os.write(fd, content) == len(content)
        os.close(fd)
        assert (self.export / name).stat().st_size == 0, "nothing of it has arrived"


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage("kernel") as stage:
        yield stage


def session(stage: Stage, **policy: Any) -> AbstractContextManager[Session]:
    return flowing(Session(stage, **policy))


@contextmanager
def reader(path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A program on the client that opens a file, and says what is in it."""
    process = subprocess.Popen([sys.executable, "-c", _READER, path], stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def waits(process: "subprocess.Popen[bytes]") -> bool:
    """Whether it has come to wait for a lease."""
    state = Path(f"/proc/{process.pid}/wchan")
    until(lambda: process.poll() is not None or "lease" in state.read_text(), "it opens the file")
    return process.poll() is None


def test_closed_at_once_and_whole_for_whoever_opens_it_on_the_client(stage: Stage) -> None:
    with session(stage) as here:
        here.make("file")
        with reader(here.export / "file") as process:
            assert waits(process)
            here.proxy.flow()
            assert process.communicate(timeout=DEADLINE)[0] == b"whole"
        assert not records(here.server, kind="writes-lost")


def test_whoever_opens_it_while_it_is_being_made_is_let_in(stage: Stage) -> None:
    """He asked for it; and from then on close(2) waits."""
    with session(stage) as here, (here.mount / "file").open("wb", buffering=0) as file:
        file.write(b"half")
        with reader(here.export / "file") as process:
            assert process.communicate(timeout=DEADLINE)[0] == b"half"
        here.proxy.stall("to client", FOREVER)
        file.write(b" and half")
        thread = threading.Thread(target=file.close)
        thread.start()
        # It waits for the client: only time could show more.
        thread.join(0.2)
        assert thread.is_alive()
        here.proxy.flow()
        thread.join(DEADLINE)
        assert (here.export / "file").read_bytes() == b"half and half"


def test_where_it_is_not_asked_for_close_waits(stage: Stage) -> None:
    with session(stage, writes="ahead") as here:
        for number in range(20):
            (here.mount / f"file{number}").write_bytes(b"%d" % number)
            assert (here.export / f"file{number}").read_bytes() == b"%d" % number


@pytest.mark.parametrize("direction", ["to client", "to server"])
@pytest.mark.parametrize("fault", ["worker", "daemon", "connection"])
def test_what_was_closed_survives(stage: Stage, fault: str, direction: Direction) -> None:
    with session(stage) as here:
        parts = Parts(here.server)
        here.proxy.flow()
        fds = [os.open(here.mount / f"file{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL) for number in range(5)]
        here.proxy.stall(direction, FOREVER)
        for number, fd in enumerate(fds):
            assert os.write(fd, b"%d" % number * 1000) == 1000
            os.utime(fd, ns=(10**18, 10**18))
            os.close(fd)
        if fault == "connection":
            here.proxy.cut()
        else:
            end(parts.worker if fault == "worker" else parts.daemon, signal.SIGKILL)
        here.proxy.flow()
        for number in range(5):
            path = here.export / f"file{number}"
            until(lambda path=path: path.stat().st_size == 1000, "it arrives")
            assert (path.read_bytes(), (here.mount / path.name).read_bytes()) == (b"%d" % number * 1000,) * 2
            until(lambda path=path: path.stat().st_mtime_ns == 10**18, "its time, too")
        assert not records(here.server, kind="writes-lost")


def test_a_client_that_never_comes_back_has_lost_it_and_the_audit_says_so(stage: Stage) -> None:
    with session(stage, outage={"grace": 1}) as here:
        here.make("file")
        here.client.program.kill()
        lost = wait_for_record(here.server, kind="writes-lost")
        assert (lost["FUSE_GATED_PATH"], lost["FUSE_GATED_BYTES"], lost["FUSE_GATED_COUNT"]) == ("/file", "5", "1")


def test_while_the_connection_is_lost_nobody_on_the_client_waits(stage: Stage) -> None:
    with session(stage) as here:
        here.make("file")
        with reader(here.export / "file") as process:
            assert waits(process)
            here.proxy.refuse()
            here.proxy.cut()
            assert process.communicate(timeout=DEADLINE)[0] == b""
        here.proxy.refuse(False)
        here.proxy.flow()
        until(lambda: (here.export / "file").read_bytes() == b"whole", "it arrives")


def test_both_sides_at_once(stage: Stage, tmp_path: Path) -> None:
    """What is unpacked on the server while programs on the client open each file as soon as they see it: what they find is whole,
    or was found before it was closed."""
    count = 300
    archive = tmp_path / "files.tar"
    with tarfile.open(archive, "w") as tar:
        for number in range(count):
            path = tmp_path / "one"
            path.write_bytes(b"%04d" % number * 100)
            tar.add(path, f"file{number}")
    with session(stage) as here:
        seen: dict[str, bytes] = {}
        over = threading.Event()

        def look() -> None:
            while not over.is_set():
                for name in os.listdir(here.export):
                    if len(seen.get(name, b"")) < 400:
                        seen[name] = (here.export / name).read_bytes()

        thread = threading.Thread(target=look)
        thread.start()
        subprocess.run(["tar", "xf", archive, "-C", here.mount], check=True, timeout=DEADLINE * 4)
        until(lambda: len(seen) == count and all(map(len, seen.values())), "all of them are seen")
        over.set()
        thread.join(DEADLINE)
        for number in range(count):
            whole = b"%04d" % number * 100
            assert (here.export / f"file{number}").read_bytes() == whole
            assert whole.startswith(seen[f"file{number}"])


def test_nobody_is_held_up_by_a_file_that_stays_open(stage: Stage) -> None:
    """open(2) with O_NONBLOCK does not wait for a lease, but fails: so none is held for long."""
    with session(stage) as here, (here.mount / "log").open("wb", buffering=0) as file:
        file.write(b"line\n")

        def opens() -> bool:
            try:
                os.close(os.open(here.export / "log", os.O_RDONLY | os.O_NONBLOCK))
            except BlockingIOError:
                return False
            return True

        until(opens, "it can be opened")
        file.write(b"line\n")
    assert (here.export / "log").read_bytes() == b"line\n" * 2


@pytest.mark.parametrize("who", ["client", "server"])
def test_what_was_closed_arrives_before_either_leaves_in_order(stage: Stage, who: str) -> None:
    with session(stage) as here:
        here.proxy.delay(0.1, FOREVER)
        for number in range(5):
            with (here.mount / f"file{number}").open("xb") as file:
                file.write(b"%d" % number * 1000)
        program = here.client.program if who == "client" else here.server.program
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0
        for number in range(5):
            path = here.export / f"file{number}"
            until(lambda path=path: path.stat().st_size == 1000, "it arrives")


def test_who_is_told_twice_to_leave_leaves_at_once(stage: Stage) -> None:
    with session(stage) as here:
        here.make("file")
        for number in (signal.SIGTERM, signal.SIGINT):
            here.client.program.process.send_signal(number)
        assert here.client.program.wait() == 0


def test_nobody_waits_long_for_a_server_that_does_not_answer(stage: Stage) -> None:
    with session(stage) as here:
        here.make("file")
        here.client.program.process.send_signal(signal.SIGTERM)
        assert here.client.program.wait() == 0


def test_close_waits_while_the_session_changes_hands(stage: Stage) -> None:
    """With its connection the client gives up all leases, and a worker whose daemon has died lets go of that before it ends."""
    with session(stage) as here:
        for number in range(3):
            fd = os.open(here.mount / f"file{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            here.proxy.delay(0.05, FOREVER)
            assert os.write(fd, b"a" * 100) == 100
            end(Parts(here.server).daemon, signal.SIGKILL)
            assert os.write(fd, b"b" * 100) == 100
            os.close(fd)
            assert (here.export / f"file{number}").read_bytes() == b"a" * 100 + b"b" * 100


def test_a_new_database_is_not_locked(stage: Stage) -> None:
    with session(stage) as here:
        for number in range(5):
            with contextlib.closing(sqlite3.connect(here.mount / f"{number}.db", timeout=0)) as database:
                database.execute("create table a (b)")
                database.commit()
