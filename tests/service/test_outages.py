"""What programs meet while the client is away: by mode, with errno and record; and after the grace.

The client loses its connection at a proxy that resets it, and lets nobody through until it is told to. Programs run as processes
of their own. How long something lasts is the policy's to say: what is looked at is what had happened, and what had not, by then.
"""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Server, Stage, mounts_beneath, need
from harness.proxy import Proxy
from harness.stage import WATCHED, Export
from harness.waiting import records, until, wait_for_record

from fuse_gated import control

GRACE = "3s"
LONG = "60s"
DEADLINE = 30
ENDED = ("EIO", "ENOTCONN", "ECONNABORTED", "ENODEV")
"""What a program hears whose session ends while it waits: it depends on where in the kernel or the worker its request is."""
CALLS = {
    "stat": "os.stat(at + 'known')",
    "open": "os.open(at + 'known', os.O_RDONLY)",
    "create": "os.open(at + 'new', os.O_CREAT | os.O_EXCL | os.O_WRONLY)",
    "write": "os.write(os.open(at + 'known', os.O_WRONLY), b'1')",
    "list": "os.listdir(at + 'directory')",
    "mkdir": "os.mkdir(at + 'new')",
    "rename": "os.rename(at + 'known', at + 'new')",
    "unlink": "os.unlink(at + 'known')",
}


class Outage:
    """A session whose client can be sent away. Its export has `known`, which has been read, and `directory`."""

    def __init__(self, stage: Stage, mode: str, grace: str) -> None:
        self.stage = stage
        self.server: Server = stage.server(Stage.tenant(outage={"mode": mode, "grace": grace}))
        self.proxy = Proxy(self.server.port)
        export = stage.directory / "export"
        (export / "directory").mkdir(parents=True)
        (export / "known").write_text("known")
        options = ["--server", self.proxy.url, "--reconnect-delay", "0.05", "--reconnect-max", "0.05"]
        self.client: Export = stage.export(self.server, export, options=options)
        self.mount = self.client.mount_path()
        self.session = self.client.wait_for_event("mounted")["session"]
        os.stat(self.mount / "known")
        self.programs: list[subprocess.Popen[str]] = []

    def begin(self) -> None:
        """Return when the session is suspended."""
        self.proxy.refuse()
        self.proxy.cut()
        wait_for_record(self.server, kind="session-suspended")
        until(lambda: self.state() == "suspended", "fuse-gatectl says so")

    def end(self) -> None:
        self.proxy.refuse(False)
        wait_for_record(self.server, kind="session-resumed")

    def over(self) -> dict[str, Any]:
        """Return when the grace has passed, and the session with it: its record."""
        closed = wait_for_record(self.server, kind="session-closed", session=self.session)
        until(lambda: not mounts_beneath(self.server.runtime) and not self.mount.exists(), "the mount point is gone")
        return closed

    def state(self) -> str:
        sessions = control.call(str(self.server.runtime), "sessions")
        return str(sessions[0]["state"]) if sessions else ""

    def start(self, *command: object, cwd: Path | None = None) -> "subprocess.Popen[str]":
        program = subprocess.Popen(
            [str(one) for one in command], cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        self.programs.append(program)
        return program

    def call(self, code: str) -> "subprocess.Popen[str]":
        """One system call, on files that are at `at`; it prints 'ok', or the errno's name."""
        return self.start(sys.executable, "-c", f"""
import errno, os, signal
# Whoever runs the tests in the background may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
at = {str(self.mount)!r} + "/"
print("about to", flush=True)
try:
    {code}
    print("ok")
except OSError as error:
    print(errno.errorcode[error.errno])
""")  # fmt: skip

    def ready(self, code: str) -> "subprocess.Popen[str]":
        """The same, started and about to call: it does so when it hears of it."""
        program = self.call(f"input(); {code}")
        assert program.stdout is not None
        assert program.stdout.readline() == "about to\n"
        return program

    def let_go(self, program: "subprocess.Popen[str]") -> None:
        """Let it call, and return when it waits in the kernel for an answer of the mount's."""
        assert program.stdin is not None
        program.stdin.write("now\n")
        program.stdin.flush()
        until(lambda: _waits(program.pid), "it waits")

    def waiting(self, code: str) -> "subprocess.Popen[str]":
        """One that waits."""
        program = self.ready(code)
        self.let_go(program)
        return program

    def close(self) -> None:
        self.proxy.refuse(False)
        for program in self.programs:
            program.kill()
            with contextlib.suppress(ValueError):  # It was asked before.
                program.communicate(timeout=DEADLINE)
        self.proxy.close()


def said(program: "subprocess.Popen[str]") -> str:
    """What it printed last, once it has ended."""
    output = program.communicate(timeout=DEADLINE)[0].split()
    return output[-1] if output else ""


def _waits(pid: int) -> bool:
    with contextlib.suppress(OSError):
        stack = Path(f"/proc/{pid}/stack").read_text()
        return "request_wait_answer" in stack or "fuse_" in stack
    return False


Begin = Callable[..., Outage]


@pytest.fixture
def begin(own_stage: Stage) -> Iterator[Begin]:
    """begin(mode, grace): an outage that has begun, or with begun=False is about to."""
    outages: list[Outage] = []

    def make(mode: str, grace: str, begun: bool = True) -> Outage:
        outages.append(Outage(own_stage, mode, grace))
        if begun:
            outages[-1].begin()
        return outages[-1]

    yield make
    for outage in outages:
        outage.close()


# While it lasts.


@pytest.mark.parametrize("call", CALLS)
def test_in_mode_wait_everyone_waits_and_is_answered(begin: Begin, call: str) -> None:
    outage = begin("wait", LONG)
    program = outage.waiting(CALLS[call])
    assert program.poll() is None
    outage.end()
    assert said(program) == "ok"
    assert "programs wait, for 60 s at most" in records(outage.server, kind="session-suspended")[0]["MESSAGE"]
    assert not records(outage.server, kind="session-closed")
    assert len(records(outage.server, kind="session-opened")) == 1


@pytest.mark.parametrize("call", CALLS)
def test_in_mode_fail_everyone_fails_at_once(begin: Begin, call: str) -> None:
    outage = begin("fail", LONG)
    assert said(outage.call(CALLS[call])) == "EIO"
    assert outage.state() == "suspended"
    assert "programs get EIO at once" in records(outage.server, kind="session-suspended")[0]["MESSAGE"]
    outage.end()
    assert wait_for_record(outage.server, kind="outage-over")["FUSE_GATED_COUNT"] != "0"
    assert "operations failed, 0 were answered" in records(outage.server, kind="outage-over")[0]["MESSAGE"]
    assert said(outage.call(CALLS[call])) == "ok"


def test_in_mode_cached_what_was_read_and_listed_can_be_again() -> None:
    """Where the client tells of changes, a session remembers what programs have read: until it is back that will do."""
    need("root", "fuse")
    with Stage(WATCHED) as stage:
        outage = Outage(stage, "cached", LONG)
        try:
            (outage.client.directory / "directory/inside").write_text("inside")
            looks = (
                "assert open(at + 'known').read() == 'known', 'stale'; assert sorted(os.listdir(at)) == ['directory', 'known'];"
                "assert os.listdir(at + 'directory') == ['inside']; assert open(at + 'directory/inside').read() == 'inside'"
            )
            for _ in range(2):
                assert said(outage.call(looks)) == "ok"
            outage.begin()
            (outage.client.directory / "known").write_text("changed")
            for _ in range(2):
                assert said(outage.call(looks)) == "ok"
            assert outage.state() == "suspended"
            program = outage.waiting(CALLS["create"])
            outage.end()
            message = wait_for_record(outage.server, kind="outage-over")["MESSAGE"]
            assert "0 operations failed" in message
            assert int(message.split("failed, ")[1].split()[0]) >= 4, "each that was answered from memory is counted"
            assert said(program) == "ok"
            assert (outage.mount / "known").read_text() == "changed"
            assert sorted(os.listdir(outage.mount)) == ["directory", "known", "new"]
            outage.client.stop()
        finally:
            outage.close()


def test_in_mode_fail_who_waited_already_fails_too(begin: Begin, own_stage: Stage) -> None:
    """The change of the policy is one for those who wait by the old one."""
    outage = begin("wait", LONG)
    program = outage.waiting(CALLS["mkdir"])
    outage.server.reload(Stage.tenant(outage={"mode": "fail", "grace": LONG}), "policy applied")
    assert said(program) == "EIO"
    outage.end()


def test_in_mode_cached_what_is_known_is_answered_and_the_rest_waits(begin: Begin) -> None:
    outage = begin("cached", LONG)
    assert said(outage.call("assert os.stat(at + 'known').st_size == 5")) == "ok"
    assert outage.state() == "suspended"
    program = outage.waiting(CALLS["open"])
    assert "or are answered with what was last known" in records(outage.server, kind="session-suspended")[0]["MESSAGE"]
    outage.end()
    assert "0 operations failed" in wait_for_record(outage.server, kind="outage-over")["MESSAGE"]
    assert said(program) == "ok"


@pytest.mark.parametrize("mode", ["wait", "fail", "cached"])
def test_the_mount_itself_is_answered_for(begin: Begin, mode: str) -> None:
    """df(1), a listing of the parent, and a shell whose working directory is inside: they do not hang."""
    outage = begin(mode, LONG, begun=False)
    shell = outage.start("sh", cwd=outage.mount)
    outage.begin()
    for command in (["df", outage.mount], ["ls", "-la", outage.mount.parent], ["stat", outage.mount]):
        program = outage.start(*command)
        output = program.communicate(timeout=DEADLINE)[0]
        assert program.returncode == 0, output
        assert "work" in output
    assert shell.stdin is not None
    shell.stdin.write("pwd\nls ..\ntest -d . && echo it is there\n")
    shell.stdin.flush()
    assert shell.stdout is not None
    assert [shell.stdout.readline() for _ in range(3)] == [f"{outage.mount}\n", "work\n", "it is there\n"]
    assert outage.state() == "suspended"
    outage.end()
    shell.stdin.write("cat known\n")
    assert shell.communicate(timeout=DEADLINE)[0] == "known"


@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c_ends_who_waits(begin: Begin, call: str) -> None:
    outage = begin("wait", LONG)
    program = outage.waiting(CALLS[call])
    program.send_signal(signal.SIGINT)
    program.communicate(timeout=DEADLINE)
    assert program.returncode in (-signal.SIGINT, 1), "Python's own way to end"
    assert outage.state() == "suspended"
    outage.end()
    assert said(outage.call("os.stat(at + 'known')")) == "ok"


# After the grace.


def test_after_the_grace_who_waited_gets_eio_and_the_mount_is_gone(begin: Begin) -> None:
    outage = begin("wait", GRACE, begun=False)
    kept = os.open(outage.mount, os.O_RDONLY | os.O_DIRECTORY)
    new, known = outage.ready(CALLS["mkdir"]), outage.ready(CALLS["open"])
    try:
        outage.begin()
        for program in (new, known):
            outage.let_go(program)
        assert not records(outage.server, kind="session-closed")
        assert said(new) == "EIO"
        # The kernel asks once more for a name that it knew, and by then the mount may be gone.
        assert said(known) in ENDED
        closed = outage.over()
        assert "the client did not come back within 3 s" in closed["MESSAGE"]
        (told,) = records(outage.server, kind="outage-over")
        assert int(told["MESSAGE"].partition("times, ")[2].split()[0]) >= 2, "both that waited are counted"
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)) as raised:
            os.stat("known", dir_fd=kept)
        assert raised.value.errno == errno.ENOTCONN
    finally:
        os.close(kept)


def test_a_client_that_comes_back_too_late_gets_a_new_session(begin: Begin) -> None:
    outage = begin("wait", GRACE)
    outage.over()
    outage.proxy.refuse(False)
    event = until(lambda: [event for event in outage.client.events() if event.get("replaced")], "it is mounted anew")[0]
    assert event["event"] == "mounted"
    assert event["path"] == str(outage.mount)
    assert event["session"] != outage.session
    assert (outage.mount / "known").read_text() == "known"
    opened = records(outage.server, kind="session-opened")
    assert [record["FUSE_GATED_SESSION"] for record in opened] == [outage.session, event["session"]]


def test_without_a_grace_the_session_ends_with_its_connection(own_stage: Stage) -> None:
    server = own_stage.server(Stage.tenant(outage={"mode": "wait", "grace": "0s"}))
    client = own_stage.export(server, options=["--no-reconnect"])
    client.mount_path()
    client.program.kill()
    wait_for_record(server, kind="session-closed")
    assert not records(server, kind="session-suspended")
    until(lambda: not mounts_beneath(server.runtime), "it is unmounted")


def test_a_client_that_was_started_anew_does_not_wait_for_the_grace(begin: Begin, own_stage: Stage) -> None:
    """It knows nothing of what was open, so the old session is closed, and says why."""
    outage = begin("wait", LONG)
    program = outage.waiting(CALLS["open"])
    outage.client.program.kill()
    again = own_stage.export(outage.server, outage.client.directory, name="work")
    assert again.mount_path() == outage.mount
    assert said(program) in ENDED
    closed = wait_for_record(outage.server, kind="session-closed")
    assert "its client has begun a new session" in closed["MESSAGE"]
    assert (outage.mount / "known").read_text() == "known"
