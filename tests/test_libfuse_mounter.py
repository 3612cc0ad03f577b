"""libfuse_mounter.py: the daemon's side of libfuse's processes, with a loop of its own and real mounts."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness import need
from harness.leftovers import mounts_beneath, unmount
from harness.waiting import until

from fuse_gated import libfuse_host
from fuse_gated.edge import hosting, keeping, libfuse, mounts, process
from fuse_gated.edge.loop import Loop
from fuse_gated.errors import OperatorError
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.tenant import Identity, Tenant
from fuse_gated.gate.verdict import ALL, EXECUTE, READ, Rule
from fuse_gated.libfuse_mounter import LibfuseMounter
from fuse_gated.mounter import Found

DEADLINE = 30.0
OWN = Identity(owner_uid=os.geteuid(), owner_gid=os.getegid(), uids=(os.geteuid(),))
EVERYTHING = (Rule("/**", allow=ALL),)


def gate(identity: Identity = OWN, rules: tuple[Rule, ...] = EVERYTHING, **tenant: Any) -> Gate:
    return Gate(Tenant(name="acme", rules=rules, **tenant), identity)


class Daemon:
    """A loop and a mounter, and the answers that came."""

    def __init__(self, runtime: Path) -> None:
        self.mnt = runtime / "mnt"
        self.loop = Loop()
        self.mounter = LibfuseMounter(self.loop, str(runtime))
        self.answers: list[tuple[keeping.FromKeeper, list[int]]] = []

    def then(self, answer: keeping.FromKeeper, fds: list[int]) -> None:
        self.answers.append((answer, fds))

    def turn(self, condition: Callable[[], Any]) -> None:
        """Turn the loop until something holds."""
        late: list[bool] = []
        timer = self.loop.after(DEADLINE, lambda: late.append(True))
        while not condition():
            assert not late, "it never came"
            self.loop.turn()
        timer.cancel()

    def next(self) -> keeping.FromKeeper:
        """The next answer, whose descriptors are closed."""
        self.turn(lambda: self.answers)
        answer, fds = self.answers.pop(0)
        for fd in fds:
            os.close(fd)
        return answer

    def mount(self, export: str = "work", wanted: Gate | None = None) -> socket.socket:
        """Mounted; the worker's end."""
        self.mounter.mount(wanted or gate(), export, self.then)
        self.turn(lambda: self.answers)
        answer, fds = self.answers.pop(0)
        assert answer == keeping.Mounted(id=0, path=str(self.mnt / "acme" / export)), answer
        serving, state = fds
        assert os.fstat(state).st_size == keeping.STATE_SIZE
        os.close(state)
        worker = socket.socket(fileno=serving)
        assert isinstance(hosting.decode_request(worker.recv(1000)), hosting.Began)
        return worker

    def unmount(self, export: str = "work") -> keeping.FromKeeper:
        self.mounter.unmount("acme", export, self.then)
        return self.next()

    def child(self, export: str = "work") -> process.Child:
        """The process that serves the mount, or takes it away."""
        return self.mounter._hosted["acme", export].child

    @property
    def clean(self) -> bool:
        return mounts_beneath(self.mnt) == [] and os.listdir(self.mnt) == [] and not self.mounter._hosted


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Path]:
    need("fuse", "fusermount3", "fusermount")
    runtime = tmp_path.resolve() / "run"
    yield runtime
    for point in mounts_beneath(runtime):
        unmount(point)


@pytest.fixture
def daemon(runtime: Path) -> Iterator[Daemon]:
    daemon = Daemon(runtime)
    yield daemon
    for hosted in daemon.mounter._hosted.values():
        hosted.child.send_signal(signal.SIGKILL)
        hosted.child.wait()
        hosted.channel.close()
        hosted.worker_end.close()
    daemon.loop.close()


def test_mount_and_unmount(daemon: Daemon) -> None:
    assert daemon.mounter.alive
    with daemon.mount():
        assert mounts_beneath(daemon.mnt) == [daemon.mnt / "acme" / "work"]
        assert daemon.unmount() == keeping.Done(id=0)
    assert daemon.clean
    with daemon.mount():
        assert daemon.unmount() == keeping.Done(id=0)


def test_what_is_mounted_is_mounted_once(daemon: Daemon) -> None:
    with daemon.mount(), daemon.mount("other"):
        daemon.mounter.mount(gate(), "work", daemon.then)
        assert daemon.next() == keeping.Refused(id=0, reason="acme/work is mounted already")
        assert daemon.unmount() == keeping.Done(id=0)
        assert daemon.unmount("other") == keeping.Done(id=0)
    assert daemon.clean


def test_nothing_outlives_it(daemon: Daemon) -> None:
    with daemon.mount():
        daemon.mounter.note("acme", "work", b"note")
        found: list[list[Found]] = []
        daemon.mounter.fetch(found.append)
        assert found == [[]]
        assert daemon.unmount() == keeping.Done(id=0)


def test_without_memory_for_a_state(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("fuse_gated.libfuse_mounter.make_state", refuse)
    daemon.mounter.mount(gate(), "work", daemon.then)
    assert daemon.next() == keeping.Refused(id=0, reason="no memory for its state: Too many open files")
    assert daemon.clean


def test_what_is_not_mounted_is_unmounted_at_once(daemon: Daemon) -> None:
    assert daemon.unmount() == keeping.Done(id=0)


def test_the_directory_lets_others_pass_and_list_nothing(daemon: Daemon) -> None:
    assert daemon.mnt.stat().st_mode & 0o777 == 0o711


def test_a_reason_is_passed_on(daemon: Daemon) -> None:
    (daemon.mnt / "acme" / "work" / "precious").mkdir(parents=True)
    daemon.mounter.mount(gate(), "work", daemon.then)
    answer = daemon.next()
    assert isinstance(answer, keeping.Refused)
    assert "mountpoint is not empty" in answer.reason
    assert not daemon.mounter._hosted


def test_the_options_are_the_policys(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[libfuse_host.Order] = []
    monkeypatch.setattr(libfuse_host, "make_point", lambda order: orders.append(order))
    identity = Identity(owner_uid=1, owner_gid=2, uids=(1, 61001), gids=(62001,), anyone=True)
    wanted = gate(identity, (Rule("/**", allow=READ),), ownership="passthrough", symlinks="deny")
    assert daemon.mounter._order(wanted, "work").mount == keeping.Mount(
        id=0,
        tenant="acme",
        export="work",
        default_permissions=True,
        noexec=True,
        nosymfollow=True,
        uids=(1, 61001),
        gids=(62001,),
        anyone=True,
    )
    plain = daemon.mounter._order(gate(rules=(Rule("/**", allow=EXECUTE),)), "work").mount
    assert plain == keeping.Mount(id=0, tenant="acme", export="work", noexec=False, uids=OWN.uids)


@pytest.mark.parametrize(
    ("fields", "others"),
    [
        ({"uids": (os.geteuid(),)}, False),
        ({"uids": (61001,)}, True),
        ({"gids": (62001,)}, True),
        ({"anyone": True}, True),
        ({}, False),
    ],
)
@pytest.mark.parametrize("allowed", [True, False])
def test_others_enter_where_policy_and_machine_let_them(
    daemon: Daemon,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fields: dict[str, Any],
    others: bool,
    allowed: bool,
) -> None:
    monkeypatch.setattr(libfuse, "others_may_enter", lambda: allowed)
    order = daemon.mounter._order(gate(Identity(owner_uid=1, owner_gid=1, **fields)), "work")
    assert order.others is (others and allowed)
    told = capsys.readouterr().err
    assert ("acme/work: only we ourselves may enter, because /etc/fuse.conf lacks user_allow_other" in told) is (
        others and not allowed
    )


def test_a_warning_is_told(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    serve = libfuse.serve

    def complain(*arguments: Any) -> None:
        os.write(2, b"fusermount: do not do this\n")
        serve(*arguments)

    monkeypatch.setattr(libfuse, "serve", complain)
    with daemon.mount():
        assert f"fuse-gated-libfuse: {daemon.mnt}/acme/work: fusermount: do not do this" in capsys.readouterr().err
        daemon.unmount()


# By force.


def test_a_process_that_is_killed_leaves_nothing(daemon: Daemon) -> None:
    with daemon.mount():
        daemon.child().send_signal(signal.SIGKILL)
        daemon.turn(lambda: not daemon.mounter._hosted)
        assert daemon.clean
        assert daemon.answers == [], "nobody waits"
        assert daemon.unmount() == keeping.Done(id=0)


def test_unmounting_what_is_being_taken_away_waits_for_that(daemon: Daemon) -> None:
    with daemon.mount():
        serving = daemon.child()
        serving.send_signal(signal.SIGKILL)
        daemon.turn(lambda: daemon.child() is not serving)
        assert daemon.unmount() == keeping.Done(id=0)
        assert daemon.clean


def test_a_process_that_does_not_end_is_killed(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_gated.libfuse_mounter._UNMOUNT_PATIENCE", 0.05)
    with daemon.mount():
        os.kill(daemon.child().pid, signal.SIGSTOP)
        assert daemon.unmount() == keeping.Done(id=0)
        assert daemon.clean


def test_a_process_that_dies_while_it_mounts(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libfuse_host, "make_point", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    daemon.mounter.mount(gate(), "work", daemon.then)
    assert daemon.next() == keeping.Refused(id=0, reason="libfuse's process ended")
    assert daemon.clean


def test_a_process_that_never_mounts(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_gated.libfuse_mounter._MOUNT_PATIENCE", 0.05)
    monkeypatch.setattr(libfuse_host, "make_point", lambda _: signal.pause())
    daemon.mounter.mount(gate(), "work", daemon.then)
    assert daemon.next() == keeping.Refused(id=0, reason="libfuse's process ended")
    assert daemon.clean


def test_what_cannot_be_taken_away(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    with daemon.mount():
        monkeypatch.setattr(libfuse, "unmount", lambda _: "no")
        serving = daemon.child()
        serving.send_signal(signal.SIGKILL)
        daemon.turn(lambda: daemon.child() is not serving)
        assert daemon.unmount() == keeping.Refused(id=0, reason="it stays mounted")


def no_process(*_: Any, **__: Any) -> process.Child:
    raise OSError(11, "Resource temporarily unavailable")


def test_without_room_for_a_process(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    with daemon.mount():
        monkeypatch.setattr(process, "spawn", no_process)
        daemon.mounter.mount(gate(), "other", daemon.then)
        answer = daemon.next()
        assert answer == keeping.Refused(id=0, reason="libfuse's process cannot be started: Resource temporarily unavailable")
        daemon.mounter._hosted["acme", "work"].then = daemon.then
        daemon.child().send_signal(signal.SIGKILL)
        assert daemon.next() == keeping.Refused(id=0, reason="it stays mounted: Resource temporarily unavailable")


def speaking(*packets: bytes) -> Callable[..., int]:
    """In the place of libfuse_host.run: says these, and stays."""

    def run(channel: socket.socket, _requests: socket.socket, _order: libfuse_host.Order, _daemon: int) -> int:
        for packet in packets:
            channel.send(packet)
        signal.pause()
        return 0

    return run


def test_a_process_that_says_nonsense(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libfuse_host, "run", speaking(b"\xc1"))
    monkeypatch.setattr("fuse_gated.libfuse_mounter._MOUNT_PATIENCE", 0.2)
    daemon.mounter.mount(gate(), "work", daemon.then)
    assert daemon.next() == keeping.Refused(id=0, reason="libfuse's process ended")


def test_a_process_whose_channel_another_still_has(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was forked at the same time, and has not closed it yet."""
    kept: list[socket.socket] = []
    real = socket.socketpair

    def pair(*arguments: Any) -> tuple[socket.socket, socket.socket]:
        ours, theirs = real(*arguments)
        kept.append(theirs.dup())
        return ours, theirs

    monkeypatch.setattr(libfuse_host, "run", lambda *_: 0)
    monkeypatch.setattr(socket, "socketpair", pair)
    daemon.mounter.mount(gate(), "work", daemon.then)
    assert daemon.next() == keeping.Refused(id=0, reason="libfuse's process ended")
    for end in kept:
        end.close()


def test_a_process_that_mounts_twice(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the one it was: it is ended."""
    mounted = msgspec.msgpack.encode(hosting.Mounted("/somewhere"))
    monkeypatch.setattr(libfuse_host, "run", speaking(mounted, mounted))
    daemon.mounter.mount(gate(), "work", daemon.then)
    assert daemon.next() == keeping.Mounted(id=0, path="/somewhere")
    daemon.turn(lambda: not daemon.mounter._hosted)


# The policy.


def test_a_new_policy_changes_who_may_enter(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(libfuse, "others_may_enter", lambda: True)
    anyone = Identity(owner_uid=1, owner_gid=1, anyone=True)
    with daemon.mount(wanted=gate(anyone)):
        assert (daemon.mnt / "acme").stat().st_mode & 0o777 == 0o755
        daemon.mounter.apply(gate(anyone), ["work", "never"])
        assert capsys.readouterr().err == ""
        daemon.mounter.apply(gate(OWN), ["work"])
        assert (daemon.mnt / "acme").stat().st_mode & 0o777 == 0o700
        assert "acme/work: noexec and who may enter change when it is mounted anew" in capsys.readouterr().err
        daemon.mounter.apply(gate(anyone, (Rule("/**", allow=READ),)), ["work"])
        assert "when it is mounted anew" in capsys.readouterr().err
        daemon.unmount()


def test_a_new_policy_that_cannot_be_carried_out_is_told(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: Any) -> None:
        raise OperatorError("ACLs cannot be set")

    with daemon.mount():
        monkeypatch.setattr(libfuse_host, "set_entry", refuse)
        daemon.mounter.apply(gate(), ["work"])
        assert f"{daemon.mnt}/acme: ACLs cannot be set" in capsys.readouterr().err
        daemon.unmount()


# The start.


def test_what_was_left_behind_goes(runtime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("root")
    point = runtime / "mnt" / "acme" / "work"
    point.mkdir(parents=True)
    directory = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    os.close(mounts.mount_fuse(directory, source="test"))
    os.close(directory)
    daemon = Daemon(runtime)
    assert daemon.clean
    assert f"unmounted {point}, which was left behind" in capsys.readouterr().err
    daemon.loop.close()


def test_a_directory_that_is_not_ours(runtime: Path) -> None:
    runtime.mkdir()
    (runtime / "mnt").symlink_to("/tmp")
    with pytest.raises(OperatorError, match=f"runtime directory not ours: {runtime}/mnt: it is a symbolic link"):
        LibfuseMounter(Loop(), str(runtime))


def test_a_machine_that_cannot_mount(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libfuse, "DEVICE", "/nowhere")
    with pytest.raises(OperatorError, match="there is no /nowhere"):
        LibfuseMounter(Loop(), str(runtime))


def test_its_process_ends_with_the_daemon(runtime: Path) -> None:
    """However that ends: the kernel sees to it."""

    def be_daemon() -> int:
        daemon = Daemon(runtime)
        daemon.mounter.mount(gate(), "work", daemon.then)
        daemon.turn(lambda: daemon.answers)
        os.write(writing, b"x")
        signal.pause()
        return 0

    reading, writing = os.pipe()
    child = process.spawn(be_daemon)
    assert os.read(reading, 1) == b"x"
    assert mounts_beneath(runtime) == [runtime / "mnt" / "acme" / "work"]
    child.send_signal(signal.SIGKILL)
    child.wait()
    until(lambda: not mounts_beneath(runtime) and not os.listdir(runtime / "mnt"), "nothing is left", DEADLINE)
    os.close(reading)
    os.close(writing)
