"""supervisor.py: a real supervisor with a real mount keeper, and a stand-in for the daemon that mounts and waits."""

import json
import os
import select
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import mounts_beneath
from harness.supervised import PATIENCE, Daemon, Supervise, Supervised, runtime_directory, supervisors

from fuse_gated import supervisor
from fuse_gated.edge import process
from fuse_gated.errors import OperatorError


@pytest.fixture
def runtime() -> Iterator[Path]:
    with runtime_directory() as path:
        yield path


@pytest.fixture
def supervise(runtime: Path) -> Iterator[Supervise]:
    with supervisors(runtime) as start:
        yield start


def watch(*pids: int) -> list[int]:
    return [os.pidfd_open(pid) for pid in pids]


def wait_for_end(pidfds: list[int]) -> None:
    """Processes that need not be our children."""
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], PATIENCE)[0], "a process was left behind"
        os.close(pidfd)


def test_the_daemon_runs_as_its_user_beside_a_keeper_and_ends_in_order(supervise: Supervise, runtime: Path) -> None:
    supervised = supervise()
    told = supervised.hear("mounted")
    nobody = process.find_account("nobody")
    assert nobody is not None
    assert told["uid"] == [nobody.uid] * 3
    assert told["gid"] == [nobody.gid] * 3
    assert told["groups"] == process.groups_of(nobody)
    assert told["ppid"] == supervised.child.pid
    assert supervised.children() == {"fuse-gated": told["pid"], "fuse-gated-mnt": supervised.children()["fuse-gated-mnt"]}
    assert mounts_beneath(runtime) == [runtime / "mnt/acme/web"]
    status = (runtime / "control.sock").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (nobody.uid, 0o666)
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


def test_when_the_daemon_is_killed_the_next_one_finds_the_mount(
    supervise: Supervise, runtime: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    supervised = supervise()
    first, keeper = supervised.hear("mounted")["pid"], supervised.keeper
    inode = os.stat(runtime / "mnt/acme").st_ino
    for killed in range(3):
        pid = supervised.children()["fuse-gated"]
        os.kill(pid, signal.SIGKILL)
        told = supervised.hear("mounted")
        assert told["pid"] != pid
        assert told["found"] == [["web", str(first)]], killed
    assert supervised.keeper == keeper
    assert os.stat(runtime / "mnt/acme").st_ino == inode
    with socket.create_connection(supervised.listener.getsockname()):
        supervised.hear("accepted")
    supervised.child.send_signal(signal.SIGTERM)
    assert supervised.child.wait(PATIENCE) == 0
    supervised.hear("ended")
    assert capfd.readouterr().err.count("the daemon was ended by SIGKILL unexpectedly: starting again") == 3


def test_when_the_keeper_is_killed_the_daemon_goes_on(
    supervise: Supervise, runtime: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    supervised = supervise()
    daemon = supervised.hear("mounted")["pid"]
    inode = os.stat(runtime / "mnt/acme").st_ino
    for _ in range(3):
        keeper = supervised.keeper
        os.kill(keeper, signal.SIGKILL)
        told = supervised.hear("resumed")
        assert (told["pid"], told["found"]) == (daemon, [["web", str(daemon)]])
        assert supervised.keeper != keeper
    assert mounts_beneath(runtime) == [runtime / "mnt/acme/web"]
    assert os.stat(runtime / "mnt/acme").st_ino == inode
    supervised.child.send_signal(signal.SIGTERM)
    assert supervised.child.wait(PATIENCE) == 0
    supervised.hear("ended")
    assert capfd.readouterr().err.count("the mount keeper was ended by SIGKILL unexpectedly: starting again") == 3


def test_when_both_are_killed_the_mount_is_found(supervise: Supervise, runtime: Path) -> None:
    supervised = supervise()
    first = supervised.hear("mounted")["pid"]
    for _ in range(3):
        pids = [supervised.children()["fuse-gated"], supervised.keeper]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                os.kill(pid, number)
        told = supervised.hear("mounted")
        assert told["found"] == [["web", str(first)]]
        assert not set(pids) & set(supervised.children().values())
    supervised.child.send_signal(signal.SIGTERM)
    assert supervised.child.wait(PATIENCE) == 0
    while supervised.hear_any()["event"] != "ended":
        pass
    assert mounts_beneath(runtime) == []


def test_the_daemon_has_nothing_of_the_keepers(supervise: Supervise) -> None:
    """Neither the first one, nor one that is started when the keeper holds mounts of others."""
    supervised = supervise()
    first = supervised.hear("mounted")
    os.kill(first["pid"], signal.SIGKILL)
    second = supervised.hear("mounted")
    # Sockets and pipes have numbers of their own.
    kinds = [sorted(path.partition(":")[0] for path in told["fds"]) for told in (first, second)]
    assert kinds[0] == kinds[1]
    # What this very process has open both have from it.
    descriptors = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    ours = {os.readlink(descriptor) for descriptor in descriptors if os.path.lexists(descriptor)}
    assert not any("fuse" in path or "memfd" in path for path in second["fds"] if path not in ours)


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
    assert lines(supervised, 1)


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
        daemon.mount()
        daemon.tell("mounted")
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    supervised = supervise(dying)
    assert supervised.child.wait(PATIENCE) == 1
    for _ in range(supervisor.MAX_DEATHS + 1):
        supervised.hear("mounted")
    assert supervised.lines == b""
    assert mounts_beneath(runtime) == []
    assert "the daemon was ended by SIGKILL, and 6 ends within 30 s are too many: giving up" in capfd.readouterr().err


def test_a_keeper_that_dies_again_and_again_is_given_up(
    supervise: Supervise, runtime: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    supervised = supervise()
    supervised.hear("mounted")
    for _ in range(supervisor.MAX_DEATHS):
        os.kill(supervised.keeper, signal.SIGKILL)
        supervised.hear("resumed")
    os.kill(supervised.keeper, signal.SIGKILL)
    assert supervised.child.wait(PATIENCE) == 1
    assert mounts_beneath(runtime) == []
    assert "the mount keeper was ended by SIGKILL, and 6 ends within 30 s are too many" in capfd.readouterr().err


def test_deaths_of_long_ago_do_not_count(supervise: Supervise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "DEATHS_WITHIN", 0.0)

    def dying(daemon: Daemon) -> int:
        daemon.tell("started")
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    supervised = supervise(dying)
    for _ in range(3 * supervisor.MAX_DEATHS):
        supervised.hear("started")


@pytest.mark.parametrize("status", [0, 2, 3, 4])
def test_a_daemon_that_ends_by_itself_ends_everything_with_its_status(supervise: Supervise, status: int) -> None:
    assert supervise(lambda _: status).child.wait(PATIENCE) == status


def test_a_fault_of_the_daemon_is_told_and_it_starts_again(supervise: Supervise, capfd: pytest.CaptureFixture[str]) -> None:
    def faulty(daemon: Daemon) -> int:
        raise OperatorError("no journal", "start it")

    assert supervise(faulty).child.wait(PATIENCE) == 1
    assert capfd.readouterr().err.count("fuse-gated: no journal (start it)") == supervisor.MAX_DEATHS + 1


def test_a_daemon_that_does_not_heed_sigterm_is_killed_and_that_is_no_orderly_end(
    supervise: Supervise, runtime: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "_GRACE", 0.05)

    def deaf(daemon: Daemon) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        daemon.mount()
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
            daemon.mount()
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
