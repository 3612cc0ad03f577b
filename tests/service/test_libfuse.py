"""Sessions of an ordinary user's server, with the libfuse driver: how they end, and what is left of them (nothing)."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from harness import ALICE, Server, Stage, digest, mounts_beneath, need, outcome, processes_marked
from harness.actor import actors
from harness.hostile import SILENCE, Child, HostileClient, honest
from harness.parts import children, command
from harness.program import ROOT_OF_PROJECT
from harness.stage import ORDINARY_USER
from harness.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, fallocate, renameat2
from harness.waiting import allowed, until, wait_for_record

from fuse_gated import control

GONE: Final = r"not connected|connection abort|No such device"
PROMISED: Final = 1.0
"""Seconds in which a signal ends a call that waits; and what a busy machine may add."""
SLACK: Final = 2.0
RECOVERY: Final = 5.0
"""Seconds after a kill -9 in which everything is as it should be."""


@pytest.fixture
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A stage whose servers run as an ordinary user, in the mount namespace that the option makes."""
    if "libfuse" not in request.config.getoption("--drivers"):
        pytest.skip("run with --drivers kernel,libfuse")
    need("root", "fuse", "a mount by an ordinary user", "fusermount3", "fusermount")
    with Stage("libfuse") as stage:
        yield stage


@pytest.fixture
def server(stage: Stage) -> Server:
    return stage.server()


def silent(operation: str) -> Any:
    """Answers everything but one operation."""
    return lambda asked, arguments, request: SILENCE if asked == operation else honest(asked, arguments, request)


def read_f(mount: Path) -> bytes:
    return (mount / "f").read_bytes()


def pid_of(server: Server, name: str, export: str) -> int:
    """The pid of the daemon, or of a session's worker or host (the process with libfuse)."""
    daemon = server.program.process.pid
    if name == "daemon":
        return daemon
    if name == "worker":
        return next(int(found["pid"]) for found in control.call(str(server.runtime), "sessions") if found["export"] == export)
    return next(pid for pid in children(daemon) if command(pid) == f"fg-{export}")


def serves(stage: Stage, server: Server, name: str) -> None:
    """A new client gets its mount, and it goes with it."""
    client = stage.export(server, name=name)
    mount = client.mount_path()
    (mount / "file").write_text("text")
    client.stop()
    until(lambda: mount not in mounts_beneath(server.runtime), "its mount is gone")


def nothing_is_left(server: Server) -> bool:
    return not mounts_beneath(server.runtime) and not os.listdir(server.runtime / "mnt")


def test_the_mount_is_what_an_ordinary_user_may_make(stage: Stage, server: Server) -> None:
    client = stage.export(server)
    mount = client.mount_path()
    line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {mount} " in line)
    options, filesystem = line.split(" - ")
    assert {"nosuid", "nodev"} <= set(options.split()[5].split(","))
    assert "noexec" not in options.split()[5].split(",")
    assert filesystem.split()[:2] == ["fuse.fuse-gated", "acme:work"]
    assert f"user_id={ORDINARY_USER}" in filesystem
    assert pid_of(server, "host", "work")
    assert "libfuse driver" in wait_for_record(server, kind="session-opened")["MESSAGE"]
    assert control.call(str(server.runtime), "status")["drivers"] == ["libfuse", "network"]
    assert control.call(str(server.runtime), "sessions")[0]["driver"] == "libfuse"
    assert (server.runtime / "mnt").stat().st_mode & 0o7777 == 0o711


def test_without_execute_it_is_noexec(stage: Stage) -> None:
    server = stage.server(stage.tenant(rules=[{"path": "/**", "allow": ["read", "write"]}]))
    mount = stage.export(server).mount_path()
    assert any(f" {mount} " in line and "noexec" in line for line in Path("/proc/self/mountinfo").read_text().splitlines())


@pytest.mark.parametrize(
    ("users", "groups", "mode", "enters"),
    [
        (["nobody"], [], 0o700, False),
        (["nobody", "root"], [], 0o750, False),
        (["*"], [], 0o755, True),
    ],
)
def test_who_may_enter(stage: Stage, users: list[str], groups: list[str], mode: int, enters: bool) -> None:
    """The kernel decides: the tenant's directory has an ACL, or is everybody's. (0750: the mask of an ACL.)"""
    server = stage.server(stage.tenant(users=users, groups=groups))
    mount = stage.export(server).mount_path()
    assert mount.parent.stat().st_mode & 0o777 == mode
    assert ALICE.outcome(os.listdir, mount) == ("ok" if enters else "EACCES")


def test_names_that_are_not_utf_8(stage: Stage, server: Server) -> None:
    client = stage.export(server)
    mount = os.fsencode(client.mount_path())
    name = bytes(byte for byte in range(1, 256) if byte != ord("/"))
    os.mkdir(mount + b"/" + name[:100])
    path = b"/".join([mount, name[:100], name])
    os.symlink(name, path)
    assert os.readlink(path) == name
    assert os.listdir(os.path.dirname(path)) == [name]
    assert os.listdir(os.fsencode(client.directory) + b"/" + name[:100]) == [name]
    os.unlink(path)


def test_what_was_just_closed_is_removed(stage: Stage, server: Server) -> None:
    """The kernel tells of a close(2) when it pleases; until then libfuse would only hide the file."""
    client = stage.export(server)
    mount = client.mount_path()
    for number in range(300):
        path = mount / f"{number}"
        path.write_bytes(b"content")
        path.unlink()
    for number in range(100):
        (mount / "new").write_bytes(b"%d" % number)
        os.rename(mount / "new", mount / "document")
        assert (mount / "document").read_bytes() == b"%d" % number
    assert os.listdir(client.directory) == ["document"]


# In order.


def test_sigterm_to_the_server(stage: Stage, server: Server) -> None:
    client = stage.export(server, options=["--no-reconnect"])
    mount = client.mount_path()
    (mount / "file").write_text("kept")
    opened = os.open(mount / "file", os.O_RDONLY)
    server.stop()
    with pytest.raises(OSError, match=GONE):
        os.fstat(opened)
    with pytest.raises(OSError, match=GONE):
        os.close(opened)
    assert nothing_is_left(server)
    assert client.program.wait() == 1


def test_sigterm_to_the_client(stage: Stage, server: Server) -> None:
    client = stage.export(server)
    client.mount_path()
    client.stop()
    until(lambda: nothing_is_left(server), "its mount is gone")


@pytest.mark.parametrize("program", [["fusermount3", "-u"], ["fusermount3", "-u", "-z"], ["umount"]])
def test_unmounted_by_hand(stage: Stage, server: Server, program: list[str]) -> None:
    client = stage.export(server)
    mount = client.mount_path()
    subprocess.run([*program, str(mount)], check=True)
    assert client.program.wait() == 3
    assert "unmounted on the server" in client.program.stderr.text()
    until(lambda: nothing_is_left(server), "its directories are gone")
    assert stage.export(server, directory=client.directory).mount_path() == mount


def test_two_sessions_of_a_tenant_come_and_go(stage: Stage, server: Server) -> None:
    """The end of one leaves the directory that both lie in."""
    one, two = stage.export(server, name="one"), stage.export(server, name="two")
    one.mount_path()
    mount = two.mount_path()
    one.stop()
    until(lambda: mounts_beneath(server.runtime) == [mount], "the first is gone")
    (mount / "file").write_text("text")
    two.stop()
    until(lambda: nothing_is_left(server), "all is gone")


# By force.


def test_kill_9_of_libfuses_process(stage: Stage, server: Server) -> None:
    """Who waits is told at once, the mount goes, and the other session never notices."""
    other = stage.export(server, name="other").mount_path()
    with HostileClient(server, "silent", "acme") as client, Child(read_f, client.open(silent("read"))) as program:
        client.pump(lambda: any(name == "read" for name, _ in client.requests))
        start = time.monotonic()
        os.kill(pid_of(server, "host", "silent"), signal.SIGKILL)
        assert program.wait(allowed(RECOVERY)), f"the program still waits, in state {program.state()}"
        with pytest.raises(OSError, match=GONE):
            program.result()
        until(lambda: mounts_beneath(server.runtime) == [other], "its mount is gone")
        assert time.monotonic() - start < allowed(RECOVERY)
    (other / "file").write_text("text")
    until(lambda: os.listdir(server.runtime / "mnt" / "acme") == ["other"], "its directory is gone")
    serves(stage, server, "silent")


def test_kill_9_of_the_daemon(stage: Stage, server: Server) -> None:
    client = stage.export(server, options=["--no-reconnect"])
    mount = client.mount_path()
    server.program.send(signal.SIGKILL)
    server.program.wait()
    until(lambda: nothing_is_left(server), "the mount is gone", allowed(RECOVERY))
    until(lambda: not processes_marked(server.mark), "no process", allowed(RECOVERY))
    assert not mount.exists()
    assert client.program.wait() == 1


def test_all_killed_at_once_and_started_anew(stage: Stage, server: Server) -> None:
    """Nothing is left that could clean up: the next start does."""
    client = stage.export(server, options=["--no-reconnect"])
    mount = client.mount_path()
    pids = sorted(processes_marked(server.mark))
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)
    server.program.wait()
    assert client.program.wait() == 1
    until(lambda: not processes_marked(server.mark), "no process")
    with pytest.raises(OSError, match=GONE):
        os.listdir(mount)
    server.program.process = start(server.etc, server.runtime)
    told = read_until(server.program.process, "unmounted")
    assert f"unmounted {mount}, which was left behind" in told
    read_until(server.program.process, "ready")
    assert nothing_is_left(server)
    server.program.process.terminate()
    assert server.program.process.wait(30) == 0


def start(etc: Path, runtime: Path, user: int | None = ORDINARY_USER, path: str = "") -> "subprocess.Popen[str]":
    """fuse-gated, with its stderr in a pipe."""
    program = [sys.executable, "-m", "fuse_gated.commands.fuse_gated", "--etc", str(etc), "--runtime", str(runtime)]
    program += ["--listen", "127.0.0.1:0"]
    if user is not None:
        setpriv = shutil.which("setpriv") or "setpriv"
        program = [setpriv, f"--reuid={user}", f"--regid={user}", "--clear-groups", "--", *program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT_OF_PROJECT), "PATH": path or os.environ["PATH"]}
    return subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=environment)


def read_until(program: "subprocess.Popen[str]", word: str) -> str:
    """The first line on stderr with that word. Raises AssertionError with all lines when it ends without."""
    assert program.stderr is not None
    lines = []
    for line in program.stderr:
        if word in line:
            return line
        lines.append(line)
    raise AssertionError("".join(lines))


# Callers that wait.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_what_waits_for_a_silent_client(server: Server, number: signal.Signals) -> None:
    with HostileClient(server, "silent", "acme") as client, Child(read_f, client.open(silent("open"))) as program:
        client.pump(lambda: any(name == "open" for name, _ in client.requests))
        start = time.monotonic()
        program.send(number)
        assert program.wait(10.0), f"the program still waits, in state {program.state()}"
        assert time.monotonic() - start < allowed(PROMISED + SLACK)
        client.pump(lambda: bool(client.cancelled))


def test_a_program_that_waits_for_a_lock_can_be_killed(stage: Stage, server: Server) -> None:
    mount = stage.export(server).mount_path()
    (mount / "file").write_text("text")
    with actors(2) as (one, other):
        for actor in (one, other):
            actor.do("open", "f", mount / "file")
        one.do("lock", "f", fcntl.LOCK_EX)
        other.tell("lock", "f", fcntl.LOCK_EX)
        other.wait_until_it_waits()
        start = time.monotonic()
        other.end()
        assert time.monotonic() - start < allowed(PROMISED + SLACK)
        assert one.do("lock", "f", fcntl.LOCK_UN) == "ok"
        assert one.do("lock", "f", fcntl.LOCK_EX | fcntl.LOCK_NB) == "ok"


# The policy.


def test_a_reload_closes_the_door(stage: Stage, server: Server) -> None:
    mount = stage.export(server).mount_path()
    (mount / "file").write_text("text")
    server.reload(stage.tenant(users=["nobody"], groups=[], rules=[{"path": "/**", "allow": ["read"]}]), said="policy applied")
    until(lambda: mount.parent.stat().st_mode & 0o777 == 0o700, "only its owner may enter")
    assert ALICE.outcome(os.listdir, mount) == "EACCES"
    with pytest.raises(PermissionError):
        (mount / "file").write_text("changed")
    assert "noexec and who may enter change when it is mounted anew" in server.program.stderr.text()


def test_a_directory_of_rules_is_no_hindrance_to_renaming_a_file(stage: Stage) -> None:
    """What moves is known for a file, although no node tells."""
    rules = [{"path": "/own/*/private", "deny": ["read"]}, {"path": "/**", "allow": ["read", "write", "delete"]}]
    server = stage.server(stage.tenant(rules=rules))
    mount = stage.export(server).mount_path()
    (mount / "own").mkdir()
    (mount / "own" / "file.new").write_text("text")
    os.rename(mount / "own" / "file.new", mount / "file")
    assert (mount / "file").read_text() == "text"
    os.mkdir(mount / "own" / "directory")
    with pytest.raises(OSError, match="cross-device"):
        os.rename(mount / "own" / "directory", mount / "elsewhere")


# What it lacks is what programs see of it (edge/libfuse.py, LACKS).


def test_flocks_are_the_servers_own(stage: Stage, server: Server) -> None:
    client = stage.export(server)
    path = client.mount_path() / "file"
    path.write_bytes(b"")
    with actors(3) as (one, other, there):
        for actor, where in ((one, path), (other, path), (there, client.directory / "file")):
            actor.do("open", "f", where)
        assert one.do("flock", "f", fcntl.LOCK_EX) == "ok"
        assert other.do("flock", "f", fcntl.LOCK_EX | fcntl.LOCK_NB) == "EAGAIN"
        assert there.do("flock", "f", fcntl.LOCK_EX | fcntl.LOCK_NB) == "ok"
        assert one.do("lock", "f", fcntl.LOCK_EX) == "ok"
        assert there.do("lock", "f", fcntl.LOCK_EX | fcntl.LOCK_NB) == "EAGAIN", "record locks are taken on the client"


def test_calls_that_have_no_callback(stage: Stage, server: Server) -> None:
    mount = stage.export(server).mount_path()
    path = mount / "file"
    path.write_bytes(b"")
    os.truncate(path, 2**20)
    with path.open("r+b") as file, (mount / "copy").open("w+b") as copy:
        assert outcome(fallocate, file.fileno(), 0, 0, 4096) == "EOPNOTSUPP"
        os.posix_fallocate(file.fileno(), 2**20, 4096)
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 2**20 + 4096
        assert os.copy_file_range(file.fileno(), copy.fileno(), 4096, 0, 0) == 4096
    assert outcome(renameat2, path, mount / "copy", RENAME_EXCHANGE) == "EINVAL"
    assert outcome(renameat2, path, mount / "free", RENAME_NOREPLACE) == "EINVAL"


def test_pages_stay_until_the_next_open(stage: Stage, server: Server) -> None:
    client = stage.export(server)
    path, there = client.mount_path() / "file", client.directory / "file"
    path.write_bytes(b"old")
    with path.open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 3, 0) == b"old"
        there.write_bytes(b"new")
        assert os.pread(file.fileno(), 3, 0) == b"old"
        assert path.read_bytes() == b"new"
        assert os.pread(file.fileno(), 3, 0) == b"new"


def test_a_file_is_its_name(stage: Stage, server: Server) -> None:
    client = stage.export(server)
    mount = client.mount_path()
    (mount / "file").write_bytes(b"text")
    (mount / "directory").mkdir()
    directory = os.open(mount / "directory", os.O_RDONLY)
    with (mount / "file").open("rb", buffering=0) as file:
        os.rename(client.directory / "file", client.directory / "elsewhere")
        assert outcome(os.fstat, file.fileno()) == "ENOENT"
        assert file.read(4) == b"text"
    os.rmdir(mount / "directory")
    assert outcome(os.fstat, directory) == "ENOENT"
    os.close(directory)


def test_hidden_names_are_libfuses(stage: Stage, server: Server) -> None:
    client = stage.export(server)
    mount = client.mount_path()
    name = ".fuse_hidden0000000200000001"
    (client.directory / name).write_text("there before")
    (client.directory / "file").write_text("text")
    assert outcome(os.stat, mount / name) == "ENOENT"
    assert outcome(os.open, mount / name, os.O_CREAT | os.O_WRONLY) == "EACCES"
    assert outcome(os.rename, mount / "file", mount / name) == "EACCES"
    assert (client.directory / name).read_text() == "there before"
    assert (mount / "file").read_text() == "text"


def test_links_are_not_read_where_the_policy_denies_them(stage: Stage) -> None:
    server = stage.server(stage.tenant(symlinks="deny"))
    client = stage.export(server)
    mount = client.mount_path()
    (client.directory / "link").symlink_to("file")
    assert outcome(os.readlink, mount / "link") == "EACCES"
    assert outcome(os.stat, mount / "link") == "EACCES"


# Faults at the start: each is told with its place and the way out.


@pytest.fixture
def etc(stage: Stage) -> Path:
    etc = stage.directory / "etc"
    etc.mkdir(mode=0o755)
    policy = f"tenants: {{acme: {{users: [root], tokens: [{{sha256: {digest('acme')}}}]}}}}\n"
    write(etc / "policy.yaml", policy)
    write(etc / "fuse-gated.yaml", "user: nobody\naudit: {to: file}\ndrivers: [libfuse]\n")
    return etc


def write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)


def failing(etc: Path, runtime: Path, user: int | None = ORDINARY_USER, path: str = "") -> tuple[int, str]:
    """The exit status and stderr of a server that must not start."""
    runtime.mkdir(mode=0o755, exist_ok=True)
    if user is not None:
        os.chown(runtime, user, user)
    program = start(etc, runtime, user, path)
    try:
        said = program.communicate(timeout=60)[1]
    finally:
        program.kill()
        program.wait()
    return program.returncode, said


def test_no_fusermount(stage: Stage, etc: Path) -> None:
    binaries = stage.directory / "bin"
    binaries.mkdir()
    status, said = failing(etc, stage.directory / "run", path=str(binaries))
    assert status == 1
    assert "an ordinary user's server mounts by fusermount, which is not installed (install fuse3)" in said
    (binaries / "fusermount3").symlink_to("/usr/bin/fusermount3")
    status, said = failing(etc, stage.directory / "run", path=str(binaries))
    assert (status, f"as root: ln -s {binaries}/fusermount3 /usr/bin/fusermount" in said) == (1, True), said
    (binaries / "fusermount").write_text("#!/bin/sh\n")
    (binaries / "fusermount").chmod(0o755)
    status, said = failing(etc, stage.directory / "run", path=str(binaries))
    assert (status, f"{binaries}/fusermount is not setuid root" in said) == (1, True), said


@pytest.mark.parametrize(
    ("drivers", "user", "expected"),
    [
        ("kernel", ORDINARY_USER, r"drivers: \[kernel\], but an ordinary user's server mounts by libfuse \(add libfuse"),
        ("libfuse", None, r"drivers: \[libfuse\], but as root it is the kernel driver that mounts \(add kernel"),
    ],
)
def test_a_driver_that_cannot_mount_here(stage: Stage, etc: Path, drivers: str, user: int | None, expected: str) -> None:
    write(etc / "fuse-gated.yaml", f"user: nobody\naudit: {{to: file}}\ndrivers: [{drivers}]\n")
    status, said = failing(etc, stage.directory / "run", user)
    assert status == 4
    assert re.search(expected, said), said


def test_a_mount_point_with_something_in_it(stage: Stage) -> None:
    """libfuse's reason is told, by the server and to the client, and what is there stays."""
    server = stage.server(settings={"drivers": ["libfuse"]})
    there = server.runtime / "mnt" / "acme" / "work" / "precious"
    there.parent.mkdir(parents=True)
    there.touch()
    for made in (there, there.parent, there.parent.parent):
        os.chown(made, ORDINARY_USER, ORDINARY_USER)
    client = stage.export(server)
    assert client.program.wait() == 1
    assert "mountpoint is not empty" in client.program.stderr.text()
    assert "acme/work could not be mounted" in server.program.stderr.text()
    assert there.exists()
    there.unlink()
    assert stage.export(server, directory=client.directory).mount_path() == there.parent
