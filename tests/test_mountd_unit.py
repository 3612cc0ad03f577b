"""mountd_unit.py: a real mount keeper with real mounts, started as systemd starts it; the test keeps what systemd would keep."""

import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import mounts_beneath, need
from harness.mounting import mount as mount_any

from fuse_gated import mountd_unit
from fuse_gated.edge import mounts, process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.keeping import (
    ANSWERS,
    Done,
    FromDaemon,
    FromKeeper,
    Mount,
    Mounted,
    Refused,
    Remount,
    Resumed,
    Sync,
    Unmount,
)
from fuse_gated.edge.systemd import Manager
from fuse_gated.errors import OperatorError, UsageError

PATIENCE = 30.0


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
        self.daemons: list[Daemon] = []
        self.keepers: list[process.Child] = []

    def start(self) -> process.Child:
        passed = [("mountd", self.listener.fileno()), *self.kept.items()]

        def main() -> int:
            # Inherited only because the test is all of them at once; it would keep the connection open.
            for daemon in self.daemons:
                daemon.channel.close()
            return mountd_unit.run(passed, str(self.runtime), Manager())

        child = process.spawn(main, program="fuse-gated-mountd")
        self.keepers.append(child)
        assert self.hear("READY") == "READY=1"
        return child

    def hear(self, beginning: str) -> str:
        """The next that begins so. What is to be kept or let go on the way there, is."""
        while True:
            heard = self._take()
            if heard.startswith(beginning):
                return heard

    def settle(self) -> None:
        """Hear what was told so far."""
        while select.select([self.notified], [], [], 0)[0]:
            self._take()

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
            keeper.end(PATIENCE)
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


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Path]:
    """A runtime directory, beneath which nothing may be left when the keepers have ended."""
    need("root", "fuse")
    path = tmp_path / "run"
    yield path
    left = mounts_beneath(tmp_path)
    for point in left:
        mounts.unmount(str(point))
    assert left == []


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


def mount(export: str = "web", tenant: str = "acme", **fields: bool) -> Mount:
    return Mount(id=7, tenant=tenant, export=export, **fields)


def test_it_serves_the_daemon_that_connects_and_ends_with_it(systemd: Systemd, runtime: Path) -> None:
    keeper = systemd.start()
    assert systemd.hear("STATUS") == "STATUS=waiting for the daemon"
    daemon = systemd.connect()
    assert daemon.ask(mount()) == Mounted(id=7, path=f"{runtime}/mnt/acme/web")
    assert systemd.hear("STATUS") == "STATUS=serving the daemon"
    assert mounts_beneath(runtime) == [runtime / "mnt/acme/web"]
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
    assert systemd.kept.keys() == {"daemon", "acme/a", "acme/b nosymfollow"}
    for export in ("a", "b"):
        assert daemon.ask(Unmount(id=8, tenant="acme", export=export)) == Done(id=8)
    systemd.settle()
    assert systemd.kept.keys() == {"daemon"}


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


def test_a_connection_that_ended_meanwhile_ends_everything(systemd: Systemd, runtime: Path) -> None:
    keeper = systemd.start()
    daemon = systemd.connect()
    daemon.ask(mount())
    keeper.end(PATIENCE)
    systemd.settle()
    daemon.channel.close()
    assert systemd.start().wait(PATIENCE) == 0
    assert mounts_beneath(runtime) == []
    systemd.settle()
    assert systemd.kept == {}


def test_without_the_connection_nothing_is_adopted(systemd: Systemd, runtime: Path) -> None:
    """systemd has let it go, because the daemon is gone (FDPOLL=1)."""
    keeper = systemd.start()
    daemon = systemd.connect()
    daemon.ask(mount())
    keeper.send_signal(signal.SIGKILL)
    keeper.wait(PATIENCE)
    systemd.settle()
    daemon.channel.close()
    os.close(systemd.kept.pop("daemon"))
    systemd.start()
    systemd.hear("STATUS=waiting")
    assert mounts_beneath(runtime) == []
    assert systemd.kept == {}


def test_what_is_kept_and_what_is_mounted_need_not_agree(systemd: Systemd, runtime: Path) -> None:
    """A device whose mount was taken away by hand is let go; a mount without a device, and one of another kind, are cleared."""
    keeper = systemd.start()
    daemon = systemd.connect()
    for export in ("a", "b", "c"):
        daemon.ask(mount(export))
    keeper.send_signal(signal.SIGKILL)
    keeper.wait(PATIENCE)
    systemd.settle()
    assert mounts.unmount(f"{runtime}/mnt/acme/a")
    os.close(systemd.kept.pop("acme/b"))
    assert mounts.unmount(f"{runtime}/mnt/acme/c")
    mount_any("tmpfs", runtime / "mnt/acme/c", "tmpfs", 0)
    systemd.kept["../etc/x"] = os.dup(systemd.kept["acme/a"])
    systemd.start()
    assert daemon.hear() == Resumed(id=0)
    assert mounts_beneath(runtime) == []
    systemd.settle()
    assert systemd.kept.keys() == {"daemon"}
    assert isinstance(daemon.ask(mount("a")), Mounted)


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


def test_what_is_no_message_ends_it(systemd: Systemd, runtime: Path) -> None:
    keeper = systemd.start()
    daemon = systemd.connect()
    daemon.ask(mount())
    os.write(daemon.channel.fileno(), b"\xc1")
    assert keeper.wait(PATIENCE) == 1
    assert mounts_beneath(runtime) == []
    systemd.settle()
    assert systemd.kept == {}
    assert daemon.hear() is None


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
