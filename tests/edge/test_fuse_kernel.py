"""edge/fuse_kernel.py: requests read and answers written, on a socket that plays the kernel and on a real mount."""

import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import struct
import threading
from collections.abc import Callable

import pytest
from harness import need
from harness.waiting import until

from fuse_gated import operations as op
from fuse_gated.edge import fuse_kernel, mounts
from fuse_gated.edge.fuse_kernel import FLAGS, RESENT, KernelDriver, Negotiated
from fuse_gated.edge.fuse_requests import OPCODES
from fuse_gated.edge.notifying import Notifier, write_notice
from fuse_gated.errors import KernelError
from fuse_gated.operations import Attributes, Caller

NUMBERS = {name: number for number, (name, _) in OPCODES.items()} | {"INIT": 26, "NOTIFY_REPLY": 41}
EVERY_FLAG = 2**64 - 1
DEADLINE = 20.0


class Log:
    """What a driver called back."""

    def __init__(self):
        self.requests = []
        self.ready = 0
        self.ended = 0
        self.on_request = lambda unique, caller, request: self.requests.append((unique, caller, request))

    def driver(self, fd, notifier):
        return KernelDriver(fd, notifier, self._request, self._ready, self._ended)

    def _request(self, *request):
        self.on_request(*request)

    def _ready(self):
        self.ready += 1

    def _ended(self):
        self.ended += 1


class Kernel:
    """The other end of a socket pair: sends requests, receives what is written."""

    def __init__(self, sock):
        self.socket = sock

    def send(self, name, body=b"", unique=2, node=1, length=None):
        size = 40 + len(body) if length is None else length
        self.socket.send(struct.pack("=IIQQIIIHH", size, NUMBERS[name], unique, node, 1000, 1001, 4321, 0, 0) + body)

    def init(self, major=7, minor=45, flags=EVERY_FLAG, extended=True):
        body = struct.pack("=IIII", major, minor, 2**20, flags & 0xFFFFFFFF)
        self.send("INIT", body + (struct.pack("=I44x", flags >> 32) if extended else b""))

    def receive(self):
        """(error, unique, body) of what the driver wrote."""
        self.socket.settimeout(DEADLINE)
        packet = self.socket.recv(2**21)
        length, error, unique = struct.unpack_from("=IiQ", packet)
        assert length == len(packet)
        return error, unique, packet[16:]

    def nothing_came(self):
        return not select.select([self.socket], [], [], 0)[0]


@pytest.fixture
def notifier():
    notifier = Notifier()
    yield notifier
    notifier.stop()


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def pair(notifier, log):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield log.driver(ours.fileno(), notifier), Kernel(theirs)


# Init.


def init_out(body):
    names = ("major", "minor", "readahead", "flags", "background", "congestion", "max_write", "granularity", "max_pages",
             "alignment", "flags2")  # fmt: skip
    return dict(zip(names, struct.unpack("=IIIIHHIIHHI28x", body), strict=True))


def test_init_is_answered_with_our_version_and_what_both_can_do(pair, log):
    driver, kernel = pair
    kernel.init()
    driver.ready()
    error, unique, body = kernel.receive()
    assert (error, unique, len(body)) == (0, 2, 64)
    answer = init_out(body)
    assert (answer["major"], answer["minor"], answer["readahead"]) == (7, 45, 2**20)
    assert answer["flags"] | answer["flags2"] << 32 == sum(FLAGS.values())
    assert (answer["max_write"], answer["max_pages"], answer["granularity"]) == (2**20, 2**20 // os.sysconf("SC_PAGE_SIZE"), 1)
    assert 0 < answer["congestion"] <= answer["background"]
    assert driver.negotiated == fuse_kernel.Negotiated(45, sum(FLAGS.values()), 2**20)
    assert (log.ready, log.ended, log.requests) == (1, 0, [])


@pytest.mark.parametrize(("theirs", "settled"), [(31, 31), (38, 38), (99, 45)])
def test_the_older_of_two_minor_versions_holds(pair, theirs, settled):
    driver, kernel = pair
    kernel.init(minor=theirs)
    driver.ready()
    assert init_out(kernel.receive()[2])["minor"] == driver.negotiated.minor == settled


def test_only_what_the_kernel_offers_is_used(pair):
    driver, kernel = pair
    kernel.init(flags=FLAGS["POSIX_LOCKS"] | 1 << 16)
    driver.ready()
    answer = init_out(kernel.receive()[2])
    assert (answer["flags"], answer["flags2"]) == (FLAGS["POSIX_LOCKS"], 0)
    assert answer["max_write"] == min(2**20, 32 * os.sysconf("SC_PAGE_SIZE")), "without MAX_PAGES a request has 32 pages at most"


@pytest.mark.parametrize(
    ("page", "flags", "expected"),
    [
        (4096, EVERY_FLAG, (2**20, 256)),
        (16384, EVERY_FLAG, (2**20, 64)),
        (65536, EVERY_FLAG, (2**20, 16)),
        (4096, 0, (2**17, 32)),
        (16384, 0, (2**19, 32)),
        (65536, 0, (2**20, 16)),
    ],
)
def test_a_request_carries_no_more_where_pages_are_larger(pair, monkeypatch, page, flags, expected):
    monkeypatch.setattr(fuse_kernel, "_PAGE", page)
    driver, kernel = pair
    kernel.init(flags=flags)
    driver.ready()
    answer = init_out(kernel.receive()[2])
    assert (answer["max_write"], answer["max_pages"]) == expected


@pytest.mark.parametrize(
    ("flags", "extended"), [(EVERY_FLAG & ~FLAGS["INIT_EXT"], True), (EVERY_FLAG, False)], ids=["not offered", "not sent"]
)
def test_flags_beyond_thirty_two_are_only_read_where_they_are(pair, flags, extended):
    driver, kernel = pair
    kernel.init(flags=flags, extended=extended)
    driver.ready()
    assert init_out(kernel.receive()[2])["flags2"] == 0


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (6, 45), (8, 45)])
def test_a_kernel_that_is_too_old_is_told_and_so_is_the_operator(pair, log, major, minor):
    driver, kernel = pair
    kernel.init(major, minor)
    with pytest.raises(KernelError, match=rf"speaks FUSE {major}.{minor}, 7.31 is the oldest"):
        driver.ready()
    assert kernel.receive() == (-errno.EPROTO, 2, b"")
    assert (log.ready, driver.negotiated) == (0, None)


# Requests.


def test_a_request_comes_with_its_caller(pair, log):
    driver, kernel = pair
    kernel.send("LOOKUP", b"name\0", unique=2**63 + 8, node=5)
    driver.ready()
    # Sent again it has the number that it had: bit 63 says that it is (FUSE_UNIQUE_RESEND).
    assert log.requests == [(8, Caller(1000, 1001, 4321), op.Lookup(5, b"name"))]


def test_nothing_to_read_is_no_fault(pair, log):
    driver, _ = pair
    driver.ready()
    assert (log.requests, log.ended) == ([], 0)


def test_a_turn_reads_a_bounded_number_of_requests(pair, log):
    driver, kernel = pair
    for number in range(20):
        kernel.send("READLINK", unique=2 * number)
    driver.ready()
    assert [unique for unique, _, _ in log.requests] == [2 * number for number in range(16)]
    driver.ready()
    assert len(log.requests) == 20


@pytest.mark.parametrize(("name", "read"), [("RELEASE", 2), ("RELEASEDIR", 2), ("FLUSH", 1), ("READLINK", 1)])
def test_what_comes_after_a_close_is_read_at_once(pair, log, name, read):
    """Whoever closed it does not wait for the answer, and asks for the next."""
    driver, kernel = pair
    kernel.send(name, bytes(24), unique=2)
    kernel.send("READLINK", unique=4)
    kernel.send("READLINK", unique=6)
    driver.ready(most=1)
    assert [unique for unique, _, _ in log.requests] == [2, 4][:read]


def test_whoever_closes_many_files_does_not_keep_everybody_else_waiting(pair, log):
    driver, kernel = pair
    for number in range(20):
        kernel.send("RELEASE", bytes(24), unique=2 * number)
    driver.ready(most=1)
    assert len(log.requests) == 16


def test_a_reply_to_a_notification_is_no_request(pair, log):
    driver, kernel = pair
    kernel.send("NOTIFY_REPLY", bytes(40))
    kernel.send("STATFS")
    driver.ready()
    assert [request for _, _, request in log.requests] == [op.Statfs(1)]


def test_a_destroyed_mount_has_ended(pair, log):
    driver, kernel = pair
    kernel.send("DESTROY")
    kernel.send("STATFS")
    driver.ready()
    assert [request for _, _, request in log.requests] == [op.Destroy()]
    assert log.ended == 1


@pytest.mark.parametrize("length", [39, 41, 2**31])
def test_a_request_whose_length_is_wrong_is_a_fault_of_the_kernel(pair, length):
    driver, kernel = pair
    kernel.send("STATFS", length=length)
    with pytest.raises(KernelError, match=f"40 bytes for a request of {length}"):
        driver.ready()


def test_less_than_a_header_is_a_fault_of_the_kernel(pair):
    driver, kernel = pair
    kernel.socket.send(struct.pack("=I", 4))
    with pytest.raises(KernelError, match="4 bytes"):
        driver.ready()


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EINTR])
def test_a_request_that_was_interrupted_while_it_was_read_is_passed_over(pair, log, monkeypatch, number):
    driver, kernel = pair
    kernel.send("STATFS")
    faults = [OSError(number, "")]
    readv = os.readv

    def interrupted(fd, buffers):
        if faults:
            raise faults.pop()
        return readv(fd, buffers)

    monkeypatch.setattr(os, "readv", interrupted)
    driver.ready()
    assert (len(log.requests), log.ended) == (1, 0)


def test_a_descriptor_that_is_of_no_use_has_ended_and_says_so_once(log, notifier):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    driver = log.driver(ours.fileno(), notifier)
    ours.close()
    theirs.close()
    driver.ready()
    driver.ready()
    assert log.ended == 1
    driver.answer(2, op.Done())
    driver.invalidate_inode(5, pages=False)


# Answers and notifications.


def test_an_answer_is_written_whole(pair):
    driver, kernel = pair
    driver.answer(6, op.Data(b"hello"))
    assert kernel.receive() == (0, 6, b"hello")
    driver.answer(8, op.Failed(errno.EACCES))
    assert kernel.receive() == (-errno.EACCES, 8, b"")


def test_attributes_are_forgotten_at_once_because_an_answer_follows(pair):
    driver, kernel = pair
    driver.invalidate_inode(9, pages=False)
    assert not kernel.nothing_came()
    assert kernel.receive() == (2, 0, struct.pack("=Qqq", 9, -1, 0))


def test_pages_and_names_are_forgotten_by_a_thread_of_their_own(pair):
    driver, kernel = pair
    driver.invalidate_inode(9, pages=True)
    assert kernel.receive() == (2, 0, struct.pack("=Qqq", 9, 0, 0))
    driver.invalidate_entry(9, b"name")
    assert kernel.receive() == (3, 0, struct.pack("=QII", 9, 4, 0) + b"name\0")


def test_pages_that_are_awaited_are_forgotten_before_what_follows(pair):
    driver, kernel = pair
    for number in range(1, 20):
        driver.invalidate_inode(number, pages=True, awaited=True)
        driver.answer(2 * number, op.Done())
        assert kernel.receive() == (2, 0, struct.pack("=Qqq", number, 0, 0))
        assert kernel.receive() == (0, 2 * number, b"")


def test_what_holds_the_notifier_up_holds_up_no_answer(notifier, log):
    reader, writer = os.pipe()
    # More than a pipe takes: the thread waits in the kernel, as it does for a page that somebody holds.
    notifier.put(writer, bytes(2**17))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        driver = log.driver(ours.fileno(), notifier)
        driver.invalidate_inode(9, pages=True, awaited=True)
        driver.answer(6, op.Done())
        assert struct.unpack_from("=IiQ", theirs.recv(100))[1:] == (0, 6)
        missing = 2**17
        while missing:
            missing -= len(os.read(reader, missing))
        assert struct.unpack_from("=IiQ", theirs.recv(100))[1:] == (2, 0)
    notifier.stop()
    os.close(reader)
    os.close(writer)


def test_an_answer_in_order_comes_behind_what_is_forgotten(pair):
    driver, kernel = pair
    driver.resent.update(range(2, 60, 4))
    for number in range(1, 20):
        driver.invalidate_inode(number, pages=True)
        driver.invalidate_entry(number, b"n")
        hurry = driver.answer_in_order(2 * number, op.Done())
        assert kernel.receive()[:2] == (2, 0)
        assert kernel.receive()[:2] == (3, 0)
        assert kernel.receive() == (0, 2 * number | (RESENT if number % 2 else 0), b"")
        if hurry is not None:
            hurry()
    assert kernel.nothing_came()
    assert driver.resent.isdisjoint(range(2, 40))


def test_where_nothing_is_to_be_forgotten_it_comes_at_once(pair):
    driver, kernel = pair
    assert driver.answer_in_order(6, op.Done()) is None
    assert kernel.receive() == (0, 6, b"")


def test_where_the_kernel_sends_nothing_again_it_waits_only_a_moment(pair, notifier):
    driver, kernel = pair
    driver.negotiated = Negotiated(31, 0, 4096)
    reader, writer = os.pipe()
    notifier.put(writer, bytes(2**17))
    assert driver.answer_in_order(6, op.Done()) is None
    assert kernel.receive() == (0, 6, b"")
    missing = 2**17
    while missing:
        missing -= len(os.read(reader, missing))
    until(lambda: notifier.idle, "all is written")
    os.close(reader)
    os.close(writer)


def test_the_notifier_writes_in_order_and_ends_when_it_is_stopped():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        notifier = Notifier()
        for number in range(50):
            notifier.put(ours.fileno(), b"%d" % number)
        assert [theirs.recv(100) for _ in range(50)] == [b"%d" % number for number in range(50)]
        notifier.stop()
        assert not any(thread.name == "notify" and thread is notifier._thread for thread in threading.enumerate())


def test_a_notice_that_nobody_takes_is_no_fault():
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    write_notice(writer, b"notice")


# A real mount.


def attributes(inode, mode, size=0, nlink=1):
    return Attributes(7, inode, mode, nlink, 0, 0, 0, size, 0, 4096, 10**9, 2 * 10**9, 3 * 10**9)


ROOT = attributes(1, stat.S_IFDIR | 0o755, nlink=2)
FILES = {
    b"f": (2, attributes(2, stat.S_IFREG | 0o644, 5)),
    b"l": (3, attributes(3, stat.S_IFLNK | 0o777, 1)),
    b"d": (4, attributes(4, stat.S_IFDIR | 0o755, nlink=2)),
}
BY_NODE = {1: ROOT, **dict(FILES.values())}


class Responder:
    """Answers a real mount from a thread: every request by its kind, unless the test has put another answer in its place."""

    def __init__(self, fd, point, notifier):
        self.fd = fd
        self.point = point
        self.seen = []
        self.came = threading.Condition()
        self.log = Log()
        self.log.on_request = self.request
        self.driver = self.log.driver(fd, notifier)
        self.answers: dict[type, Callable] = {}
        self.stop, self._stopped = os.pipe()
        self.thread = threading.Thread(target=self._run)
        self.fault = None

    def _run(self):
        try:
            while not self.log.ended:
                ready, _, _ = select.select([self.fd, self.stop], [], [], DEADLINE)
                if self.stop in ready:
                    return
                assert ready, "the kernel asked nothing for long"
                self.driver.ready()
        except BaseException as fault:
            # Whoever waits for an answer would do so for ever, and no signal ends that.
            self.fault = fault
            mounts.unmount(str(self.point))

    def finish(self):
        os.write(self._stopped, b"x")
        self.thread.join(DEADLINE)
        os.close(self.stop)
        os.close(self._stopped)
        assert not self.thread.is_alive()
        if self.fault is not None:
            raise self.fault

    def request(self, unique, caller, request):
        with self.came:
            self.seen.append((caller, request))
            self.came.notify_all()
        answer = self.answers.get(type(request), self._default)(request)
        if answer is not None:
            self.driver.answer(unique, answer)

    def _default(self, request):
        match request:
            case op.Lookup(1, name) if name in FILES:
                node, found = FILES[name]
                return op.Entry(node, found)
            case op.Lookup():
                return op.Failed(errno.ENOENT)
            case op.Getattr(node) | op.Setattr(node):
                return op.Attr(BY_NODE.get(node) or attributes(node, stat.S_IFREG | 0o644))
            case op.Readlink():
                return op.Data(b"f")
            case op.Symlink() | op.Mknod() | op.Mkdir():
                kind = {op.Symlink: stat.S_IFLNK, op.Mkdir: stat.S_IFDIR}.get(type(request), stat.S_IFIFO)
                return op.Entry(kind, attributes(kind, kind | 0o644))
            case op.Link(node):
                return op.Entry(70, BY_NODE[node])
            case op.Open() | op.Opendir():
                return op.Opened(40)
            case op.Create():
                return op.Created(op.Entry(60, attributes(60, stat.S_IFREG | 0o644)), op.Opened(41))
            case op.Read(offset=offset, size=size):
                return op.Data(b"hello"[offset : offset + size])
            case op.Write(data=data):
                return op.Count(len(data))
            case op.CopyFileRange(length=length):
                return op.Count(length)
            case op.Readdir(plus=plus, offset=offset):
                return self._listing(plus, offset)
            case op.Statfs():
                return op.Filesystem(1000, 500, 400, 100, 50, 4096, 255, 4096)
            case op.Getxattr(size=size) | op.Listxattr(size=size):
                return op.Data(b"user.a\0") if size else op.XattrSize(7)
            case op.Lseek(offset=offset):
                return op.Position(offset + 1)
            case op.Getlk():
                return op.Lock(5, 9, 1, 0)
            case op.Forget() | op.Interrupt() | op.Destroy():
                return None
            case op.Unserved(errno=name):
                return op.Failed(getattr(errno, name))
        return op.Done()

    def wait_for(self, kind):
        """The first request of a kind; some come after the system call that they belong to."""
        with self.came:
            assert self.came.wait_for(lambda: self.of(kind), DEADLINE)
        return self.of(kind)[0]

    def _listing(self, plus, offset):
        names = [(b".", 1, ROOT, False), (b"..", 1, ROOT, False), *((name, node, a, True) for name, (node, a) in FILES.items())]
        entries = (
            op.DirectoryEntry(name, node, at + 1, a.mode & 0o170000, op.Entry(node, a) if plus and known else None)
            for at, (name, node, a, known) in enumerate(names)
        )
        return op.Listing(tuple(entry for entry in entries if entry.offset > offset), plus)

    def of(self, kind):
        return [request for _, request in self.seen if type(request) is kind]


@pytest.fixture
def mounted(tmp_path, notifier):
    """A real mount with a responder: (its path, the responder)."""
    need("root", "fuse")
    point = tmp_path / "point"
    point.mkdir()
    directory = os.open(point, os.O_PATH | os.O_DIRECTORY)
    fd = mounts.mount_fuse(directory, source="fuse-gated-test")
    os.close(directory)
    responder = Responder(fd, point, notifier)
    responder.thread.start()
    yield point, responder
    with contextlib.suppress(KernelError):
        mounts.unmount(str(point))
    responder.finish()
    os.close(fd)
    assert mounts.mounts_beneath(str(tmp_path)) == []


def test_a_mount_is_negotiated_with_the_running_kernel(mounted):
    point, responder = mounted
    assert os.stat(point).st_ino == 1
    settled = responder.driver.negotiated
    assert settled.minor >= fuse_kernel.OLDEST_MINOR
    for name in ("MAX_PAGES", "POSIX_LOCKS", "FLOCK_LOCKS", "DO_READDIRPLUS", "ATOMIC_O_TRUNC", "AUTO_INVAL_DATA"):
        assert settled.flags & FLAGS[name], name
    assert settled.max_write == 2**20
    assert responder.log.ready == 1


def test_attributes_arrive_as_they_were_answered(mounted):
    point, responder = mounted
    found = os.stat(point / "f")
    assert (found.st_ino, found.st_mode, found.st_size, found.st_nlink) == (2, stat.S_IFREG | 0o644, 5, 1)
    assert (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns) == (10**9, 2 * 10**9, 3 * 10**9)
    caller, request = responder.seen[-1]
    assert (caller.uid, caller.gid) == (os.geteuid(), os.getegid())
    assert caller.pid > 0
    assert type(request) in (op.Lookup, op.Getattr)


def test_changes_of_attributes_arrive(mounted):
    point, responder = mounted
    os.chmod(point / "f", 0o600)
    os.chown(point / "f", 1000, 1001)
    os.utime(point / "f", ns=(-1_500_000_000, 5 * 10**9))
    os.utime(point / "f")
    os.truncate(point / "f", 2**40)
    # The kernel also sets setuid, setgid and what it is already sure of: what was asked for is in there.
    asked = responder.of(op.Setattr)
    assert asked[0].mode == 0o600
    assert (asked[1].uid, asked[1].gid) == (1000, 1001)
    assert (asked[2].atime, asked[2].mtime) == (-1_500_000_000, 5 * 10**9)
    assert (asked[3].atime, asked[3].mtime) == (op.NOW, op.NOW)
    assert asked[4].size == 2**40
    assert {request.node for request in asked} == {2}


def test_names_arrive_byte_by_byte(mounted):
    point, responder = mounted
    os.symlink(b"../\xff target", bytes(point) + b"/\xfe name")
    os.mkdir(point / "new", 0o750)
    os.mknod(point / "fifo", stat.S_IFIFO | 0o640)
    os.link(point / "f", point / "second")
    os.unlink(point / "f")
    os.rmdir(point / "d")
    assert responder.of(op.Symlink) == [op.Symlink(1, b"\xfe name", b"../\xff target")]
    (made,), (special,) = responder.of(op.Mkdir), responder.of(op.Mknod)
    assert (made.parent, made.name, made.mode & ~made.umask) == (1, b"new", 0o750 & ~made.umask)
    assert (special.name, stat.S_ISFIFO(special.mode), special.rdev) == (b"fifo", True, 0)
    assert responder.of(op.Link) == [op.Link(2, 1, b"second")]
    assert responder.of(op.Unlink) == [op.Unlink(1, b"f")]
    assert responder.of(op.Rmdir) == [op.Rmdir(1, b"d")]


def test_renames_arrive_with_their_flags(mounted):
    point, responder = mounted
    os.rename(point / "f", point / "d" / "g")
    assert responder.of(op.Rename) == [op.Rename(1, b"f", 4, b"g", 0)]


def test_a_file_is_read_written_and_closed(mounted):
    point, responder = mounted
    with open(point / "f", "r+b", buffering=0) as file:
        assert file.read(100) == b"hello"
        assert file.write(b"world!") == 6
        os.fdatasync(file)
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 1
        os.posix_fallocate(file.fileno(), 0, 10)
    (opened,) = responder.of(op.Open)
    assert (opened.node, opened.flags & os.O_ACCMODE) == (2, os.O_RDWR)
    (written,) = responder.of(op.Write)
    assert (written.node, written.handle, written.from_cache) == (2, 40, False)
    assert responder.of(op.Fsync) == [op.Fsync(2, 40, True)]
    assert responder.of(op.Lseek) == [op.Lseek(2, 40, 0, 3)]
    assert responder.of(op.Fallocate) == [op.Fallocate(2, 40, 0, 10, 0)]
    assert [request.handle for request in responder.of(op.Flush)] == [40]


def test_a_close_is_told_only_where_the_kernel_was_not_told_to_leave_that_out(mounted):
    point, responder = mounted
    os.stat(point / "f")
    if responder.driver.negotiated.minor < 35:
        pytest.skip("FOPEN_NOFLUSH is of Linux 5.16")
    responder.answers[op.Open] = lambda request: op.Opened(40, no_flush=request.flags & os.O_ACCMODE == os.O_RDONLY)
    with open(point / "f", "rb", buffering=0) as quiet, open(point / "f", "r+b", buffering=0) as other:
        fcntl.lockf(quiet, fcntl.LOCK_SH)
        assert (quiet.read(5), other.read(5)) == (b"hello", b"hello")
        quiet.close()
        assert responder.wait_for(op.Release).handle == 40
        # Nor is the lock given up by another request: it is ours to give it up.
        assert (len(responder.of(op.Flush)), len(responder.of(op.Setlk))) == (0, 1)
    assert len(responder.of(op.Flush)) == 1


def test_a_file_is_made(mounted):
    point, responder = mounted
    os.close(os.open(point / "new", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o640))
    (created,) = responder.of(op.Create)
    assert (created.parent, created.name, created.flags & os.O_EXCL) == (1, b"new", os.O_EXCL)
    assert created.mode & ~created.umask & 0o7777 == 0o640 & ~created.umask


def test_a_megabyte_arrives_in_one_request(mounted):
    point, responder = mounted
    data = os.urandom(2**20)
    received = []
    responder.answers[op.Write] = lambda request: received.append(bytes(request.data)) or op.Count(len(request.data))
    fd = os.open(point / "f", os.O_WRONLY)
    assert os.write(fd, data) == len(data)
    os.close(fd)
    assert b"".join(received) == data
    assert max(map(len, received)) == 2**20


@pytest.mark.parametrize("plus", [False, True])
def test_a_directory_is_listed(mounted, plus):
    point, responder = mounted
    if not plus:
        # The kernel goes back to plain listings where nobody looks at what they carry.
        responder.answers[op.Readdir] = lambda request: responder._listing(request.plus, request.offset)
    assert sorted(os.listdir(point)) == ["d", "f", "l"]
    assert {(e.name, e.inode(), e.is_dir(follow_symlinks=False)) for e in os.scandir(point)} == {
        ("d", 4, True), ("f", 2, False), ("l", 3, False),
    }  # fmt: skip
    asked = responder.of(op.Readdir)
    assert {request.offset for request in asked} == {0, 5}
    assert all(request.handle == 40 and request.size >= 4096 for request in asked)


def test_links_extended_attributes_and_the_size_of_the_filesystem(mounted):
    point, responder = mounted
    assert os.readlink(point / "l") == "f"
    assert os.getxattr(point / "f", "user.a") == b"user.a\0"
    assert os.listxattr(point / "f") == ["user.a"]
    os.setxattr(point / "f", "user.b", b"value\0more", os.XATTR_CREATE)
    os.removexattr(point / "f", "user.b")
    found = os.statvfs(point)
    assert (found.f_blocks, found.f_bavail, found.f_frsize, found.f_namemax) == (1000, 400, 4096, 255)
    assert responder.of(op.Setxattr) == [op.Setxattr(2, b"user.b", b"value\0more", os.XATTR_CREATE)]
    assert responder.of(op.Removexattr) == [op.Removexattr(2, b"user.b")]
    assert not os.access(point / "missing", os.R_OK)
    assert os.access(point / "f", os.R_OK | os.X_OK)
    assert op.Access(2, 5) in responder.of(op.Access)


def test_locks_arrive_with_their_ranges(mounted):
    point, responder = mounted
    with open(point / "f", "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
        fcntl.lockf(file, fcntl.LOCK_SH)
        fcntl.flock(file, fcntl.LOCK_EX)
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        found = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, lock))
    taken = responder.of(op.Setlk)
    assert [(t.start, t.end, t.type, t.wait, t.flock) for t in taken[:3]] == [
        (5, 14, 1, False, False), (0, 2**63 - 1, 0, True, False), (0, 2**63 - 1, 1, True, True),
    ]  # fmt: skip
    assert found == (fcntl.F_WRLCK, os.SEEK_SET, 5, 5, 0)
    assert responder.wait_for(op.Release).flock_owner is not None


def test_a_range_is_copied(mounted):
    point, responder = mounted
    source, target = os.open(point / "f", os.O_RDONLY), os.open(point / "new", os.O_CREAT | os.O_WRONLY)
    assert os.copy_file_range(source, target, 3, 1, 2) == 3
    os.close(source)
    os.close(target)
    assert responder.of(op.CopyFileRange) == [op.CopyFileRange(2, 40, 1, 60, 41, 2, 3)]


def test_an_opcode_that_is_not_served_is_answered(mounted):
    point, _ = mounted
    fd = os.open(point / "f", os.O_RDONLY)
    with pytest.raises(OSError, match="Inappropriate ioctl") as caught:
        fcntl.ioctl(fd, 0x5401)
    os.close(fd)
    assert caught.value.errno == errno.ENOTTY
    assert os.stat(point / "f").st_size == 5


def test_an_answer_that_the_kernel_refuses_still_ends_its_caller(mounted):
    point, responder = mounted
    responder.answers[op.Read] = lambda request: op.Data(bytes(request.size + 1))
    fd = os.open(point / "f", os.O_RDONLY | os.O_DIRECT)
    with pytest.raises(OSError, match="Input/output error"):
        os.read(fd, 4096)
    os.close(fd)


def test_an_answer_to_what_was_never_asked_is_no_fault(mounted):
    point, responder = mounted
    os.stat(point)
    responder.driver.answer(2**62, op.Done())
    assert os.stat(point / "f").st_size == 5


def test_a_signal_interrupts_a_request(mounted):
    point, responder = mounted
    interrupted = threading.Event()

    def end(request):
        unique = request.unique
        responder.driver.answer(unique, op.Failed(errno.EINTR))
        interrupted.set()

    responder.answers[op.Readlink] = lambda _: None
    responder.answers[op.Interrupt] = end
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.readlink(point / "l")
        os._exit(0)
    responder.wait_for(op.Readlink)
    os.kill(child, 15)
    assert interrupted.wait(DEADLINE)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -15


def test_what_the_kernel_is_told_to_forget_it_asks_for_again(mounted):
    point, responder = mounted
    responder.answers[op.Lookup] = lambda request: op.Entry(*FILES[request.name], 3600.0, 3600.0)
    os.stat(point / "f")
    os.stat(point / "f")
    assert len(responder.of(op.Lookup)) == 1, "it remembers"
    responder.driver.invalidate_inode(2, pages=False)
    os.stat(point / "f")
    assert len(responder.of(op.Getattr)) >= 1
    assert len(responder.of(op.Lookup)) == 1
    responder.driver.invalidate_entry(1, b"f")
    while len(responder.of(op.Lookup)) == 1:
        os.stat(point / "f")


def test_an_unmounted_mount_has_ended(mounted):
    point, responder = mounted
    os.stat(point)
    assert mounts.unmount(str(point))
    responder.thread.join(DEADLINE)
    assert responder.log.ended == 1
    responder.driver.answer(2, op.Done())


def test_a_notice_that_waits_already_is_not_kept_twice():
    reader, writer = os.pipe2(os.O_CLOEXEC)
    notifier = Notifier()
    try:
        size = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
        os.write(writer, bytes(size))
        # The thread now waits in its first write; what comes meanwhile is one notice more, however often it is said.
        for _ in range(1000):
            notifier.put(writer, b"same")
        notifier.put(writer, b"last")
        told = b""
        while not told.endswith(b"last"):
            told += os.read(reader, 65536)
        assert told[size:].count(b"same") <= 2
    finally:
        notifier.stop()
        os.close(reader)
        os.close(writer)
