"""libfuse_host.py: the process with libfuse, with a test in the places of daemon and worker, and real mounts.

The test's own process never touches the mount: it is the one that serves it.
"""

import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ALICE, need
from harness.hostile import Child
from harness.leftovers import mounts_beneath, unmount

from fuse_gated import libfuse_host
from fuse_gated import operations as op
from fuse_gated.edge import hosting, libfuse, mounts, process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.keeping import Mount
from fuse_gated.errors import OperatorError
from fuse_gated.libfuse_host import Order
from fuse_gated.operations import Attributes

DEADLINE = 30.0
SILENCE = object()
ROOT = Attributes(7, 1, 0o040755, 2, 0, 0, 0, 0, 0, 4096, 1, 2, 3)
FILE = Attributes(7, 5, 0o100644, 1, 0, 0, 0, 5, 8, 4096, 1, 2, 3)


def tree(request: op.Request) -> op.Answer | object:
    """A root with one file, f."""
    match request:
        case op.Getattr(handle=handle):
            return op.Attr(ROOT if handle is None else FILE)
        case op.Lookup(name=b"f"):
            return op.Entry(1, FILE)
        case op.Open():
            return op.Opened(5)
        case op.Read():
            return op.Data(b"hello"[request.offset : request.offset + request.size])
        case op.Flush() | op.Release() | op.Access():
            return op.Done()
    return op.Failed(2)


class Scene:
    """A host, and the ends of its sockets."""

    def __init__(self, order: Order, main: Callable[..., int] = libfuse_host.run) -> None:
        self.order = order
        self.point = Path(order.point)
        self.daemon, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.worker, host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.asked: list[op.Request] = []
        self.waiting: list[int] = []
        own_pid = os.getpid()
        with theirs, host:
            self.child = process.spawn(lambda: main(theirs, host, order, own_pid), ignored=(signal.SIGINT, signal.SIGHUP))
        self.channel = Channel(self.daemon, hosting.TO_DAEMON, max_fds=0)

    def told(self) -> Any:
        """What the daemon is told; None at the end of the channel."""
        assert select.select([self.channel], [], [], DEADLINE)[0], "it says nothing"
        received = self.channel.receive()
        return received[0] if received is not None else None

    def mounted(self) -> None:
        assert self.told() == hosting.Mounted(str(self.point))
        assert isinstance(hosting.decode_request(self.worker.recv(1000)), hosting.Began)

    def during(self, function: Callable[..., Any], *arguments: Any, answer: Callable[[op.Request], Any] = tree) -> Any:
        """What `function` returns in a child while requests are answered."""
        with Child(function, *arguments) as child:
            self.serve(child, answer)
            return child.result()

    def serve(self, child: Child, answer: Callable[[op.Request], Any], until: type[op.Request] | None = None) -> None:
        """Answer until the child ends, or the host, or until it asks for `until`."""
        while True:
            ready = select.select([self.worker, child], [], [], DEADLINE)[0]
            assert ready, f"nothing happens any more; asked: {self.asked}"
            if self.worker in ready:
                packet = self.worker.recv(hosting.MAX_PACKET)
                if not packet:
                    return
                message = hosting.decode_request(packet)
                assert isinstance(message, tuple)
                self.asked.append(message[2])
                found = answer(message[2])
                if found is SILENCE:
                    self.waiting.append(message[0])
                else:
                    self.worker.send(hosting.encode_answer(message[0], found))
                if type(message[2]) is until:
                    return
            elif child in ready:
                return

    def let_end(self, child: Child) -> None:
        """Answer what was kept waiting, and what comes of it: without an answer not even SIGKILL ends a program."""
        for unique in self.waiting:
            self.worker.send(hosting.encode_answer(unique, op.Failed(5)))
        self.serve(child, tree)

    def ended(self) -> int | None:
        return self.child.wait(DEADLINE)

    def close(self) -> None:
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()
        self.channel.close()
        self.worker.close()


@pytest.fixture
def mnt(tmp_path: Path) -> Iterator[Path]:
    need("fuse", "fusermount3", "fusermount")
    libfuse.library()
    directory = tmp_path.resolve() / "mnt"
    directory.mkdir()
    yield directory
    for point in mounts_beneath(directory):
        unmount(point)


def order(mnt: Path, others: bool = False, **mount: Any) -> Order:
    return Order(str(mnt), Mount(id=0, tenant="acme", export="work", **mount), others)


@pytest.fixture
def scene(mnt: Path) -> Iterator[Scene]:
    scene = Scene(order(mnt))
    yield scene
    scene.close()


def read_f(point: Path) -> bytes:
    return (point / "f").read_bytes()


def nothing_is_left(mnt: Path) -> bool:
    return mounts_beneath(mnt) == [] and os.listdir(mnt) == []


def test_what_is_asked_is_the_workers_answer(scene: Scene) -> None:
    scene.mounted()
    assert scene.during(read_f, scene.point) == b"hello"
    assert op.Lookup(b"", b"f") in scene.asked
    assert any(isinstance(request, op.Read) and request.handle == 5 for request in scene.asked)
    with pytest.raises(FileNotFoundError):
        scene.during(os.stat, scene.point / "g")


def test_several_programs_are_served_at_once(scene: Scene) -> None:
    """One that waits holds nobody up."""
    scene.mounted()
    with Child(read_f, scene.point) as waiting:
        scene.serve(waiting, lambda request: SILENCE if isinstance(request, op.Read) else tree(request), until=op.Read)
        assert scene.during(os.stat, scene.point / "f").st_size == 5
        scene.let_end(waiting)


@pytest.mark.parametrize("end", ["SIGTERM", "the worker", "the daemon", "by hand"])
def test_it_ends_and_nothing_is_left(scene: Scene, mnt: Path, end: str) -> None:
    scene.mounted()
    with Child(read_f, scene.point) as waiting:
        scene.serve(waiting, lambda request: SILENCE if isinstance(request, op.Read) else tree(request), until=op.Read)
        if end == "SIGTERM":
            scene.child.send_signal(signal.SIGTERM)
        elif end == "the worker":
            scene.worker.shutdown(socket.SHUT_RDWR)  # The program that waits has a copy of it.
        elif end == "the daemon":
            scene.daemon.shutdown(socket.SHUT_RDWR)
        else:
            assert libfuse.unmount(str(scene.point)) == ""
            scene.let_end(waiting)
        assert scene.ended() == 0
        assert waiting.wait(DEADLINE)
        if end != "by hand":
            with pytest.raises(OSError, match=r"not connected|connection abort"):
                waiting.result()
    assert nothing_is_left(mnt)


def test_a_signal_for_a_terminals_programs_is_not_for_it(scene: Scene) -> None:
    scene.mounted()
    scene.child.send_signal(signal.SIGINT)
    scene.child.send_signal(signal.SIGHUP)
    assert scene.during(read_f, scene.point) == b"hello"


def test_an_interrupt_reaches_the_worker(scene: Scene) -> None:
    scene.mounted()
    with Child(read_f, scene.point) as waiting:
        scene.serve(waiting, lambda request: SILENCE if isinstance(request, op.Open) else tree(request), until=op.Open)
        waiting.send(signal.SIGINT)
        scene.serve(waiting, lambda _: SILENCE, until=op.Interrupt)
        scene.let_end(waiting)
    interrupt = scene.asked[-1]
    assert isinstance(interrupt, op.Interrupt)
    assert interrupt.unique > 0


def test_when_the_daemon_was_gone_before_it_began(mnt: Path) -> None:
    """It is told by a signal, and still takes away what it has mounted."""
    scene = Scene(order(mnt), lambda channel, requests, order, _daemon: libfuse_host.run(channel, requests, order, 1))
    assert scene.ended() == 0
    assert nothing_is_left(mnt)
    scene.close()


# The mount.


@pytest.mark.parametrize(
    ("mount", "expected"),
    [({}, {"noexec"}), ({"noexec": False}, set()), ({"default_permissions": True}, {"noexec", "default_permissions"})],
)
def test_options(mnt: Path, mount: dict[str, Any], expected: set[str]) -> None:
    scene = Scene(order(mnt, **mount))
    try:
        scene.mounted()
        line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {scene.point} " in line)
        before, after = line.split(" - ")
        kind, source, superblock = after.split()
        found = {*before.split()[5].split(","), *superblock.split(",")}
        assert (kind, source) == ("fuse.fuse-gated", "acme:work")
        assert found & {"nosuid", "nodev", "noexec", "default_permissions", "allow_other"} == {"nosuid", "nodev", *expected}
    finally:
        scene.close()


def test_others_are_let_in_where_they_may(mnt: Path) -> None:
    need("root")
    for directory in (mnt, *mnt.parents[:-1]):
        if not directory.stat().st_mode & 1:
            directory.chmod(0o755)
    scene = Scene(order(mnt, others=True, anyone=True))
    try:
        scene.mounted()
        assert scene.during(ALICE.call, read_f, scene.point) == b"hello"
    finally:
        scene.close()


def test_what_is_in_the_way_is_told(mnt: Path) -> None:
    """In libfuse's own words, and nothing is taken away."""
    precious = mnt / "acme" / "work" / "precious"
    precious.parent.mkdir(parents=True)
    precious.touch()
    scene = Scene(order(mnt))
    told = scene.told()
    assert isinstance(told, hosting.Failed)
    assert "mountpoint is not empty" in told.reason
    assert scene.ended() == 0
    assert precious.exists()
    scene.close()


def test_a_mount_point_that_cannot_be_made(mnt: Path) -> None:
    (mnt / "acme").touch()
    scene = Scene(order(mnt))
    assert scene.told() == hosting.Failed(f"{mnt}/acme/work: Not a directory")
    assert scene.ended() == 0
    scene.close()


def test_others_who_cannot_be_let_in(mnt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OperatorError("ACLs cannot be set", "install python3-pylibacl")

    monkeypatch.setattr(mounts, "set_entry", refuse)
    scene = Scene(order(mnt, others=True, uids=(61001,)))
    assert scene.told() == hosting.Failed("ACLs cannot be set (install python3-pylibacl)")
    assert scene.ended() == 0
    scene.close()


def test_a_fusermount_that_hangs(mnt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon is told, and not left waiting."""
    monkeypatch.setattr(libfuse_host, "_MOUNTING", 0.1)
    monkeypatch.setattr(libfuse, "serve", lambda *_: threading.Event().wait())
    scene = Scene(order(mnt))
    assert scene.told() == hosting.Failed("libfuse does not say why")
    assert scene.ended() == 0
    scene.close()


def test_a_mount_that_is_not_to_be_seen(mnt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that was made in another namespace."""
    monkeypatch.setattr(libfuse, "serve", lambda operations, *_: operations.init(1))
    scene = Scene(order(mnt))
    assert scene.told() == hosting.Failed("libfuse does not say why")
    assert scene.ended() == 0
    scene.close()


def test_a_daemon_that_does_not_hear(mnt: Path) -> None:
    scene = Scene(order(mnt))
    scene.channel.close()
    assert scene.ended() == 0
    assert nothing_is_left(mnt)
    scene.close()


def test_a_worker_that_is_gone_before_it_is_mounted(mnt: Path) -> None:
    scene = Scene(order(mnt))
    scene.worker.close()
    assert scene.ended() == 0
    assert nothing_is_left(mnt)
    scene.close()


# The mount point.


def test_the_tenants_directory_is_made_again_if_another_takes_it_away(mnt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = os.mkdir
    removals = [2]

    def mkdir(path: str, mode: int) -> None:
        if path.endswith("work") and removals[0]:
            removals[0] -= 1
            os.rmdir(os.path.dirname(path))
        made(path, mode)

    monkeypatch.setattr(os, "mkdir", mkdir)
    libfuse_host.make_point(order(mnt))
    assert (mnt / "acme" / "work").is_dir()
    assert [(mnt / name).stat().st_mode & 0o777 for name in ("acme", "acme/work")] == [0o700, 0o700]
    libfuse_host.make_point(order(mnt))
    (mnt / "acme" / "work").rmdir()
    removals[0] = 1000
    with pytest.raises(FileNotFoundError, match="vanishes each time"):
        libfuse_host.make_point(order(mnt))


@pytest.mark.parametrize(
    ("others", "fields", "mode"),
    [
        (False, {"uids": (61001,), "anyone": True}, 0o700),
        (True, {"anyone": True}, 0o755),
        (True, {"uids": (61001,), "gids": (62001,)}, 0o750),
    ],
)
def test_who_may_enter(mnt: Path, others: bool, fields: dict[str, Any], mode: int) -> None:
    libfuse_host.make_point(order(mnt, others, **fields))
    assert (mnt / "acme").stat().st_mode & 0o777 == mode


# What a process that was killed has left.


def test_a_dead_mount_is_cleaned_up(scene: Scene, mnt: Path) -> None:
    scene.mounted()
    scene.child.send_signal(signal.SIGKILL)
    assert scene.ended() == -signal.SIGKILL
    assert mounts_beneath(mnt) == [scene.point]
    assert process.spawn(lambda: libfuse_host.clean_up(scene.order)).wait(DEADLINE) == 0
    assert nothing_is_left(mnt)


def test_what_cannot_be_cleaned_up_is_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    scene.mounted()
    monkeypatch.setattr(libfuse, "unmount", lambda _: "no")

    def clean_up() -> int:
        sys.stderr = os.fdopen(2, "w")  # pytest's own has a descriptor that is closed there
        return libfuse_host.clean_up(scene.order)

    assert process.spawn(clean_up).wait(DEADLINE) == 1
    assert f"fuse-gated-libfuse: {scene.point} stays mounted: no" in capfd.readouterr().err
