"""A client that lies, floods, stalls or talks nonsense: each ends in a reason and an audit record, and nobody else notices."""

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from harness import Server
from harness.hostile import SILENCE, Answer, HostileClient, Message, attributes, directory, file, honest, memory, reply
from harness.waiting import records, told, until, wait_for_record

from fuse_gated import control
from fuse_gated.operations import Filesystem
from fuse_gated.wire import codec
from fuse_gated.wire.messages import Hello, Listed, ListedEntry, LockState, Notice, Offer, OpenedFile, Reply

ENDED: Final = {"ENOTCONN", "ECONNABORTED", "ENODEV", "EIO"}
"""What a program hears whose mount ends while it waits."""
MIB: Final = 2**20


@dataclass(frozen=True)
class Lie:
    """`operation` is answered with `answer` (or with what it returns of the request); `provoke` makes a program ask for it."""

    name: str
    operation: str
    answer: Any
    provoke: Callable[[Path], object]
    code: int
    reason: str

    def __str__(self) -> str:
        return self.name


def lying(operation: str, answer: Any) -> Answer:
    def choose(asked: str, arguments: Any, request: Any) -> Any:
        if asked != operation or (asked == "getattr" and arguments.target == b""):
            return honest(asked, arguments, request)
        return answer(request) if callable(answer) else answer

    return choose


def stat_f(mount: Path) -> None:
    os.stat(mount / "f")


def listing(mount: Path) -> None:
    os.listdir(mount)


def read_f(mount: Path) -> None:
    (mount / "f").read_bytes()


def write_f(mount: Path) -> None:
    with open(mount / "f", "r+b", buffering=0) as opened:
        opened.write(b"12345")


def seek_data(mount: Path) -> None:
    with open(mount / "f", "rb", buffering=0) as opened:
        os.lseek(opened.fileno(), 1, os.SEEK_DATA)


def statvfs(mount: Path) -> None:
    os.statvfs(mount)


def get_attribute(mount: Path) -> None:
    os.getxattr(mount / "f", "user.a")


def list_attributes(mount: Path) -> None:
    os.listxattr(mount / "f")


def ask_for_lock(mount: Path) -> None:
    import fcntl
    import struct

    with open(mount / "f", "r+b", buffering=0) as opened:
        fcntl.fcntl(opened, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))


def entry(name: bytes, **changes: Any) -> Listed:
    return Listed((msgspec.structs.replace(ListedEntry(name, 9, 0o100000), **changes),), end=True)


def twice(request: Any) -> Any:
    return Message(codec.encode(Reply(request.id, None, file()), Reply(request.id, None, file())))


LIES: Final = [
    Lie("reply to what was not asked", "getattr", lambda r: Message(reply(r.id + 2, file())), stat_f, 1008, "not in flight"),
    Lie("reply with a negative id", "getattr", Message(reply(-1, file())), stat_f, 1008, "not in flight"),
    Lie("reply twice", "getattr", twice, stat_f, 1008, "not in flight"),
    Lie("text for attributes", "getattr", lambda r: Message(reply(r.id, "text")), stat_f, 1007, "malformed result of getattr"),
    Lie("nothing for attributes", "getattr", None, stat_f, 1007, "malformed result of getattr"),
    Lie("attributes for nothing", "release", file(), read_f, 1007, "malformed result of release"),
    Lie("a number for data", "read", 5, read_f, 1007, "malformed result of read"),
    Lie("a negative size", "getattr", file(size=-1), stat_f, 1002, "size -1"),
    Lie("a size past loff_t", "getattr", file(size=2**63), stat_f, 1002, "size 9223372036854775808"),
    Lie("a negative inode", "getattr", file(inode=-1), stat_f, 1002, "inode -1"),
    Lie("too many links", "getattr", file(nlink=2**32), stat_f, 1002, "nlink"),
    Lie("a huge block", "getattr", file(block_size=2**31), stat_f, 1002, "block_size"),
    Lie("a time past time", "getattr", file(mtime=-(2**63)), stat_f, 0, ""),
    Lie("no file type", "getattr", attributes(0o000644, 2), stat_f, 1002, "no file is of that type"),
    Lie("a mode too wide", "getattr", attributes(0o1100644, 2), stat_f, 1002, "mode"),
    Lie("a name with a slash", "readdir", entry(b"a/b"), listing, 1002, "no file can have that name"),
    Lie("a name with NUL", "readdir", entry(b"a\0b"), listing, 1002, "no file can have that name"),
    Lie("the name ..", "readdir", entry(b".."), listing, 1002, "no file can have that name"),
    Lie("the name .", "readdir", entry(b"."), listing, 1002, "no file can have that name"),
    Lie("no name", "readdir", entry(b""), listing, 1002, "no file can have that name"),
    Lie("a name of 256 bytes", "readdir", entry(b"n" * 256), listing, 1002, "256 bytes"),
    Lie("an entry of no type", "readdir", entry(b"n", type=0o170000), listing, 1002, "type 0o170000"),
    Lie("an entry with a lying size", "readdir", entry(b"n", attributes=file(size=-5)), listing, 1002, "size -5"),
    Lie(
        "more entries than asked",
        "readdir",
        Listed(tuple(ListedEntry(b"n%d" % n, n, 0) for n in range(1025)), end=True),
        listing,
        1002,
        "1025 entries, 1024 were asked for",
    ),
    Lie("an empty page that goes on", "readdir", Listed((), end=False), listing, 1002, "it would never end"),
    Lie("more data than asked", "read", b"x" * 4097, read_f, 1002, "4097 bytes of data, 4096 were asked for"),
    Lie("more written than given", "write", 6, write_f, 1002, "6 bytes written, of 5"),
    Lie("less than nothing written", "write", -1, write_f, 1002, "-1 bytes written"),
    Lie("a place before the file", "lseek", -1, seek_data, 1002, "an offset of -1"),
    Lie("blocks of no bytes", "statfs", Filesystem(1, 1, 1, 1, 1, 0, 255, 4096), statvfs, 1002, "block_size 0"),
    Lie("a long attribute", "getxattr", b"x" * 65537, get_attribute, 1002, "65537 bytes"),
    Lie("an attribute with NUL", "listxattr", (b"user.\0",), list_attributes, 1002, "none can be"),
    Lie("too many attributes", "listxattr", (b"user." + b"n" * 250,) * 300, list_attributes, 1002, "fill more than"),
    Lie("a lock of no type", "getlk", LockState(9, 0, 5), ask_for_lock, 1002, "type 9"),
    Lie("a lock that ends before it starts", "getlk", LockState(1, 5, 4), ask_for_lock, 1002, "from 5 to 4"),
]


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie.code], ids=str)
def test_a_lie_about_a_file_ends_the_session(unharmed: Server, lie: Lie) -> None:
    with HostileClient(unharmed) as client:
        mount = client.open(lying(lie.operation, lie.answer))
        heard = client.outcome(lie.provoke, mount)
        code, reason = client.wait_closed()
        assert client.terms is not None
        session = client.terms.session
    assert (code, lie.reason in reason) == (lie.code, True), reason
    # RELEASE has no caller that could hear of it, STATFS is asked before anybody comes; of two replies the first is a good one.
    assert heard in ENDED or lie.operation in ("release", "statfs") or lie.name == "reply twice"
    told_of = wait_for_record(unharmed, kind="protocol-violation", session=session)
    assert lie.reason in told_of["MESSAGE"]
    assert "broke the protocol" in wait_for_record(unharmed, kind="session-closed", session=session)["MESSAGE"]
    until(lambda: not is_listed(mount), "the mount is gone")


def is_listed(mount: Path) -> bool:
    """Whether its directory is there, without asking the mount."""
    try:
        return mount.name in os.listdir(mount.parent)
    except FileNotFoundError:
        return False


NO_LIES: Final = [
    ("an errno that there is not", "getattr", lambda r: Message(reply(r.id, errno="EGREGIOUS")), stat_f, "EIO"),
    ("a time at time's end", "getattr", file(mtime=2**62), stat_f, "ok"),
    ("less data than asked", "read", b"", read_f, "ok"),
    ("another file by its handle", "open", OpenedFile(7, file(99)), read_f, "ESTALE"),
    ("a directory by its handle", "open", OpenedFile(7, directory(2)), read_f, "ESTALE"),
    ("a link without a target", "readlink", b"", lambda mount: os.readlink(mount / "l"), "EACCES"),
    ("a link with NUL", "readlink", b"a\0b", lambda mount: os.readlink(mount / "l"), "EACCES"),
    ("a link that leaves", "readlink", b"/etc/passwd", lambda mount: os.readlink(mount / "l"), "EACCES"),
    ("a link longer than any", "readlink", b"x" * 4096, lambda mount: os.readlink(mount / "l"), "EACCES"),
]


@pytest.mark.parametrize(
    ("operation", "answer", "provoke", "expected"), [row[1:] for row in NO_LIES], ids=[row[0] for row in NO_LIES]
)
def test_what_an_honest_client_might_say_ends_the_call_only(
    unharmed: Server, operation: str, answer: Any, provoke: Callable[[Path], object], expected: str
) -> None:
    with HostileClient(unharmed) as client:
        mount = client.open(lying(operation, answer))
        assert client.outcome(provoke, mount) == expected
        client.answer = honest
        assert client.outcome(read_f, mount) == "ok"
        client.leave()
        assert client.closed == (1000, "")


def test_a_file_that_becomes_a_directory_is_another_file(unharmed: Server) -> None:
    """Node and type belong together for good: an open file is never suddenly a directory for the kernel."""
    kinds = [file(2), directory(2)]

    def change(operation: str, arguments: Any, request: Any) -> Any:
        if operation == "getattr" and arguments.target in (b"f", 7):
            return kinds[len(changes) % 2]
        if changes and operation in ("open", "opendir"):
            # What has just been met as another file the server has opened at once.
            return "EISDIR" if operation == "open" else OpenedFile(9, directory(2))
        return honest(operation, arguments, request)

    changes: list[int] = []
    with HostileClient(unharmed) as client:
        mount = client.open(change)

        def both(mount: Path) -> tuple[int, str, int]:
            first = os.stat(mount / "f").st_mode
            opened = os.open(mount / "f", os.O_RDONLY)
            (mount / "d").stat()  # the sign for the client to change its mind
            heard = "taken"
            end = time.monotonic() + 5
            while heard == "taken" and time.monotonic() < end:
                # Attributes are good for a tick of the kernel's clock.
                try:
                    os.fstat(opened)
                except OSError as error:
                    heard = error.strerror
            return first, heard, os.stat(mount / "f").st_mode

        def turn(operation: str, arguments: Any, request: Any) -> Any:
            if operation == "getattr" and arguments.target == b"d":
                changes.append(1)
            return change(operation, arguments, request)

        client.answer = turn
        first, heard, then = client.during(both, mount)
        client.leave()
    assert (first & 0o170000, then & 0o170000) == (0o100000, 0o040000)
    assert heard == os.strerror(116)


def test_a_root_that_is_no_directory(unharmed: Server) -> None:
    def answer(operation: str, arguments: Any, request: Any) -> Any:
        return file(1) if operation == "getattr" else honest(operation, arguments, request)

    with HostileClient(unharmed) as client:
        mount = client.open(answer)
        assert client.outcome(os.stat, mount) == "EIO"
        client.leave()


def test_a_reply_that_never_comes_ends_by_the_deadline(unharmed: Server) -> None:
    with HostileClient(unharmed) as client:
        mount = client.open(lying("getattr", SILENCE))
        start = time.monotonic()
        assert client.outcome(stat_f, mount) == "ETIMEDOUT"
        assert time.monotonic() - start >= 1.9, "the deadline is two seconds"
        # Which of the two hears first, the program or the client, is left open.
        client.pump(lambda: bool(client.cancelled), deadline=10)
        client.answer = honest
        assert client.outcome(stat_f, mount) == "ok"
        client.leave()


def test_a_listing_of_nothing_but_hidden_names_ends_by_the_deadline(unharmed: Server) -> None:
    """Page after page has nothing that may be shown: asking for the next one must not go on for ever."""

    def answer(operation: str, arguments: Any, request: Any) -> Any:
        if operation != "readdir":
            return honest(operation, arguments, request)
        numbers = range(arguments.cookie, arguments.cookie + arguments.count)
        return Listed(tuple(ListedEntry(b"hidden-%d" % number, number, 0) for number in numbers), end=False)

    with HostileClient(unharmed) as client:
        mount = client.open(answer)
        assert client.outcome(listing, mount) == "ETIMEDOUT"
        client.leave()


def test_a_late_reply_is_no_crime_and_its_handle_is_given_back(unharmed: Server) -> None:
    late: list[int] = []

    def answer(operation: str, arguments: Any, request: Any) -> Any:
        if operation == "open" and not late:
            late.append(request.id)
            return SILENCE
        return honest(operation, arguments, request)

    with HostileClient(unharmed) as client:
        mount = client.open(answer)
        assert client.outcome(read_f, mount) == "ETIMEDOUT"
        client.send(reply(late[0], OpenedFile(7777, file())))
        client.pump(lambda: any(arguments.handle == 7777 for name, arguments in client.requests if name == "release"))
        client.leave()
        assert client.closed == (1000, "")


def _frames(opcode: int, data: bytes, *, fin: bool = True, mask: bool = True, rsv: int = 0, length: int | None = None) -> bytes:
    """A WebSocket frame, as wrong as wanted."""
    size = len(data) if length is None else length
    first = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0x80 if mask else 0
    head = bytes([bit | size]) if size < 126 else bytes([bit | 127]) + size.to_bytes(8, "big")
    return first + head + (b"\0\0\0\0" if mask else b"") + data


NONSENSE: Final = {
    "a text frame": (_frames(1, b"hello"), 1003, "text messages are not part of this protocol"),
    "a frame over the limit": (_frames(2, b"", length=5 * MIB), 1009, "4194304"),
    "fragments over the limit": (_frames(2, b"x" * 3 * MIB, fin=False) + _frames(0, b"x" * 3 * MIB), 1009, "4194304"),
    "no MessagePack": (_frames(2, b"\xc1\xc1"), 1007, "malformed message"),
    "no message": (_frames(2, b""), 1007, "malformed message"),
    "no array": (_frames(2, msgspec.msgpack.encode({"id": 1})), 1007, "malformed message"),
    "an unknown frame": (_frames(2, msgspec.msgpack.encode([["ask", 1, "read", []]])), 1007, "malformed message"),
    "deep nesting": (_frames(2, b"\x91" * 100_000), 1007, "malformed message"),
    "too many frames": (_frames(2, codec.encode(*[Notice(())] * 4097)), 1008, "4096"),
    "an unmasked frame": (_frames(2, b"\x90", mask=False), 1002, "mask"),
    "a reserved bit": (_frames(2, b"\x90", rsv=4), 1002, "reserved bits"),
    "a reserved opcode": (_frames(3, b"\x90"), 1002, "opcode"),
    "a continuation of nothing": (_frames(0, b"\x90"), 1002, "continuation"),
    "a long ping": (_frames(9, b"x" * 126, length=126), 1002, "control frame"),
    "a close code that there is not": (_frames(8, b"\x00\x01"), 1002, "invalid status code"),
    "a second hello": (_frames(2, codec.encode(Hello(Offer(export="b")))), 1002, "a second hello"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_on_the_wire_ends_the_session(unharmed: Server, name: str) -> None:
    nonsense, code, reason = NONSENSE[name]
    with HostileClient(unharmed) as client:
        client.open()
        assert client.terms is not None
        client.raw(nonsense)
        heard = client.wait_closed()
        assert (heard[0], reason.lower() in heard[1].lower()) == (code, True), heard
        record = wait_for_record(unharmed, kind="protocol-violation", session=client.terms.session)
        assert reason.lower() in record["MESSAGE"].lower()
        wait_for_record(unharmed, kind="session-closed", session=client.terms.session)


BEFORE_THE_SESSION: Final = {
    "a reply before the hello": ([reply(1)], 1002, "the first message must be one hello"),
    "two hellos at once": ([codec.encode(Hello(Offer(export="a")), Hello(Offer(export="b")))], 1002, "one hello"),
    "nothing in the first message": ([codec.encode()], 1002, "one hello"),
    "a message before the welcome": ([codec.encode(Hello(Offer(export="a"))), reply(1)], 0, ""),
    "a hello that is none": ([msgspec.msgpack.encode([["hello", {"export": 5}]])], 1007, "malformed"),
}


@pytest.mark.parametrize("name", BEFORE_THE_SESSION)
def test_nonsense_before_the_session(unharmed: Server, name: str) -> None:
    messages, code, reason = BEFORE_THE_SESSION[name]
    before = len(told(unharmed))
    with HostileClient(unharmed) as client:
        assert client.upgrade() == 101
        for message in messages:
            client.send(message)
        heard = client.wait_closed()
    wait_for_record(unharmed, before, kind="protocol-violation")
    if code:
        assert (heard[0], reason in heard[1]) == (code, True), heard
    else:
        # The mount may have been quicker than the message; both are the client's fault.
        assert heard[0] in (1002, 1008)
    until(lambda: all(session["export"] == "work" for session in control.call(str(unharmed.runtime), "sessions")), "it is gone")


def test_leaving_while_the_mount_is_made_leaves_nothing(unharmed: Server) -> None:
    for number in range(5):
        with HostileClient(unharmed, export=f"gone-{number}") as client:
            assert client.upgrade() == 101
            client.hello()
    until(lambda: os.listdir(unharmed.runtime / "mnt") == ["acme"], "no mount of a client that left")
    until(lambda: len(control.call(str(unharmed.runtime), "sessions")) == 1, "no session of a client that left")


# Strangers.


def stranger(server: Server, data: bytes, source: str = "127.0.0.1") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), 20, (source, 0))
    connection.sendall(data)
    return connection


def answer_to(connection: socket.socket) -> bytes:
    """All that is said before the end."""
    said = b""
    try:
        while data := connection.recv(65536):
            said += data
    except ConnectionResetError:
        return said + b"(reset)"
    return said


WRONG_HTTP: Final = {
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\xfc\r\n\r\n" * 3, 400, "did not receive a valid HTTP request"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.9\r\n", 400, "did not receive a valid HTTP request"),
    "a plain page": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 401, "no token"),
    "an endless line": (b"GET /" + b"x" * 20_000, 414, "expected no more than 8192"),
    "an endless header": (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000, 431, "expected no more than 8192"),
    "endless headers": (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 300, 431, "header"),
    "two logins": (
        b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\nAuthorization: Bearer y\r\n\r\n",
        400,
        "more than one Authorization",
    ),
    "an empty login": (b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \r\n\r\n", 401, "no token"),
    "another kind of login": (b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic eDp5\r\n\r\n", 401, "no token"),
    "a long token": (b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + b"x" * 5000 + b"\r\n\r\n", 401, "longer"),
}


@pytest.mark.parametrize("name", WRONG_HTTP)
def test_what_is_no_login_is_answered_and_told(unharmed: Server, name: str) -> None:
    data, status, reason = WRONG_HTTP[name]
    before = len(told(unharmed))
    with stranger(unharmed, data) as connection:
        said = answer_to(connection)
    assert said.startswith(b"HTTP/1.1 %d " % status), said
    new = until(lambda: records(unharmed, before, says=reason), reason)
    assert {record["FUSE_GATED_KIND"] for record in new} <= {"login-refused", "connection-refused"}


def test_half_a_handshake_is_told(unharmed: Server) -> None:
    before = len(told(unharmed))
    stranger(unharmed, b"GET / HTTP/1.1\r\nHost").close()
    wait_for_record(unharmed, before, kind="connection-refused")


def test_a_slow_loris_is_sent_away(unharmed: Server) -> None:
    before = len(told(unharmed))
    with stranger(unharmed, b"GET / HTTP/1.1\r\n") as connection:
        said = b""
        while not said:
            connection.sendall(b"X")
            said = connection.recv(65536) if select.select([connection], [], [], 0.2)[0] else b""
        assert said.startswith(b"HTTP/1.1 408 ")
    wait_for_record(unharmed, before, says="no session within 2 s (connecting)", kind="connection-refused")


def test_an_upgrade_without_a_hello_is_sent_away(unharmed: Server) -> None:
    before = len(told(unharmed))
    with HostileClient(unharmed) as client:
        assert client.upgrade() == 101
        assert client.wait_closed() == (4008, "login took too long")
    wait_for_record(unharmed, before, says="(greeting)", kind="connection-refused")


def test_500_strangers_at_once(patient: Any) -> None:
    """40 may wait, 30 from one address; the rest is told 503 or 429, and the honest session works on. Each is in the audit."""
    server: Server = patient.server
    began = time.monotonic()
    strangers = []
    for number in range(500):
        strangers.append(stranger(server, b"GET / HTTP/1.1\r\n", f"127.0.0.{number // 100 + 1}"))
        if number % 50 == 0:
            patient.works()
    took = time.monotonic() - began
    patient.works()
    answers = [answer_to(connection) for connection in strangers]
    for connection in strangers:
        connection.close()
    statuses = [int(answer.split(b" ")[1]) for answer in answers]
    assert set(statuses) == {408, 429, 503}
    assert statuses[:100].count(408) == 30
    assert statuses[:100].count(429) == 70
    assert statuses[100:200].count(408) == 10
    assert statuses[100:200].count(503) == 90
    assert b"as many as may" in answers[statuses.index(429)]

    def is_let_in() -> bool:
        with HostileClient(server) as client:
            if client.upgrade() != 101:
                return False
            client.hello()
            client.pump(lambda: client.terms is not None)
            client.leave()
            return True

    def audited() -> int:
        return sum(int(record.get("FUSE_GATED_COUNT", 1)) for record in records(server, kind="connection-refused"))

    until(lambda: audited() == 500, f"500 records; told is {[record['MESSAGE'] for record in records(server)][-5:]}")
    away = records(server, says="have not logged in yet", kind="connection-refused")
    assert len(away) < 4 * (took + 2), "they are told together, once a second"
    until(is_let_in, "they have gone, so there is room again")


# Memory.


def worker_of(server: Server, export: str) -> int:
    return next(session["pid"] for session in control.call(str(server.runtime), "sessions") if session["export"] == export)


def nodes_of(server: Server, export: str) -> int:
    """How many names the worker knows."""
    return int(control.call(str(server.runtime), "show", session=f"acme/{export}")["inodes"])


def peak(pid: int) -> int:
    """Bytes; 0 if it has ended."""
    with contextlib.suppress(ProcessLookupError):
        return memory(pid)["VmHWM"]
    return 0


def count_entries(mount: Path) -> int:
    with os.scandir(mount) as entries:
        return sum(1 for _ in entries)


def test_a_million_entries_take_no_memory(unharmed: Server, capsys: pytest.CaptureFixture[str]) -> None:
    total = 1_000_000
    page: dict[int, Listed] = {}

    def answer(operation: str, arguments: Any, request: Any) -> Any:
        if operation != "readdir":
            return honest(operation, arguments, request)
        start = arguments.cookie
        numbers = range(start, min(total, start + arguments.count))
        page.clear()
        return Listed(
            tuple([ListedEntry(b"%0200d" % n, n + 10, 0o100000) for n in numbers]), end=start + arguments.count >= total
        )

    with HostileClient(unharmed) as client:
        mount = client.open(answer)
        pid = worker_of(unharmed, client.export)
        before = memory(pid)
        start = time.monotonic()
        assert client.during(count_entries, mount, deadline=120) == total
        seconds = time.monotonic() - start
        after = memory(pid)
        client.leave()
    growth = after["VmHWM"] - before["RSS"]
    with capsys.disabled():
        print(
            f"\na million entries of 200 bytes: {seconds:.1f} s; "
            f"worker's peak +{growth / MIB:.1f} MiB, PSS {after['PSS'] / MIB:.1f} MiB"
        )
    assert growth < 64 * MIB


def test_names_that_were_looked_up_are_forgotten_again(stage: Any) -> None:
    """Each name that the kernel knows is known to the worker too; beyond the limit the kernel is asked to forget some."""
    server = stage.server(settings={"inodes": 1000})
    number = 8000

    def answer(operation: str, arguments: Any, request: Any) -> Any:
        if operation == "getattr" and str(arguments.target).startswith("b'n"):
            return file(10 + int(arguments.target[1:]))
        return honest(operation, arguments, request)

    def look(mount: Path) -> None:
        for count in range(number):
            os.stat(mount / f"n{count}")

    with HostileClient(server, tenant="acme") as client:
        mount = client.open(answer)
        client.during(look, mount, deadline=120)
        until(lambda: nodes_of(server, client.export) < number / 2, "most are forgotten")
        client.leave()
    server.stop()


FLOODS: Final = {
    "empty fragments": (_frames(2, b"", fin=False), _frames(0, b"", fin=False) * 10_000, 100),
    "pings": (b"", _frames(9, b"x" * 125) * 1_000, 1_000),
    "pongs": (b"", _frames(10, b"x" * 125) * 1_000, 100),
    "notices of unknown paths": (b"", _frames(2, codec.encode(Notice((b"a/b/c",) * 500_000))), 8),
    "notices of the root": (b"", _frames(2, codec.encode(Notice((b"",) * 500_000))), 8),
    "messages without frames": (b"", _frames(2, codec.encode()) * 10_000, 20),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_takes_no_memory(unharmed: Server, witness: Any, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The client does not read what it is answered. Either it is sent away, or it costs nothing."""
    first, flood, times = FLOODS[name]
    with HostileClient(unharmed) as client:
        client.open()
        pid = worker_of(unharmed, client.export)
        before = memory(pid)
        most = before["VmHWM"]
        client.socket.settimeout(5)
        try:
            client.socket.sendall(first)
            for count in range(times):
                client.socket.sendall(flood)
                if count % 10 == 0:
                    most = max(most, peak(pid))
        except (TimeoutError, ConnectionError):
            pass  # the server has had enough of it
        else:
            until(lambda: unread(client) == 0 or not Path(f"/proc/{pid}").exists(), "the server has read it all")
        most = max(most, peak(pid))
        witness.works()
        with capsys.disabled():
            print(f"\n{name}: +{(most - before['RSS']) / MIB:.1f} MiB")
        assert most - before["RSS"] < 64 * MIB


def unread(client: HostileClient) -> int:
    """Bytes that the server has not taken out of its socket yet (SIOCOUTQ of ours)."""
    import fcntl
    import struct

    return int(struct.unpack("i", fcntl.ioctl(client.socket, 0x5411, b"\0\0\0\0"))[0])
