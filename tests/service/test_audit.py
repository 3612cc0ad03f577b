"""Who did what: the exact records of a scripted run, each refusal's own, the chain over them, and what happens when they
cannot be written: nothing is done untold, and nobody waits for long."""

import contextlib
import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from harness import ALLOW_ALL, Mounted, Server, Stage, outcome
from harness.hostile import Child
from harness.journald import Journald, running_journald
from harness.mounting import tmpfs
from harness.namespace import inside
from harness.program import ROOT_OF_PROJECT
from harness.syscalls import exchange
from harness.waiting import allowed, records, told, until, wait_for_record

from fuse_gated import control
from fuse_gated.edge.records import JournalSource, read
from fuse_gated.gate.audit_verify import verify

Value = TypeVar("Value")

RULES: Final = [
    {"path": "/hidden*", "hide": True},
    {"path": "/denied/**", "deny": ["read", "write", "delete"]},
    {"path": "/read/**", "deny": ["write", "delete", "execute"]},
    *ALLOW_ALL,
]
LEVELS: Final = ("denials", "writes", "opens", "everything")


def policy(names: tuple[str, ...], **changes: Any) -> dict[str, Any]:
    """Tenants called as their audit levels."""
    body = {"users": ["root"], "groups": ["root"], "rules": RULES, **changes}
    return {"tenants": {name: copy.deepcopy({**body, "audit": name}) for name in names}}


@pytest.fixture(scope="module")
def server(stage: Stage) -> Server:
    return stage.server(policy(LEVELS))


def furnish(export: Path) -> None:
    """What the rules are about, made on the client's side."""
    for name in ("denied", "read"):
        (export / name).mkdir()
        (export / name / "f").write_bytes(b"12345")
        (export / name / "empty").mkdir()
    (export / "hidden").touch()
    (export / "d").mkdir()
    (export / "d" / "f").write_bytes(b"12345")
    (export / "out").symlink_to("/etc/passwd")


@pytest.fixture(scope="module")
def mounts(stage: Stage, server: Server) -> dict[str, Mounted]:
    made = {level: stage.mount(server=server, tenant=level, name=level) for level in LEVELS}
    for mounted in made.values():
        furnish(mounted.export)
    return made


def shown(record: dict[str, Any]) -> tuple[str, ...]:
    """Kind, operation, paths, decision and errno, without what is empty."""
    names = ("KIND", "OPERATION", "PATH", "NEW_PATH", "DECISION", "ERRNO")
    return tuple(record[f"FUSE_GATED_{name}"] for name in names if f"FUSE_GATED_{name}" in record)


def of(server: Server, tenant: str, since: int = 0) -> list[dict[str, Any]]:
    return records(server, since, tenant=tenant)


# The scripted run.


def script(mount: Path, wait: Callable[[int], None]) -> None:
    """Every kind of record. The kernel releases a file some time after its close(2): `wait(n)` until n were told closed."""
    os.mkdir(mount / "new")
    (mount / "new/a").write_bytes(b"12345")
    wait(1)
    (mount / "new/a").read_bytes()
    wait(2)
    os.chmod(mount / "new/a", 0o600)
    os.rename(mount / "new/a", mount / "new/b")
    os.symlink("b", mount / "new/l")
    os.link(mount / "new/b", mount / "new/c")
    os.listdir(mount / "new")
    assert outcome(os.rmdir, mount / "new") == "ENOTEMPTY"
    assert outcome(os.stat, mount / "hidden") == "ENOENT"
    assert outcome(os.stat, mount / "missing") == "ENOENT"
    assert outcome(os.unlink, mount / "denied/f") == "EACCES"
    for name in ("b", "c", "l"):
        os.unlink(mount / "new" / name)
    os.rmdir(mount / "new")


CHANGES: Final = [
    ("operation", "mkdir", "/new", "allowed"),
    ("operation", "create", "/new/a", "allowed"),
    ("file-closed", "release", "/new/a", "allowed"),
    ("operation", "setattr", "/new/a", "allowed"),
    ("operation", "rename", "/new/a", "/new/b", "allowed"),
    ("operation", "symlink", "/new/l", "allowed"),
    ("operation", "link", "/new/b", "/new/c", "allowed"),
    ("operation", "rmdir", "/new", "allowed"),
    ("failed", "rmdir", "/new", "failed", "ENOTEMPTY"),
    ("refused", "lookup", "/hidden", "denied", "ENOENT"),
    ("refused", "unlink", "/denied/f", "denied", "EACCES"),
    ("operation", "unlink", "/new/b", "allowed"),
    ("operation", "unlink", "/new/c", "allowed"),
    ("operation", "unlink", "/new/l", "allowed"),
    ("operation", "rmdir", "/new", "allowed"),
]
OPENS: Final = [
    *CHANGES[:3],
    ("operation", "open", "/new/a", "allowed"),
    ("file-closed", "release", "/new/a", "allowed"),
    *CHANGES[3:7],
    ("operation", "opendir", "/new", "allowed"),
    *CHANGES[7:],
]
EXPECTED: Final = {
    "denials": [row for row in CHANGES if row[0] == "refused"],
    "writes": CHANGES,
    "opens": OPENS,
    "everything": OPENS,
}
LOOKING: Final = {"lookup", "getattr", "readdir", "releasedir", "flush", "statfs", "access"}
"""What 'everything' tells besides: how often the kernel asks is its own affair."""


@pytest.mark.parametrize("level", LEVELS)
def test_a_scripted_run_tells_exactly_this(server: Server, mounts: dict[str, Mounted], level: str) -> None:
    mounted = mounts[level]
    before = len(told(server))

    def wait(closed: int) -> None:
        if level != "denials":
            # Reading is not told by 'writes'.
            expected = closed if level in ("opens", "everything") else 1
            until(lambda: len(records(server, before, kind="file-closed", tenant=level)) == expected, "closed")

    script(mounted.path, wait)
    # Told, and only then answered: what was done is in the file by now.
    found = of(server, level, before)
    looked = [record for record in found if record["FUSE_GATED_OPERATION"] in LOOKING and record["FUSE_GATED_KIND"] != "refused"]
    assert [shown(record) for record in found if record not in looked] == EXPECTED[level]
    assert bool(looked) == (level == "everything")
    assert {record["FUSE_GATED_UID"] for record in found} == {"0"}
    # RELEASEDIR comes from the kernel itself.
    assert {record["FUSE_GATED_PID"] for record in found if record not in looked} == {str(os.getpid())}
    if looked:
        paths = {record["FUSE_GATED_PATH"] for record in looked}
        assert {"/new", "/new/a", "/missing", "/denied"} <= paths
        assert ("failed", "lookup", "/missing", "failed", "ENOENT") in [shown(record) for record in looked]
    closed = [record for record in found if record["FUSE_GATED_KIND"] == "file-closed"]
    assert [record["FUSE_GATED_BYTES"] for record in closed] == ["5"] * len(closed)


def test_the_whole_of_a_session(stage: Stage, server: Server) -> None:
    before = len(told(server))
    export = stage.export(server, tenant="writes", name="whole")
    mount = export.mount_path()
    os.mkdir(mount / "d")
    export.stop()
    wait_for_record(server, before, kind="session-closed")
    found = records(server, before, export="whole")
    assert [record["FUSE_GATED_KIND"] for record in found] == ["session-opened", "operation", "session-closed"]
    assert [record["FUSE_GATED_SEQUENCE"] for record in found] == ["1", "2", "3"]
    assert len({record["FUSE_GATED_SESSION"] for record in found}) == 1


# Refusals.


def _open(path: Path, flags: int) -> None:
    os.close(os.open(path, flags, 0o666))


REFUSALS: Final[dict[str, tuple[Callable[[Path], object], tuple[str, ...]]]] = {
    "open to read": (lambda m: _open(m / "denied/f", os.O_RDONLY), ("open", "/denied/f", "EACCES")),
    "open to write": (lambda m: _open(m / "read/f", os.O_WRONLY), ("open", "/read/f", "EACCES")),
    "open to truncate": (lambda m: _open(m / "read/f", os.O_RDONLY | os.O_TRUNC), ("open", "/read/f", "EACCES")),
    "create": (lambda m: _open(m / "read/new", os.O_WRONLY | os.O_CREAT), ("create", "/read/new", "EACCES")),
    "create what is hidden": (lambda m: _open(m / "hidden-new", os.O_WRONLY | os.O_CREAT), ("lookup", "/hidden-new", "ENOENT")),
    "mkdir": (lambda m: os.mkdir(m / "read/new"), ("mkdir", "/read/new", "EACCES")),
    "mknod": (lambda m: os.mkfifo(m / "read/new"), ("mknod", "/read/new", "EACCES")),
    "symlink": (lambda m: os.symlink("x", m / "read/new"), ("symlink", "/read/new", "EACCES")),
    "link": (lambda m: os.link(m / "d/f", m / "read/new"), ("link", "/d/f", "/read/new", "EACCES")),
    "link that widens": (lambda m: os.link(m / "read/f", m / "d/new"), ("link", "/read/f", "/d/new", "EXDEV")),
    "unlink": (lambda m: os.unlink(m / "read/f"), ("unlink", "/read/f", "EACCES")),
    "rmdir": (lambda m: os.rmdir(m / "read/empty"), ("rmdir", "/read/empty", "EACCES")),
    "rename away": (lambda m: os.rename(m / "read/f", m / "d/new"), ("rename", "/read/f", "/d/new", "EACCES")),
    "rename to": (lambda m: os.rename(m / "d/f", m / "read/new"), ("rename", "/d/f", "/read/new", "EACCES")),
    "exchange": (lambda m: exchange(m / "d/f", m / "read/f"), ("rename", "/d/f", "/read/f", "EACCES")),
    "chmod": (lambda m: os.chmod(m / "read/f", 0o600), ("setattr", "/read/f", "EACCES")),
    "chown": (lambda m: os.chown(m / "d/f", 5, 5), ("setattr", "/d/f", "EPERM")),
    "truncate": (lambda m: os.truncate(m / "read/f", 0), ("setattr", "/read/f", "EACCES")),
    "utime": (lambda m: os.utime(m / "read/f"), ("setattr", "/read/f", "EACCES")),
    "setxattr": (lambda m: os.setxattr(m / "read/f", "user.a", b"b"), ("setxattr", "/read/f", "EACCES")),
    "getxattr": (lambda m: os.getxattr(m / "denied", "user.a"), ("getxattr", "/denied", "EACCES")),
    "list": (lambda m: os.listdir(m / "denied/empty"), ("opendir", "/denied/empty", "EACCES")),
    "readlink": (lambda m: os.readlink(m / "out"), ("readlink", "/out", "EACCES")),
    "stat what is hidden": (lambda m: os.stat(m / "hidden"), ("lookup", "/hidden", "ENOENT")),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_each_refusal_has_its_record(server: Server, mounts: dict[str, Mounted], name: str) -> None:
    function, expected = REFUSALS[name]
    mounted = mounts["denials"]
    before = len(told(server))
    errno = outcome(function, mounted.path)
    found = [record for record in of(server, "denials", before) if record["FUSE_GATED_KIND"] == "refused"]
    assert errno != "ok"
    seen = [tuple(part for part in shown(record)[1:] if part != "denied") for record in found]
    # To make what is hidden, the kernel first looks whether it is there: that is refused too.
    assert expected in seen, seen
    assert len(seen) == (2 if name == "create what is hidden" else 1)
    assert seen[-1][-1] == errno


# The chain.


def gatectl(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "fuse_gated.commands.fuse_gatectl", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT_OF_PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_chain_is_whole(server: Server, mounts: dict[str, Mounted]) -> None:
    os.mkdir(mounts["writes"].path / "chained")
    done = gatectl("audit", "--verify", "--file", str(server.runtime / "audit.jsonl"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "whole: records 1.." in done.stdout


def test_the_chain_shows_what_was_done_to_it(stage: Stage, server: Server, mounts: dict[str, Mounted], tmp_path: Path) -> None:
    for number in range(5):
        os.mkdir(mounts["writes"].path / f"link-{number}")
    lines = (server.runtime / "audit.jsonl").read_text().splitlines()
    own = [number for number, line in enumerate(lines) if json.loads(line).get("FUSE_GATED_PATH") == "/link-2"]
    victim = own[0]
    record = json.loads(lines[victim])
    sequence = record["FUSE_GATED_SEQUENCE"]
    altered = json.dumps({**record, "FUSE_GATED_PATH": "/harmless"})
    for name, changed, says in (
        ("altered", [*lines[:victim], altered, *lines[victim + 1 :]], f"record {sequence} was altered"),
        ("removed", [*lines[:victim], *lines[victim + 1 :]], f"record {sequence} is missing"),
        ("doubled", [*lines, lines[victim]], f"record {sequence} is there more than once"),
    ):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(changed) + "\n")
        done = gatectl("audit", "--verify", "--file", str(path))
        assert (done.returncode, says in done.stdout) == (1, True), done.stdout + done.stderr


# When records cannot be written.


def make(mount: Path, number: int) -> None:
    os.mkdir(mount / f"made-{number}")


def make_until_refused(mount: Path, most: int = 5000) -> tuple[int, float]:
    """How many directories could be made before one was refused with EIO, and the seconds that that one took."""
    for number in range(most):
        start = time.monotonic()
        heard = outcome(make, mount, number)
        if heard != "ok":
            assert heard == "EIO"
            return number, time.monotonic() - start
    raise AssertionError(f"{most} records were written to nobody")


def quickest(function: Callable[[], Value]) -> tuple[float, Value]:
    """The seconds that it takes at best, and what it returns: once in a while the machine has something else to do, and what
    waits for a second does so each time."""
    taken = []
    while len(taken) < 5 and min(taken, default=1.0) > 0.5:
        start = time.monotonic()
        value = function()
        taken.append(time.monotonic() - start)
    return min(taken), value


def answers_beside(server: Server) -> str:
    """How the session looks to `fuse-gatectl sessions`, which is answered at once by a loop that does not block."""
    seconds, sessions = quickest(lambda: control.call(str(server.runtime), "sessions"))
    assert seconds < 0.9, "only a worker that does not answer takes a second"
    assert len(sessions) == 1
    return str(sessions[0]["state"])


class Blocked:
    """A mount whose journal takes nothing, from the side of the server's programs."""

    def __init__(self, server: Server, mount: Path, export: Path, made: int) -> None:
        self.server, self.mount, self.export, self.made = server, mount, export, made

    def check(self) -> None:
        """Everything is refused at once, nothing of it was done, and the loop answers."""
        assert answers_beside(self.server) == "silenced"
        for function in (lambda: make(self.mount, 7777), lambda: os.listdir(self.mount), lambda: os.stat(self.mount / "x")):
            seconds, heard = quickest(lambda function=function: outcome(function))
            assert heard == "EIO"
            assert seconds < 0.9, "it is refused without being tried"
        assert sorted(os.listdir(self.export)) == sorted(f"made-{number}" for number in range(self.made))

    def recovers(self) -> None:
        until(lambda: outcome(make, self.mount, 8888) == "ok", "it recovers")
        until(lambda: answers_beside(self.server) == "mounted", "it says so")


def told_of(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record for record in found if record["FUSE_GATED_KIND"] == kind]


def check_recovery(found: list[dict[str, Any]], made: int) -> None:
    """Everything that was done is told, what failed is told as failed, and the gap says how much was never tried."""
    announced = [record["FUSE_GATED_PATH"] for record in told_of(found, "operation")]
    assert announced == [*(f"/made-{number}" for number in range(made + 1)), "/made-8888"]
    failed = told_of(found, "failed")
    assert [(record["FUSE_GATED_PATH"], record["FUSE_GATED_ERRNO"]) for record in failed] == [(f"/made-{made}", "EIO")]
    gap = told_of(found, "audit-gap")
    assert len(gap) == 1
    assert int(gap[0]["FUSE_GATED_COUNT"]) >= 4
    verified = verify([{name: str(value).encode() for name, value in record.items()} for record in found])
    assert [session.faults for session in verified] == [()]


def test_a_full_disk_under_the_audit_file(own_stage: Stage) -> None:
    """One that is full may have room later: the records go on where they stopped."""
    directory = own_stage.directory / "audit"
    directory.mkdir()
    with tmpfs(directory, "size=64k,mode=0755,uid=65534"):
        server = own_stage.server(policy(("writes",)), {"audit": {"to": "file", "file": str(directory / "log")}})
        mounted = own_stage.mount(server=server, tenant="writes")
        ballast = directory / "ballast"
        ballast.write_bytes(b"x" * 30_000)
        made, seconds = make_until_refused(mounted.path)
        assert 0.5 < seconds < allowed(3)
        blocked = Blocked(server, mounted.path, mounted.export, made)
        blocked.check()
        ballast.unlink()
        blocked.recovers()
        lines = (directory / "log").read_text().splitlines()
        found = [json.loads(line) for line in lines if line.startswith('{"__REALTIME') and line.endswith("}")]
        check_recovery(found, made)
        mounted.client.stop()
        server.stop()


# The real journald.

class Journalled:
    """A server that writes to a journald of its own, and a mount on it, seen from outside that journald's namespace."""

    def __init__(self, stage: Stage, journald: Journald, pid: int) -> None:
        self.journald = journald
        with inside(pid):
            self.server = stage.server(policy(("writes",)), {"audit": {"to": "journal"}})
            self.export = stage.export(self.server, tenant="writes")
            self.path = Path(f"/proc/{pid}/root{self.export.mount_path()}")

    def records(self) -> list[dict[str, Any]]:
        self.journald.sync()
        source = JournalSource(self.journald.journal, None)
        return [{name: value.decode() for name, value in record.items()} for record in read(source)]

    def stop(self) -> None:
        self.export.stop()
        self.server.stop()


@pytest.fixture
def journald() -> Iterator[Journald]:
    with running_journald() as journald:
        yield journald


@pytest.fixture
def journalled(own_stage: Stage, journald: Journald) -> Journalled:
    return Journalled(own_stage, journald, journald_pid(journald))


def journald_pid(journald: Journald) -> int:
    return int(Path(journald.socket).parts[2])


def test_records_arrive_in_the_journal(journalled: Journalled) -> None:
    os.mkdir(journalled.path / "d")
    pid = control.call(str(journalled.server.runtime), "sessions")[0]["pid"]
    journalled.stop()
    found = journalled.records()
    assert [record["FUSE_GATED_KIND"] for record in found] == ["session-opened", "operation", "session-closed"]
    assert found[1]["MESSAGE"].startswith("writes/work: uid 0 mkdir /d (rule /**")
    shown = json.loads(journalled.journald.command("journalctl", "--output=json", "FUSE_GATED_OPERATION=mkdir"))
    # Whom journald itself saw send it.
    assert (shown["_PID"], shown["_UID"]) == (str(pid), "65534")
    done = verify([{name: value.encode() for name, value in record.items()} for record in found])
    assert [(session.records, session.faults, session.notes) for session in done] == [(3, (), ())]


def test_a_journal_that_is_blocked(journalled: Journalled) -> None:
    journalled.journald.pause()
    try:
        with Child(make_until_refused, journalled.path) as program:
            while not program.wait(0.05):
                # Also while the first record waits for its second to pass.
                answers_beside(journalled.server)
            made, seconds = program.result()
        assert 0.5 < seconds < allowed(3)
        blocked = Blocked(journalled.server, journalled.path, journalled.export.directory, made)
        blocked.check()
    finally:
        journalled.journald.resume()
    blocked.recovers()
    check_recovery(journalled.records(), made)
    journalled.stop()


def test_other_sessions_of_a_blocked_journal_are_silenced_each_by_itself(own_stage: Stage, journalled: Journalled) -> None:
    """Each has a socket of its own: what one has queued takes no room from another's, and a waiting one blocks nobody."""
    with inside(journald_pid(journalled.journald)):
        second = own_stage.export(journalled.server, tenant="writes", name="second")
        path = Path(f"/proc/{journald_pid(journalled.journald)}/root{second.mount_path()}")
    journalled.journald.pause()
    try:
        make_until_refused(journalled.path)
        # One that only reads tells nothing, so nothing of it is refused.
        with Child(os.listdir, path) as reader:
            assert reader.result() == []
        states = {session["export"]: session["state"] for session in control.call(str(journalled.server.runtime), "sessions")}
        assert states == {"work": "silenced", "second": "mounted"}
    finally:
        journalled.journald.resume()
    until(lambda: outcome(os.mkdir, path / "again") == "ok", "it recovers")
    second.stop()
    journalled.stop()


def test_a_journal_that_is_gone_and_comes_back(journalled: Journalled) -> None:
    """The socket leads nowhere any more. A caged worker cannot connect another; the daemon gives it one."""
    namespace = os.open(f"/proc/{journald_pid(journalled.journald)}/ns/mnt", os.O_RDONLY)
    server_pid = journalled.server.program.process.pid
    journalled.path = Path(str(journalled.path).replace(f"/proc/{journald_pid(journalled.journald)}/", f"/proc/{server_pid}/", 1))
    journalled.journald.stop()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, namespace)
        made, seconds = make_until_refused(journalled.path)
        assert (made, 0.5 < seconds < allowed(3)) == (0, True)
        blocked = Blocked(journalled.server, journalled.path, journalled.export.directory, 0)
        blocked.check()
        enter = ["nsenter", f"--mount=/proc/{server_pid}/ns/mnt"]
        again = subprocess.Popen([*enter, "/lib/systemd/systemd-journald"], stderr=subprocess.DEVNULL)
        stack.callback(again.wait, 30)
        stack.callback(again.terminate)
        blocked.recovers()
        subprocess.run([*enter, "journalctl", "--sync"], check=True, capture_output=True, timeout=60)
        source = JournalSource(f"/proc/{server_pid}/root/run/log/journal", None)
        found = [{name: value.decode() for name, value in record.items()} for record in read(source)]
        check_recovery(found, 0)
        journalled.stop()


def test_nobody_is_let_in_whose_records_cannot_be_written(own_stage: Stage, journalled: Journalled) -> None:
    """Neither a stranger's refusal nor a session goes untold: with no journal there is no worker, and the client hears why."""
    Path(journalled.journald.socket).unlink()
    with inside(journald_pid(journalled.journald)):
        late = own_stage.export(journalled.server, tenant="writes", name="late")
        assert late.program.wait() == 1
    assert "the server cannot write its audit records" in late.program.stderr.text()
    journalled.stop()
