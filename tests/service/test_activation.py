"""Daemon and mount keeper as two units of systemd's: each is started with the sockets that it is given, and no supervisor.
What systemd itself makes of the units is shown by the tests in tests/system."""

import os
import signal
import socket
import uuid
from collections.abc import Iterator
from typing import Any, Final

import pytest
import yaml
from harness import MEASURING, Export, Persona, Stage, digest, mounts_beneath, need
from harness.leftovers import clear_away
from harness.log import DEADLINE
from harness.program import ROOT_OF_PROJECT, Program

from fuse_gated import control

# The sockets that systemd passed stay open to the end, which closes them.
pytestmark = pytest.mark.expected_log(r"ResourceWarning: (unclosed <socket|Enable tracemalloc)")

NOBODY: Final = 65534
KEEPER: Final = "fuse_gated.commands.fuse_gated_mountd"
DAEMON: Final = "fuse_gated.commands.fuse_gated"


class Manager:
    """systemd's part: the directories, the sockets, and the socket at which services tell how they are."""

    def __init__(self, stage: Stage) -> None:
        self.directory, self.mark = stage.directory, uuid.uuid4().hex
        self.etc, self.runtime = self.directory / "units.etc", self.directory / "units.run"
        for made in (self.etc, self.runtime):
            made.mkdir(mode=0o755)
        audit = self.directory / "audit.jsonl"
        audit.touch(mode=0o600)
        os.chown(audit, NOBODY, NOBODY)
        settings = {"audit": {"to": "file", "file": str(audit)}, "seccomp": not MEASURING}
        self.write("fuse-gated.yaml", settings)
        body = stage.tenant()["tenants"]["acme"]
        self.write("policy.yaml", {"tenants": {"acme": {"tokens": [{"sha256": digest("acme")}], **body}}})
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}"
        self.control = self._listen("control.sock", 0o666)
        self.keeper = self._listen("mountd.sock", 0o600)
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.settimeout(DEADLINE)
        self.notified.bind(str(self.directory / "notify.sock"))
        (self.directory / "notify.sock").chmod(0o666)
        self.programs: list[Program] = []

    def write(self, name: str, content: Any) -> None:
        (self.etc / name).write_text(yaml.safe_dump(content))
        (self.etc / name).chmod(0o644)

    def _listen(self, name: str, mode: int) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.bind(str(self.runtime / name))
        (self.runtime / name).chmod(mode)
        sock.listen()
        return sock

    def start(self, name: str, module: str, passed: dict[str, socket.socket], *options: str, user: int | None = None) -> Program:
        sockets = ",".join(f"{name}={sock.fileno()}" for name, sock in passed.items())
        arguments = [sockets, module, "--runtime", str(self.runtime), *options]
        environment = {"NOTIFY_SOCKET": str(self.directory / "notify.sock"), "WATCHDOG_USEC": "300000"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT_OF_PROJECT / "tests"), os.pathsep)
            for variable, value in environment.items():
                patch.setenv(variable, value)
            inherited = [sock.fileno() for sock in passed.values()]
            program = Program(name, "harness.activated", arguments, self.directory, self.mark, user, inherited)
        self.programs.append(program)
        return program

    def start_keeper(self) -> Program:
        return self.start("keeper", KEEPER, {"mountd": self.keeper})

    def start_daemon(self, user: int | None = NOBODY, **changes: socket.socket) -> Program:
        """As the unit's OpenFile= does, systemd makes the daemon's connection to the keeper."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(self.runtime / "mountd.sock"))
            passed = {"mountd": connection, **(changes or {"tcp": self.listener, "control": self.control})}
            return self.start("daemon", DAEMON, passed, "--etc", str(self.etc), user=user)

    def start_both(self) -> tuple[Program, Program]:
        """The keeper, and the daemon, which is ready."""
        keeper, daemon = self.start_keeper(), self.start_daemon()
        daemon.stderr.wait_for("ready: listening on ", daemon.process)
        return keeper, daemon

    def export(self) -> Export:
        """A client, and its mount is there."""
        directory = self.directory / "exported"
        directory.mkdir()
        client = Export(self.directory, self, directory, "work", "acme", (), None)  # type: ignore[arg-type]
        self.programs.append(client.program)
        client.mount_path()
        return client

    def told(self, sought: str) -> str:
        """The next notification with these words in it (sd_notify(3))."""
        while sought not in (heard := self.notified.recv(4096).decode()):
            pass
        return heard

    def close(self) -> None:
        for program in reversed(self.programs):
            program.kill()
            program.stdout.keep()
            program.stderr.keep()
        left = clear_away(self.mark, self.runtime)
        for sock in (self.listener, self.control, self.keeper, self.notified):
            sock.close()
        assert not left


@pytest.fixture
def manager(own_stage: Stage) -> Iterator[Manager]:
    need("root", "fuse")
    pytest.importorskip("systemd.daemon", reason="python3-systemd is not installed")
    manager = Manager(own_stage)
    yield manager
    manager.close()


def test_a_session_from_its_beginning_to_its_end(manager: Manager) -> None:
    keeper, daemon = manager.start_both()
    client = manager.export()
    point = manager.runtime / "mnt" / "acme" / "work"
    (point / "file").write_text("through the mount")
    assert (client.directory / "file").read_text() == "through the mount"
    assert manager.told("STATUS=1 ") == "STATUS=1 sessions, 1 tenants"
    assert manager.told("WATCHDOG=1")
    assert control.call(str(manager.runtime), "status")["mountd"] is True
    daemon.stop()
    assert manager.told("STOPPING=1")
    assert keeper.wait() == 0, "it serves one daemon"
    assert client.program.wait() == 1
    assert not mounts_beneath(manager.runtime)
    assert sorted(os.listdir(manager.runtime)) == ["control.sock", "mnt", "mountd.lock", "mountd.sock"], "systemd's stay"


def test_a_reload_is_told(manager: Manager) -> None:
    _, daemon = manager.start_both()
    daemon.send(signal.SIGHUP)
    assert "\nMONOTONIC_USEC=" in manager.told("RELOADING=1")
    manager.told("READY=1")
    (manager.etc / "policy.yaml").write_text("tenants: 7")
    daemon.send(signal.SIGHUP)
    manager.told("RELOADING=1")
    assert "the newest policy is faulty and not applied" in manager.told("STATUS=")
    manager.told("READY=1")


def test_the_sockets_are_closed_and_the_sessions_go_on(manager: Manager) -> None:
    """As by `systemctl stop fuse-gated.socket`."""
    _, daemon = manager.start_both()
    client = manager.export()
    daemon.send(signal.SIGUSR1)
    assert manager.told("accepting nobody new")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", manager.port), DEADLINE)
    assert (manager.runtime / "mnt" / "acme" / "work").is_mount()
    client.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_keeper_that_nobody_needs(manager: Manager, number: signal.Signals) -> None:
    keeper = manager.start_keeper()
    manager.told("READY=1")
    keeper.stop(number)


def test_a_keeper_serves_only_what_systemd_connects(manager: Manager) -> None:
    """The mode keeps others out, and if it does not, the kernel's word does."""
    keeper = manager.start_keeper()
    manager.told("READY=1")
    (manager.runtime / "mountd.sock").chmod(0o666)
    stranger = Persona(61001, 62001)
    assert stranger.call(connected, str(manager.runtime / "mountd.sock")) == b""
    assert "uid 61001 connected, but only systemd makes the daemon's connection" in keeper.stderr.text()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as root:
        root.connect(str(manager.runtime / "mountd.sock"))
        manager.told("STATUS=serving")
        root.send(b"\xc1")
        assert keeper.wait() == 1
    assert "the daemon is gone: a message that does not decode" in keeper.stderr.text()


def connected(path: str) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(path)
        return sock.recv(100)


def test_a_keeper_without_its_socket(manager: Manager) -> None:
    keeper = manager.start("keeper", KEEPER, {"mountd": manager.listener})
    assert keeper.wait() == 2
    assert "it is started by fuse-gated-mountd.socket: systemctl start fuse-gated" in keeper.stderr.text()


@pytest.mark.parametrize(
    ("user", "passed", "said"),
    [
        (None, ("tcp", "control"), "the daemon must not run as root"),
        (NOBODY, ("control",), "systemd passed nothing to listen on"),
        (NOBODY, ("tcp",), "systemd passed no socket for fuse-gatectl"),
    ],
    ids=["as root", "no listener", "no control socket"],
)
def test_a_daemon_that_was_not_given_what_it_needs(
    manager: Manager, user: int | None, passed: tuple[str, ...], said: str
) -> None:
    sockets = {"tcp": manager.listener, "control": manager.control}
    daemon = manager.start_daemon(user, **{name: sockets[name] for name in passed})
    assert daemon.wait() == 1
    assert said in daemon.stderr.text()
