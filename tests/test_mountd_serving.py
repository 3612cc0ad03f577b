"""mountd_serving.py: daemons that come and go, and a real mount keeper with real mounts."""

import contextlib
import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import mounts_beneath
from harness.mounting import keepers_runtime

from fuse_gated.edge import process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.keeping import ANSWERS, Done, Fetch, FromDaemon, FromKeeper, Held, Mount, Mounted, Note, Resumed, Sync
from fuse_gated.mountd import MountKeeper
from fuse_gated.mountd_serving import Attendance

PATIENCE = 30.0
MOUNT = Mount(id=1, tenant="acme", export="web")


class Arrivals:
    """A channel through which the test sends connections."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def fileno(self) -> int:
        return self.socket.fileno()

    def accept(self) -> socket.socket | None:
        packet, fds, _, _ = socket.recv_fds(self.socket, 100, 1)
        if not packet:
            raise EOFError
        return socket.socket(fileno=fds[0]) if fds else None


class Daemon:
    def __init__(self) -> None:
        ours, self.keepers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = Channel(ours, ANSWERS)

    def hear(self) -> FromKeeper | None:
        assert select.select([self.channel], [], [], PATIENCE)[0], "the mount keeper does not answer"
        received = self.channel.receive()
        if received is None:
            return None
        for fd in received[1]:
            os.close(fd)
        return received[0]

    def ask(self, request: FromDaemon) -> FromKeeper | None:
        self.channel.send(request)
        return self.hear()

    def close(self) -> None:
        self.channel.close()
        self.keepers_end.close()


class Scene:
    """A keeper as a process; `patience` as Attendance.run has it. Its exit status tells what became of it: 1 more where it was
    told to end, 2 more where that was for good. What it was told of connections it tells the test."""

    def __init__(
        self, runtime: Path, patience: float | None, *, first: Daemon | None = None, waits_for_first: bool = False
    ) -> None:
        self.door, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.reader, writer = os.pipe()
        self.daemons: list[Daemon] = [] if first is None else [first]

        def main() -> int:
            self.door.close()
            if first is not None:
                first.channel.close()
            with (
                process.Signals(signal.SIGTERM, signal.SIGINT, signal.SIGUSR2) as signals,
                contextlib.closing(MountKeeper(str(runtime))) as keeper,
            ):

                def changed(connection: socket.socket | None) -> None:
                    os.write(writer, b"-" if connection is None else b"+")

                attendance = Attendance(keeper, Arrivals(theirs), signals, changed)
                connected = None if first is None else socket.socket(fileno=os.dup(first.keepers_end.fileno()))
                if first is not None:
                    first.keepers_end.close()
                os.write(writer, b"!")
                told = attendance.run(connected, patience, waits_for_first=waits_for_first)
                return told + 2 * attendance.for_good

        self.child = process.spawn(main)
        theirs.close()
        os.close(writer)
        if first is not None:
            first.keepers_end.close()
        assert self.heard(1) == "!"

    def daemon(self) -> Daemon:
        made = Daemon()
        self.daemons.append(made)
        socket.send_fds(self.door, [b"x"], [made.keepers_end.fileno()])
        made.keepers_end.close()
        return made

    def heard(self, count: int) -> str:
        """The next that the keeper tells of connections."""
        heard = b""
        while len(heard) < count:
            assert select.select([self.reader], [], [], PATIENCE)[0]
            more = os.read(self.reader, count - len(heard))
            assert more
            heard += more
        return heard.decode()

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.close()
        self.door.close()
        self.child.end(PATIENCE)
        os.close(self.reader)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Path]:
    """A runtime directory, beneath which nothing may be left when the keepers have ended."""
    with keepers_runtime(tmp_path) as path:
        yield path


@pytest.fixture
def scene(runtime: Path) -> Iterator[Scene]:
    """Whose patience has no end."""
    made = Scene(runtime, None)
    yield made
    made.close()


@pytest.mark.parametrize("how", ["gone", "nonsense"])
def test_the_next_daemon_finds_what_the_last_one_left(scene: Scene, runtime: Path, how: str) -> None:
    first = scene.daemon()
    assert isinstance(first.ask(MOUNT), Mounted)
    assert first.ask(Note(id=2, tenant="acme", export="web", data=b"note")) == Done(id=2)
    if how == "nonsense":
        os.write(first.channel.fileno(), b"\xc1")
        assert first.hear() is None
    else:
        first.close()
    second = scene.daemon()
    held = second.ask(Fetch(id=3, index=0))
    assert isinstance(held, Held)
    assert (held.tenant, held.export, held.note) == ("acme", "web", b"note")
    assert mounts_beneath(runtime) == [runtime / "mnt/acme/web"]
    assert scene.heard(3) == "+-+"


def test_the_newest_daemon_is_the_one_that_is_served(scene: Scene) -> None:
    """A process of the last one may still have its connection open."""
    first = scene.daemon()
    assert isinstance(first.ask(MOUNT), Mounted)
    second, third = scene.daemon(), scene.daemon()
    assert isinstance(third.ask(Fetch(id=2, index=0)), Held)
    assert first.hear() is None
    assert second.hear() is None
    assert isinstance(third.ask(Fetch(id=3, index=0)), Held)


def test_one_that_does_not_read_is_replaced_too(scene: Scene) -> None:
    first = scene.daemon()
    poll = select.poll()
    poll.register(first.channel, select.POLLOUT)
    while poll.poll(200):
        with contextlib.suppress(BlockingIOError):
            first.channel.send(Sync(id=1, tenant=""))
    assert scene.daemon().ask(Sync(id=2, tenant="")) == Done(id=2)


def test_who_turns_out_to_be_nobody_changes_nothing(scene: Scene) -> None:
    first = scene.daemon()
    assert isinstance(first.ask(MOUNT), Mounted)
    scene.door.send(b"nobody")
    assert isinstance(first.ask(Fetch(id=2, index=0)), Held)
    first.close()
    scene.door.send(b"nobody")
    assert isinstance(scene.daemon().ask(Fetch(id=3, index=0)), Held)


def test_when_nobody_will_come_any_more_the_daemon_is_still_served(scene: Scene, runtime: Path) -> None:
    daemon = scene.daemon()
    assert isinstance(daemon.ask(MOUNT), Mounted)
    scene.door.close()
    assert isinstance(daemon.ask(Fetch(id=2, index=0)), Held)
    daemon.close()
    assert scene.child.wait(PATIENCE) == 0
    assert mounts_beneath(runtime) == []


def test_without_any_daemon_it_ends_when_nobody_will_come(scene: Scene) -> None:
    scene.door.close()
    assert scene.child.wait(PATIENCE) == 0


def test_patience_has_an_end(runtime: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scene = Scene(runtime, 0.05, waits_for_first=True)
    daemon = scene.daemon()
    assert isinstance(daemon.ask(MOUNT), Mounted)
    daemon.close()
    assert scene.child.wait(PATIENCE) == 0
    assert mounts_beneath(runtime) == []
    assert "no daemon has come: unmounting what the last one left, 1 in all" in capfd.readouterr().err
    scene.close()


def test_where_nothing_is_left_it_needs_none(runtime: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scene = Scene(runtime, PATIENCE * 100, waits_for_first=True)
    scene.daemon().close()
    assert scene.child.wait(PATIENCE) == 0
    assert capfd.readouterr().err == ""
    scene.close()


@pytest.mark.parametrize(
    ("signals", "status"), [((signal.SIGTERM,), 1), ((signal.SIGINT,), 1), ((signal.SIGUSR2, signal.SIGTERM), 3)]
)
@pytest.mark.parametrize("connected", [False, True])
def test_told_to_end_it_says_how(scene: Scene, signals: tuple[int, ...], status: int, connected: bool) -> None:
    if connected:
        assert isinstance(scene.daemon().ask(MOUNT), Mounted)
    for number in signals:
        scene.child.send_signal(number)
    assert scene.child.wait(PATIENCE) == status


def test_a_daemon_that_an_earlier_keeper_served_is_told(runtime: Path) -> None:
    first = Daemon()
    scene = Scene(runtime, PATIENCE, first=first)
    assert first.hear() == Resumed(id=0)
    assert isinstance(first.ask(MOUNT), Mounted)
    second = scene.daemon()
    assert isinstance(second.ask(Fetch(id=2, index=0)), Held)
    assert scene.heard(2) == "-+"
    scene.close()
