"""mountd_unit.py: a real mount keeper with real mounts, started as systemd starts it; the test keeps what systemd would keep."""

import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import mounts_beneath, outcome
from harness.mounting import keepers_runtime
from harness.mounting import mount as mount_any

from fuse_gated import mountd_unit
from fuse_gated.edge import mounts, process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.keeping import (
    ANSWERS,
    Done,
    Fetch,
    FromDaemon,
    FromKeeper,
    Held,
    Mount,
    Mounted,
    Note,
    Refused,
    Remount,
    Resumed,
    Sync,
    Unmount,
)
from fuse_gated.edge.systemd import Manager
from fuse_gated.errors import OperatorError, UsageError

PATIENCE = 30.0
KINDS = ("device", "state", "label-a")
"""What is kept of each mount."""


class Systemd:
    """Listens, starts keepers, hears what they tell, and keeps what they give it to keep."""

    def __init__(self, runtime: Path, monkeypatch: pytest.MonkeyPatch, *, stores: bool) -> None:
        self.runtime = runtime
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # An address that the kernel chooses, and anybody reaches (unix(7)).
        self.listener.bind("")
        self.listener.listen()
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(runtime.parent / "notify"))
        self.notified.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(runtime.parent / "notify"))
        monkeypatch.setenv("FDSTORE", "16" if stores else "0")
        self.kept: dict[str, int] = {}
        self.unheard: list[str] = []
        self.daemons: list[Daemon] = []
        self.keepers: list[process.Child] = []

    def start(self, patience: float = PATIENCE) -> process.Child:
        passed = [("mountd", self.listener.fileno()), *self.kept.items()]

        def main() -> int:
            # Inherited only because the test is all of them at once; it would keep the connection open.
            for daemon in self.daemons:
                daemon.channel.close()
            return mountd_unit.run(passed, str(self.runtime), Manager(), patience)

        child = process.spawn(main, program="fuse-gated-mountd")
        self.keepers.append(child)
        assert self.hear("READY") == "READY=1"
        return child

    def hear(self, beginning: str) -> str:
        """The next that begins so. What is to be kept or let go on the way there, is."""
        while True:
            heard = self.unheard.pop(0) if self.unheard else self._take()
            if heard.startswith(beginning):
                return heard

    def settle(self) -> None:
        """Keep, and let go, what was asked for so far."""
        while select.select([self.notified], [], [], 0)[0]:
            self.unheard.append(self._take())

    def _take(self) -> str:
        message, fds, _, _ = socket.recv_fds(self.notified, 4096, 1)
        heard = message.decode()
        name = heard.partition("FDNAME=")[2].partition("\n")[0]
        if heard.startswith("FDSTORE=1"):
            assert "FDPOLL=" + str(int(name == "daemon")) in heard
            self.kept[name] = fds[0]
        elif heard.startswith("FDSTOREREMOVE=1"):
            self._let_go(name)
        return heard

    def _let_go(self, name: str) -> None:
        descriptor = self.kept.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)

    def connect(self) -> "Daemon":
        self.daemons.append(Daemon(self))
        return self.daemons[-1]

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.channel.close()
        for keeper in self.keepers:
            keeper.send_signal(signal.SIGUSR2)
            keeper.send_signal(signal.SIGTERM)
            while keeper.wait(0.01) is None:
                self.settle()
        for name in list(self.kept):
            self._let_go(name)
        self.listener.close()
        self.notified.close()


class Daemon:
    """The other end."""

    def __init__(self, systemd: Systemd) -> None:
        self.systemd = systemd
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(systemd.listener.getsockname())
        self.channel = Channel(sock, ANSWERS)

    def hear(self) -> FromKeeper | None:
        while True:
            both: list[Any] = [self.channel, self.systemd.notified]
            ready = select.select(both, [], [], PATIENCE)[0]
            assert ready, "the mount keeper does not answer"
            if self.channel in ready:
                break
            # The keeper waits where it has told more than fits.
            self.systemd.settle()
        received = self.channel.receive()
        if received is None:
            return None
        for fd in received[1]:
            os.close(fd)
        return received[0]

    def ask(self, request: FromDaemon) -> FromKeeper | None:
        self.channel.send(request)
        return self.hear()


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Path]:
    """A runtime directory, beneath which nothing may be left when the keepers have ended."""
    with keepers_runtime(tmp_path) as path:
        yield path


@pytest.fixture
def systemd(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    made = Systemd(runtime, monkeypatch, stores=True)
    yield made
    made.close()


@pytest.fixture
def forgetful(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    """Keeps nothing (FileDescriptorStoreMax=0)."""
    made = Systemd(runtime, monkeypatch, stores=False)
    yield made
    made.close()


def mount(export: str = "web", tenant: str = "acme", **fields: Any) -> Mount:
    return Mount(id=7, tenant=tenant, export=export, **fields)


def test_it_serves_the_daemon_that_connects_and_ends_with_it(systemd: Systemd, runtime: Path) -> None:
    keeper = systemd.start()
    assert systemd.hear("STATUS") == "STATUS=waiting for the daemon"
    daemon = systemd.connect()
    assert daemon.ask(mount()) == Mounted(id=7, path=f"{runtime}/mnt/acme/web")
    assert systemd.hear("STATUS") == "STATUS=serving the daemon"
    assert mounts_beneath(runtime) == [runtime / "mnt/acme/web"]
    assert daemon.ask(Unmount(id=8, tenant="acme", export="web")) == Done(id=8)
    daemon.channel.close()
    assert keeper.wait(PATIENCE) == 0
    assert mounts_beneath(runtime) == []
    systemd.settle()
    assert systemd.kept == {}


def test_what_is_unmounted_is_kept_no_longer(systemd: Systemd) -> None:
    systemd.start()
    daemon = systemd.connect()
    daemon.ask(mount("a"))
    daemon.ask(mount("b", nosymfollow=True))
    systemd.settle()
    assert systemd.kept.keys() == {"daemon", *(f"{kind} {number}" for kind in KINDS for number in (1, 2))}
    for export in ("a", "b"):
        assert daemon.ask(Unmount(id=8, tenant="acme", export=export)) == Done(id=8)
    systemd.settle()
    assert systemd.kept.keys() == {"daemon"}


def test_what_a_note_says_is_kept_with_its_mount(systemd: Systemd) -> None:
    keeper = systemd.start()
    daemon = systemd.connect()
    daemon.ask(mount("a"))
    daemon.ask(mount("b", nosymfollow=True))
    for note in (b"old", b"new"):
        assert daemon.ask(Note(id=8, tenant="acme", export="b", data=note)) == Done(id=8)
    systemd.settle()
    assert len(systemd.kept) == 7
    keeper.send_signal(signal.SIGKILL)
    keeper.wait(PATIENCE)
    systemd.start()
    assert daemon.hear() == Resumed(id=0)
    for index, (export, note) in enumerate((("a", b""), ("b", b"new"))):
        held = daemon.ask(Fetch(id=9, index=index))
        assert isinstance(held, Held)
        assert (held.export, held.note, held.nosymfollow) == (export, note, export == "b")
    assert daemon.ask(Fetch(id=10, index=2)) == Done(id=10)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_one_goes_on_where_it_was(systemd: Systemd, runtime: Path, number: int) -> None:
    keeper = systemd.start()
    daemon = systemd.connect()
    daemon.ask(mount("a"))
    daemon.ask(mount("b", nosymfollow=True))
    keeper.send_signal(number)
    assert keeper.wait(PATIENCE) == (0 if number == signal.SIGTERM else -number)
    systemd.settle()
    here = [runtime / "mnt/acme/a", runtime / "mnt/acme/b"]
    assert mounts_beneath(runtime) == here
    # What is asked meanwhile waits.
    daemon.channel.send(Sync(id=9, tenant=""))
    systemd.start()
    assert daemon.hear() == Resumed(id=0)
    assert daemon.hear() == Done(id=9)
    assert mounts_beneath(runtime) == here
    assert isinstance(daemon.ask(mount("a")), Refused)
    assert daemon.ask(Remount(id=10, tenant="acme", export="b", noexec=False)) == Done(id=10)
    assert "nosymfollow" in _options(runtime / "mnt/acme/b")
    assert isinstance(daemon.ask(mount("c")), Mounted)
    for export in "abc":
        assert daemon.ask(Unmount(id=11, tenant="acme", export=export)) == Done(id=11)
    assert list((runtime / "mnt").iterdir()) == []


def _options(path: Path) -> str:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return next(line for line in lines if line.split()[4] == str(path))


@pytest.mark.parametrize("seen", [False, True], ids=["by nobody", "by systemd"])
def test_a_daemon_that_ended_while_there_was_no_keeper(systemd: Systemd, runtime: Path, seen: bool) -> None:
    """systemd lets the connection go once it sees it (FDPOLL=1). Either way the mounts are kept for the next daemon."""
    keeper = systemd.start()
    daemon = systemd.connect()
    daemon.ask(mount())
    keeper.send_signal(signal.SIGKILL)
    keeper.wait(PATIENCE)
    systemd.settle()
    daemon.channel.close()
    if seen:
        os.close(systemd.kept.pop("daemon"))
    systemd.start()
    second = systemd.connect()
    held = second.ask(Fetch(id=1, index=0))
    assert isinstance(held, Held)
    assert held.path == f"{runtime}/mnt/acme/web"
    systemd.settle()
    assert systemd.kept.keys() == {"daemon", *(f"{kind} 1" for kind in KINDS)}


def test_where_no_daemon_comes_the_next_keeper_unmounts(systemd: Systemd, runtime: Path) -> None:
    keeper = systemd.start()
    daemon = systemd.connect()
    daemon.ask(mount())
    keeper.end(PATIENCE)
    systemd.settle()
    daemon.channel.close()
    os.close(systemd.kept.pop("daemon"))
    assert systemd.start(0.05).wait(PATIENCE) == 0
    assert mounts_beneath(runtime) == []
    systemd.settle()
    assert systemd.kept == {}


def test_the_next_daemon_connects_to_the_same_keeper(systemd: Systemd, runtime: Path) -> None:
    keeper = systemd.start()
    first = systemd.connect()
    first.ask(mount())
    first.channel.close()
    second = systemd.connect()
    assert isinstance(second.ask(Fetch(id=1, index=0)), Held)
    systemd.settle()
    assert len(systemd.kept) == 4
    assert second.ask(Unmount(id=2, tenant="acme", export="web")) == Done(id=2)
    second.channel.close()
    assert keeper.wait(PATIENCE) == 0
    systemd.settle()
    assert systemd.kept == {}


def test_while_it_waits_for_a_daemon_it_can_be_restarted(systemd: Systemd, runtime: Path) -> None:
    keeper = systemd.start()
    first = systemd.connect()
    first.ask(mount())
    first.channel.close()
    systemd.hear("FDSTOREREMOVE=1\nFDNAME=daemon")
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait(PATIENCE) == 0
    systemd.start()
    assert isinstance(systemd.connect().ask(Fetch(id=1, index=0)), Held)


def test_stopped_for_good_it_unmounts(systemd: Systemd, runtime: Path) -> None:
    keeper = systemd.start()
    daemon = systemd.connect()
    daemon.ask(mount())
    for number in (signal.SIGUSR2, signal.SIGTERM):
        keeper.send_signal(number)
    assert keeper.wait(PATIENCE) == 0
    assert mounts_beneath(runtime) == []
    systemd.settle()
    assert systemd.kept == {}


def test_what_comes_while_it_ends_by_itself_is_no_fault(systemd: Systemd) -> None:
    """Told that there will be no other, it is ending already, because its daemon was told the same and has left nothing."""

    def main() -> int:
        mountd_unit.run([("mountd", systemd.listener.fileno())], str(systemd.runtime), Manager())
        signal.raise_signal(signal.SIGUSR2)
        return 0

    daemon = systemd.connect()
    keeper = process.spawn(main)
    assert daemon.ask(Sync(id=1, tenant="")) == Done(id=1)
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait(PATIENCE) == 0


def test_what_is_kept_and_what_is_mounted_need_not_agree(systemd: Systemd, runtime: Path) -> None:
    """What is kept of a mount that was taken away by hand is let go; a mount of which not all was kept, and one of another kind,
    are cleared; and so is what a keeper of an earlier version kept, which knew of no state."""
    keeper = systemd.start()
    daemon = systemd.connect()
    for export in ("a", "b", "c", "d", "e"):
        daemon.ask(mount(export))
    keeper.send_signal(signal.SIGKILL)
    keeper.wait(PATIENCE)
    systemd.settle()
    assert mounts.unmount(f"{runtime}/mnt/acme/a")
    os.close(systemd.kept.pop("device 2"))
    assert mounts.unmount(f"{runtime}/mnt/acme/c")
    mount_any("tmpfs", runtime / "mnt/acme/c", "tmpfs", 0)
    os.close(systemd.kept.pop("state 4"))
    os.close(systemd.kept.pop("label-a 4"))
    systemd.kept["acme/d nosymfollow"] = systemd.kept.pop("device 4")
    systemd.kept["../etc/x"] = os.dup(systemd.kept["device 1"])
    systemd.start()
    assert daemon.hear() == Resumed(id=0)
    assert mounts_beneath(runtime) == [runtime / "mnt/acme/e"]
    systemd.settle()
    assert systemd.kept.keys() == {"daemon", *(f"{kind} 5" for kind in KINDS)}
    assert isinstance(daemon.ask(mount("a")), Mounted)


def test_what_is_no_use_is_closed_after_its_mount_is_gone(systemd: Systemd, runtime: Path) -> None:
    """Nobody ever sees a mount whose device nobody has: who waits is told of the unmounting (ECONNABORTED), not ENOTCONN."""
    keeper = systemd.start()
    daemon = systemd.connect()
    daemon.ask(mount())
    keeper.send_signal(signal.SIGKILL)
    keeper.wait(PATIENCE)
    systemd.settle()
    os.close(systemd.kept.pop("state 1"))
    caller = process.spawn(lambda: outcome(os.stat, runtime / "mnt/acme/web/file") != "ENOTCONN")
    assert caller.wait(0.05) is None
    systemd.start()
    assert caller.wait(PATIENCE) == 0


@pytest.mark.parametrize("connected", [False, True])
def test_where_nothing_is_kept_it_ends_in_order(forgetful: Systemd, runtime: Path, connected: bool) -> None:
    keeper = forgetful.start()
    keeper.send_signal(signal.SIGHUP)
    daemon = forgetful.connect() if connected else None
    if daemon is not None:
        assert isinstance(daemon.ask(mount()), Mounted)
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait(PATIENCE) == 0
    assert mounts_beneath(runtime) == []
    if daemon is not None:
        assert daemon.hear() is None
    assert forgetful.kept == {}


def test_where_nothing_is_kept_the_next_one_cleans_up_before_it_is_ready(forgetful: Systemd, runtime: Path) -> None:
    keeper = forgetful.start()
    assert isinstance(forgetful.connect().ask(mount()), Mounted)
    keeper.send_signal(signal.SIGKILL)
    keeper.wait(PATIENCE)
    assert mounts_beneath(runtime) != []
    forgetful.start()
    assert mounts_beneath(runtime) == []


def test_what_is_no_message_ends_the_connection_and_nothing_else(systemd: Systemd, runtime: Path) -> None:
    systemd.start()
    daemon = systemd.connect()
    daemon.ask(mount())
    os.write(daemon.channel.fileno(), b"\xc1")
    assert daemon.hear() is None
    assert isinstance(systemd.connect().ask(Fetch(id=1, index=0)), Held)
    assert mounts_beneath(runtime) == [runtime / "mnt/acme/web"]


def test_only_root_is_served(runtime: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Where somebody has opened the socket to others."""
    systemd = Systemd(runtime, monkeypatch, stores=True)
    keeper = systemd.start()

    def stranger() -> int:
        process.drop_to(4711, 4711, [])
        return 0 if Daemon(systemd).hear() is None else 1

    assert process.spawn(stranger).wait(PATIENCE) == 0
    daemon = systemd.connect()
    assert isinstance(daemon.ask(mount()), Mounted)
    assert process.spawn(stranger).wait(PATIENCE) == 0
    assert daemon.ask(Unmount(id=8, tenant="acme", export="web")) == Done(id=8)
    daemon.channel.close()
    assert keeper.wait(PATIENCE) == 0
    systemd.close()
    assert "uid 4711 connected" in capfd.readouterr().err


def test_without_its_socket_it_says_how_it_is_started(runtime: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stream, pytest.raises(UsageError, match="systemctl start fuse-gated"):
        mountd_unit.run([("mountd", stream.detach())], str(runtime), Manager())
    with pytest.raises(UsageError, match="systemctl start fuse-gated"):
        mountd_unit.run([], str(runtime), Manager())


def test_a_runtime_directory_that_is_not_ours_is_refused(runtime: Path) -> None:
    runtime.mkdir()
    os.chown(runtime, 4711, 4711)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, pytest.raises(OperatorError, match="not ours"):
        mountd_unit.run([("mountd", listener.detach())], str(runtime), Manager())
