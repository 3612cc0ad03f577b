"""Sessions without a mount: who may attach, that policy and audit are those of a mount, and what hostile programs achieve."""

import contextlib
import errno
import grp
import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec
import pytest
from harness import Mounted, Persona, Server, Stage, outcome
from harness.log import DEADLINE
from harness.namespace import inside
from harness.needs import need_cage
from harness.stage import ORDINARY_USER
from harness.syscalls import RENAME_NOREPLACE, renameat2
from harness.waiting import records, told, until

from fuse_gated import control
from fuse_gated import operations as op
from fuse_gated.attached import Attached
from fuse_gated.attached_file import AttachedFile
from fuse_gated.edge import hosting
from fuse_gated.edge.fuse_network import MOST_OF_ONE_USER
from fuse_gated.errors import OperatorError

ALL: Final = ["read", "write", "execute", "delete"]


def person(name: str, *groups: str) -> Persona:
    entry = pwd.getpwnam(name)
    return Persona(entry.pw_uid, entry.pw_gid, tuple(grp.getgrnam(group).gr_gid for group in groups))


INSIDER: Final = person("games")
OUTSIDER: Final = person("bin")
MEMBER: Final = person("man", "staff")

RULES: Final = [
    {"path": "/secret", "hide": True},
    {"path": "/no-write/**", "deny": ["write", "delete"]},
    {"path": "/no-read/**", "deny": ["read"]},
    {"path": "/no-delete/**", "deny": ["delete"]},
    {"path": "/**", "allow": ALL},
]


def to(server: Server, session: str = "acme/work") -> Attached:
    return Attached.to(str(server.runtime), session)


@pytest.fixture
def open_to_two(own_stage: Stage) -> Mounted:
    """One session whose mount one user and one group may enter."""
    tenant = own_stage.tenant(users=["root", "nobody", "games"], groups=["staff"], audit="opens", rules=RULES)
    return own_stage.mount(tenant)


# Who may.


def test_who_may_enter_the_mounts_may_attach(open_to_two: Mounted) -> None:
    (open_to_two.export / "f").write_text("content")

    def reads() -> bytes:
        attached = to(open_to_two.server)
        with AttachedFile(attached, b"f", os.O_RDONLY) as file:
            return file.read_at(0, 100)

    assert INSIDER.call(reads) == b"content"
    assert MEMBER.call(reads) == b"content", "by a supplementary group"
    runtime = str(open_to_two.server.runtime)
    assert INSIDER.call(control.exports, runtime) == ["acme/work"]
    assert OUTSIDER.call(control.exports, runtime) == []
    by_uid = records(open_to_two.server, operation="open", uid=str(INSIDER.uid))
    assert [record["FUSE_GATED_PATH"] for record in by_uid] == ["/f"]
    assert records(open_to_two.server, operation="attach", uid=str(INSIDER.uid), decision="allowed")


def test_nobody_else_may(open_to_two: Mounted) -> None:
    """And who may not is told the same of a session that is there and of one that is not."""
    server = open_to_two.server

    def refusals() -> list[tuple[str, int]]:
        found = []
        for session in ("acme/work", "acme/nothing"):
            try:
                control.attach(str(server.runtime), session)
            except control.AttachError as error:
                found.append((error.message.replace(session, "SESSION"), error.errno))
        return found

    expected = (f"there is no session 'SESSION' that uid {OUTSIDER.uid} may use", errno.EACCES)
    assert OUTSIDER.call(refusals) == [expected, expected]
    (record,) = records(server, operation="attach", decision="denied")
    assert (record["FUSE_GATED_UID"], record["FUSE_GATED_RULE"]) == (str(OUTSIDER.uid), "users")

    def asks(command: str) -> str:
        try:
            control.call(str(server.runtime), command)
        except OperatorError as error:
            return error.message
        return ""

    for command in ("sessions", "kick", "stats", "status", "drain"):
        assert OUTSIDER.call(asks, command) == f"'{command}' is for the operator"


def test_a_new_policy_sends_away(own_stage: Stage, open_to_two: Mounted) -> None:
    server = open_to_two.server
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE)

    def looks_twice() -> None:
        ours.close()
        attached = to(server)
        for _ in range(2):
            theirs.send(outcome(lambda: attached.find(b"")).encode())
            theirs.recv(1)

    with ours, theirs, ThreadPoolExecutor() as pool:
        done = pool.submit(MEMBER.call, looks_twice)
        assert ours.recv(100) == b"ok"
        server.reload(own_stage.tenant(users=["root", "nobody", "games"], groups=[], rules=RULES), said="policy applied")
        until(lambda: records(server, kind="policy-applied"), "the new policy")
        ours.send(b"1")
        assert ours.recv(100) == b"ENOTCONN"
        ours.send(b"1")
        done.result(DEADLINE)


def test_passed_through_modes_are_only_for_the_kernel_to_judge(own_stage: Stage) -> None:
    mounted = own_stage.passthrough()
    (mounted.export / "f").write_text("root's own")
    (mounted.export / "f").chmod(0o600)
    with pytest.raises(control.AttachError, match="passes ownership through"):
        INSIDER.call(_attach, str(mounted.server.runtime))
    attached = to(mounted.server)
    with AttachedFile(attached, b"f", os.O_RDONLY) as file:
        assert file.read_at(0, 10) == b"root's own"
    attached.close()


def _attach(runtime: str) -> None:
    try:
        control.attach(runtime, "acme/work")
    except control.AttachError as error:
        # It does not pickle by itself.
        raise control.AttachError(error.message, error.hint, error.errno) from None


# The same as a mount.


def by_mount(top: Path) -> dict[str, Callable[..., object]]:
    def at(path: str) -> Path:
        return top / path

    return {
        "stat": lambda path: os.lstat(at(path)),
        "read": lambda path: at(path).read_bytes(),
        "write": lambda path: _written(os.open(at(path), os.O_WRONLY)),
        "create": lambda path: os.close(os.open(at(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
        "truncate": lambda path: os.close(os.open(at(path), os.O_WRONLY | os.O_TRUNC)),
        "list": lambda path: sorted(os.listdir(at(path))),
        "mkdir": lambda path: os.mkdir(at(path)),
        "rmdir": lambda path: os.rmdir(at(path)),
        "unlink": lambda path: os.unlink(at(path)),
        "symlink": lambda path: os.symlink("x", at(path)),
        "link": lambda path: os.link(at("f"), at(path)),
        "readlink": lambda path: os.readlink(at(path)),
        "rename": lambda old, new: os.rename(at(old), at(new)),
        "rename without replacing": lambda old, new: renameat2(at(old), at(new), RENAME_NOREPLACE),
    }


def _written(fd: int) -> None:
    try:
        os.write(fd, b"data")
    finally:
        os.close(fd)


def by_network(attached: Attached) -> dict[str, Callable[..., object]]:
    def opened(path: str, flags: int) -> AttachedFile:
        return AttachedFile(attached, path.encode(), flags)

    def read(path: str) -> bytes:
        with opened(path, os.O_RDONLY) as file:
            return file.readall()

    def write(path: str) -> None:
        with opened(path, os.O_WRONLY) as file:
            file.write(b"data")

    return {
        "stat": lambda path: attached.find(path.encode(), follow=False),
        "read": read,
        "write": write,
        "create": lambda path: opened(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY).close(),
        "truncate": lambda path: opened(path, os.O_WRONLY | os.O_TRUNC).close(),
        "list": lambda path: sorted(os.fsdecode(listed.name) for listed in attached.listing(path.encode())),
        "mkdir": lambda path: attached.mkdir(path.encode()),
        "rmdir": lambda path: attached.rmdir(path.encode()),
        "unlink": lambda path: attached.unlink(path.encode()),
        "symlink": lambda path: attached.symlink(b"x", path.encode()),
        "link": lambda path: attached.link(b"f", path.encode()),
        "readlink": lambda path: attached.readlink(path.encode()),
        "rename": lambda old, new: attached.rename(old.encode(), new.encode()),
        "rename without replacing": lambda old, new: attached.rename(old.encode(), new.encode(), RENAME_NOREPLACE),
    }


STEPS: Final[list[tuple[str, ...]]] = [
    ("stat", "f"),
    ("stat", "nothing"),
    ("stat", "secret"),
    ("read", "f"),
    ("read", "secret"),
    ("read", "no-read/f"),
    ("read", "l"),
    ("read", "away"),
    ("write", "f"),
    ("write", "no-write/f"),
    ("truncate", "no-write/f"),
    ("truncate", "f"),
    ("create", "new"),
    ("create", "no-write/new"),
    ("create", "secret"),
    ("create", "f"),
    ("list", ""),
    ("list", "no-read"),
    ("list", "f"),
    ("mkdir", "d"),
    ("mkdir", "d"),
    ("mkdir", "no-write/d"),
    ("rmdir", "d"),
    ("rmdir", "no-delete/d"),
    ("unlink", "no-delete/f"),
    ("unlink", "new"),
    ("unlink", "nothing"),
    ("symlink", "s"),
    ("symlink", "no-write/s"),
    ("readlink", "away"),
    ("readlink", "l"),
    ("link", "g"),
    ("link", "no-write/g"),
    ("rename", "g", "h"),
    ("rename", "h", "no-write/h"),
    ("rename", "no-read/f", "i"),
    ("rename", "no-delete/f", "j"),
    ("rename without replacing", "h", "f"),
    ("rename", "h", "f"),
    ("unlink", "s"),
]
"""A program's doings: operations and paths."""


def prepare(export: Path) -> None:
    for name in ("no-write", "no-read", "no-delete"):
        (export / name).mkdir()
        (export / name / "f").write_text("content")
    (export / "no-delete" / "d").mkdir()
    (export / "f").write_text("content")
    (export / "secret").write_text("the secret")
    (export / "l").symlink_to("f")
    (export / "away").symlink_to("../../etc/passwd")


SHOWN: Final = ("KIND", "OPERATION", "PATH", "NEW_PATH", "DECISION", "RULE", "ERRNO", "UID", "BYTES")


def done_and_told(server: Server, doings: dict[str, Callable[..., object]]) -> tuple[list[object], list[dict[str, str]]]:
    """What came of each step, and the records of them all."""
    since = len(told(server))
    results = []
    for name, *paths in STEPS:
        try:
            result = doings[name](*paths)
            results.append((name, *paths, result if name in ("read", "list") else "ok"))
        except OSError as error:
            results.append((name, *paths, errno.errorcode[error.errno or 0]))
    new = [record for record in told(server)[since:] if record.get("FUSE_GATED_OPERATION") != "attach"]
    return results, [{name: record.get(f"FUSE_GATED_{name}", "") for name in SHOWN} for record in new]


def test_policy_and_audit_are_those_of_a_mount(own_stage: Stage) -> None:
    """Each of all steps ends alike and is told alike, through a mount and without one."""
    seen = []
    for settings in (None, {"drivers": ["network"]}):
        tenant = own_stage.tenant(audit="opens", rules=RULES)
        server = own_stage.server(tenant, settings)
        client = own_stage.export(server, name=f"work{len(seen)}")
        prepare(client.directory)
        path = client.wait_for_event("mounted")["path"]
        if settings is None:
            seen.append(done_and_told(server, by_mount(Path(path))))
            continue
        assert path == ""
        attached = to(server, f"acme/{client.name}")
        seen.append(done_and_told(server, by_network(attached)))
        attached.close()
    (results, audit), (without, audit_without) = seen
    assert without == results
    assert {name for name, *_ in STEPS} == {name for name, *_ in results}
    assert audit_without == audit
    assert len(audit) > 20


# Without a mount at all.


@contextlib.contextmanager
def no_dev_fuse() -> Iterator[None]:
    """For as long as it takes to start others: a machine on which /dev/fuse is no such device."""
    covered = "mount --make-rprivate / && mount --bind /dev/null /dev/fuse && echo covered && exec sleep 300"
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", covered], stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        try:
            assert keeper.stdout.readline() == b"covered\n"
            with inside(keeper.pid):
                yield
        finally:
            keeper.kill()


@pytest.mark.parametrize("user", [None, ORDINARY_USER], ids=["root", "an ordinary user"])
def test_a_session_that_cannot_be_mounted_is_open(own_stage: Stage, user: int | None) -> None:
    with no_dev_fuse():
        server = own_stage.server(user=user)
    client = own_stage.export(server)
    assert client.wait_for_event("mounted")["path"] == ""
    assert "acme/work is not mounted (" in server.program.stderr.text()
    attached = to(server)
    with AttachedFile(attached, b"f", os.O_CREAT | os.O_WRONLY) as file:
        file.write(b"content")
    attached.close()
    assert (client.directory / "f").read_text() == "content"
    (session,) = control.call(str(server.runtime), "sessions")
    assert session["driver"] == "network"


def test_only_what_the_settings_list_is_tried(own_stage: Stage) -> None:
    with no_dev_fuse():
        server = own_stage.server(settings={"drivers": ["kernel"]})
    client = own_stage.export(server)
    assert client.program.wait() == 1
    assert "the server could not mount" in client.program.stderr.text()


def test_the_session_says_that_it_is_not_mounted(own_stage: Stage) -> None:
    server = own_stage.server(settings={"drivers": ["network"]})
    client = own_stage.export(server)
    event = client.wait_for_event("mounted")
    assert event["path"] == ""
    (session,) = control.call(str(server.runtime), "sessions")
    assert (session["driver"], session["mount"], session["session"]) == ("network", "", event["session"])
    assert control.call(str(server.runtime), "status")["drivers"] == ["network"]
    (record,) = records(server, kind="session-opened")
    assert "network driver" in record["FUSE_GATED_DETAIL"]
    attached = to(server, event["session"])
    attached.mkdir(b"d")
    assert (client.directory / "d").is_dir()
    control.call(str(server.runtime), "kick", session=event["session"])
    assert client.program.wait() == 3
    until(lambda: attached.closed, "the end of the socket")
    with pytest.raises(OSError, match="not connected"):
        attached.find(b"")
    until(lambda: not control.call(str(server.runtime), "sessions"), "the end of the session")


def test_the_worker_stays_caged(own_stage: Stage) -> None:
    """Sockets come to it connected: it accepts none."""
    need_cage()
    server = own_stage.server(settings={"drivers": ["network"]})
    client = own_stage.export(server)
    client.wait_for_event("mounted")
    (session,) = control.call(str(server.runtime), "sessions")
    attached = to(server)
    attached.find(b"")
    status = Path(f"/proc/{session['pid']}/status").read_text()
    assert "Seccomp:\t2\n" in status


# Hostile programs.


@pytest.fixture
def attackable(own_stage: Stage) -> Mounted:
    mounted = own_stage.mount(own_stage.tenant(audit="opens"))
    (mounted.export / "f").write_text("content")
    return mounted


def raw(server: Server) -> socket.socket:
    sock, _ = control.attach(str(server.runtime), "acme/work")
    sock.settimeout(10)
    assert hosting.decode_greeting(sock.recv(hosting.MAX_PACKET)) == (0, "")
    return sock


def request(number: int, wanted: op.Request) -> bytes:
    return hosting.encode_request(number, op.Caller(0, 0, 0), wanted)


@pytest.mark.parametrize(
    "packet",
    [
        b"garbage",
        b"\x91" * 5000,
        os.urandom(200_000),
        msgspec.msgpack.encode(["ask", 2, 0, 0, 0, "read", [b"", 1, "0", 5]]),
        msgspec.msgpack.encode(["ask", 2, 0, 0, 0, "lookup", [b"../..", b"etc"]]),
        msgspec.msgpack.encode(["began", 31, 131072]),
        request(2, op.Setattr(b"f", size=-1)),
    ],
    ids=["garbage", "nested", "long", "wrong type", "dots", "a beginning", "a size"],
)
def test_nonsense_ends_only_its_own_socket(attackable: Mounted, packet: bytes) -> None:
    other = to(attackable.server)
    with raw(attackable.server) as sock:
        sock.send(packet)
        number, _ = hosting.decode_greeting(sock.recv(hosting.MAX_PACKET))
        assert number == errno.EPROTO
        assert sock.recv(1) == b""
    assert other.find(b"f")[1].size == 7
    assert (attackable.path / "f").read_text() == "content"
    assert records(attackable.server, operation="attach", errno="EPROTO", uid=str(os.geteuid()))
    other.close()


def test_a_packet_that_is_too_long(attackable: Mounted) -> None:
    with raw(attackable.server) as sock:
        sock.setsockopt(socket.SOL_SOCKET, 32, 8 * 2**20)  # SO_SNDBUFFORCE: longer than whoever is not root can send
        sock.send(bytes(2**20))
        assert hosting.decode_greeting(sock.recv(hosting.MAX_PACKET))[0] == errno.EPROTO
    assert (attackable.path / "f").read_text() == "content"


def test_a_flood_is_its_own_harm(attackable: Mounted) -> None:
    """Whoever asks without end, and reads nothing, waits; others are served."""
    with raw(attackable.server) as sock:
        sock.setblocking(False)
        sent = 0
        try:
            for sent in range(1, 1_000_000):
                sock.send(request(2 * sent, op.Statfs(b"")))
        except BlockingIOError:
            pass
        assert sent < 100_000
        assert (attackable.path / "f").read_text() == "content"
        other = to(attackable.server)
        assert other.find(b"f")[1].size == 7
        other.close()
        (session,) = control.call(str(attackable.server.runtime), "sessions")
        assert session["in_flight"] <= 256


def test_no_user_takes_all_places(attackable: Mounted) -> None:
    server = attackable.server

    def many() -> tuple[int, int]:
        sockets = []
        while len(sockets) < 200:
            sock, _ = control.attach(str(server.runtime), "acme/work")
            number, _ = hosting.decode_greeting(sock.recv(hosting.MAX_PACKET))
            if number:
                return len(sockets), number
            sockets.append(sock)
        return len(sockets), 0

    nobody = Persona(65534, 65534)
    assert nobody.call(many) == (MOST_OF_ONE_USER, errno.EMFILE)
    to(server).close()


def test_handles_are_nobody_elses(attackable: Mounted) -> None:
    mine = to(attackable.server)
    with AttachedFile(mine, b"f", os.O_RDWR) as file, raw(attackable.server) as sock:
        for number, wanted in enumerate(
            [
                op.Read(b"", file.handle, 0, 5),
                op.Write(b"", file.handle, 0, b"stolen"),
                op.Release(b"", file.handle),
                op.Setattr(b"", file.handle, size=0),
                op.Flush(b"", file.handle, 0),
            ],
            1,
        ):
            sock.send(request(2 * number, wanted))
            assert hosting.decode_answer(sock.recv(hosting.MAX_PACKET)).errno == errno.EBADF
        assert file.read_at(0, 10) == b"content"
    mine.close()


def test_what_it_had_open_is_closed_with_its_socket(attackable: Mounted) -> None:
    """Locks too: somebody else gets them."""
    holder = to(attackable.server)
    file = AttachedFile(holder, b"f", os.O_RDWR)
    holder.ask(op.Setlk(b"", file.handle, 0, 0, 9, 1, 0, False, False), b"f")
    waiter = to(attackable.server)
    waiting = AttachedFile(waiter, b"f", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        waiter.ask(op.Setlk(b"", waiting.handle, 0, 0, 9, 1, 0, False, False), b"f")
    started = waiter.start(op.Setlk(b"", waiting.handle, 0, 0, 9, 1, 0, True, False), b"f")
    holder.close()
    waiter.finish(started, b"f")
    waiter.close()
    runtime = str(attackable.server.runtime)
    until(lambda: control.call(runtime, "sessions")[0]["open_files"] == 0, "the end of what was open")
    closed = records(attackable.server, operation="release")
    assert {record["FUSE_GATED_PATH"] for record in closed} == {"/f"}


def test_a_mount_shows_what_was_written_without_it(attackable: Mounted) -> None:
    with open(attackable.path / "f", "rb") as seen:
        assert seen.read() == b"content"
        attached = to(attackable.server)
        with AttachedFile(attached, b"f", os.O_WRONLY) as file:
            file.write(b"CONTENT")
        attached.close()
        until(lambda: os.pread(seen.fileno(), 10, 0) == b"CONTENT", "the new contents")


def test_a_program_that_is_killed(attackable: Mounted) -> None:
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys, time\n"
            "from fuse_gated.attached import Attached\n"
            "from fuse_gated.attached_file import AttachedFile\n"
            "file = AttachedFile(Attached.to(sys.argv[1], 'acme/work'), b'f', os.O_RDWR)\n"
            "print('open', flush=True)\n"
            "time.sleep(60)\n",
            str(attackable.server.runtime),
        ],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"open\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    runtime = str(attackable.server.runtime)
    until(lambda: control.call(runtime, "sessions")[0]["open_files"] == 0, "the end of what was open")


@pytest.mark.parametrize("drivers", [["network"], ["kernel"]])
def test_a_worker_that_is_killed(own_stage: Stage, drivers: list[str]) -> None:
    """The session goes on with another; what was attached attaches again, and what it had open is closed on the client."""
    server = own_stage.server(settings={"drivers": drivers})
    client = own_stage.export(server)
    client.wait_for_event("mounted")
    (client.directory / "f").write_text("content")
    runtime = str(server.runtime)
    attached = to(server)
    AttachedFile(attached, b"f", os.O_RDWR)
    (before,) = control.call(runtime, "sessions")
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: attached.closed, "the end of the socket")
    client.wait_for_event("resumed")
    until(lambda: control.call(runtime, "sessions")[0]["state"] == "mounted", "the client's return")
    (after,) = control.call(runtime, "sessions")
    assert (after["session"], after["driver"]) == (before["session"], drivers[0])
    again = to(server)
    assert again.find(b"f")[1].size == 7
    again.close()
    until(lambda: control.call(runtime, "sessions")[0]["open_files"] == 0, "the end of what was open")
