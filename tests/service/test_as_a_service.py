"""fuse-gated with everything from a service manager, which the test plays: sockets, the keeper's connection, notifications."""

import importlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import ALLOW_ALL, Stage, mounts_beneath, need
from harness.log import DEADLINE
from harness.server import digest
from harness.waiting import until

from fuse_gated import control
from fuse_gated.commands import fuse_gated as program
from fuse_gated.commands import fuse_gated_mountd as keeper_program
from fuse_gated.edge import process, seccomp

NOBODY = 65534


def policy(*rules: dict[str, object]) -> str:
    """One tenant, acme, who may do everything after `rules`."""
    tenant = {"tokens": [{"sha256": digest("acme")}], "users": ["root"], "rules": [*rules, *ALLOW_ALL]}
    return yaml.safe_dump({"tenants": {"acme": tenant}})


class Manager:
    """What systemd does for the two units: it listens, connects one to the other, starts both, and hears what they tell."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.runtime, self.etc = directory, directory / "run", directory / "etc"
        for made in (self.runtime, self.etc):
            made.mkdir(mode=0o755)
        self.write(policy())
        settings = {"audit": {"to": "file", "file": str(directory / "log" / "audit")}}
        (self.etc / "fuse-gated.yaml").write_text(yaml.safe_dump(settings))
        (directory / "log").mkdir()
        os.chown(directory / "log", NOBODY, NOBODY)
        self.gate = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self.gate.getsockname()[1]}"
        self.control, self.keepers = (socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
        self.control.bind(str(self.runtime / "control.sock"))
        self.keepers.bind("")
        for listener in (self.control, self.keepers):
            listener.listen()
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(directory / "notify"))
        (directory / "notify").chmod(0o777)
        self.notified.settimeout(DEADLINE)
        self.children: list[process.Child] = []

    def write(self, text: str) -> None:
        """The policy."""
        path = self.etc / "policy.yaml"
        path.write_text(text)
        path.chmod(0o644)

    def start(self, *, patience: float = DEADLINE, **environment: str) -> process.Child:
        """Both, joined; the daemon."""
        arguments = ["--runtime", str(self.runtime), "--patience", str(patience)]
        self._spawn({"mountd": self.keepers}, lambda: keeper_program.main(arguments), 0, {})
        return self.start_daemon(**environment)

    def start_daemon(self, **environment: str) -> process.Child:
        """Connected to the keeper that there is."""
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.connect(self.keepers.getsockname())
        passed = {"a": self.gate, "b": self.control, "mountd": ours}
        arguments = ["--etc", str(self.etc), "--runtime", str(self.runtime)]
        environment["NOTIFY_SOCKET"] = str(self.directory / "notify")
        daemon = self._spawn(passed, lambda: program.main(arguments), NOBODY, environment)
        ours.close()
        return daemon

    def _spawn(
        self, passed: dict[str, socket.socket], main: Callable[[], int], user: int, environment: dict[str, str]
    ) -> process.Child:
        def child() -> int:
            high = [os.dup2(sock.fileno(), 900 + index) for index, sock in enumerate(passed.values())]
            for number, fd in enumerate(high, 3):
                os.dup2(fd, number)
            os.closerange(3 + len(high), 1000)
            os.environ.update({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(high)), "LISTEN_FDNAMES": ":".join(passed)})
            os.environ.update(environment)
            if user:
                # Imported now: the interpreter may lie where that user may not go.
                importlib.import_module("systemd.daemon")
                seccomp.library()
                process.drop_to(user, user, [])
            return main()

        started = process.spawn(child)
        self.children.append(started)
        return started

    def hear(self, beginning: str) -> str:
        """The next notification that begins so."""
        while not (heard := self.notified.recv(4096).decode()).startswith(beginning):
            pass
        return heard

    def close(self) -> list[int | None]:
        ended = [child.end(DEADLINE) for child in reversed(self.children)]
        for sock in (self.gate, self.control, self.keepers, self.notified):
            sock.close()
        return ended


@pytest.fixture
def stage() -> Iterator[Stage]:
    need("root", "fuse")
    with Stage("kernel") as stage:
        yield stage


@pytest.fixture
def manager(stage: Stage) -> Iterator[Manager]:
    made = Manager(stage.directory)
    try:
        yield made
    finally:
        ended = made.close()
        left = mounts_beneath(made.runtime)
    assert left == []
    # A keeper ends with its daemon, and may have given its handlers back when SIGTERM comes: systemd.service(5) calls that an
    # orderly end as well.
    assert set(ended) <= {0, 1, -signal.SIGTERM, -signal.SIGKILL}


def mounted(stage: Stage, manager: Any, name: str = "work") -> Any:
    client = stage.export(manager, name=name, options=["--no-reconnect"])
    client.mount_path()
    return client


def test_it_tells_how_it_is(stage: Stage, manager: Manager) -> None:
    daemon = manager.start()
    assert manager.hear("STATUS=0") == "STATUS=0 sessions, 1 tenant"
    manager.hear("READY=1")
    client = mounted(stage, manager)
    assert manager.hear("STATUS") == "STATUS=1 session, 1 tenant"
    (client.directory / "file").write_text("hello")
    assert Path(client.mount_path(), "file").read_text() == "hello"
    status = control.convert_status(control.call(str(manager.runtime), "status"))
    assert (status.sessions, status.mountd, status.drivers) == (1, True, ("kernel", "network"))
    client.stop()
    assert manager.hear("STATUS") == "STATUS=0 sessions, 1 tenant"
    daemon.send_signal(signal.SIGTERM)
    manager.hear("STOPPING=1")
    assert [child.wait(DEADLINE) for child in manager.children] == [0, 0]


def test_a_reload_is_told_from_its_beginning_to_its_end(stage: Stage, manager: Manager) -> None:
    daemon = manager.start()
    manager.hear("READY=1")
    for text, status in ((": no policy", "; the newest policy is faulty and not applied"), (policy(), "")):
        manager.write(text)
        daemon.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in manager.hear("RELOADING=1")
        assert manager.hear("STATUS") == f"STATUS=0 sessions, 1 tenant{status}"
        manager.hear("READY=1")


def test_signs_of_life_are_given_in_time(manager: Manager) -> None:
    manager.start(WATCHDOG_USEC="300000")
    for _ in range(5):
        manager.hear("WATCHDOG=1")


def test_newcomers_are_refused_when_the_sockets_unit_is_stopped(stage: Stage, manager: Manager) -> None:
    daemon = manager.start()
    client = mounted(stage, manager)
    daemon.send_signal(signal.SIGUSR1)
    while manager.hear("STATUS") != "STATUS=1 session, 1 tenant; accepting nobody new":
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(manager.gate.getsockname())
    (client.directory / "file").write_text("hello")
    assert Path(client.mount_path(), "file").read_text() == "hello"
    client.stop()
    assert manager.hear("STATUS") == "STATUS=0 sessions, 1 tenant; accepting nobody new"


def test_that_stop_comes_before_it_is_ready(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds, and the daemon serves what is mounted."""
    spawn = manager._spawn

    def with_a_stopped_keeper(*arguments: Any) -> process.Child:
        child = spawn(*arguments)
        if len(manager.children) == 1:
            child.send_signal(signal.SIGSTOP)
        return child

    monkeypatch.setattr(manager, "_spawn", with_a_stopped_keeper)
    daemon = manager.start()
    caught = 1 << signal.SIGUSR1 - 1
    until(lambda: int(status_of(daemon.pid)["SigCgt"], 16) & caught, "a daemon that hears it")
    daemon.send_signal(signal.SIGUSR1)
    until(lambda: not int(status_of(daemon.pid)["ShdPnd"], 16) & caught, "it has heard it")
    manager.children[0].send_signal(signal.SIGCONT)
    manager.hear("READY=1")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(manager.gate.getsockname())
    assert daemon.wait(0) is None


def status_of(pid: int) -> dict[str, str]:
    """As proc(5) has it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_that_stop_comes_while_it_ends() -> None:
    """As when both units are stopped at once. The interpreter gives a signal its default back as it ends: death. An ordinary
    user's daemon is a program of its own, as a service is."""
    need("root")
    with Stage("libfuse") as stage:
        program = stage.server().program
        program.send(signal.SIGTERM)
        while program.process.poll() is None:
            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
                program.send(number)
        assert program.wait() == 0


def test_a_daemon_whose_keeper_is_killed_ends_to_be_started_again(stage: Stage, manager: Manager) -> None:
    daemon = manager.start()
    client = mounted(stage, manager)
    manager.children[0].send_signal(signal.SIGKILL)
    assert daemon.wait(DEADLINE) == 1
    client.program.wait()
    # What it left is taken away by the next one.
    manager.start()
    manager.hear("READY=1")
    until(lambda: mounts_beneath(manager.runtime) == [], "the dead mount's end")
    mounted(stage, manager, "again").stop()


def test_a_keeper_whose_daemon_is_killed_leaves_its_mounts_to_the_next_one(stage: Stage, manager: Manager) -> None:
    daemon = manager.start()
    manager.hear("READY=1")
    client = mounted(stage, manager)
    before = mounts_beneath(manager.runtime)
    daemon.send_signal(signal.SIGKILL)
    daemon.wait(DEADLINE)
    manager.start_daemon()
    manager.hear("READY=1")
    assert mounts_beneath(manager.runtime) == before
    assert manager.children[0].wait(0) is None
    client.program.wait()


def test_a_keeper_whose_daemon_is_killed_and_has_no_successor_unmounts_and_ends(stage: Stage, manager: Manager) -> None:
    daemon = manager.start(patience=0.1)
    client = mounted(stage, manager)
    daemon.send_signal(signal.SIGKILL)
    assert manager.children[0].wait(DEADLINE) == 0
    assert mounts_beneath(manager.runtime) == []
    client.program.wait()


@pytest.mark.parametrize("patience", ["-1", "nan", "inf", "soon"])
def test_a_keepers_patience_is_a_number_of_seconds(patience: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        keeper_program.main(["--patience", patience])
    assert ended.value.code == 2
    assert "--patience" in capfd.readouterr().err


def test_a_keeper_by_hand_says_how_it_is_started(capfd: pytest.CaptureFixture[str]) -> None:
    assert keeper_program.main([]) == 2
    assert "systemctl start fuse-gated" in capfd.readouterr().err
