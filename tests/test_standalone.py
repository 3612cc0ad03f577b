"""standalone.py: a real supervisor with a real mount keeper, and a stand-in for the daemon that mounts and waits."""

import contextlib
import json
import os
import select
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import mounts_beneath, need

from fuse_gated import standalone
from fuse_gated.config.settings import Audit, Settings
from fuse_gated.edge import mounts, process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.keeping import ANSWERS, Mount, Unmount
from fuse_gated.edge.systemd import Passed
from fuse_gated.errors import OperatorError, PeerError
from fuse_gated.standalone import DaemonParts

PATIENCE = 30.0
SETTINGS = Settings(user="nobody", audit=Audit(to="file"))


class Daemon:
    """What stands in for the daemon. It tells the test what it does, a line of JSON each, through a pipe."""

    def __init__(self, parts: DaemonParts, report: int) -> None:
        assert parts.mountd is not None
        self.parts = parts
        self.keeper = Channel(parts.mountd, ANSWERS)
        self.report = report

    def tell(self, event: str, **more: Any) -> None:
        os.write(self.report, json.dumps({"event": event, "pid": os.getpid(), **more}).encode() + b"\n")

    def ask(self, request: Mount | Unmount) -> None:
        """A keeper that is gone does not answer."""
        with contextlib.suppress(PeerError):
            self.keeper.send(request)
            assert select.select([self.keeper], [], [], PATIENCE)[0]
            self.keeper.receive()

    def serve(self) -> int:
        """Mount, tell of it, serve until SIGTERM, unmount."""
        with process.Signals(signal.SIGTERM, signal.SIGHUP) as signals:
            self.ask(Mount(id=1, tenant="acme", export="web", anyone=True))
            self.tell("mounted", uid=os.getresuid(), gid=os.getresgid(), groups=os.getgroups(), ppid=os.getppid())
            while True:
                ready = select.select([signals, *self.parts.listeners], [], [])[0]
                received = signals.received()
                if signal.SIGHUP in received:
                    self.tell("reload")
                if signal.SIGTERM in received:
                    self.ask(Unmount(id=2, tenant="acme", export="web"))
                    self.tell("ended")
                    return 0
                for listener in self.parts.listeners:
                    if listener in ready:
                        listener.accept()[0].close()
                        self.tell("accepted")


class Supervised:
    """A supervisor as a process, and what its daemons tell."""

    def __init__(self, runtime: Path, run: Callable[[Daemon], int] = Daemon.serve, settings: Settings = SETTINGS) -> None:
        self.runtime = runtime
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.reader, writer = os.pipe()
        self.lines = b""

        def main() -> int:
            os.close(self.reader)
            return standalone.supervise(settings, runtime, [self.listener], lambda parts: run(Daemon(parts, writer)))

        self.child = process.spawn(main)
        os.close(writer)

    def hear(self, event: str) -> dict[str, Any]:
        """The next thing that a daemon tells, which must be `event`."""
        while b"\n" not in self.lines:
            assert select.select([self.reader], [], [], PATIENCE)[0], f"nobody told of: {event}"
            more = os.read(self.reader, 4096)
            assert more, f"everybody is gone, and nobody told of: {event}"
            self.lines += more
        line, _, self.lines = self.lines.partition(b"\n")
        told: dict[str, Any] = json.loads(line)
        assert told["event"] == event
        return told

    def children(self) -> dict[str, int]:
        """The supervisor's children by their names."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
                except OSError:
                    continue
                if int(rest.split()[1]) == self.child.pid:
                    found[name] = int(entry.name)
        return found

    def close(self) -> None:
        self.child.end(PATIENCE)
        # Whoever still has the writing end lives.
        end = time.monotonic() + PATIENCE
        while True:
            assert select.select([self.reader], [], [], max(0.0, end - time.monotonic()))[0], "a daemon was left behind"
            if not os.read(self.reader, 4096):
                break
        os.close(self.reader)
        self.listener.close()


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A runtime directory that everybody can reach, beneath which nothing may be left mounted."""
    need("root", "fuse")
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        path = Path(place) / "run"
        yield path
        left = mounts_beneath(Path(place))
        for point in left:
            mounts.unmount(str(point))
        assert left == []
        assert not (path / "control.sock").exists()


@pytest.fixture
def supervise(runtime: Path) -> Iterator[Callable[..., Supervised]]:
    started: list[Supervised] = []

    def start(*arguments: Any, **options: Any) -> Supervised:
        started.append(Supervised(runtime, *arguments, **options))
        return started[-1]

    yield start
    for supervised in started:
        supervised.close()


def watch(*pids: int) -> list[int]:
    return [os.pidfd_open(pid) for pid in pids]


def wait_for_end(pidfds: list[int]) -> None:
    """Processes that need not be our children."""
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], PATIENCE)[0], "a process was left behind"
        os.close(pidfd)


Supervise = Callable[..., Supervised]


def test_the_daemon_runs_as_its_user_beside_a_keeper_and_ends_in_order(supervise: Supervise, runtime: Path) -> None:
    supervised = supervise()
    told = supervised.hear("mounted")
    nobody = process.find_account("nobody")
    fuse = process.find_group("fuse")
    assert nobody is not None
    assert told["uid"] == [nobody.uid] * 3
    assert told["gid"] == [nobody.gid] * 3
    assert told["groups"] == ([] if fuse is None else [fuse])
    assert told["ppid"] == supervised.child.pid
    assert supervised.children() == {"fuse-gated": told["pid"], "fuse-gated-mnt": supervised.children()["fuse-gated-mnt"]}
    assert mounts_beneath(runtime) == [runtime / "mnt/acme/web"]
    status = (runtime / "control.sock").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (nobody.uid, 0o660)
    status = (runtime / "audit.jsonl").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (nobody.uid, 0o600)
    supervised.child.send_signal(signal.SIGTERM)
    assert supervised.child.wait(PATIENCE) == 0
    supervised.hear("ended")
    assert mounts_beneath(runtime) == []
    assert list((runtime / "mnt").iterdir()) == []


def test_ctrl_c_ends_it_in_order_too(supervise: Supervise) -> None:
    supervised = supervise()
    told = supervised.hear("mounted")
    # Not in the terminal's foreground, so that Ctrl-C reaches the supervisor alone.
    assert os.getsid(told["pid"]) == told["pid"]
    supervised.child.send_signal(signal.SIGINT)
    assert supervised.child.wait(PATIENCE) == 0
    supervised.hear("ended")


def test_reload_reaches_the_daemon(supervise: Supervise) -> None:
    supervised = supervise()
    supervised.hear("mounted")
    supervised.child.send_signal(signal.SIGHUP)
    supervised.hear("reload")


def test_the_port_and_the_control_socket_are_the_daemons(supervise: Supervise, runtime: Path) -> None:
    supervised = supervise()
    supervised.hear("mounted")
    with socket.create_connection(supervised.listener.getsockname()):
        supervised.hear("accepted")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.connect(str(runtime / "control.sock"))


def test_when_the_daemon_is_killed_both_start_again(
    supervise: Supervise, runtime: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    supervised = supervise()
    first, keeper = supervised.hear("mounted")["pid"], supervised.children()["fuse-gated-mnt"]
    os.kill(first, signal.SIGKILL)
    second = supervised.hear("mounted")["pid"]
    assert second != first
    assert supervised.children()["fuse-gated-mnt"] != keeper
    assert mounts_beneath(runtime) == [runtime / "mnt/acme/web"]
    with socket.create_connection(supervised.listener.getsockname()):
        supervised.hear("accepted")
    supervised.child.send_signal(signal.SIGTERM)
    assert supervised.child.wait(PATIENCE) == 0
    assert "the daemon was ended by SIGKILL unexpectedly" in capfd.readouterr().err


def test_when_the_keeper_is_killed_both_start_again(
    supervise: Supervise, runtime: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    supervised = supervise()
    first = supervised.hear("mounted")["pid"]
    os.kill(supervised.children()["fuse-gated-mnt"], signal.SIGKILL)
    supervised.hear("ended")
    second = supervised.hear("mounted")["pid"]
    assert second != first
    assert mounts_beneath(runtime) == [runtime / "mnt/acme/web"]
    supervised.child.send_signal(signal.SIGTERM)
    assert supervised.child.wait(PATIENCE) == 0
    assert "the mount keeper was ended by SIGKILL unexpectedly" in capfd.readouterr().err


def test_a_daemon_that_ends_with_its_keeper_is_started_again(supervise: Supervise) -> None:
    def leaning(daemon: Daemon) -> int:
        daemon.ask(Mount(id=1, tenant="acme", export="web"))
        daemon.tell("started")
        select.select([daemon.keeper], [], [])
        return 0

    supervised = supervise(leaning)
    supervised.hear("started")
    os.kill(supervised.children()["fuse-gated-mnt"], signal.SIGKILL)
    supervised.hear("started")


def test_when_the_supervisor_is_killed_both_end_and_nothing_stays_mounted(supervise: Supervise, runtime: Path) -> None:
    supervised = supervise()
    daemon = supervised.hear("mounted")["pid"]
    pidfds = watch(daemon, supervised.children()["fuse-gated-mnt"])
    supervised.child.send_signal(signal.SIGKILL)
    assert supervised.child.wait(PATIENCE) == -signal.SIGKILL
    wait_for_end(pidfds)
    assert mounts_beneath(runtime) == []
    assert list((runtime / "mnt").iterdir()) == []
    # What is left of it is a name on which nobody listens, and no obstacle.
    again = supervise()
    again.hear("mounted")


def test_when_everything_is_killed_the_next_start_cleans_up(supervise: Supervise, runtime: Path) -> None:
    supervised = supervise()
    daemon = supervised.hear("mounted")["pid"]
    keeper = supervised.children()["fuse-gated-mnt"]
    pidfds = watch(daemon, keeper)
    for pid in (supervised.child.pid, keeper, daemon):
        os.kill(pid, signal.SIGSTOP)
    for pid in (supervised.child.pid, keeper, daemon):
        os.kill(pid, signal.SIGKILL)
    wait_for_end(pidfds)
    assert mounts_beneath(runtime) == [runtime / "mnt/acme/web"]
    again = supervise(lambda daemon: daemon.tell("started") or signal.pause() or 0)
    again.hear("started")
    assert mounts_beneath(runtime) == []


def stubborn_worker(daemon: Daemon) -> int:
    """A worker that does not heed SIGTERM, and a daemon that waits."""

    def worker() -> int:
        daemon.tell("worker")
        while True:
            signal.pause()

    process.spawn(worker, ignored=[signal.SIGTERM])
    return daemon.serve()


def test_workers_of_a_daemon_that_is_killed_are_seen_off(supervise: Supervise) -> None:
    supervised = supervise(stubborn_worker)
    first, second = sorted([json.loads(line) for line in lines(supervised, 2)], key=lambda line: str(line["event"]))
    assert (first["event"], second["event"]) == ("mounted", "worker")
    pidfds = watch(second["pid"])
    os.kill(first["pid"], signal.SIGKILL)
    wait_for_end(pidfds)


def lines(supervised: Supervised, count: int) -> list[bytes]:
    while supervised.lines.count(b"\n") < count:
        assert select.select([supervised.reader], [], [], PATIENCE)[0]
        supervised.lines += os.read(supervised.reader, 4096)
    *found, supervised.lines = supervised.lines.split(b"\n", count)
    return found


def test_a_daemon_that_dies_again_and_again_is_given_up(
    supervise: Supervise, runtime: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def dying(daemon: Daemon) -> int:
        daemon.ask(Mount(id=1, tenant="acme", export="web"))
        daemon.tell("mounted")
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    supervised = supervise(dying)
    assert supervised.child.wait(PATIENCE) == 1
    for _ in range(standalone.MAX_DEATHS):
        supervised.hear("mounted")
    assert supervised.lines == b""
    assert mounts_beneath(runtime) == []
    assert "giving up" in capfd.readouterr().err


def test_deaths_of_long_ago_do_not_count(supervise: Supervise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standalone, "DEATHS_WITHIN", 0.0)

    def dying(daemon: Daemon) -> int:
        daemon.tell("started")
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    supervised = supervise(dying)
    for _ in range(3 * standalone.MAX_DEATHS):
        supervised.hear("started")


@pytest.mark.parametrize("status", [0, 2, 3, 4])
def test_a_daemon_that_ends_by_itself_ends_everything_with_its_status(supervise: Supervise, status: int) -> None:
    assert supervise(lambda _: status).child.wait(PATIENCE) == status


def test_a_fault_of_the_daemon_is_told_and_it_starts_again(supervise: Supervise, capfd: pytest.CaptureFixture[str]) -> None:
    def faulty(daemon: Daemon) -> int:
        raise OperatorError("no journal", "start it")

    assert supervise(faulty).child.wait(PATIENCE) == 1
    assert capfd.readouterr().err.count("fuse-gated: no journal (start it)") == standalone.MAX_DEATHS


def test_a_daemon_that_does_not_heed_sigterm_is_killed_and_that_is_no_orderly_end(
    supervise: Supervise, runtime: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(standalone, "_GRACE", 0.05)

    def deaf(daemon: Daemon) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        daemon.ask(Mount(id=1, tenant="acme", export="web"))
        daemon.tell("mounted")
        while True:
            signal.pause()

    supervised = supervise(deaf)
    supervised.hear("mounted")
    supervised.child.send_signal(signal.SIGTERM)
    assert supervised.child.wait(PATIENCE) == 1
    assert mounts_beneath(runtime) == []
    assert "the daemon was ended by SIGKILL" in capfd.readouterr().err


def test_a_keeper_that_is_killed_at_the_end_leaves_nothing_mounted(supervise: Supervise, runtime: Path) -> None:
    def last_words(daemon: Daemon) -> int:
        with process.Signals(signal.SIGTERM) as signals:
            daemon.ask(Mount(id=1, tenant="acme", export="web"))
            daemon.tell("mounted")
            select.select([signals], [], [])
            daemon.tell("ending")
            select.select([daemon.keeper], [], [])
        return 0

    supervised = supervise(last_words)
    supervised.hear("mounted")
    keeper = supervised.children()["fuse-gated-mnt"]
    supervised.child.send_signal(signal.SIGTERM)
    supervised.hear("ending")
    os.kill(keeper, signal.SIGKILL)
    assert supervised.child.wait(PATIENCE) == 1
    assert mounts_beneath(runtime) == []


def test_two_on_one_runtime_directory(supervise: Supervise, runtime: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = supervise()
    first.hear("mounted")
    assert supervise().child.wait(PATIENCE) == 1
    assert "another fuse-gated runs" in capfd.readouterr().err
    assert mounts_beneath(runtime) == [runtime / "mnt/acme/web"]
    first.child.send_signal(signal.SIGHUP)
    first.hear("reload")


def test_what_stands_in_the_way_is_told_once(supervise: Supervise, runtime: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runtime.mkdir()
    os.chown(runtime, 4711, 4711)
    assert supervise().child.wait(PATIENCE) == 1
    assert capfd.readouterr().err.count("runtime directory not ours") == 1
    os.chown(runtime, 0, 0)
    (runtime / "mnt").symlink_to("/")
    assert supervise().child.wait(PATIENCE) == 1
    assert capfd.readouterr().err.count("runtime directory not ours") == 1
    (runtime / "mnt").unlink()
    (runtime / "audit.jsonl").symlink_to("/etc/passwd")
    assert supervise().child.wait(PATIENCE) == 1
    assert capfd.readouterr().err.count("cannot make the audit file") == 1
    assert os.stat("/etc/passwd").st_uid == 0


def test_an_audit_file_is_made_where_it_is_wanted_only(supervise: Supervise, runtime: Path) -> None:
    elsewhere = runtime.parent / "elsewhere.jsonl"
    for audit in (Audit(to="journal"), Audit(to="file", file=str(elsewhere))):
        assert not elsewhere.exists()
        supervised = supervise(settings=Settings(user="nobody", audit=audit))
        supervised.hear("mounted")
        supervised.child.end(PATIENCE)
        assert not (runtime / "audit.jsonl").exists()
    assert (elsewhere.stat().st_uid, elsewhere.stat().st_mode) == (NOBODY, stat.S_IFREG | 0o600)


NOBODY = 65534


def test_an_audit_file_that_is_named_and_there_is_left_as_it_is(supervise: Supervise, runtime: Path) -> None:
    """It may be anything, and would be given away."""
    named = runtime.parent / "named"
    named.write_text("precious")
    named.chmod(0o640)
    supervised = supervise(settings=Settings(user="nobody", audit=Audit(to="file", file=str(named))))
    supervised.hear("mounted")
    supervised.child.end(PATIENCE)
    assert (named.stat().st_uid, named.stat().st_mode) == (0, stat.S_IFREG | 0o640)


def test_where_others_can_make_files_root_makes_none(supervise: Supervise, runtime: Path) -> None:
    """Else one of them could have put another's file there, to have it given to the daemon."""
    for owner, mode in ((NOBODY, 0o755), (0, 0o777)):
        directory = runtime.parent / f"{owner}"
        directory.mkdir()
        directory.chmod(mode)
        os.chown(directory, owner, owner)
        supervised = supervise(settings=Settings(user="nobody", audit=Audit(to="file", file=str(directory / "audit"))))
        supervised.hear("mounted")
        supervised.child.end(PATIENCE)
        assert os.listdir(directory) == []


def test_where_the_named_files_directory_is_missing(supervise: Supervise, capfd: pytest.CaptureFixture[str]) -> None:
    settings = Settings(user="nobody", audit=Audit(to="file", file="/nowhere/at/all"))
    assert supervise(settings=settings).child.wait(PATIENCE) == 1
    assert "cannot make the audit file /nowhere/at/all" in capfd.readouterr().err


def test_the_systems_own_audit_file_outlives_a_boot(
    supervise: Supervise, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the system's runtime directory, which lies in memory, it lies beside other logs; and is made anew when it was
    rotated away."""
    logs = tmp_path / "log"
    monkeypatch.setattr("fuse_gated.edge.journal.RUNTIME", str(runtime))
    monkeypatch.setattr("fuse_gated.edge.journal.LOG_DIRECTORY", str(logs))
    supervised = supervise()
    supervised.hear("mounted")
    assert logs.stat().st_mode == stat.S_IFDIR | 0o755
    file = logs / "audit.jsonl"
    assert (file.stat().st_uid, file.stat().st_mode) == (NOBODY, stat.S_IFREG | 0o600)
    file.rename(logs / "audit.jsonl.1")
    supervised.child.send_signal(signal.SIGHUP)
    supervised.hear("reload")
    assert (file.stat().st_uid, file.stat().st_mode) == (NOBODY, stat.S_IFREG | 0o600)
    file.unlink()
    file.symlink_to("/etc/passwd")
    supervised.child.send_signal(signal.SIGHUP)
    supervised.hear("reload")
    assert os.stat("/etc/passwd").st_uid == 0
    supervised.child.end(PATIENCE)
    assert not (runtime / "audit.jsonl").exists()


def test_a_user_that_does_not_exist_is_nobody_with_a_warning(supervise: Supervise, capfd: pytest.CaptureFixture[str]) -> None:
    supervised = supervise(settings=Settings(user="no-such-user", audit=Audit(to="file")))
    nobody = process.find_account("nobody")
    assert nobody is not None
    assert supervised.hear("mounted")["uid"] == [nobody.uid] * 3
    assert "warning: there is no user no-such-user" in capfd.readouterr().err


def test_the_daemon_never_runs_as_root(runtime: Path) -> None:
    with pytest.raises(OperatorError, match="must not run as root"):
        standalone.supervise(Settings(user="root"), runtime, [], lambda _: 0)


def test_without_any_user_to_be_it_says_what_to_do(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find_account", lambda _: None)
    with pytest.raises(OperatorError, match="useradd"):
        standalone.supervise(SETTINGS, runtime, [], lambda _: 0)


# Without root.


def test_an_ordinary_user_has_sockets_and_a_directory_but_no_keeper() -> None:
    need("root")  # to be several people

    def main() -> int:
        process.drop_to(4711, 4711, [])
        with tempfile.TemporaryDirectory() as place:
            runtime = Path(place) / "run"
            with socket.create_server(("127.0.0.1", 0)) as listener:
                parts = standalone.unprivileged_parts(runtime, [listener])
                assert parts == DaemonParts((listener,), parts.control, None, runtime)
                status = (runtime / "control.sock").stat()
                assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (4711, 0o600)
                assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
                standalone.release(parts)
                standalone.release(parts)
                assert listener.fileno() >= 0
                assert list(runtime.iterdir()) == []
                with pytest.raises(OperatorError, match="runtime directory not ours"):
                    standalone.unprivileged_parts(Path("/run"), [listener])
        return 0

    assert process.spawn(main).wait(PATIENCE) == 0


# With everything from systemd.


def test_what_systemd_passes_is_what_the_daemon_gets(tmp_path: Path) -> None:
    need("root")

    def main() -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as control, socket.socket() as keeper:
            whole = Passed((listener,), control, keeper)
            with pytest.raises(OperatorError, match="must not run as root"):
                standalone.unit_parts(tmp_path, whole)
            process.drop_to(4711, 4711, [])
            assert standalone.unit_parts(tmp_path, whole) == DaemonParts((listener,), control, keeper, tmp_path)
            for missing, what in (
                (Passed((), control, keeper), "nothing to listen on"),
                (Passed((listener,), None, keeper), "no socket for fuse-gatectl"),
            ):
                with pytest.raises(OperatorError, match=what):
                    standalone.unit_parts(tmp_path, missing)
        return 0

    assert process.spawn(main).wait(PATIENCE) == 0
