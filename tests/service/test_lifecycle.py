"""How sessions end: in order, by force, by hand. Nothing stays that hangs, and no process."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from harness import Server, Stage, digest, mounts_beneath, need, need_that, processes_marked
from harness.hostile import SILENCE, Child, HostileClient, honest
from harness.log import DEADLINE
from harness.parts import Parts, thread_states
from harness.program import ROOT_OF_PROJECT
from harness.waiting import allowed, records, until, wait_for_record

from fuse_gated import control
from fuse_gated.wire import codec
from fuse_gated.wire.messages import Notice

GONE: Final = r"not connected|connection abort|No such device|Input/output error"
"""The last from who stands by for a client that is away, once the time for that is over."""
RECOVERY: Final = 5.0
"""Seconds after a kill -9 in which everything is as it should be."""


@pytest.fixture
def server(own_stage: Stage) -> Server:
    """A lost client ends its session at once. What else happens is shown in test_takeover.py."""
    return own_stage.server(own_stage.tenant(exports={"max_sessions": 50}, outage={"grace": "0s"}))


def sessions(server: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = control.call(str(server.runtime), "sessions")
    return found


def worker(server: Server, export: str) -> int:
    return next(int(session["pid"]) for session in sessions(server) if session["export"] == export)


def process(server: Server, name: str) -> int:
    """The pid of 'daemon', 'keeper' or 'supervisor'."""
    pid: int = getattr(Parts(server), name)
    return pid


def silent(operation: str) -> Callable[[str, Any, Any], Any]:
    """Answers everything but one operation."""
    return lambda asked, arguments, request: SILENCE if asked == operation else honest(asked, arguments, request)


def read_f(mount: Path) -> bytes:
    return (mount / "f").read_bytes()


def wait_for(client: HostileClient, operation: str) -> None:
    """Until the mount has asked for it."""
    client.pump(lambda: any(name == operation for name, _ in client.requests))


# In order.


def test_sigterm_to_the_server(own_stage: Stage, server: Server) -> None:
    client = own_stage.export(server, options=["--no-reconnect"])
    mount = client.mount_path()
    (mount / "file").write_text("kept")
    opened, written = os.open(mount / "file", os.O_RDONLY), os.open(mount / "file", os.O_RDWR)
    server.stop()
    with pytest.raises(OSError, match=GONE):
        os.fstat(opened)
    with contextlib.suppress(OSError):
        os.close(opened)  # There is nothing to ask.
    with pytest.raises(OSError, match=GONE):
        os.close(written)
    assert client.program.wait() == 1
    assert "the server is going away: the server is stopping" in client.program.stderr.text()
    assert not (server.runtime / "mnt" / "acme").exists()
    assert not (server.runtime / "control.sock").exists()
    assert "the server is stopping" in records(server, kind="session-closed")[0]["MESSAGE"]
    assert records(server, kind="file-closed"), "what was open is told"
    assert (client.directory / "file").read_text() == "kept"


def test_sigterm_to_a_worker(own_stage: Stage, server: Server) -> None:
    client, other = own_stage.export(server, name="one", options=["--no-reconnect"]), own_stage.export(server, name="two")
    mount, other_mount = client.mount_path(), other.mount_path()
    os.kill(worker(server, "one"), signal.SIGTERM)
    assert client.program.wait() == 1
    until(lambda: mounts_beneath(server.runtime) == [other_mount], "its mount is gone")
    # The directory goes a moment after what was mounted there.
    until(lambda: not mount.exists(), "its directory is gone")
    (other_mount / "still").write_text("here")
    wait_for_record(server, kind="session-closed", export="one")


def test_sigterm_to_the_client(own_stage: Stage, server: Server) -> None:
    client = own_stage.export(server)
    client.mount_path()
    client.stop()
    assert [event["event"] for event in client.events()] == ["connecting", "logged-in", "mounted", "closed"]
    until(lambda: not mounts_beneath(server.runtime), "its mount is gone")
    assert "the client left in order" in wait_for_record(server, kind="session-closed")["MESSAGE"]


@pytest.mark.parametrize("moment", ["connecting", "greeting", "waiting"])
def test_sigterm_while_a_stranger_is_there(own_stage: Stage, server: Server, moment: str) -> None:
    """The server ends at once and in order, whatever a client does or does not."""
    with HostileClient(server, tenant="acme") as client:
        if moment == "greeting":
            client.upgrade()
        if moment == "waiting":
            client.answer = silent("open")
            mount = client.open(client.answer)
            with Child(read_f, mount) as program:
                wait_for(client, "open")
                server.stop()
                with pytest.raises(OSError, match=GONE):
                    program.result()
        else:
            server.stop()
        if moment != "connecting":
            assert client.wait_closed() == (1001, "the server is stopping")


def test_kick(own_stage: Stage, server: Server) -> None:
    client = own_stage.export(server)
    client.mount_path()
    assert control.call(str(server.runtime), "kick", session="acme/work") == {}
    assert client.program.wait() == 3
    assert "ended by the operator" in client.program.stderr.text()
    assert "ended by the operator" in wait_for_record(server, kind="session-closed")["MESSAGE"]


def test_a_client_that_vanishes(server: Server) -> None:
    """No close frame, no goodbye: who waits is told, and the mount goes."""
    with HostileClient(server, tenant="acme") as client:
        mount = client.open(silent("read"))
        with Child(read_f, mount) as program:
            wait_for(client, "read")
            client.close()
            with pytest.raises(OSError, match=GONE):
                program.result()
    until(lambda: not mounts_beneath(server.runtime), "its mount is gone")
    assert "the connection was lost: 1006" in wait_for_record(server, kind="session-closed")["MESSAGE"]


@pytest.mark.parametrize("options", [[], ["--lazy"], ["--force"]])
def test_unmounted_by_hand(own_stage: Stage, server: Server, options: list[str]) -> None:
    client = own_stage.export(server)
    mount = client.mount_path()
    subprocess.run(["umount", *options, str(mount)], check=True)
    assert client.program.wait() == 3
    assert "unmounted on the server" in client.program.stderr.text()
    assert "unmounted on the server" in wait_for_record(server, kind="session-closed")["MESSAGE"]
    until(lambda: not mount.parent.exists(), "its directory is gone")
    again = own_stage.export(server, directory=client.directory)
    assert again.mount_path() == mount


# By force.


class Scene:
    """An honest session, and a program that waits for a silent client."""

    def __init__(self, stage: Stage, server: Server) -> None:
        self.server = server
        self.honest = stage.export(server, name="honest", options=["--no-reconnect"])
        self.mount = self.honest.mount_path()
        self.hostile = HostileClient(server, "silent", "acme")
        self.waiting = Child(read_f, self.hostile.open(silent("read")))
        wait_for(self.hostile, "read")
        self.before = set(processes_marked(server.mark))

    def heard(self) -> str:
        """What the waiting program was told, in time."""
        assert self.waiting.wait(DEADLINE), f"the program still waits, in state {self.waiting.state()}"
        try:
            self.waiting.result()
        except OSError as error:
            return os.strerror(error.errno or 0)
        return "nothing"

    def close(self) -> None:
        self.hostile.close()
        self.waiting.__exit__()


NAMES: Final = ("worker", "daemon", "supervisor")


@pytest.mark.parametrize("victim", NAMES)
def test_kill_9(own_stage: Stage, server: Server, victim: str, capsys: pytest.CaptureFixture[str]) -> None:
    scene = Scene(own_stage, server)
    try:
        pid = worker(server, "silent") if victim == "worker" else process(server, victim)
        start = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        heard = scene.heard()
        told_after = time.monotonic() - start
        gone = {"silent"} if victim == "worker" else {"silent", "honest"}
        until(lambda: not any(point.name in gone for point in mounts_beneath(server.runtime)), "no mount")
        if victim == "supervisor":
            server.program.wait()
            until(lambda: not processes_marked(server.mark), "no process")
        else:
            # Only what goes on, or was started anew, is there.
            until(lambda: _serves(server), "it serves again")
            stays = {worker(server, "honest")} if victim == "worker" else set()
            old = scene.before - {process(server, name) for name in ("daemon", "keeper", "supervisor")} - stays
            until(lambda: not old & set(processes_marked(server.mark)), "no old process")
        seconds = time.monotonic() - start
        with capsys.disabled():
            print(f"\nkill -9 of the {victim}: told after {told_after:.2f} s ({heard}), all well after {seconds:.2f} s")
        assert seconds < allowed(RECOVERY)
        left = {"acme": ["honest"]} if victim == "worker" else {}
        until(lambda: _listed_without_hanging(server) == left, "the directories are gone")
        if victim == "worker":
            assert os.listdir(scene.mount) == []
        else:
            assert scene.honest.program.wait() == 1
    finally:
        scene.close()


def test_kill_9_of_the_keeper(own_stage: Stage, server: Server) -> None:
    """Another one takes its place, and nobody notices: not who waits, not who works, not who comes."""
    scene = Scene(own_stage, server)
    try:
        pid = process(server, "keeper")
        os.kill(pid, signal.SIGKILL)
        until(lambda: process(server, "keeper") != pid, "another")
        (scene.mount / "still").write_text("here")
        assert (scene.honest.directory / "still").read_text() == "here"
        assert _serves(server)
        assert not scene.waiting.wait(0), "it still waits for its client"
        scene.hostile.close()
        assert scene.heard() != "nothing", "its client is gone, and it is told"
    finally:
        scene.close()


def _serves(server: Server) -> bool:
    """Whether a new client gets its mount, and leaves again."""
    try:
        with HostileClient(server, tenant="acme") as client:
            mount = client.open()
            client.leave()
            until(lambda: mount not in mounts_beneath(server.runtime), "its mount is gone")
    except (OSError, AssertionError):
        return False
    return True


def _listed_without_hanging(server: Server) -> dict[str, list[str]]:
    """What stands beneath <runtime>/mnt. Raises what a mount point of a dead session would raise, and never hangs."""

    def look() -> dict[str, list[str]]:
        top = server.runtime / "mnt"
        if not top.exists():
            return {}
        found = {tenant.name: sorted(export.name for export in tenant.iterdir()) for tenant in top.iterdir()}
        for tenant, exports in found.items():
            for export in exports:
                os.listdir(top / tenant / export)
        return found

    with Child(look) as child:
        try:
            found: dict[str, list[str]] = child.result()
        except FileNotFoundError:
            # It went while it was looked at.
            return {"": []}
        return found


def test_kill_9_of_the_client(own_stage: Stage, server: Server) -> None:
    client = own_stage.export(server)
    client.mount_path()
    client.program.kill()
    until(lambda: not mounts_beneath(server.runtime), "its mount is gone", allowed(RECOVERY))
    until(lambda: _listed_without_hanging(server) == {}, "its directory is gone")
    assert _serves(server)


def test_kill_9_of_a_worker_whose_notification_waits_in_the_kernel(server: Server) -> None:
    """mkdir holds the directory's lock and waits for the client; the notification waits for that lock, and cannot be killed.
    So the worker cannot end, and nobody would answer mkdir."""
    with HostileClient(server, "knot", tenant="acme") as client:
        mount = client.open(silent("mkdir"))
        client.during(os.stat, mount / "f")
        pid = worker(server, "knot")
        with Child(os.mkdir, mount / "new") as program:
            wait_for(client, "mkdir")
            client.send(codec.encode(Notice((b"f",))))
            until(lambda: "D" in thread_states(pid), "the notification waits in the kernel")
            os.kill(pid, signal.SIGKILL)
            assert program.wait(allowed(RECOVERY)), f"the program still waits, in state {program.state()}"
            with pytest.raises(OSError, match=GONE):
                program.result()
    until(lambda: not mounts_beneath(server.runtime), "its mount is gone", allowed(RECOVERY))
    until(lambda: not Path(f"/proc/{pid}").exists(), "it has ended", allowed(RECOVERY))


def test_all_killed_at_once_and_started_anew(own_stage: Stage, server: Server) -> None:
    """Nothing is left that could clean up: the next start does."""
    client = own_stage.export(server, options=["--no-reconnect"])
    mount = client.mount_path()
    pids = sorted(processes_marked(server.mark))
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            # The keeper has helpers that come and go.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    server.program.wait()
    assert client.program.wait() == 1
    until(lambda: not processes_marked(server.mark), "no process")
    with pytest.raises(OSError, match=GONE):
        os.listdir(mount)
    anew = start(server.etc, server.runtime)
    try:
        read_until(anew, "ready")
        assert mounts_beneath(server.runtime) == []
        assert _listed_without_hanging(server) == {}
    finally:
        anew.terminate()
        said = anew.communicate(timeout=30)[1]
    assert anew.returncode == 0, said


def start(etc: Path, runtime: Path, *options: str, before: str = "") -> "subprocess.Popen[str]":
    """fuse-gated, with its stderr in a pipe. `before` is shell for a mount namespace of its own."""
    command = [sys.executable, "-m", "fuse_gated.commands.fuse_gated", "--etc", str(etc), "--runtime", str(runtime)]
    command += ["--listen", "127.0.0.1:0", *options]
    if before:
        command = ["unshare", "--mount", "sh", "-ec", f'{before}\nexec "$@"', "sh", *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT_OF_PROJECT)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def read_until(program: "subprocess.Popen[str]", word: str) -> str:
    """The first line on stderr with that word. Raises AssertionError with all lines when it ends without."""
    assert program.stderr is not None
    lines = []
    for line in program.stderr:
        if word in line:
            return line
        lines.append(line)
    raise AssertionError("".join(lines))


# Faults at the start: each is told with its place and the way out.


def failing(etc: Path, runtime: Path, *options: str) -> tuple[int, str]:
    """The exit status and stderr of a server that must not start."""
    program = start(etc, runtime, *options)
    try:
        said = program.communicate(timeout=30)[1]
    finally:
        program.kill()
        program.wait()
    return program.returncode, said


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    need("root")
    etc = tmp_path / "etc"
    etc.mkdir(mode=0o755)
    write(etc / "policy.yaml", "tenants: {acme: {users: [root]}}\n")
    write(etc / "fuse-gated.yaml", "user: nobody\naudit: {to: file}\n")
    return etc


def write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)


def test_a_port_that_is_taken(server: Server, etc: Path, tmp_path: Path) -> None:
    status, said = failing(etc, tmp_path / "run", "--listen", f"127.0.0.1:{server.port}")
    assert (status, f"cannot listen on 127.0.0.1:{server.port}: the port is taken (see who has it with: ss" in said) == (
        1,
        True,
    ), said


def test_another_server_on_the_runtime_directory(server: Server, etc: Path) -> None:
    status, said = failing(etc, server.runtime)
    assert (status, f"another fuse-gated runs on {server.runtime} (stop it" in said) == (1, True), said


@pytest.mark.parametrize("whose", ["another's", "writable", "link", "file"])
def test_a_runtime_directory_that_is_not_ours(etc: Path, own_stage: Stage, whose: str) -> None:
    runtime = own_stage.directory / "run"
    if whose == "file":
        runtime.touch()
    elif whose == "link":
        runtime.symlink_to("/tmp")
    else:
        runtime.mkdir()
        os.chown(runtime, *((65534, 65534) if whose == "another's" else (0, 0)))
        runtime.chmod(0o755 if whose == "another's" else 0o777)
    status, said = failing(etc, runtime)
    assert (status, f"runtime directory not ours: {runtime}" in said) == (1, True), said


def test_no_policy(etc: Path, tmp_path: Path) -> None:
    (etc / "policy.yaml").unlink()
    status, said = failing(etc, tmp_path / "run")
    assert status == 4
    assert f"there is no policy: neither {etc}/policy.yaml nor" in said
    assert "'fuse-gatectl token new TENANT' makes the first token" in said


@pytest.mark.parametrize("name", [".", "policy.yaml", "fuse-gated.yaml"])
def test_configuration_that_others_can_write(etc: Path, tmp_path: Path, name: str) -> None:
    (etc / name).chmod(0o777)
    status, said = failing(etc, tmp_path / "run")
    assert (status, "can be written by others (mode 0777) (chmod go-w " in said) == (4, True), said


TWELVE_FAULTS: Final = """\
tenants:
  Acme:
    users: [root]
  beta:
    token: []
    users: [root, root:x]
    ownership: mine
    exports: {max_sessions: many}
    rules:
      - {path: src, allow: [read]}
      - {path: "/**", allow: [look]}
      - {path: "/a", hide: true, allow: [read]}
      - {path: "/b"}
    symlinks: outside
    limits: {file_size: 4GB/s}
    audit: all
    audit: writes
"""


def test_twelve_faults_at_once(etc: Path, tmp_path: Path) -> None:
    write(etc / "policy.yaml", TWELVE_FAULTS)
    status, said = failing(etc, tmp_path / "run")
    assert status == 4
    places = [tuple(map(int, match)) for match in re.findall(r"fuse-gated: policy\.yaml:(\d+):(\d+): ", said)]
    assert [line for line, _ in places] == [2, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17][: len(places)] or len(places) >= 12, (
        said
    )
    assert len(places) >= 12, said
    assert f"fuse-gated: {etc}: the configuration has" in said.splitlines()[-1]


def test_a_user_whom_the_server_does_not_have(etc: Path, tmp_path: Path) -> None:
    write(etc / "policy.yaml", "tenants: {acme: {users: [nobody-knows], groups: [no-group]}}\n")
    status, said = failing(etc, tmp_path / "run")
    assert status == 4
    assert "policy.yaml:1: tenant 'acme': this server has no user 'nobody-knows' (create it, or correct the name)" in said
    assert "this server has no group 'no-group'" in said


@pytest.mark.parametrize(("name", "mode", "more"), [("policy.yaml", 0o600, "r"), (".", 0o700, "rx")])
def test_a_policy_that_the_daemons_user_cannot_read(etc: Path, own_stage: Stage, name: str, mode: int, more: str) -> None:
    (etc / name).chmod(mode)
    status, said = failing(etc, own_stage.directory / "run")
    place = etc / name
    fault = f"{place}: may not be read by user nobody (chgrp nogroup {place}; chmod g+{more} {place})"
    assert (status, fault in said) == (4, True), said


def test_a_policy_that_can_no_longer_be_read_at_a_reload(etc: Path, own_stage: Stage) -> None:
    program = start(etc, own_stage.directory / "run")
    try:
        read_until(program, "ready")
        (etc / "policy.yaml").chmod(0o600)
        program.send_signal(signal.SIGHUP)
        said = read_until(program, "policy not applied")
        place = f"{etc}/policy.yaml"
        hint = f"chgrp nogroup {place}; chmod g+r {place}"
        assert f"policy not applied: {place}: may not be read by user nobody ({hint})" in said
    finally:
        program.terminate()
        program.communicate(timeout=30)
    assert program.returncode == 0


def test_a_journal_that_is_not_there(etc: Path, tmp_path: Path) -> None:
    need_that(not Path("/run/systemd/journal/socket").exists(), "a machine without journald")
    write(etc / "fuse-gated.yaml", "user: nobody\naudit: {to: journal}\n")
    status, said = failing(etc, tmp_path / "run")
    assert status == 4
    assert said.count("the audit is to go to the journal, but /run/systemd/journal/socket does not answer") == 1


def test_no_fuse_device(own_stage: Stage, etc: Path) -> None:
    """The server starts with a warning, and says to the first client and on its own stderr what is missing."""
    need("unshare", "fuse")
    hidden = "mount --make-rprivate /; mount -t tmpfs tmpfs /dev; for name in null:3 zero:5 urandom:9; do " \
             "mknod -m 666 /dev/${name%%:*} c 1 ${name##*:}; done"  # fmt: skip
    rule = "{path: /**, allow: [read]}"
    tokens = f"[{{sha256: '{digest('acme')}'}}]"
    write(etc / "policy.yaml", f"tenants: {{acme: {{users: [root], tokens: {tokens}, rules: [{rule}]}}}}\n")
    write(etc / "fuse-gated.yaml", "user: nobody\naudit: {to: file}\ndrivers: [kernel]\n")
    program = start(etc, own_stage.directory / "run", before=hidden)
    try:
        warning = read_until(program, "warning: nothing can be mounted")
        assert "/dev/fuse: No such file or directory (modprobe fuse; a container needs --device /dev/fuse" in warning
        port = int(re.findall(r":(\d+),", read_until(program, "ready"))[0])
        client = own_stage.export(_Elsewhere(port), tenant="acme", options=["--no-reconnect"])  # type: ignore[arg-type]
        assert client.program.wait() == 1
        assert "cannot open /dev/fuse: No such file or directory (modprobe fuse" in client.program.stderr.text()
        assert "acme/work could not be mounted: cannot open /dev/fuse" in read_until(program, "mounted")
    finally:
        program.terminate()
        program.communicate(timeout=30)
    assert program.returncode == 0


class _Elsewhere:
    """A server that the stage did not start."""

    def __init__(self, port: int) -> None:
        self.url = f"ws://127.0.0.1:{port}"
