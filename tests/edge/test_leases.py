"""edge/leases.py: who opens a leased file waits, we hear of it, and the room that was promised is there."""

import errno
import fcntl
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import need

from fuse_gated.edge import leases as module
from fuse_gated.edge.files import LATER, Export
from fuse_gated.edge.handles import OpenFile
from fuse_gated.edge.leases import MOST, ROOM, Leases
from fuse_gated.edge.loop import Loop
from fuse_gated.wire import messages as wire

DEADLINE = 30.0
BOTH = wire.OPEN_READ | wire.OPEN_WRITE
_READER = "import sys; print(open(sys.argv[1], sys.argv[2]).read() if sys.argv[2] == 'r' else open(sys.argv[1], 'a').close())"


class Client:
    """An export whose files may be leased, and a loop."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.loop = Loop()
        self.leases = Leases(self.loop)
        self.export = Export(root, leases=self.leases)
        self.broken: list[int] = []
        self.leases.broken = self.broken.append

    def create(self, name: str, lease: int = ROOM, flags: int = BOTH) -> wire.OpenedFile:
        made: wire.OpenedFile = self.export.perform(wire.Create(name.encode(), flags, 0o644, None, lease))
        return made

    def turn_until(self, condition: Callable[[], object]) -> None:
        until = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < until
            self.loop.after(0.02, lambda: None)
            self.loop.turn()

    def close(self) -> None:
        self.export.close()
        self.loop.close()


@pytest.fixture
def client(root: Path, no_umask: None) -> Iterator[Client]:
    before = signal.getsignal(signal.SIGIO)
    client = Client(root)
    yield client
    client.close()
    signal.signal(signal.SIGIO, before)


@pytest.fixture
def others() -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Other processes that open files."""
    started: list[subprocess.Popen[bytes]] = []

    def start(path: Path, mode: str = "r") -> "subprocess.Popen[bytes]":
        started.append(subprocess.Popen([sys.executable, "-c", _READER, path, mode], stdout=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def said(process: "subprocess.Popen[bytes]") -> bytes:
    return process.communicate(timeout=DEADLINE)[0].strip()


@pytest.mark.parametrize("mode", ["r", "a"])
def test_whoever_opens_it_waits_until_it_is_given_up(
    client: Client, others: Callable[..., "subprocess.Popen[bytes]"], mode: str
) -> None:
    made = client.create("file")
    assert made.leased == ROOM
    process = others(client.root / "file", mode)
    client.turn_until(lambda: client.broken)
    assert client.broken == [made.handle]
    assert process.poll() is None, "it waits"
    client.export.perform(wire.Write(made.handle, 0, memoryview(b"whole")))
    client.export.perform(wire.Unlease(made.handle))
    assert said(process) == (b"whole" if mode == "r" else b"None")
    assert not len(client.leases)


def test_a_release_gives_it_up(client: Client, others: Callable[..., "subprocess.Popen[bytes]"]) -> None:
    made = client.create("file")
    process = others(client.root / "file")
    client.turn_until(lambda: client.broken)
    client.export.perform(wire.Write(made.handle, 0, memoryview(b"whole")))
    client.export.perform(wire.Release(made.handle))
    assert said(process) == b"whole"
    assert not len(client.leases)


def test_a_server_that_does_not_answer_is_not_waited_for(
    client: Client, others: Callable[..., "subprocess.Popen[bytes]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD", 0.05)
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    made = client.create("file")
    process = others(client.root / "file")
    client.turn_until(lambda: not len(client.leases))
    assert client.broken == [made.handle], "it was told once"
    assert said(process) == b""


def test_it_is_offered_back_though_nobody_wants_it(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD", 0.05)
    made = client.create("file")
    client.turn_until(lambda: client.broken)
    client.export.perform(wire.Unlease(made.handle))
    again = client.create("again")
    client.turn_until(lambda: len(client.broken) == 2)
    assert client.broken == [made.handle, again.handle]


def test_nothing_is_due_once_all_are_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD", 0.05)
    made = client.create("file")
    client.loop.turn()
    client.export.perform(wire.Release(made.handle))
    client.turn_until(lambda: client.leases._timer is None)
    assert client.broken == []
    assert client.leases._room is None, "what was set aside is given back"
    assert client.create("another").leased == ROOM


def test_all_of_them_at_once(client: Client) -> None:
    made = [client.create(f"file{number}") for number in range(MOST + 1)]
    assert [file.leased for file in made] == [ROOM] * MOST + [0], "there are only so many"
    assert client.leases.holds(made[0].handle)
    client.leases.give_up_all()
    assert not client.leases.holds(made[0].handle)
    for number in range(MOST):
        (client.root / f"file{number}").read_bytes()


@pytest.mark.parametrize("how", ["open", "truncate", "create"])
def test_we_do_not_wait_for_ourselves(client: Client, how: str) -> None:
    made = client.create("file")
    ask: wire.Arguments = wire.Open(b"file", BOTH)
    if how == "truncate":
        ask = wire.Setattr(b"file", size=0)
    elif how == "create":
        ask = wire.Create(b"file", BOTH, 0o644)
    assert client.export.attempt(ask) is not None
    assert not client.leases.holds(made.handle)
    client.turn_until(lambda: client.broken == [made.handle])
    client.export.perform(wire.Unlease(made.handle))


def test_what_is_not_wanted_is_not_leased(client: Client) -> None:
    assert client.create("none", 0).leased == 0
    assert client.create("less", -5).leased == 0
    assert client.create("more", 2**40).leased == ROOM
    assert client.create("few", 10).leased == 10
    assert client.create("more", ROOM).leased == 0, "it was there before"


def test_unlease_of_nothing(client: Client) -> None:
    made = client.create("none", 0)
    client.export.perform(wire.Unlease(made.handle))
    with pytest.raises(OSError, match="no open file") as caught:
        client.export.perform(wire.Unlease(made.handle + 1))
    assert caught.value.errno == errno.EBADF


def test_threads_create_too(client: Client) -> None:
    made: list[wire.OpenedFile] = []
    threads = [threading.Thread(target=lambda name=f"f{n}": made.append(client.create(name))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [file.leased for file in made] == [ROOM] * 8


def test_a_file_that_is_open_elsewhere_is_not_leased_and_the_next_one_is(client: Client) -> None:
    path = client.root / "file"
    path.touch()
    with path.open():
        fd = os.open(path, os.O_RDWR)
        handle = client.export.perform(wire.Open(b"file", BOTH)).handle
        file = client.export._handles.file(handle)
        assert client.leases.take(handle, file, ROOM, client.export._beneath.root) == 0
        os.close(fd)
    assert client.create("next").leased == ROOM


@pytest.fixture
def small(client: Client, tmp_path: Path) -> Iterator[Client]:
    """An export on a filesystem of 6 MiB."""
    need("root")
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m,mode=755", "small", where], check=True)
    made = Client(where)
    try:
        yield made
    finally:
        made.close()
        subprocess.run(["umount", where], check=True)


def test_little_room_is_left_alone(small: Client) -> None:
    assert small.create("file").leased == 0
    assert os.statvfs(small.root).f_bavail > 5 * 2**20 / os.statvfs(small.root).f_bsize


def test_what_was_promised_can_be_written(small: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PLENTY", 1)
    made, other, third = small.create("file"), small.create("other"), small.create("third")
    assert (made.leased, other.leased) == (ROOM, ROOM)
    with (small.root / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        filler.writelines(itertools.repeat(bytes(2**16)))
    assert small.export.perform(wire.Write(made.handle, 0, memoryview(b"x" * ROOM))) == ROOM
    assert (small.leases.holds(made.handle), small.create("next").leased) == (True, 0), "there is no room for another promise"
    with pytest.raises(OSError, match="No space left"):
        small.export.perform(wire.Write(made.handle, ROOM, memoryview(b"y" * ROOM)))
    unleased = small.export.perform(wire.Open(b"filler", BOTH)).handle
    with pytest.raises(OSError, match="No space left"):
        small.export.perform(wire.Write(unleased, 16 * 2**20, memoryview(b"z" * ROOM)))
    assert small.export.perform(wire.Write(other.handle, 0, memoryview(b"x" * ROOM))) == ROOM, "everybody has his own part"
    for file in (made, other, third):
        small.export.perform(wire.Release(file.handle))
    for name in ("file", "other"):
        assert (small.root / name).read_bytes()[:ROOM] == b"x" * ROOM
    assert small.export.perform(wire.Write(unleased, 16 * 2**20, memoryview(b"z" * ROOM))) == ROOM, "nobody needs it any more"
    monkeypatch.setattr(module, "_TRY_AGAIN", 0.0)
    (small.root / "filler").unlink()
    small.export.perform(wire.Release(unleased))
    small.leases._none_before = 0.0
    assert small.create("again").leased == ROOM, "there is room again"


def test_other_errors_make_no_room(client: Client) -> None:
    made = client.create("file")
    assert not client.leases.makes_room(OSError(errno.EIO, "broken"), made.handle)
    assert client.leases.makes_room(OSError(errno.EDQUOT, "full"), made.handle)
    assert not client.leases.makes_room(OSError(errno.EDQUOT, "full"), made.handle), "there is no more"
    client.leases._none_before = 0.0
    assert client.create("next").leased == 0, "a part of it is promised and gone"


def test_a_filesystem_without_leases_is_not_asked_again_and_again(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(fd: int, what: int, how: int = 0) -> int:
        asked.append(what)
        raise OSError(errno.EINVAL, "no leases here")

    monkeypatch.setattr(module.fcntl, "fcntl", refuse)
    assert [client.create(f"file{number}").leased for number in range(3)] == [0, 0, 0]
    assert len(asked) == 1


def test_nor_one_where_nothing_can_be_set_aside(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fallocate(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(module.syscalls, "fallocate", fallocate)
    made = client.create("file")
    assert made.leased == 0
    client.export.perform(wire.Release(made.handle))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_was_closed_just_now_is_wanted_by_nobody(root: Path) -> None:
    fd = os.open(root / "file", os.O_RDWR | os.O_CREAT)
    file = OpenFile(fd, (0, 0), readable=True, writable=True, synchronous=False, local=True)
    os.close(fd)
    assert not module._is_wanted(file)


def test_who_leaves_waits_for_what_is_leased(client: Client) -> None:
    ended: list[int] = []
    assert not client.leases.retire(lambda: ended.append(0)), "there is nothing to wait for"
    made, other = client.create("file"), client.create("other")
    assert client.leases.retire(lambda: ended.append(1))
    assert client.broken == [made.handle, other.handle]
    assert client.create("late").leased == 0
    client.export.perform(wire.Release(made.handle))
    client.loop.turn()
    assert ended == []
    client.export.perform(wire.Unlease(other.handle))
    client.turn_until(lambda: ended)
    assert ended == [1]


def test_locks_do_not_wait_for_ourselves_either(client: Client) -> None:
    """A POSIX lock takes a description of its own."""
    made = client.create("file")
    assert client.export.attempt(wire.Setlk(made.handle, 1, 0, 9, 1)) is None
    assert not client.leases.holds(made.handle)
    again = client.create("again")
    state = client.export.attempt(wire.Getlk(again.handle, 1, 0, 9, 1))
    assert state == wire.LockState(2)


def test_another_processs_lease_is_waited_for_on_a_thread(client: Client) -> None:
    path = client.root / "file"
    path.write_bytes(b"content")
    fd = os.open(path, os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # Which nobody minds.
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    cut = wire.Setattr(b"file", size=0)
    assert client.export.attempt(cut) is LATER
    assert path.read_bytes() == b"content"
    thread = threading.Thread(target=client.export.perform, args=(cut,))
    thread.start()
    os.close(fd)
    thread.join(DEADLINE)
    assert path.read_bytes() == b""
