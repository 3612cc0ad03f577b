"""mountd_child.py: a real mount keeper with real mounts, beside a supervisor that the test plays."""

import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import mounts_beneath, need

from fuse_gated import mountd_child
from fuse_gated.edge import mounts, process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.keeping import ANSWERS, Done, Fetch, FromDaemon, FromKeeper, Held, Mount, Mounted, Resumed, Unmount
from fuse_gated.mountd_child import FROM_KEEPER, TO_KEEPER, Arrived, Drop, Keep, Supervisor

PATIENCE = 30.0


class Scene:
    """Keepers, one after the other, what they give to keep, and the daemon's end of the channel."""

    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime
        self.kept: dict[str, int] = {}
        self.link: Channel[Keep | Drop] | None = None
        self.children: list[process.Child] = []
        self.connect()

    def connect(self) -> None:
        """A new daemon's channel."""
        ours, self.keepers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.daemon = Channel(ours, ANSWERS)

    def start(self, *, connected: bool) -> process.Child:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def main() -> int:
            ours.close()
            self.daemon.close()
            return mountd_child.run(str(self.runtime), theirs, self.keepers_end if connected else None, self.kept)

        child = process.spawn(main)
        self.children.append(child)
        theirs.close()
        self.link = Channel(ours, FROM_KEEPER)
        return child

    def arrive(self) -> None:
        assert self.link is not None
        self.link.send(Arrived(), [self.keepers_end.fileno()])
        self.keepers_end.close()

    def settle(self) -> None:
        """Keep, and let go, what was asked for so far."""
        while self.link is not None and select.select([self.link], [], [], 0)[0]:
            received = self.link.receive()
            if received is None:
                self.link = None
                return
            message, fds = received
            if isinstance(message, Keep):
                self.kept[message.name] = fds[0]
            else:
                os.close(self.kept.pop(message.name))

    def ask(self, request: FromDaemon | None = None) -> FromKeeper:
        if request is not None:
            self.daemon.send(request)
        while True:
            watched: list[Any] = [self.daemon, *([self.link] if self.link is not None else [])]
            ready = select.select(watched, [], [], PATIENCE)[0]
            assert ready, "the mount keeper does not answer"
            if self.daemon in ready:
                received = self.daemon.receive()
                assert received is not None
                for fd in received[1]:
                    os.close(fd)
                return received[0]
            self.settle()

    def close(self) -> None:
        if self.link is not None:
            self.link.close()
        self.daemon.close()
        for child in self.children:
            child.end(PATIENCE)
        for descriptor in self.kept.values():
            os.close(descriptor)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    need("root", "fuse")
    made = Scene(tmp_path / "run")
    yield made
    made.close()
    left = mounts_beneath(tmp_path)
    for point in left:
        mounts.unmount(str(point))
    assert left == []


def mount(export: str = "web") -> Mount:
    return Mount(id=1, tenant="acme", export=export)


def test_a_keeper_that_is_killed_is_followed_by_one_that_goes_on(scene: Scene) -> None:
    first = scene.start(connected=False)
    scene.arrive()
    for export in ("a", "b"):
        assert isinstance(scene.ask(mount(export)), Mounted)
    assert scene.ask(Unmount(id=2, tenant="acme", export="a")) == Done(id=2)
    scene.settle()
    assert scene.kept.keys() == {"device 2", "state 2", "label-a 2"}
    first.send_signal(signal.SIGKILL)
    first.wait(PATIENCE)
    # Its end of the daemon's channel was given away above.
    scene.connect()
    scene.start(connected=True)
    assert scene.ask() == Resumed(id=0)
    held = scene.ask(Fetch(id=3, index=0))
    assert isinstance(held, Held)
    assert held.export == "b"


def test_it_outlives_its_daemons_whether_they_leave_anything_or_not(scene: Scene) -> None:
    keeper = scene.start(connected=False)
    for left in (False, True, True):
        scene.arrive()
        if left:
            scene.ask(mount())
        assert isinstance(scene.ask(Fetch(id=2, index=0)), Held if left else Done)
        scene.daemon.close()
        scene.connect()
    assert keeper.wait(0) is None


def test_it_waits_for_a_supervisor_that_has_no_time(scene: Scene) -> None:
    scene.start(connected=False)
    scene.arrive()
    for number in range(300):
        scene.daemon.send(mount(f"e{number}"))
    # The daemon is answered only as long as there is room for what is to be kept.
    for _ in range(300):
        assert isinstance(scene.ask(), Mounted)
    scene.settle()
    assert len(scene.kept) == 900


def test_where_the_supervisor_hears_no_more_it_serves_its_daemon_to_the_end(scene: Scene) -> None:
    keeper = scene.start(connected=False)
    scene.arrive()
    assert isinstance(scene.ask(mount("a")), Mounted)
    assert scene.link is not None
    scene.link.close()
    scene.link = None
    assert isinstance(scene.ask(mount("b")), Mounted)
    assert scene.ask(Unmount(id=2, tenant="acme", export="a")) == Done(id=2)
    scene.daemon.close()
    assert keeper.wait(PATIENCE) == 0
    assert mounts_beneath(scene.runtime) == []


def test_what_the_supervisor_did_not_say_is_its_end() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        store = Supervisor(theirs)
        assert store.accept() is None
        ours.send(b"\xc1")
        with pytest.raises(EOFError):
            store.accept()
        Channel(ours, TO_KEEPER).send(Arrived())
        with pytest.raises(EOFError):
            store.accept()
    with pytest.raises(EOFError):
        store.accept()
    theirs.close()
