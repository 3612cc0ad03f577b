"""A session goes from process to process, and programs on its mount notice nothing: neither an error, nor a thing done twice."""

import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Server, Stage, need
from harness.hostile import SILENCE, Child, HostileClient, honest
from harness.log import DEADLINE
from harness.needs import need_that
from harness.parts import Parts, end, thread_states
from harness.proxy import Proxy
from harness.server import ALLOW_ALL
from harness.stage import Export
from harness.tracing import READV, kill_when_it_has_read
from harness.waiting import until, wait_for_record

from fuse_gated import control
from fuse_gated.gate import audit_verify

TENANT = {"users": ["root", "nobody"], "rules": ALLOW_ALL, "outage": {"mode": "wait", "grace": "60s"}}


def need_driver(request: pytest.FixtureRequest, driver: str) -> None:
    """Skip the test where the run leaves that driver out."""
    if driver not in request.config.getoption("--drivers"):
        pytest.skip(f"run with --drivers {driver}")


@pytest.fixture(params=["kernel", "kernel-without-resend", "libfuse"])
def stage(request: pytest.FixtureRequest) -> Iterator[tuple[Stage, Server]]:
    driver = request.param.partition("-")[0]
    need_driver(request, driver)
    need("root", "fuse")
    if driver == "libfuse":
        need("a mount by an ordinary user", "fusermount3", "fusermount")
    with Stage(driver) as stage:
        settings = {"without": ["resend"]} if request.param != driver else {}
        yield stage, stage.server({"tenants": {"acme": TENANT}}, settings)


def worker(server: Server) -> int:
    (session,) = control.call(str(server.runtime), "sessions")
    pid: int = session["pid"]
    return pid


class Busy:
    """A program that makes, renames and removes files of names that it never uses twice: what is done twice, or not, shows."""

    def __init__(self, directory: Path) -> None:
        self.rounds = 0
        self.errors: list[str] = []
        self._directory = directory
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Busy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        # Who waits for ever ends with the mount.
        self._thread.join(DEADLINE)

    def goes_on(self) -> None:
        """A few rounds have been done since this was called."""
        before = self.rounds
        until(lambda: self.rounds > before + 3 or self.errors, "it goes on")
        assert not self.errors

    def _run(self) -> None:
        while not self._stop.is_set() and not self.errors:
            try:
                self._round(self.rounds)
            except (OSError, AssertionError) as error:
                self.errors.append(f"round {self.rounds}: {error!r}")
            self.rounds += 1

    def _round(self, number: int) -> None:
        made, renamed, directory = (str(self._directory / f"{kind}{number}") for kind in ("made", "renamed", "directory"))
        fd = os.open(made, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND)
        os.write(fd, b"one line\n")
        os.write(fd, b"another\n")
        os.rename(made, renamed)
        assert os.pread(fd, 100, 0) == b"one line\nanother\n"
        os.close(fd)
        os.mkdir(directory)
        os.symlink("target", f"{directory}/link")
        assert sorted(os.listdir(directory)) == ["link"]
        os.unlink(f"{directory}/link")
        os.rmdir(directory)
        os.unlink(renamed)


def resumed(client: Export, times: int) -> None:
    until(lambda: sum(event["event"] == "resumed" for event in client.events()) >= times, f"the client is back, {times} times")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_worker_that_ends(stage: tuple[Stage, Server], number: int) -> None:
    """Whoever waits is answered by the next, files and locks that are open stay open, and the chain of records is whole."""
    place, server = stage
    client = place.export(server)
    mount = client.mount_path()
    (mount / "kept").write_text("kept")
    with (mount / "kept").open("r+") as kept, Busy(mount) as busy:
        fcntl.lockf(kept, fcntl.LOCK_EX)
        for times in range(1, 5):
            busy.goes_on()
            os.kill(worker(server), number)
            resumed(client, times)
            busy.goes_on()
        with (client.directory / "kept").open("r+") as behind, pytest.raises(BlockingIOError):
            fcntl.lockf(behind, fcntl.LOCK_EX | fcntl.LOCK_NB)
        kept.write("K")
    assert (client.directory / "kept").read_text() == "Kept"
    assert not busy.errors
    assert not [name for name in os.listdir(client.directory) if name != "kept"]
    client.stop()
    wait_for_record(server, kind="session-closed")
    assert verified(server)


def verified(server: Server) -> bool:
    """The chain has no gap, and there was one session all the time."""
    records = [{name: str(value).encode() for name, value in record.items()} for record in server.audit()]
    assert [session.faults for session in audit_verify.verify(records)] == [()]
    kinds = [record["FUSE_GATED_KIND"] for record in server.audit()]
    return kinds.count("session-opened") == 1 and kinds.count("session-closed") == 1


def test_a_worker_that_ends_when_it_has_read_a_request(request: pytest.FixtureRequest) -> None:
    """And has done nothing about it. Where the kernel does not send it again, the next worker finds it where it was read into."""
    need("root", "fuse")
    need_that(READV is not None, "a processor whose system calls are known here")
    need_driver(request, "kernel")
    with Stage("kernel") as place:
        server = place.server({"tenants": {"acme": TENANT}}, {"without": ["resend"]})
        client = place.export(server)
        mount = client.mount_path()
        with Busy(mount) as busy:
            for times in range(1, 7):
                busy.goes_on()
                kill_when_it_has_read(worker(server))
                resumed(client, times)
                busy.goes_on()
        assert not busy.errors
        assert os.listdir(client.directory) == []
        client.stop()
        wait_for_record(server, kind="session-closed")
        assert verified(server)


def test_nothing_is_done_twice(stage: tuple[Stage, Server]) -> None:
    """Many callers at once, so that there is always something on its way."""
    place, server = stage
    client = place.export(server)
    mount = client.mount_path()
    directories = [mount / f"of{number}" for number in range(6)]
    for directory in directories:
        directory.mkdir()
    crowd = [Busy(directory) for directory in directories]
    for busy in crowd:
        busy.__enter__()
    try:
        for times in range(1, 6):
            until(lambda: all(busy.rounds > 2 or busy.errors for busy in crowd), "all are at work")
            os.kill(worker(server), signal.SIGKILL)
            resumed(client, times)
            for busy in crowd:
                busy.goes_on()
    finally:
        for busy in crowd:
            busy.__exit__()
    assert [busy.errors for busy in crowd] == [[]] * len(crowd)
    assert [os.listdir(client.directory / directory.name) for directory in directories] == [[]] * len(crowd)


def silent(operation: str, _arguments: Any, _request: Any) -> Any:
    """Answers everything but an open."""
    return SILENCE if operation == "open" else honest(operation, _arguments, _request)


def test_a_signal_is_not_lost_with_the_worker(stage: tuple[Stage, Server]) -> None:
    """The kernel tells it once. Its caller would wait for ever, and no further signal would help."""
    _, server = stage
    with HostileClient(server, tenant="acme") as client:
        mount = client.open(silent)
        with Child(read_f, mount) as reader:
            client.pump(lambda: any(name == "open" for name, _ in client.requests))
            pid = worker(server)
            reader.send(signal.SIGINT)
            os.kill(pid, signal.SIGKILL)
            assert reader.wait(DEADLINE), "it is interrupted while nobody can answer it"
            assert reader.reap() == -signal.SIGINT


def read_f(mount: Path) -> bytes:
    return (mount / "f").read_bytes()


@pytest.mark.parametrize("which", ["daemon", "keeper"])
def test_the_daemon_or_the_keeper_is_killed(request: pytest.FixtureRequest, which: str) -> None:
    need("root", "fuse")
    need_driver(request, "kernel")
    with Stage("kernel") as place:
        server = place.server({"tenants": {"acme": TENANT}})
        parts = Parts(server)
        client = place.export(server)
        mount = client.mount_path()
        with Busy(mount) as busy:
            for times in range(1, 4):
                busy.goes_on()
                said = server.program.stderr.size()
                os.kill(parts.daemon if which == "daemon" else parts.keeper, signal.SIGKILL)
                server.program.stderr.wait_for("starting again", server.program.process, said)
                if which == "daemon":
                    resumed(client, times)
                busy.goes_on()
            assert not busy.errors
        client.stop()
        until(lambda: not mount.exists(), "its mount is gone")
        wait_for_record(server, kind="session-closed")
        kinds: list[Any] = [record["FUSE_GATED_KIND"] for record in server.audit()]
        assert kinds.count("session-opened") == kinds.count("session-closed") == 1


def test_a_killed_worker_lets_its_client_go_whatever_a_thread_of_it_waits_for(request: pytest.FixtureRequest) -> None:
    """The kernel has it wait for a directory's lock, whose holder waits for the client: what would be left of the process until
    that is answered must not keep the connection open."""
    need("root", "fuse")
    need_driver(request, "kernel")
    with Stage("kernel") as place:
        server = place.server(place.tenant(cache={"mode": "watched"}))
        proxy = Proxy(server.port)
        try:
            client = place.export(server, options=["--server", proxy.url, "--dead-after", "3600"])
            mount = client.mount_path()
            (client.directory / "d").mkdir()
            assert os.listdir(mount / "d") == []
            since = len(server.audit())
            proxy.stall("to client", 3600.0)
            holder = threading.Thread(target=os.mkdir, args=(mount / "d/held",))
            holder.start()
            wait_for_record(server, since, kind="operation", operation="mkdir")
            (client.directory / "d/new").touch()
            pid = worker(server)
            until(lambda: "D" in thread_states(pid), "it waits in the kernel")
            end(pid, signal.SIGKILL)
            proxy.flow()
            client.wait_for_event("connection-lost")
            holder.join(DEADLINE)
            assert not holder.is_alive()
            assert sorted(os.listdir(mount / "d")) == ["held", "new"]
            client.stop()
        finally:
            proxy.close()


@pytest.mark.parametrize("how", ["cut", "killed"])
def test_a_read_that_waits_sees_what_came_meanwhile(request: pytest.FixtureRequest, how: str) -> None:
    """Its kernel has asked for the attributes, by which it knows whether its pages are those of the file: the answer, though a
    successor gives it, must not be forgotten."""
    need("root", "fuse")
    need_driver(request, "kernel")
    with Stage("kernel") as place:
        server = place.server(place.tenant(cache={"mode": "watched"}, outage={"mode": "wait", "grace": "60s"}))
        proxy = Proxy(server.port)
        try:
            client = place.export(server, options=["--server", proxy.url, "--dead-after", "3600", "--reconnect-delay", "0.1"])
            (client.directory / "log").write_text("first\n")
            fd = os.open(client.mount_path() / "log", os.O_RDONLY)
            assert os.read(fd, 100) == b"first\n"
            # After this the kernel asks before it reads.
            proxy.cut()
            resumed(client, 1)
            if how == "cut":
                proxy.refuse()
                proxy.cut()
                until(lambda: control.call(str(server.runtime), "sessions")[0]["state"] == "suspended", "it waits")
            else:
                proxy.stall("to server", 3600.0)
            with open(client.directory / "log", "a") as log:
                log.write("second\n")
            read: list[bytes] = []
            reader = threading.Thread(target=lambda: read.append(os.read(fd, 100)))
            reader.start()
            call = Path(f"/proc/self/task/{reader.native_id}/syscall")
            until(lambda: call.read_text().split()[1:2] == [hex(fd)], "it is in read(2)")
            if how == "cut":
                proxy.refuse(False)
            else:
                end(worker(server), signal.SIGKILL)
                proxy.cut()
            reader.join(DEADLINE)
            assert read == [b"second\n"]
            os.close(fd)
            client.stop()
        finally:
            proxy.close()
